"""The card of a distilled drafter, and the names in its files: read without torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from multispin.checks import shown
from multispin.errors import InputError
from multispin.models.drafter_name import CARD_FILE
from multispin.outside import check_keys, read_file

DRAFTER_WEIGHTS_FILE = "weights.safetensors"
FORMAT = "multispin-drafter-1"
STORAGES = ("int8", "bfloat16")
VOCABULARY = "vocabulary"
"""Name of the tensor of the ids that the head can draft."""
SCALE = ".row_scale"
"""End of the name of the tensor with a scale for each row of an int8 matrix."""
HASHED_ROWS = 256
"""First and last rows of the target's embeddings that its fingerprint is made of."""


@dataclass(frozen=True)
class DrafterCard:
    """How a distilled drafter was made, and its measured acceptance.

    Attributes:
        target: reference of the target that it was made from.
        fingerprint: fingerprint of the target's embeddings, see `fingerprint_of`.
        layers: indices of the target's layers that it began as.
        frozen: number of first layers that are still the target's own, and read from it.
        vocabulary: number of token ids that its head can draft.
        storage: "int8" or "bfloat16".
        made: how it was made: command, data, seed, steps, hardware, time.
        results: acceptance measured on held-out prompts.
        format: version of the folder's layout.

    """

    target: str
    fingerprint: str
    layers: tuple[int, ...]
    vocabulary: int
    storage: str
    frozen: int = 0
    made: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT


def read_card(folder: Path) -> DrafterCard:
    """The card of a drafter's folder; InputError if there is none that this version reads."""
    try:
        text = read_file(folder / CARD_FILE)
        check_keys(text)
        card = msgspec.json.decode(text, type=DrafterCard)
    except (InputError, msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{folder} holds no drafter that can be read: {error}") from None
    if card.format != FORMAT or card.storage not in STORAGES:
        raise InputError(f"{folder} holds a drafter of format {card.format!r} in {card.storage!r}, not {FORMAT!r}")
    check_order(card.layers, card.frozen)
    return card


def check_order(layers: Sequence[int], frozen: int) -> None:
    """InputError unless these are ascending indices of layers, and the frozen ones the first of their target."""
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise InputError(f"layers {shown(list(layers))} are not ascending indices of a target's layers")
    if not 0 <= frozen < len(layers) or list(layers[:frozen]) != list(range(frozen)):
        raise InputError(
            f"{frozen} of the layers {shown(list(layers))} cannot be frozen: they must be the target's first ones"
        )


def fingerprint_of(rows: bytes) -> str:
    """Short hash of a target's embeddings, by which a drafter recognises its target.

    Args:
        rows: the first and last `HASHED_ROWS` rows in bfloat16, row by row.

    """
    return hashlib.sha256(rows).hexdigest()[:16]
