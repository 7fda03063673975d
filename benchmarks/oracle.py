"""The greatest goodput of a schedule of streams that knows when every token will come.

A small site in whole ticks of time, in which nothing is random but whether tokens are right. A schedule sees what has
come. The *oracle* also knows when the next frame of every device will come, whatever happens, and what this makes
possible later. Of outcomes it knows the probabilities, as `control.streams.choose` does, and not the coins. It is the
best policy of a semi-Markov decision process, found by value iteration over all joint states of the devices; its
certificate is an upper bound for every policy. The gain of any other policy is computed exactly, not sampled, in the
same process. So their ratio is the *regret* of a decision: what it loses by not looking ahead.

The number of joint states grows like 50^K, so this is for two or three devices. The edge's own drafter is left out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from multispin.control.goodput import Floats, Ints, Mask
from multispin.errors import InputError

MOST_STATES = 2_000_000
"""Most joint states that are searched."""
_SWEEPS = 400
_PRICES = 12

State = tuple[int, int]
"""A device: tokens that wait, less those that the edge has written before they came; ticks until the next frame comes,
0 while the window is full."""


@dataclass(frozen=True)
class Stream:
    """How one device drafts.

    Args:
        acceptance_rate: α, per token.
        chunk: tokens of a frame.
        window: most tokens ahead of the committed text.
        period: ticks between two frames.
        restart: ticks from a verdict that contradicts the stream until the first frame of the next chain comes.
        most: most of its tokens that are verified at once.
    """

    acceptance_rate: float
    chunk: int
    window: int
    period: int
    restart: int
    most: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.acceptance_rate < 1.0:
            raise InputError(f"acceptance_rate is {self.acceptance_rate!r}; it must be at least 0 and below 1")
        for name in ("chunk", "window", "period", "restart"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} is {value!r}; it must be at least 1")

    @property
    def anew(self) -> State:
        """State in which a stream begins, and begins again when a verdict contradicts it."""
        return 0, self.restart

    def later(self, state: State, ticks: int) -> State:
        """State of the stream after this many ticks, if no pass decides about it meanwhile."""
        held, left = state
        while left and ticks >= left:
            ticks -= left
            held = min(held + self.chunk, self.window)
            left = self.period if held < self.window else 0
        return held, left - ticks if left else 0

    def decided(self, state: State, length: int, ticks: int) -> State:
        """State after a pass of this many ticks that accepts `length` of its tokens and the edge's next one."""
        held, left = self.later(state, ticks)
        held -= length + 1
        if held < -self.chunk:  # the edge has written beyond what the device is drafting
            return self.anew
        return held, left or self.period


class JointPolicy(NamedTuple):
    """A decision for each joint state: who rides, as a bit for each device; 0: wait for a tick."""

    riders: Ints


class Found(NamedTuple):
    """The oracle.

    Attributes:
        policy: action in each joint state.
        tokens_per_s: its goodput [tokens/s].
        bound_tokens_per_s: no policy makes more [tokens/s].
    """

    policy: JointPolicy
    tokens_per_s: float
    bound_tokens_per_s: float


class Value(NamedTuple):
    """The goodput of a policy in the long run.

    Attributes:
        tokens_per_s: goodput [tokens/s].
        share: how often each joint state is decided in.
        waiting: share of the time in which the engine waits.
    """

    tokens_per_s: float
    share: Floats
    waiting: float


class SmallSite:
    """A few devices and an engine, in whole ticks.

    Attributes:
        states: number of states of each device.
        count: number of joint states.

    Args:
        streams: devices of the site.
        tick_s: length of a tick [s].
        fixed_s: engine time of a pass [s] …
        per_device_s: … of each rider [s] …
        per_token_s: … and of each verified token [s]. A pass takes the nearest whole number of ticks.
    """

    def __init__(
        self, streams: Sequence[Stream], tick_s: float, fixed_s: float, per_device_s: float, per_token_s: float
    ) -> None:
        self.streams, self._tick_s = tuple(streams), tick_s
        self._fixed, self._per_device = fixed_s / tick_s, per_device_s / tick_s
        self._per_token = per_token_s / tick_s
        self._longest = self._ticks(len(streams), sum(min(each.window, each.most) + 1 for each in streams))
        self.states = [_reachable(each, self._longest) for each in self.streams]
        self.shape = tuple(len(each) for each in self.states)
        self.count = int(np.prod(self.shape))
        if self.count > MOST_STATES:
            raise InputError(f"{self.count} joint states are more than {MOST_STATES}")
        self._length = [
            np.array([min(max(held, 0), each.most) for held, _ in known])
            for each, known in zip(self.streams, self.states, strict=True)
        ]
        self._alive: list[Floats] = []
        self._tokens: list[Floats] = []
        for each, length in zip(self.streams, self._length, strict=True):
            self._alive.append(each.acceptance_rate ** (length + 1.0))
            self._tokens.append((1.0 - self._alive[-1]) / (1.0 - each.acceptance_rate))
        places = [{state: n for n, state in enumerate(known)} for known in self.states]
        ticks = (1, *range(1, self._longest + 1))  # as an index; no pass takes 0
        # Next state by ticks and state: not riding, and riding where all stands.
        self._later, self._stands = [], []
        for each, known, place, length in zip(self.streams, self.states, places, self._length, strict=True):
            self._later.append(np.array([[place[each.later(state, t)] for state in known] for t in ticks]))
            rides = list(zip(known, length.tolist(), strict=True))
            self._stands.append(np.array([[place[each.decided(*ride, t)] for ride in rides] for t in ticks]))
        self._anew = [place[each.anew] for each, place in zip(self.streams, places, strict=True)]
        self.start = int(np.ravel_multi_index(self._anew, self.shape))
        self._actions = [
            tuple(bool(riders >> k & 1) for k in range(len(streams))) for riders in range(2 ** len(streams))
        ]
        self._pass_ticks = [self._pass(rides) for rides in self._actions]
        self._gain = [self._gained(rides) for rides in self._actions]

    def joint(self, number: int) -> list[State]:
        """The devices' states in a joint state."""
        return [known[n] for known, n in zip(self.states, np.unravel_index(number, self.shape), strict=True)]

    # Policies -----------------------------------------------------------------------------------------------------

    def follow(self, decide: Callable[[list[State]], int]) -> JointPolicy:
        """The policy of a function that says who rides in a joint state; asked only where it comes to."""
        riders = np.zeros(self.count, dtype=np.int64)
        seen = np.zeros(self.count, dtype=bool)
        new = np.array([self.start])
        while len(new):
            seen[new] = True
            riders[new] = [decide(self.joint(int(number))) for number in new]
            reached = [index[chance > 0] for index, chance in self._outcomes(riders[new], new)]
            new = np.unique(np.concatenate(reached))
            new = new[~seen[new]]
        return JointPolicy(riders)

    def value(self, policy: JointPolicy) -> Value:
        """The goodput of a policy in the long run, by the share of decisions that fall on each joint state."""
        known = self._visited(policy)
        riders = policy.riders[known]
        place = np.zeros(self.count, dtype=np.int64)
        place[known] = np.arange(len(known))
        outcomes = [(place[index], chance) for index, chance in self._outcomes(riders, known)]
        share: Floats = np.zeros(len(known))
        share[place[self.start]] = 1.0
        for _ in range(100 * _SWEEPS):
            after = _sum(
                np.asarray(np.bincount(index, share * chance, len(known)), np.float64) for index, chance in outcomes
            )
            after = 0.5 * (after + share)  # which ends what comes round in turns
            moved = float(np.abs(after - share).sum())
            share = after / after.sum()
            if moved < 1e-10:
                break
        seconds = self._tick_s * self._of(self._pass_ticks, riders, known)
        total_s = float(share @ seconds)
        every = np.zeros(self.count)
        every[known] = share
        waiting_s = float(share @ np.where(riders == 0, seconds, 0.0))
        return Value(float(share @ self._of(self._gain, riders, known)) / total_s, every, waiting_s / total_s)

    def best(self, begin_tokens_per_s: float, may_wait: Mask | None = None, accuracy: float = 1e-5) -> Found:
        """The policy of greatest goodput.

        For a price g of time, value iteration finds the policy that makes the most beyond g for each second that it
        takes. Its goodput is the next price; the last price that is not exceeded is the greatest goodput.

        Args:
            begin_tokens_per_s: first price [tokens/s], such as the goodput of a policy that is known.
            may_wait: joint states in which the engine may wait; default all.
            accuracy: share of the goodput by which it may fall short; default 1e-5.
        """
        allowed = np.ones(self.shape, bool) if may_wait is None else may_wait.reshape(self.shape).copy()
        price, worth = begin_tokens_per_s, np.zeros(self.shape)
        for _ in range(_PRICES):
            for _ in range(_SWEEPS):
                most, riders, _ = self._sweep(worth, price, allowed)
                change = most - worth
                worth = 0.5 * (worth + most)
                worth -= worth.flat[self.start]
                if np.ptp(change) < 0.1 * accuracy * price * self._tick_s * self._fixed:
                    break
            policy = JointPolicy(riders.ravel())
            made = self.value(policy).tokens_per_s
            if made <= price * (1.0 + 0.1 * accuracy):
                break
            price = made
        _, _, over = self._sweep(worth, made, allowed)
        return Found(policy, made, made + max(0.0, over))

    # Arrays over joint states -------------------------------------------------------------------------------------

    def _sweep(self, worth: Floats, price: float, may_wait: Mask) -> tuple[Floats, Ints, float]:
        """One step of value iteration: the best sums, who rides for them, and by how much a second could be better."""
        most, riders = np.full(self.shape, -np.inf), np.zeros(self.shape, dtype=np.int64)
        over = -np.inf
        for action, rides in enumerate(self._actions):
            ticks = self._pass_ticks[action]
            after = np.empty(self.shape)
            for each in np.unique(ticks):
                expected = self._expected(worth, rides, int(each))
                after = np.where(ticks == each, expected, after)
            total = self._gain[action] - price * self._tick_s * ticks + after
            if action == 0:
                total = np.where(may_wait, total, -np.inf)
            over = max(over, float(((total - worth) / (self._tick_s * ticks)).max()))
            better = total > most
            most, riders = np.where(better, total, most), np.where(better, action, riders)
        return most, riders, over

    def _expected(self, worth: Floats, rides: Sequence[bool], ticks: int) -> Floats:
        """Expected worth of what follows in this many ticks."""
        found = worth
        for k, yes in enumerate(rides):
            if not yes:
                found = found.take(self._later[k][ticks], axis=k)
            else:
                alive = self._spread(self._alive[k], k)
                fallen = found.take([self._anew[k]], axis=k)
                found = alive * found.take(self._stands[k][ticks], axis=k) + (1.0 - alive) * fallen
        return found

    def _outcomes(self, riders: Ints, joint: Ints) -> list[tuple[Ints, Floats]]:
        """The next joint states after a decision in these joint states, and their probabilities."""
        places = np.unravel_index(joint, self.shape)
        ticks = self._of(self._pass_ticks, riders, joint).astype(np.int64)
        found = []
        for fallen in product((False, True), repeat=len(self.streams)):
            chance, index = np.ones(len(joint)), []
            for k, (place, falls) in enumerate(zip(places, fallen, strict=True)):
                yes, alive = (riders >> k & 1).astype(bool), self._alive[k][place]
                if falls:
                    chance = chance * np.where(yes, 1.0 - alive, 0.0)
                    index.append(np.full(len(joint), self._anew[k]))
                else:
                    chance = chance * np.where(yes, alive, 1.0)
                    index.append(np.where(yes, self._stands[k][ticks, place], self._later[k][ticks, place]))
            found.append((np.ravel_multi_index(index, self.shape), chance))
        return found

    def _visited(self, policy: JointPolicy) -> Ints:
        """Joint states that a policy comes to."""
        seen, new = np.zeros(self.count, dtype=bool), np.array([self.start])
        while len(new):
            seen[new] = True
            reached = [index[chance > 0] for index, chance in self._outcomes(policy.riders[new], new)]
            new = np.unique(np.concatenate(reached))
            new = new[~seen[new]]
        return np.flatnonzero(seen)

    def _pass(self, rides: Sequence[bool]) -> Floats:
        """Ticks of a pass of these riders, in every joint state."""
        if not any(rides):
            return np.ones(self.shape)
        fed = _sum(self._spread(self._length[k] + 1.0, k) for k, yes in enumerate(rides) if yes)
        ticks = np.rint(self._fixed + sum(rides) * self._per_device + self._per_token * fed)
        return np.broadcast_to(np.maximum(ticks, 1.0), self.shape)

    def _gained(self, rides: Sequence[bool]) -> Floats:
        """Expected tokens of these riders, in every joint state."""
        return np.zeros(self.shape) + _sum(self._spread(self._tokens[k], k) for k, yes in enumerate(rides) if yes)

    def _ticks(self, riders: int, fed: int) -> int:
        return max(1, round(self._fixed + riders * self._per_device + self._per_token * fed))

    def _spread(self, of_device: Floats, device: int) -> Floats:
        """An array over a device's states as one that fits joint states."""
        return of_device.reshape([-1 if k == device else 1 for k in range(len(self.shape))])

    def _of(self, arrays: Sequence[Floats], riders: Ints, joint: Ints) -> Floats:
        """Elements of the arrays of these decisions."""
        found = np.empty(len(joint))
        for action in np.unique(riders):
            here = riders == action
            found[here] = arrays[action].ravel()[joint[here]]
        return found


def _sum(arrays: Iterable[Floats]) -> Floats:
    """The sum of some arrays; 0 of none."""
    total: Floats = np.zeros(())
    for each in arrays:
        total = total + each
    return total


def _reachable(stream: Stream, longest: int) -> list[State]:
    """All states that a device comes to, in order."""
    seen, new = {stream.anew}, [stream.anew]
    while new:
        state = new.pop()
        length = min(max(state[0], 0), stream.most)
        nexts = {stream.later(state, 1)}
        for ticks in range(1, longest + 1):
            nexts |= {stream.decided(state, length, ticks), stream.later(state, ticks)}
        new += nexts - seen
        seen |= nexts
    return sorted(seen)
