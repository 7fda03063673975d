"""How long verification and drafting take here, and the latency model that the planner uses.

Every batch is timed many times, in turn with all others, and the median counts. So other work on the machine affects
all batches alike, and a single stall affects none.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multispin.control.latency import verification_s
from multispin.errors import InputError
from multispin.estimation.nonnegative import nonnegative_least_squares
from multispin.speculation import Drafter, Engine, Feed, Outcome, SamplingParams

Clock = Callable[[], float]
LEAST_REPEATS = 3
"""Fewest timed calls of a batch: of three, one stall is not the median."""


@dataclass(frozen=True)
class BatchTiming:
    """One kind of batch.

    Attributes:
        devices: number of sessions in the batch, K.
        draft_length: drafted tokens of each session, L; L + 1 tokens are fed.
        seconds: median time of `verify`.

    """

    devices: int
    draft_length: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens fed, K (L + 1)."""
        return self.devices * (self.draft_length + 1)


@dataclass(frozen=True)
class LatencyFit:
    """T_ver = fixed_s + per_device_s·K + per_token_s·Σ(L_k + 1): eq. 7 of arXiv 2606.04581 with a cost per token.

    Attributes:
        fixed_s: time of a batch, whatever is in it [s].
        per_device_s: time for each device in it [s].
        per_token_s: time for each token fed [s].
        relative_rms: root mean square of the relative errors.
        worst: batch with the largest relative error.
        worst_relative: that error, positive where the model is too slow.

    """

    fixed_s: float
    per_device_s: float
    per_token_s: float
    relative_rms: float
    worst: BatchTiming
    worst_relative: float

    def predict(self, devices: int, tokens: int) -> float:
        """Seconds for a batch of `tokens` fed by `devices`."""
        return verification_s(self.fixed_s, self.per_device_s, self.per_token_s, devices, tokens)


def measure_latency(
    engine: Engine,
    grid: Sequence[tuple[int, int]],
    context: int,
    repeats: int,
    clock: Clock,
    report: Callable[[int, int], None],
    before: Callable[[], None] = lambda: None,
    longest_s: float = math.inf,
) -> list[BatchTiming]:
    """Time `verify` for batches of (devices, draft length) whose sessions hold `context` tokens and one more.

    As in rounds, every timed draft begins after a token that the engine chose itself. An engine that keeps texts, as
    vLLM does, would have to read any other token first. An untimed call asks for that token before each timed one.

    Args:
        engine: verification engine with enough free slots for the largest batch.
        grid: batches to time, as pairs of (devices, draft length).
        context: tokens in the cache of each session; which ones does not matter to the time.
        repeats: timed calls of each batch, `LEAST_REPEATS` at least once `longest_s` have passed; one more call warms
            up and is not timed.
        clock: function that returns the time [s].
        report: function of (turns done, all turns); where time ends them, all are those that were done.
        before: function that is called before each timed call, for what else happens in a round; default none.
        longest_s: time after which no further turn begins [s]; default no limit.

    """
    most = max(devices for devices, _ in grid)
    longest = max(length for _, length in grid)
    if most > engine.slots:
        raise InputError(f"a batch of {most} devices exceeds the engine's {engine.slots} slots: use smaller batches")
    if context + longest + 2 > engine.max_length:
        raise InputError(
            f"{context} tokens of context and a draft of {longest} exceed the engine's max_length = "
            f"{engine.max_length}: use a shorter context or shorter drafts"
        )
    params = SamplingParams()
    generator = np.random.default_rng(0)
    text = [int(token) for token in generator.integers(0, engine.vocabulary_size, context + longest + 1)]
    slots = [engine.open() for _ in range(most)]
    try:
        for slot in slots:
            engine.verify([Feed(slot, 0, text[:context], None)])
        times: dict[tuple[int, int], list[float]] = {kind: [] for kind in grid}
        started = clock()
        for turn in range(repeats + 1):
            for devices, length in grid:
                own = slots[:devices]
                found = engine.verify([Feed(slot, context, [text[context]], params) for slot in own])
                feeds = []
                for slot, outcome in zip(own, found, strict=True):
                    assert isinstance(outcome, Outcome)
                    draft = text[context + 1 : context + 1 + length]
                    feeds.append(Feed(slot, context + 1, [outcome.next_token, *draft], params))
                before()
                began = clock()
                engine.verify(feeds)
                spent_s = clock() - began
                for slot in own:
                    engine.commit(slot, context)
                if turn:
                    times[devices, length].append(spent_s)
            ends = turn >= LEAST_REPEATS and clock() - started >= longest_s
            report(turn + 1, turn + 1 if ends else repeats + 1)
            if ends:
                break
    finally:
        for slot in slots:
            engine.close(slot)
    return [BatchTiming(*kind, statistics.median(values)) for kind, values in times.items()]


def fit_latency(points: Sequence[BatchTiming]) -> LatencyFit:
    """Fit the latency model by non-negative least squares of the relative errors."""
    if len(points) < 3:
        raise InputError(f"{len(points)} kinds of batches are too few to fit three coefficients: measure at least 3")
    seconds = np.array([point.seconds for point in points])
    design = np.array([[1.0, point.devices, point.tokens] for point in points])
    found = nonnegative_least_squares(design / seconds[:, None], np.ones(len(points)))
    relative = design @ found / seconds - 1.0
    worst = int(np.abs(relative).argmax())
    fixed_s, per_device_s, per_token_s = (float(value) for value in found)
    rms = float(np.sqrt((relative**2).mean()))
    return LatencyFit(fixed_s, per_device_s, per_token_s, rms, points[worst], float(relative[worst]))


def drafting_times(
    drafter: Drafter, prompt: Sequence[int], params: SamplingParams, length: int, repeats: int, clock: Clock
) -> list[float]:
    """Time a drafter that has the machine to itself; returns one time per drafted token for each repeat [s].

    A call before the first repeat warms up and is not kept. Only tokens that were drafted count. A drafter that finds
    nothing to copy costs next to nothing; then the time of the call counts as that of one token.
    """
    found = []
    for turn in range(repeats + 1):
        drafter.prepare(prompt)
        began = clock()
        drafted = drafter.draft(prompt, length, params)
        spent_s = clock() - began
        if turn:
            found.append(spent_s / max(1, len(drafted)))
    return found
