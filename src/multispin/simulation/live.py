"""The real models under the virtual clock: they write the texts, and the scenario says how long that takes.

Drafter, verifier, acceptance rule and texts are those of `multispin serve` and `multispin device`; so acceptance is
what these models show, prompt by prompt, and neither a rate nor a recording. One process holds all of them.
"""

import re
from dataclasses import dataclass
from typing import Any

from multispin import models
from multispin.data import load_prompts
from multispin.errors import InputError
from multispin.speculation import Drafter, Engine, PromptLookupDrafter

USUAL_TOKENS = 64
"""Length of a text where the scenario says none."""


@dataclass(frozen=True, eq=False)
class LiveModels:
    """Loaded once, used by all runs of a process.

    Attributes:
        target: the model that verifies.
        drafter: the model that drafts, shared by all devices, each with a cache of its own; None for prompt lookup.
        prompts: as ids; the devices take them in turn.

    """

    target: Any
    drafter: Any
    prompts: tuple[tuple[int, ...], ...]

    def fitting(self, tokens: int) -> tuple[tuple[int, ...], ...]:
        """The prompts that leave room for so many tokens among the positions that the target knows."""
        limit = self.target.config.get_text_config().max_position_embeddings
        fitting = tuple(prompt for prompt in self.prompts if len(prompt) + tokens <= limit)
        if not fitting:
            raise InputError(
                f"simulation.tokens_per_request = {tokens} leaves no room for prompts: the target has {limit}"
            )
        return fitting

    def engine(self, slots: int, tokens: int) -> Engine:
        """An embedded verifier for texts of so many tokens."""
        return models.Verifier(self.target, slots, self._length(tokens))

    def drafter_for(self, tokens: int) -> Drafter:
        """A device's drafter."""
        if self.drafter is None:
            return PromptLookupDrafter()
        return models.ModelDrafter(self.drafter, self._length(tokens))

    def _length(self, tokens: int) -> int:
        return max(map(len, self.fitting(tokens))) + tokens


def load_live(target: str, draft: str) -> LiveModels:
    """Load a target and what drafts for it: "lookup", "q3" … "q8" (the target, rounded) or a model reference."""
    tokenizer = models.load_tokenizer(target)
    prompts = tuple(tuple(tokenizer.encode_chat(prompt.text)) for prompt in load_prompts())
    model = models.load_model(target)
    if draft == "lookup":
        return LiveModels(model, None, prompts)
    if re.fullmatch("q[3-8]", draft):
        return LiveModels(model, models.round_weights(models.load_model(target), int(draft[1])), prompts)
    if models.load_tokenizer(draft).fingerprint != tokenizer.fingerprint:
        raise InputError(f"--live {draft}: its tokenizer is not that of {target}")
    return LiveModels(model, models.load_model(draft), prompts)
