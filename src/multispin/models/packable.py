"""A language model whose layers take packed rows, made from one of transformers' without touching that one."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from multispin.models.lean import lean
from multispin.models.packed import PACKED_ATTENTION
from multispin.models.prepacked import prepack
from multispin.models.recurrent import make_packable


class PackedModel:
    """A model that computes packed rows, for any number of caches (see `CachedModel`).

    Attributes:
        model: the model; its forward pass takes `packed` and `recurrent` beside transformers' arguments.

    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @classmethod
    def of(cls, model: PreTrainedModel, reorder: bool = True, own: bool = False) -> "PackedModel":
        """Make one that computes what `model` computes.

        Args:
            model: a decoder of a family that is known here. It stays as it is; weights are shared where they can be.
            reorder: on a CPU, keep the linear weights in the order that is fastest to read (see `prepacked`), and run
                leaner layers (see `lean`).
            own: the caller gives `model` away. Its layers are then replaced in place, so that no weight is in
                memory twice; it cannot be used otherwise after that.

        """
        packed = (model if own else shared_copy(model)).eval()
        if reorder:
            packed = prepack(lean(packed))
        packed.set_attn_implementation(PACKED_ATTENTION)
        make_packable(packed)
        return cls(packed)

    @property
    def config(self) -> Any:
        """Configuration of the language model, without those of other modalities."""
        return self.model.config.get_text_config()

    @property
    def width(self) -> int:
        """Number of logits per row, padding of the vocabulary included."""
        return int(self.config.vocab_size)

    @property
    def longest_text(self) -> int | None:
        """Positions that it knows; None if there is no limit."""
        return longest_text(self.config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states and logits."""
        dtype: torch.dtype = self.model.dtype
        return dtype


def longest_text(config: Any) -> int | None:
    """Positions [tokens] that a language model's configuration names; None if it names none."""
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules and of the configuration, over the same weights."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held: list[Any] = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo.update({id(tensor): tensor for tensor in held if isinstance(tensor, torch.Tensor)})
    copied: PreTrainedModel = copy.deepcopy(model, memo)
    assert isinstance(copied, nn.Module)
    return copied
