"""Slows an engine and a drafter down to the speed of emulated ones, for the demo."""

import time
from collections.abc import Callable, Sequence

from multispin.control import EdgeDrafter, Verification
from multispin.speculation import (
    BatchDrafter,
    DistributionFormat,
    DraftAsk,
    Engine,
    Failure,
    Feed,
    Finding,
    Rule,
    TruncatedDistribution,
)


class PacedEngine:
    """An engine whose passes take at least as long as those of an emulated engine.

    The results are the real engine's; only the time is emulated. A pass that takes the real engine longer is not
    shortened.

    Args:
        engine: engine whose results are used.
        verification: T_ver of the emulated engine.
        clock: function that returns the time [s]; default `time.monotonic`.
        sleep: function that waits for a number of seconds; default `time.sleep`.

    """

    def __init__(
        self,
        engine: Engine,
        verification: Verification,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._verification = verification
        self._clock = clock
        self._sleep = sleep

    @property
    def slots(self) -> int:
        """Most sessions at once."""
        return self._engine.slots

    @property
    def max_length(self) -> int:
        """Most tokens of a session, prompt included."""
        return self._engine.max_length

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids."""
        return self._engine.vocabulary_size

    @property
    def rules(self) -> frozenset[Rule]:
        """Acceptance rules that the engine can apply."""
        return self._engine.rules

    @property
    def lacks(self) -> frozenset[str]:
        """Sampling parameters that the engine cannot apply."""
        return self._engine.lacks

    @property
    def longest_chunk(self) -> int:
        """Most tokens of one session in one pass."""
        return self._engine.longest_chunk

    @property
    def joins(self) -> bool:
        """Whether a draft may stand behind the end of its prompt in one feed."""
        return self._engine.joins

    def open(self) -> int:
        """Take a slot."""
        return self._engine.open()

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self._engine.close(slot)

    def cached(self, slot: int) -> int:
        """Positions of `slot` that are cached and valid."""
        return self._engine.cached(slot)

    def commit(self, slot: int, length: int) -> None:
        """Keep the first `length` cached positions of `slot` and forget the rest."""
        self._engine.commit(slot, length)

    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Verify, then wait until the emulated engine would have finished."""
        began_s = self._clock()
        found = self._engine.verify(feeds)
        due_s = began_s + self._verification.verify_s([len(feed.tokens) - 1 for feed in feeds])
        if (left_s := due_s - self._clock()) > 0:
            self._sleep(left_s)
        return found


class PacedBatchDrafter:
    """An edge's drafter whose drafts take at least as long as those of an emulated drafter.

    Args:
        drafter: drafter whose drafts are used.
        times: times of the emulated drafter.
        clock: function that returns the time [s]; default `time.monotonic`.
        sleep: function that waits for a number of seconds; default `time.sleep`.

    """

    def __init__(
        self,
        drafter: BatchDrafter,
        times: EdgeDrafter,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._drafter = drafter
        self._times = times
        self._clock = clock
        self._sleep = sleep

    def open(self) -> int:
        """Take a slot."""
        return self._drafter.open()

    def unread(self, slot: int, committed: Sequence[int]) -> int:
        """Number of committed tokens but the newest that the drafter must read before it drafts."""
        return self._drafter.unread(slot, committed)

    def draft(self, asks: Sequence[DraftAsk]) -> list[list[int]]:
        """Draft, then wait until the emulated drafter would have finished."""
        began_s = self._clock()
        found = self._drafter.draft(asks)
        self._wait(began_s, asks)
        return found

    def draft_distributions(
        self, asks: Sequence[DraftAsk], form: DistributionFormat
    ) -> list[tuple[list[int], list[TruncatedDistribution]]]:
        """Draft with distributions, for the rejection rules; takes time like `draft`."""
        began_s = self._clock()
        found = self._drafter.draft_distributions(asks, form)
        self._wait(began_s, asks)
        return found

    def _wait(self, began_s: float, asks: Sequence[DraftAsk]) -> None:
        due_s = began_s + self._times.draft_s([ask.length for ask in asks])
        if (left_s := due_s - self._clock()) > 0:
            self._sleep(left_s)
