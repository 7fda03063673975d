"""The drafter that runs a language model with PyTorch."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from multispin.models.batch_drafter import ModelBatchDrafter
from multispin.models.packable import PackedModel
from multispin.speculation import (
    DistributionFormat,
    DraftAsk,
    Feed,
    Follower,
    Grammars,
    SamplingParams,
    TruncatedDistribution,
)


class ModelDrafter:
    """A small language model that drafts for one text.

    Under `coupled` it draws with the request's shared noise, so that its token usually equals the target's if their
    distributions are close (see `speculation.rules`). Under the rejection rules it draws from exactly the distribution
    that it sends.

    Args:
        model: the language model that drafts; a transformers model is not changed.
        max_length: length of the longest text [tokens], prompt included; limited to the model's context.
        vocabulary_size: number of ids that the target can emit; default: those of the model's head.
        grammars: compiles the grammars of requests; default None: drafts follow no grammar.

    """

    def __init__(
        self,
        model: PreTrainedModel | PackedModel,
        max_length: int,
        vocabulary_size: int | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        self._drafter = ModelBatchDrafter(model, 1, max_length, vocabulary_size)
        self._slot = self._drafter.open()
        self._follower = Follower(grammars)

    @property
    def max_length(self) -> int:
        """Length of the longest text that it drafts for [tokens]."""
        return self._drafter.model.max_length

    def prepare(self, committed: Sequence[int]) -> None:
        """Feed all but the newest committed token."""
        self._drafter.prepare([(self._slot, committed)])

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw `length` tokens one after the other, fewer if the slot is full."""
        return self._drafter.draft([self._ask(committed, length, params)])[0]

    def draft_distributions(
        self, committed: Sequence[int], length: int, params: SamplingParams, form: DistributionFormat
    ) -> tuple[list[int], list[TruncatedDistribution]]:
        """Draw up to `length` tokens, each from its truncated and quantised distribution."""
        return self._drafter.draft_distributions([self._ask(committed, length, params)], form)[0]

    def _ask(self, committed: Sequence[int], length: int, params: SamplingParams) -> DraftAsk:
        matcher = self._follower.follow(params.grammar, committed[params.prompt_tokens :])
        return DraftAsk(self._slot, committed, length, params, matcher)

    def logits_along(self, text: Sequence[int], begin: int, params: SamplingParams) -> torch.Tensor:
        """The logits from which it would draw at each position of a known text, all at once.

        Args:
            text: token ids, at most as many as the cache holds.
            begin: first position of interest, at least 1.
            params: sampling parameters of the request.

        Returns:
            [len(text) − begin, V] logits, each given the text before it.

        """
        self.prepare(text[:begin])
        return self._drafter.feed([Feed(self._slot, begin - 1, text[begin - 1 : -1], params)])[0]
