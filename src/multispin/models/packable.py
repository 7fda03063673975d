"""A language model whose layers take packed rows, made from a transformers model without changing it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from multispin.errors import InputError
from multispin.models.families import check_family, longest_text
from multispin.models.layout import CALL_COST
from multispin.models.lean import lean
from multispin.models.packed import PACKED_ATTENTION, PackedBatch
from multispin.models.prepacked import prepack
from multispin.models.quantised import RoundedLinear
from multispin.models.recurrent import make_packable
from multispin.models.self_test import TOLERANCE, own_logits, relative_error, test_texts
from multispin.models.slots import SlotCache

PackedRun = tuple[int, int, Sequence[int], int]
"""Tokens of one slot in a packed row: (slot, position of the first, ids, of how many of the last logits are wanted)."""


class PackedModel:
    """A model that computes packed rows for any number of caches (see `CachedModel`).

    Attributes:
        model: the model; its forward pass takes `packed` and `recurrent` beside transformers' arguments.
        config: configuration of the language model, without those of other modalities.
        width: number of logits per row, padding of the vocabulary included.
        longest_text: positions that it knows; None if there is no limit.
        device: torch device that computes.
        dtype: number type of hidden states and logits.
        call_cost: multiply-adds for which an attention call is worth saving, see `layout.grouped`.

    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # Attributes, not properties: to ask transformers for them takes as long as a layer.
        self.config: Any = model.config.get_text_config()
        self.width = int(self.config.vocab_size)
        self.longest_text = longest_text(self.config)
        self.device = torch.device(model.device)
        self.dtype: torch.dtype = model.dtype
        self.call_cost = CALL_COST

    @classmethod
    def of(cls, model: PreTrainedModel, reorder: bool = True, own: bool = False) -> "PackedModel":
        """Make a packed model with the same results as `model`; InputError if that cannot be guaranteed.

        Its family and all features that its configuration turns on must be known (see `families`), and a short text in
        a packed row must give what the model's own attention gives (see `self_test`).

        Args:
            model: a decoder of a known family. It stays as it is; weights are shared where they can be.
            reorder: run leaner layers (see `lean`), and on a CPU keep the linear weights in the order that is fastest
                to read (see `prepacked`). Both copy weights. Default True.
            own: the caller gives `model` away. Its layers are then replaced in place, so that no weight is in memory
                twice; it cannot be used otherwise after that. Default False.

        """
        check_family(model.config)
        # Rounded weights multiply few rows in other numbers than many: they draft, and are never a text's own model.
        exact = not any(isinstance(module, RoundedLinear) for module in model.modules())
        with _computing(model):
            expected = own_logits(model) if exact else []
        if any(bool(logits.isnan().any()) or not logits.isfinite().any(dim=-1).all() for logits in expected):
            raise InputError(
                f"this {model.config.model_type} model's results for some text are not finite: its weights are "
                f"damaged, or {model.dtype} is too narrow for it (try float32)"
            )
        packed = (model if own else shared_copy(model)).eval()
        if reorder:
            with _computing(model):
                packed = prepack(lean(packed))
        packed.set_attn_implementation(PACKED_ATTENTION)
        make_packable(packed)
        made = cls(packed)
        if exact:
            with _computing(model):
                made.self_test(expected)
        return made

    @torch.inference_mode()
    def forward(self, cache: SlotCache, runs: Sequence[PackedRun]) -> torch.Tensor:
        """Run tokens of several slots in one forward pass; their keys and values are then in the cache.

        Args:
            cache: made for this model.
            runs: what is read into each slot: at least one run, at most one per slot; no position is skipped.

        Returns:
            [rows, width] logits that are wanted, one below the other.

        """
        tokens = torch.tensor([[token for _, _, ids, _ in runs for token in ids]], device=self.device)
        layout = [(slot, start, len(ids)) for slot, start, ids, _ in runs]
        packed = PackedBatch(cache, layout, self.config.num_attention_heads, self.call_cost)
        if packed.recurrent is not None:
            packed.recurrent.begin()
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "position_ids": packed.positions[None],
            "use_cache": False,
            "packed": packed,
            "recurrent": packed.recurrent,
        }
        wanted = [
            column
            for run, (_, _, _, last) in zip(packed.runs, runs, strict=True)
            for column in range(run.column + run.count - last, run.column + run.count)
        ]
        if wanted:
            # 0 keeps all rows, without a copy of them.
            rows = 0 if len(wanted) == tokens.shape[1] else torch.tensor(wanted, device=self.device)
            logits: torch.Tensor = self.model(**inputs, logits_to_keep=rows).logits[0]
        else:
            self.model.base_model(**inputs)
            logits = torch.empty(0, self.width, device=self.device)
        if packed.recurrent is not None:
            packed.recurrent.end()
        return logits

    def self_test(self, expected: Sequence[torch.Tensor]) -> None:
        """InputError unless ragged packed passes, one of them taken back, give `own_logits` of the same model."""
        texts = test_texts(self.config)
        cache = SlotCache(self.config, len(texts), max(map(len, texts)), self.dtype, self.device)
        halves = [(len(text) + 1) // 2 for text in texts]
        begun = [[*text[:half], *reversed(text[half:])] for text, half in zip(texts, halves, strict=True)]
        self.forward(cache, [(slot, 0, ids, 0) for slot, ids in enumerate(begun)])
        rest = [
            (slot, half, text[half:], len(text) - half)
            for slot, (text, half) in enumerate(zip(texts, halves, strict=True))
        ]
        found = self.forward(cache, [run for run in rest if run[2]])
        right = torch.cat([rows[half:] for rows, half in zip(expected, halves, strict=True)])
        error, allowed = relative_error(found, right), TOLERANCE[self.dtype]
        if not error <= allowed:
            raise InputError(
                f"this {self.config.model_type} model fails its self-test: in a batch its logits are off by "
                f"{error:.3g} of their spread from its own attention's (allowed: {allowed}); choose another model"
            )


@contextmanager
def _computing(model: PreTrainedModel) -> Iterator[None]:
    """Turn errors about sizes that do not fit, or about too little memory, into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"this {model.config.model_type} model cannot compute a text: {why}") from error


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules and of the configuration, over the same weights."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        held: list[Any] = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo.update({id(tensor): tensor for tensor in held if isinstance(tensor, torch.Tensor)})
    copied: PreTrainedModel = copy.deepcopy(model, memo)
    assert isinstance(copied, nn.Module)
    return copied


def with_width(logits: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, size] from [rows, width] logits. Ids from `size` on, and ids that a model lacks, cannot be drawn."""
    if size <= logits.shape[-1]:
        return logits[:, :size]
    return nn.functional.pad(logits, (0, size - logits.shape[-1]), value=-torch.inf)
