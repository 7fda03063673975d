"""The language models: loading, drafting, verifying. Only this room imports transformers.

Importing this room is quick: each module is loaded when one of its names is first used, so that `--help` and error
messages do not wait for torch and transformers.
"""

from typing import TYPE_CHECKING

from multispin.lazily import lazily

if TYPE_CHECKING:
    from multispin.models.batch_drafter import ModelBatchDrafter
    from multispin.models.cached import CachedModel
    from multispin.models.draft_source import DraftSource, load_draft_source, load_drafter
    from multispin.models.drafter import ModelDrafter
    from multispin.models.drafter_name import DrafterKind, DrafterName, check_drafter_name
    from multispin.models.grammar import TextGrammars, load_grammars
    from multispin.models.loading import known_positions, load_model, resolve
    from multispin.models.packable import PackedModel
    from multispin.models.quantised import round_weights
    from multispin.models.reference import decode_alone, decode_together
    from multispin.models.references import EMBEDDED
    from multispin.models.tokenizer import Tokenizer, load_tokenizer
    from multispin.models.verifier import Verifier, load_verifier
    from multispin.speculation import Feed

__all__ = [
    "EMBEDDED",
    "CachedModel",
    "DraftSource",
    "DrafterKind",
    "DrafterName",
    "Feed",
    "ModelBatchDrafter",
    "ModelDrafter",
    "PackedModel",
    "TextGrammars",
    "Tokenizer",
    "Verifier",
    "check_drafter_name",
    "decode_alone",
    "decode_together",
    "known_positions",
    "load_draft_source",
    "load_drafter",
    "load_grammars",
    "load_model",
    "load_tokenizer",
    "load_verifier",
    "resolve",
    "round_weights",
]

__getattr__ = lazily(
    __name__,
    {
        "cached": ("CachedModel",),
        "draft_source": ("DraftSource", "load_draft_source", "load_drafter"),
        "drafter": ("ModelDrafter",),
        "drafter_name": ("DrafterKind", "DrafterName", "check_drafter_name"),
        "batch_drafter": ("ModelBatchDrafter",),
        "grammar": ("TextGrammars", "load_grammars"),
        "loading": ("known_positions", "load_model", "resolve"),
        "packable": ("PackedModel",),
        "quantised": ("round_weights",),
        "reference": ("decode_alone", "decode_together"),
        "references": ("EMBEDDED",),
        "tokenizer": ("Tokenizer", "load_tokenizer"),
        "verifier": ("Feed", "Verifier", "load_verifier"),
    },
)
