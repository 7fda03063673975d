"""Which fields of a model's configuration are the reason why it cannot be loaded, found by trying others.

Neither transformers' errors nor a weight of another shape say so. Models are made for it without memory for weights.
"""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from multispin.models.families import COMMON, FAMILIES
from multispin.models.references import MAX_PARTS

LONGEST_S = 60.0
"""Time after which no further field is tried [s]; a model of 80 layers takes 1.5 s to make."""


def shaping_fields(config: Any, weights: Collection[str], shape: bool = False) -> list[str]:
    """Fields on which it depends whether a model has the first of some weights.

    Args:
        config: configuration of the model.
        weights: names of weights, as the model calls them or would.
        shape: whether the shape of that weight is in question, too; default False.

    """
    text = config.get_text_config()
    weight = min(weights)
    usual, begun_s = _shape(config, weight), time.monotonic()
    found: list[str] = []
    known = sorted(COMMON | FAMILIES.get(text.model_type, frozenset()))
    for holder, name in [(text, name) for name in known] + [(config, "tie_word_embeddings")]:
        value = getattr(holder, name, None)
        for other in _others(value):
            if time.monotonic() - begun_s > LONGEST_S:
                return found
            try:
                setattr(holder, name, other)
                made = _shape(config, weight)
            except Exception:  # another field does not go with this value
                continue
            finally:
                setattr(holder, name, value)
            if (made is None) is not (usual is None) or (shape and made != usual):
                found += [name] if name not in found else []
                break
    return found


def failing_fields(folder: Path) -> list[str]:
    """Fields of a folder's `config.json` without each of which its configuration and its empty model can be made."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())
        if not isinstance(settings, dict) or _works(settings):
            return []
    except (OSError, ValueError, RecursionError):
        return []
    begun_s = time.monotonic()
    return [
        name
        for name in settings
        if time.monotonic() - begun_s < LONGEST_S and _works({key: settings[key] for key in settings if key != name})
    ]


def in_brackets(fields: Collection[str]) -> str:
    """The fields in brackets, to stand in a sentence behind "its configuration"; nothing if there is none."""
    return f" ({', '.join(fields)})" if fields else ""


def _shape(config: Any, weight: str) -> tuple[int, ...] | None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = dict(model.named_parameters()).get(weight)  # a head that is the embedding has no name of its own
    return None if found is None else tuple(found.shape)


def _works(settings: Mapping[str, Any]) -> bool:
    try:
        config = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception:  # whatever transformers raises for a value
        return False
    return True


def _others(value: Any) -> list[Any]:
    """Other values of a field that a model could have."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value // 2]
    return [[] if value else list(range(MAX_PARTS))] if isinstance(value, list) else []
