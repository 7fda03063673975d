"""The real models under the virtual clock: they write the texts, and the scenario says how long that takes.

Drafter, verifier, acceptance rule and texts are those of `multispin serve` and `multispin device`. So how much is
accepted follows from these models and prompts, not from a rate or a recording. One process holds all of them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from multispin import models
from multispin.data import load_prompts
from multispin.errors import InputError
from multispin.speculation import Drafter, Engine

if TYPE_CHECKING:
    from multispin.models import DraftSource, PackedModel

USUAL_TOKENS = 64
"""Length of a text where the scenario says none."""


@dataclass(frozen=True, eq=False)
class LiveModels:
    """Models that all runs of a process share.

    Attributes:
        target: the model that verifies.
        source: where drafters come from; all devices share its model, if it has one, each with a cache of its own.
        prompts: prompts as token ids; the devices take them in turn.

    """

    target: "PackedModel"
    source: "DraftSource"
    prompts: tuple[tuple[int, ...], ...]

    def fitting(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """The prompts that leave room for this many tokens among the positions that the target knows."""
        limit = self.target.longest_text
        fitting = tuple(prompt for prompt in self.prompts if limit is None or len(prompt) + tokens <= limit)
        if not fitting:
            raise InputError(
                f"simulation.tokens_per_request = {tokens} leaves no room for prompts: a text of the target has "
                f"at most {limit} tokens"
            )
        return fitting

    def engine(self, slots: int, tokens: int) -> Engine:
        """An embedded verifier for texts of this many tokens."""
        size = min(self.source.tokenizer.size, self.target.width)
        return models.Verifier(self.target, slots, self._length(tokens), vocabulary_size=size)

    def drafter_for(self, tokens: int) -> Drafter:
        """A device's drafter."""
        return self.source.drafter(self._length(tokens))

    def _length(self, tokens: int) -> int:
        return max(map(len, self.fitting(tokens))) + tokens


def load_live(target: str, draft: str) -> LiveModels:
    """Load a target and what drafts for it, by any name of a drafter (see `models.drafter_name`)."""
    source = models.load_draft_source(draft, target, batched=True)  # one model for hundreds of texts
    prompts = tuple(tuple(source.tokenizer.encode_chat(prompt.text)) for prompt in load_prompts())
    return LiveModels(models.PackedModel.of(models.load_model(target), own=True), source, prompts)
