"""The language models: loading, drafting, verifying. The only room that knows transformers."""

from multispin.models.drafter import ModelDrafter, check_drafter, load_drafter
from multispin.models.loading import EMBEDDED, Tokenizer, known_positions, load_model, load_tokenizer, resolve
from multispin.models.quantised import round_weights
from multispin.models.reference import decode_alone, decode_together
from multispin.models.verifier import Verifier

__all__ = [
    "EMBEDDED",
    "ModelDrafter",
    "Tokenizer",
    "Verifier",
    "check_drafter",
    "decode_alone",
    "decode_together",
    "known_positions",
    "load_drafter",
    "load_model",
    "load_tokenizer",
    "resolve",
    "round_weights",
]
