"""The language models: loading, drafting, verifying. The only room that knows transformers.

Importing this room is quick: each of its modules is loaded when one of its names is first used, so that `--help` and
refusals do not wait for torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "drafter": ("ModelDrafter", "check_drafter", "load_drafter"),
    "loading": ("EMBEDDED", "Tokenizer", "known_positions", "load_model", "load_tokenizer", "resolve"),
    "quantised": ("round_weights",),
    "reference": ("decode_alone", "decode_together"),
    "verifier": ("Verifier",),
}
"""Which module defines each name (PEP 562)."""


def __getattr__(name: str) -> object:
    """Load the module that defines `name`."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
