"""A distilled drafter on disk: the few layers that differ from the target. Everything else is read from the target.

Its folder has `drafter.json` (how it was made, and its measured acceptance) and `weights.safetensors`. Weight matrices
are stored as int8 with one scale per row, or as bfloat16; norms as float32. A drafter stored as int8 also computes in
int8, shared layers and head included, which halves the bytes to read per token. The head may cover only a part of the
vocabulary: other tokens are never drafted, which costs acceptance and nothing else.
"""

import copy
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.drafter_card import (
    DRAFTER_WEIGHTS_FILE,
    HASHED_ROWS,
    SCALE,
    VOCABULARY,
    DrafterCard,
    check_order,
    fingerprint_of,
    read_card,
)
from multispin.models.drafter_name import CARD_FILE
from multispin.models.quantised import round_weights
from multispin.models.references import check_readable, writing

STORED = (torch.int8, torch.bfloat16, torch.float32)


class ReducedHead(nn.Module):
    """A head over some of the vocabulary; the logits of all other ids are −inf.

    Args:
        weight: [V', H], rows of the target's head.
        ids: [V'], the token id of each row, ascending.
        vocabulary_size: number of ids of the target, V.

    """

    ids: torch.Tensor

    def __init__(self, weight: torch.Tensor, ids: torch.Tensor, vocabulary_size: int) -> None:
        super().__init__()
        self.rows = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
        self.rows.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("ids", ids.to(weight.device))
        self.vocabulary_size = vocabulary_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[…, H] to [..., V]."""
        few: torch.Tensor = self.rows(hidden)
        logits = few.new_full((*few.shape[:-1], self.vocabulary_size), -torch.inf)
        logits.index_copy_(-1, self.ids, few)
        return logits


def fingerprint(model: PreTrainedModel) -> str:
    """Short hash of the first and last rows of the target's embeddings, by which a drafter knows its target."""
    table = model.get_input_embeddings().weight.detach()
    rows = torch.cat([table[:HASHED_ROWS], table[-HASHED_ROWS:]]).to(torch.bfloat16).cpu().contiguous()
    return fingerprint_of(rows.view(torch.int16).numpy().tobytes())


def check_layers(model: PreTrainedModel, layers: tuple[int, ...], frozen: int) -> None:
    """InputError if these layers cannot be taken out of this model, or the frozen ones are not its first ones."""
    body = getattr(model, "model", None)
    if not isinstance(getattr(body, "layers", None), nn.ModuleList) or not hasattr(body, "norm"):
        raise InputError(
            f"cannot take layers out of a {type(model).__name__}: only Llama- and Qwen-like models are known"
        )
    total = int(model.config.get_text_config().num_hidden_layers)
    check_order(layers, frozen)
    if layers[-1] >= total:
        raise InputError(f"layers {list(layers)} are not ascending indices of the target's {total} layers")


def carve(
    model: PreTrainedModel, layers: tuple[int, ...], ids: torch.Tensor | None = None, frozen: int = 0
) -> PreTrainedModel:
    """A student: copies of some layers and of the last norm, the target's own embeddings, a head over `ids`.

    Args:
        model: the target, of the Llama or Qwen family.
        layers: indices of its layers, ascending.
        ids: [V'] ascending token ids of the head; default None: all.
        frozen: this many of the layers, the first ones, share their weights with the target; default 0.

    """
    check_layers(model, layers, frozen)
    body: Any = model.model
    kept, head = body.layers, model.get_output_embeddings()
    try:  # everything but the layers that are copied is shared, so those must be out of the way of deepcopy
        body.layers = nn.ModuleList()
        model.set_output_embeddings(nn.Identity())
        memo = {id(parameter): parameter for parameter in body.embed_tokens.parameters()}
        student: PreTrainedModel = copy.deepcopy(model, memo)
    finally:
        body.layers = kept
        model.set_output_embeddings(head)
    shared = {id(parameter): parameter for layer in kept[:frozen] for parameter in layer.parameters()}
    student.model.layers = nn.ModuleList(copy.deepcopy(kept[index], dict(shared)) for index in layers)
    config = student.config.get_text_config()
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [model.config.get_text_config().layer_types[index] for index in layers]
    for new, layer in enumerate(student.model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = new
            if hasattr(module, "config"):  # a copy of its own would not hear which attention the model is to use
                module.config = config
    vocabulary_size = int(config.vocab_size)
    if ids is None:
        student.set_output_embeddings(head)
    else:
        weight = head.weight.detach()[ids]
        student.lm_head = ReducedHead(weight, ids, vocabulary_size)
        config.tie_word_embeddings = student.config.tie_word_embeddings = False
    return student.eval()


def learned_parameters(student: PreTrainedModel, frozen: int = 0) -> dict[str, nn.Parameter]:
    """The student's own parameters by name: its layers but the frozen ones, and the last norm."""
    own: tuple[str, ...] = ("model.norm.", *(f"model.layers.{k}." for k in range(frozen, len(student.model.layers))))
    return {name: parameter for name, parameter in student.named_parameters() if name.startswith(own)}


def save_drafter(student: PreTrainedModel, card: DrafterCard, folder: Path) -> None:
    """Write what differs from the target, and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in learned_parameters(student, card.frozen).items():
        value = parameter.detach().float().cpu()
        if value.ndim != 2:
            tensors[name] = value.contiguous()
        elif card.storage == "int8":
            scale = value.abs().amax(1).clamp(min=1e-12) / 127.0
            tensors[name] = (value / scale[:, None]).round().to(torch.int8)
            tensors[name + SCALE] = scale
        else:
            tensors[name] = value.to(torch.bfloat16)
    if isinstance(student.lm_head, ReducedHead):
        tensors[VOCABULARY] = student.lm_head.ids.to(torch.int32).cpu()
    # The card comes last: a folder without one is no drafter yet.
    card_part, weights_part = (folder / f"{name}.part" for name in (CARD_FILE, DRAFTER_WEIGHTS_FILE))
    with writing(folder):
        save_file(tensors, weights_part)
        card_part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
        weights_part.replace(folder / DRAFTER_WEIGHTS_FILE)
        card_part.replace(folder / CARD_FILE)


def load_for_drafting(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """`load_student` in the number type for drafting: int8 if it was stored so, else bfloat16.

    On a GPU it always computes in bfloat16. On a target in bfloat16 the int8 numbers are the stored ones, except that
    a few differ by one unit.
    """
    student = load_student(folder, model)
    whole = read_card(folder).storage == "int8" and model.device.type == "cpu"
    return round_weights(student, 8) if whole else student.to(torch.bfloat16)


def load_student(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The drafter in `folder` on top of its target's embeddings.

    Args:
        folder: folder that `save_drafter` wrote.
        model: its target; its layers are not used.

    Raises:
        InputError: another target, or a damaged folder.

    """
    card = read_card(folder)
    if fingerprint(model) != card.fingerprint:
        raise InputError(
            f"the drafter in {folder} was made from {card.target} ({card.fingerprint}), "
            f"not from this target ({fingerprint(model)}): distil one for it with `multispin distill`"
        )
    try:
        if not (folder / DRAFTER_WEIGHTS_FILE).is_file():  # a device file has no end
            raise InputError(f"{folder / DRAFTER_WEIGHTS_FILE} is not a file")
        check_readable(folder / DRAFTER_WEIGHTS_FILE)
        stored = load_file(folder / DRAFTER_WEIGHTS_FILE)
        ids = _vocabulary(folder, stored, int(model.config.get_text_config().vocab_size))
        student = carve(model, card.layers, ids, card.frozen)
        with torch.no_grad():
            for name, parameter in learned_parameters(student, card.frozen).items():
                parameter.copy_(_weights(folder, stored, name, parameter.shape))
        if stored:
            raise InputError(f"the weights in {folder} hold {min(stored)}, which this drafter does not use")
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(f"the weights in {folder} are damaged or do not fit the target: {error}") from None
    return student


def _vocabulary(folder: Path, stored: dict[str, torch.Tensor], size: int) -> torch.Tensor | None:
    """Take the ids of the head out of `stored`: [V'], ascending, 0 … size − 1; None if it has all."""
    ids = stored.pop(VOCABULARY, None)
    if ids is None:
        return None
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"the weights in {folder} hold no list of token ids, but {ids.dtype} {list(ids.shape)}")
    ids = ids.long()
    if int(ids[0]) < 0 or int(ids[-1]) >= size or not bool((ids.diff() > 0).all()):
        raise InputError(f"the token ids in {folder} are not ascending within 0 … {size - 1}")
    return ids


def _weights(folder: Path, stored: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    """Take one parameter out of `stored`, in float32 and of exactly this shape."""
    value, scale = stored.pop(name), stored.pop(name + SCALE, None)
    if value.shape != shape or (scale is not None and scale.shape != shape[:1]):
        raise InputError(
            f"the weights {name} in {folder} are {list(value.shape)}, not {list(shape)} with a scale per row"
        )
    if value.is_complex() or (scale is None) == (value.dtype == torch.int8) or value.dtype not in STORED:
        raise InputError(f"the weights {name} in {folder} are stored as {value.dtype}, not as a drafter's are")
    value = value.float() if scale is None else value.float() * scale.float()[:, None]
    if not bool(value.isfinite().all()):
        raise InputError(f"the weights {name} in {folder} are not finite numbers")
    return value
