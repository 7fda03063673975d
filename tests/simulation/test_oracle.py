"""The best schedule of a few streams: against all schedules, against the simulator, and never below a schedule."""

import itertools

import numpy as np
import pytest
from benchmarks.oracle import JointPolicy, SmallSite, Stream

from multispin.control import Cell, Device, Scenario, Verification
from multispin.control.streams import Candidate, Go, choose
from multispin.errors import InputError
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site


def gains(site: SmallSite) -> np.ndarray:
    """Tokens per second of every schedule, by the linear equations of each; written without the module's own steps."""
    size = [len(known) for known in site.states]
    joint = list(itertools.product(*site.states))
    place = {states: n for n, states in enumerate(joint)}
    actions = list(itertools.product((False, True), repeat=len(size)))
    step = np.zeros((len(joint), len(actions), len(joint)))
    tokens, seconds = np.zeros(step.shape[:2]), np.zeros(step.shape[:2])
    for n, states in enumerate(joint):
        for a, rides in enumerate(actions):
            lengths = [min(max(held, 0), each.most) for (held, _), each in zip(states, site.streams, strict=True)]
            fed = sum(length + 1 for length, yes in zip(lengths, rides, strict=True) if yes)
            ticks = max(1, round(FIXED_S + sum(rides) * RIDE_S + TOKEN_S * fed)) if any(rides) else 1
            seconds[n, a] = ticks
            for fallen in itertools.product((False, True), repeat=len(size)):
                chance, after = 1.0, []
                for each, state, length, yes, falls in zip(site.streams, states, lengths, rides, fallen, strict=True):
                    alive = each.acceptance_rate ** (length + 1) if yes else 1.0
                    chance *= 1.0 - alive if falls else alive
                    after.append(
                        (0, each.restart)
                        if falls
                        else each.decided(state, length, ticks)
                        if yes
                        else each.later(state, ticks)
                    )
                step[n, a, place[tuple(after)]] += chance
            tokens[n, a] = sum(
                sum(each.acceptance_rate**j for j in range(length + 1))
                for each, length, yes in zip(site.streams, lengths, rides, strict=True)
                if yes
            )
    start = place[tuple(each.anew for each in site.streams)]
    rows, found = np.arange(len(joint)), []
    policies = np.array(list(itertools.product(range(len(actions)), repeat=len(joint))))
    for some in np.array_split(policies, max(1, len(policies) // 4096)):
        # Long-run shares from the start, by the mean of many steps.
        mixed = np.linalg.matrix_power(0.5 * (step[rows, some] + np.eye(len(joint))), 2**14)[:, start]
        found.append((mixed * tokens[rows, some]).sum(axis=1) / (mixed * seconds[rows, some]).sum(axis=1))
    return np.concatenate(found)


FIXED_S, RIDE_S, TOKEN_S = 1.0, 0.4, 0.1


def tiny(*streams: Stream) -> SmallSite:
    return SmallSite(streams, 1.0, FIXED_S, RIDE_S, TOKEN_S)


@pytest.mark.parametrize(
    "streams",
    [
        (Stream(0.8, 1, 2, 1, 2, 2),),
        (Stream(0.9, 2, 2, 1, 3, 2),),
        (Stream(0.5, 1, 1, 1, 1, 1), Stream(0.9, 1, 1, 1, 1, 1)),
    ],
)
def test_no_schedule_is_better_and_one_is_as_good(streams: tuple[Stream, ...]) -> None:
    site = tiny(*streams)
    assert 2 ** (len(streams) * site.count) < 2**19
    best = site.best(0.1)
    most = gains(site).max()
    assert best.tokens_per_s == pytest.approx(most, rel=1e-6)
    assert most <= best.bound_tokens_per_s * (1.0 + 1e-9)
    assert best.bound_tokens_per_s == pytest.approx(most, rel=1e-3)


PAIR = (Stream(0.8, 2, 8, 2, 3, 8), Stream(0.65, 1, 6, 2, 4, 6))


def test_nobody_decides_better_than_who_knows_the_arrivals() -> None:
    site = SmallSite(PAIR, 0.01, 0.05, 0.02, 0.001)

    def decide(states: list[tuple[int, int]], price: float) -> int:
        ready = [
            Candidate(k, max(0, held), each.acceptance_rate, room=each.window, behind_tokens=-1e6)
            for k, ((held, _), each) in enumerate(zip(states, PAIR, strict=True))
        ]
        made = choose(ready, Verification(0.05, 0.02, 0.001), price)
        return sum(1 << ride.session for ride in made.rides) if isinstance(made, Go) else 0

    policies = [site.follow(lambda states, price=price: decide(states, price)) for price in (0.0, 20.0, 40.0)]
    random = np.random.default_rng(3)
    policies += [JointPolicy(random.integers(1, 4, site.count)) for _ in range(5)]
    values = [site.value(policy).tokens_per_s for policy in policies]
    best = site.best(max(values))
    assert best.tokens_per_s >= max(values) * (1.0 - 1e-9)
    assert best.bound_tokens_per_s <= best.tokens_per_s * 1.001
    assert site.best(1.0).tokens_per_s == pytest.approx(best.tokens_per_s, rel=1e-4)
    eager = site.best(max(values), may_wait=np.zeros(site.count, dtype=bool))
    assert eager.tokens_per_s <= best.tokens_per_s * (1.0 + 1e-9)
    assert not (eager.policy.riders == 0).any()


@pytest.mark.long
def test_the_model_of_a_small_site_is_that_of_the_simulator() -> None:
    """One device, one token a frame: it rides in every pass, and finishes a token before it begins anew."""
    token_s, delay_s, alpha = 0.01, 0.005, 0.8
    device = Device("d", token_s, 4.0, alpha, delay_s=delay_s)
    scenario = Scenario(Cell(1e9, 16, 25, 0), Verification(0.05, 0.0), (device,))
    run = Site(Setup(scenario, Behaviour()), "heterogeneous", 1, True, mode="streams")
    run.run(200)
    begin_s, before = run.queue.now_s, run.devices[0].record.tokens
    run.run(6200)
    simulated = (run.devices[0].record.tokens - before) / (run.queue.now_s - begin_s)
    site = SmallSite([Stream(alpha, 1, 14, 2, 5, 14)], 0.005, 0.05, 0.0, 0.0)
    assert site.value(site.follow(lambda _: 1)).tokens_per_s == pytest.approx(simulated, rel=0.05)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(InputError, match=r"acceptance_rate is 1\.0"):
        Stream(1.0, 1, 4, 1, 1, 4)
    with pytest.raises(InputError, match="window is 0"):
        Stream(0.5, 1, 0, 1, 1, 4)
    with pytest.raises(InputError, match="joint states are more than"):
        SmallSite([Stream(0.9, 8, 25, 8, 12, 25)] * 5, 0.01, 0.05, 0.02, 0.0)
