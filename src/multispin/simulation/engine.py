"""An engine without a model. A drafted token is RIGHT or WRONG: the engine accepts the leading RIGHT ones."""

from collections.abc import Sequence

import numpy as np

from multispin.control import Device, Scenario, Verification
from multispin.passes import Batch, EdgeDraft
from multispin.simulation.device import RIGHT, WRONG
from multispin.simulation.setup import MAX_TOKENS
from multispin.speculation import (
    ID_RULES,
    DistributionFormat,
    DraftAsk,
    Failure,
    Feed,
    Finding,
    Outcome,
    Rule,
    SlotTable,
    TruncatedDistribution,
)

_MAX_LENGTH = 2 * MAX_TOKENS


class SimulatedEngine(SlotTable):
    """An `Engine` without a model: accepts the leading RIGHT tokens.

    Args:
        slots: texts held at once.

    """

    joins = True

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.max_length = _MAX_LENGTH
        self.vocabulary_size = 2
        self.rules = ID_RULES | {Rule.REJECTION}

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Accept the leading RIGHT tokens of every draft."""
        outcomes: list[Finding | Failure | None] = []
        self.take(feeds)
        for feed in feeds:
            drafted = feed.draft
            accepted = drafted.index(WRONG) if WRONG in drafted else len(drafted)
            outcomes.append(None if feed.params is None else Outcome(accepted, RIGHT))
        return outcomes


def batch_verification_s(verifier: Verification, batch: Batch) -> float:
    """T_ver of a batch, prompts in it included [s]."""
    return verifier.verify_s([len(job.feed.tokens) - 1 for job in batch.jobs])


class SimulatedEdgeDrafter:
    """The edge's own drafter without a model: each token that it drafts is RIGHT with the probability α of its text.

    Args:
        scenario: the truth; it has an edge drafter.
        seed: seed of the random numbers that decide which tokens are right.

    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        assert scenario.edge_drafter is not None
        self._truth = scenario.edge_drafter
        self._generator = np.random.default_rng([seed, 2**31, 2])
        self._read: list[int] = []  # by slot, how many tokens of its text were read

    def open(self) -> int:
        """Take a slot."""
        self._read.append(0)
        return len(self._read) - 1

    def unread(self, slot: int, committed: Sequence[int]) -> int:
        """Tokens of a text that were not read. Reading them takes no time, but a real edge learns nothing from it."""
        new = len(committed) - 1 - self._read[slot]
        return new if new >= 0 else len(committed) - 1  # a shorter text is another one

    def draft(self, asks: Sequence[DraftAsk]) -> list[list[int]]:
        """Draft without knowing the device: α is the edge drafter's own."""
        return [self._ids(self._truth.acceptance_rate, ask.length) for ask in asks]

    def draft_distributions(
        self, asks: Sequence[DraftAsk], form: DistributionFormat
    ) -> list[tuple[list[int], list[TruncatedDistribution]]]:
        """Refuse: simulated drafts of the edge have no distributions."""
        raise NotImplementedError

    def draft_for(self, device: Device, ask: DraftAsk) -> EdgeDraft:
        """A draft for a device's text."""
        self._read[ask.slot] = len(ask.committed) - 1
        rate = device.edge_acceptance_rate
        return self._ids(self._truth.acceptance_rate if rate is None else rate, ask.length), []

    def draft_s(self, lengths: Sequence[int]) -> float:
        """Time that drafts of these lengths take together [s]."""
        return self._truth.draft_s(lengths)

    def _ids(self, rate: float, length: int) -> list[int]:
        right = 0
        while right < length and self._generator.random() < rate:
            right += 1
        return [RIGHT] * right + [WRONG] * (length - right)
