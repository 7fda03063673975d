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

    Under `coupled` it draws with the request's shared noise, so that its token meets the target's whenever their
    distributions are close (see `speculation.rules`); under the rejection rules from exactly the distribution that it
    sends.

    Args:
        model: the language model that drafts; a model of transformers' is not changed.
        max_length: prompt and generated tokens of the longest text; cut to the positions that the model knows.
        vocabulary_size: number of ids that the target can emit; by default what the model's head has.
        grammars: compiles the grammars of requests; by default drafts follow none.

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
        """Tokens of the longest text that it drafts for."""
        return self._drafter.model.max_length

    def prepare(self, committed: Sequence[int]) -> None:
        """Feed all but the newest committed token."""
        self._drafter.prepare([(self._slot, committed)])

    def draft(self, committed: Sequence[int], length: int, params: SamplingParams) -> list[int]:
        """Draw `length` tokens one after the other; fewer where the slot is full."""
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
        """The distributions that it would draw from at each position of a known text, all at once.

        Args:
            text: token ids, at most as many as the cache holds.
            begin: first position of interest, at least 1.
            params: sampling parameters of the request.

        Returns:
            [len(text) − begin, V] logits, each given the text before it.

        """
        self.prepare(text[:begin])
        return self._drafter.feed([Feed(self._slot, begin - 1, text[begin - 1 : -1], params)])[0]
