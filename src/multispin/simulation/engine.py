"""An engine without a model. A drafted token is RIGHT or WRONG: the engine accepts the leading RIGHT ones."""

from collections.abc import Sequence

from multispin.control import Verification
from multispin.passes import Batch
from multispin.simulation.device import RIGHT, WRONG
from multispin.simulation.setup import MAX_TOKENS
from multispin.speculation import ID_RULES, Failure, Feed, Finding, Outcome, SlotTable

_MAX_LENGTH = 2 * MAX_TOKENS


class SimulatedEngine(SlotTable):
    """An `Engine` without a model: accepts the leading RIGHT tokens.

    Args:
        slots: texts held at once.

    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.max_length = _MAX_LENGTH
        self.vocabulary_size = 2
        self.rules = ID_RULES

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Accept the leading RIGHT tokens of every draft."""
        outcomes: list[Finding | Failure | None] = []
        self.take(feeds)
        for feed in feeds:
            drafted = feed.tokens[1:]
            accepted = drafted.index(WRONG) if WRONG in drafted else len(drafted)
            outcomes.append(None if feed.params is None else Outcome(accepted, RIGHT))
        return outcomes


def batch_verification_s(verifier: Verification, batch: Batch) -> float:
    """T_ver of a batch, prompts in it included [s]."""
    return verifier.verify_s([len(job.feed.tokens) - 1 for job in batch.jobs])
