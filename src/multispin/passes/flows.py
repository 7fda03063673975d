"""Flows: what is known of each stream, when its next tokens are expected, and how far ahead its device may draft.

This file knows times, positions and beliefs, and nothing of decisions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.control import Device, EdgeDrafter, Verification
from multispin.control.edge import LEAST_OF_PLAIN
from multispin.control.goodput import expected_tokens
from multispin.control.worth import SessionWorth
from multispin.passes.beliefs import Beliefs, View
from multispin.passes.first_frames import first_frame
from multispin.protocol import MAX_DRAFT_LENGTH, Arrival, Chunk, Streaming

LEAST_WORTH = 0.02
"""A device drafts no further ahead than tokens that are accepted with at least this probability …"""
LEAST_AHEAD = 2
"""… but at least this many tokens, because only drafted tokens can be observed."""
CHUNKS = (1, 2, 4, 8, 16)
"""Tokens of a frame."""
MOST_AIR = 0.5
"""Frames are made longer until sending takes at most this share of the drafting time …"""
SAVES = 0.2
"""… as long as that saves at least this share of the bits. If tokens have many bits, a long frame only comes later."""
FRAMES = 400
"""Most frames of all devices together during a pass …"""
FRAMES_PER_S = 4000.0
"""… and in a second, with at least two of each device for a pass: a frame costs the edge some ten microseconds."""
YOUNG = 16
"""Number of a stream's first passes, in each of which the beliefs about it are renewed …"""
LOOK_AT_VIEW_EVERY = 4
"""… and later once in this many passes."""
SAMPLED = 4
"""The edge learns from one in this many chunks, which are frequent and similar."""
WINDOW_CHANGE = 0.25
"""Relative change of a window from which on it is sent."""
MOST_BEHIND, MOST_AHEAD = 8.0, 2.0
"""Most tokens by which a session counts as behind or ahead of its least goodput; older debts are forgotten."""
MOST_SPARE = 4.0
"""Most tokens by which it counts as ahead of plain decoding."""
LATER = 1.1
"""A frame counts as due after its expected time multiplied by this. Estimates of a long draft are wrong by some
milliseconds, and a pass that waits for the draft must not begin just before it comes."""
RESTS = 0.5
"""Lateness of a frame, as a share of its interval, from which on its device counts as pausing."""
MISSED = 0.25
"""Share of a pass for which a granted draft waits on average until the next one begins: half of one where no pass waits
for it, and nothing where each does."""
OVERDUE = 2.0
"""Number of expected intervals after which a missing frame is no longer expected."""


class Coming(NamedTuple):
    """When more of a device's tokens are expected.

    Attributes:
        next_s: time from now until its next frame is expected [s]; infinite if none is.
        next_tokens: tokens of that frame; 0 if none is expected.
        tokens_per_s: rate at which its tokens come in the long run [tokens/s]; 0 if it may not draft.

    """

    next_s: float
    next_tokens: int
    tokens_per_s: float


@dataclass(slots=True, eq=False)
class Flow:
    """The known state of a stream.

    Attributes:
        since_s: time at which it was last in a pass, or could first be in one; at first when it began [s].
        told_at: length of the committed text at `told_s` [tokens].
        device: belief about its device, renewed now and then.
        told_s: time of the last message that makes its device start over, at first when it began [s].
        arrived_s: time at which its last chunk came, at first when it began [s].
        rides: number of passes since the last renewal.
        view: recent belief about its tokens; None: to be computed.
        young: number of passes for which it still counts as new.
        chunks: number of frames that came.
        behind_tokens: tokens by which it is behind its least goodput; negative if it is ahead.
        short_tokens: tokens by which it is behind the goodput that it must have at any price.
        resumed_s: time of the last message that lets its device draft beyond a full window [s].
        rests_at: number of pending tokens at which its device lately stopped although it might go on, for instance to
            save energy.

    """

    since_s: float
    told_at: int
    device: Device
    told_s: float = field(init=False)
    arrived_s: float = field(init=False)
    rides: int = 0
    view: View | None = None
    young: int = YOUNG
    chunks: int = 0
    behind_tokens: float = 0.0
    short_tokens: float = 0.0
    resumed_s: float = -math.inf
    rests_at: float = math.inf

    def __post_init__(self) -> None:
        self.told_s = self.arrived_s = self.since_s

    def arrived(self, message: Chunk, arrival: Arrival, now_s: float) -> float:
        """Note a chunk. Returns its time on the way, both delays included [s], or 0 if unknown.

        It is known only for the first chunk of a chain that begins where the device had to start over.
        """
        self.arrived_s = now_s
        self.chunks += 1
        if not arrival.begins or message.start != self.told_at:
            return 0.0
        return max(0.0, now_s - self.told_s - message.draft_us * 1e-6)

    def starts_over(self, committed: int, now_s: float) -> None:
        """Note a message that makes the device start over from `committed` tokens."""
        self.told_s, self.told_at = now_s, committed

    @property
    def is_sample(self) -> bool:
        """Whether to learn from the last chunk's speed and frame."""
        return self.young > 0 or self.chunks % SAMPLED == 0

    def owes(self, now_s: float, tokens: int, plain_tokens_per_s: float, worth: SessionWorth) -> None:
        """Count by how much it fell short of its least goodput since its last pass. Call this before `rode`.

        Args:
            now_s: present time of the driver's clock [s].
            tokens: tokens that it brought.
            plain_tokens_per_s: its goodput if nobody drafted [tokens/s].
            worth: its least goodput, and the goodput that was asked for it.

        """
        since_s = now_s - self.since_s
        floor_per_s = max(LEAST_OF_PLAIN * plain_tokens_per_s, worth.asked_tokens_per_s)
        short = self.short_tokens + floor_per_s * since_s - tokens
        self.short_tokens = min(max(short, -MOST_SPARE), MOST_BEHIND)
        behind = self.behind_tokens + max(plain_tokens_per_s, worth.least_tokens_per_s) * since_s - tokens
        self.behind_tokens = min(max(behind, -MOST_AHEAD), MOST_BEHIND)

    def rode(self, now_s: float) -> None:
        """Note that it was in a pass."""
        self.since_s = now_s
        self.rides += 1
        if self.young or self.rides % LOOK_AT_VIEW_EVERY == 0:
            self.young, self.view = max(0, self.young - 1), None

    def believed(self, session: int, chunk: int, beliefs: Beliefs) -> View:
        """Recent belief about its tokens, in frames of `chunk` tokens."""
        if self.view is None:
            self.view = beliefs.view(session, chunk)
        return self.view

    def comes(self, stage: Streaming, view: View, now_s: float) -> Coming:
        """When more of its device's tokens are expected, if they are drafted and sent as `view` says."""
        window, pending = stage.window, len(stage.pending)
        if not window.length or window.bandwidth_hz <= 0.0:
            return Coming(math.inf, 0, 0.0)
        _, token_s, token_hz_s = view
        air_s = token_hz_s / window.bandwidth_hz
        per_s = 1.0 / max(token_s, air_s)
        gap_s = window.chunk / per_s
        first_s = 2.0 * self.device.delay_s + window.chunk * (token_s + air_s)  # after it was told something
        if not stage.alive:
            due_s = self.told_s + LATER * first_s
        elif pending >= window.length:
            due_s = math.inf
        else:
            due_s = self._due_s(pending, gap_s, first_s, now_s)
        late_s = OVERDUE * (gap_s + 2.0 * self.device.delay_s)
        if due_s == math.inf or now_s >= due_s + late_s:
            return Coming(math.inf, 0, per_s)
        return Coming(max(0.0, due_s - now_s), window.chunk, per_s)

    def _due_s(self, pending: int, gap_s: float, first_s: float, now_s: float) -> float:
        """Time at which the next frame of the chain is expected [s]; infinite if its device pauses."""
        due_s = max(self.arrived_s + LATER * gap_s, self.resumed_s + LATER * first_s)
        if pending > self.rests_at:
            self.rests_at = math.inf
        elif now_s > due_s + RESTS * gap_s:
            self.rests_at = pending
        return due_s if pending < self.rests_at else math.inf


def window_of(
    view: Callable[[int], View],
    delay_s: float,
    bandwidth_hz: float,
    pass_s: float,
    most: int,
    devices: int = 1,
    waited_s: float = 0.0,
) -> tuple[int, int]:
    """How far a device may draft ahead, and how many tokens it sends in a frame.

    Far enough that it never pauses: it learns of a token's fate a round trip and up to two passes after drafting it.
    But no further than passes can verify in that time, nor where a token is accepted with a probability below
    `LEAST_WORTH`. So a window may be longer than the longest draft: while that is verified, the next one is drafted. A
    frame has one token, or as many as the edge needs to keep up, since a longer frame comes later. On a narrow band it
    is longer, to save bits; but if passes wait for first frames, no longer than comes in that time.

    Args:
        view: function that gives α, T^S [s] and Q/r [Hz·s] of a token in frames of a given number of tokens.
        delay_s: one-way delay of its link [s].
        bandwidth_hz: part of the band that it is granted [Hz].
        pass_s: usual time of a pass [s].
        most: longest draft, the most tokens that are verified at once.
        devices: number of devices that stream; default 1.
        waited_s: how long passes wait for first frames [s], see `first_frames.waited_s`; default 0, they do not.

    Returns: tokens ahead and tokens in a frame; 0 ahead if it cannot draft.
    """
    if most < 1 or bandwidth_hz <= 0.0:
        return 0, 1
    rate, token_s, token_hz_s = view(1)
    takes_s = max(token_s, token_hz_s / bandwidth_hz)  # drafting and sending overlap
    frame_s = min(0.5 * pass_s, max(1, devices) * max(pass_s / FRAMES, 1.0 / FRAMES_PER_S))
    chunk = least = next((tokens for tokens in CHUNKS if tokens * takes_s >= frame_s), CHUNKS[-1])
    while (
        chunk < CHUNKS[-1]
        and (before := view(chunk)[2]) / bandwidth_hz > MOST_AIR * token_s
        and view(2 * chunk)[2] <= (1.0 - SAVES) * before
    ):
        chunk *= 2
    if in_time := first_frame(view, delay_s, bandwidth_hz).tokens(waited_s):
        chunk = max(least, min(chunk, in_time))
    token_hz_s = view(chunk)[2]
    unheard_s = 2.0 * delay_s + 2.0 * pass_s
    covers = min(unheard_s / max(token_s, token_hz_s / bandwidth_hz) + chunk, most * unheard_s / pass_s)
    worth = math.log(LEAST_WORTH) / math.log(rate) if 0.0 < rate < 1.0 else (math.inf if rate >= 1.0 else 0.0)
    length = max(min(most, LEAST_AHEAD), math.ceil(min(covers, worth, MAX_DRAFT_LENGTH)))
    return length, min(chunk, most, length)


def matters(old: tuple[int, int, float], new: tuple[int, int, float]) -> bool:
    """Whether a window (tokens ahead, tokens in a frame, band [Hz]) differs enough from the last one to be sent."""
    if new[2] < old[2] or (old[0] == 0) != (new[0] == 0):  # a band that another device gets must be given up
        return True
    ahead = abs(new[0] - old[0]) > max(1.0, WINDOW_CHANGE * old[0])
    frame = abs(new[1] - old[1]) > WINDOW_CHANGE * old[1]
    return ahead or frame or new[2] > (1.0 + WINDOW_CHANGE) * old[2]


def grant_length(
    device: Device,
    bandwidth_hz: float,
    pass_s: float,
    most: int,
    verifier: Verification,
    price: float = 0.0,
    alone_per_s: float = 0.0,
) -> int:
    """Draft length that gives a session which drafts in grants the most tokens per second, net of the engine's time.

    It maximises (w E[N(L)] − λ · the engine's time for its ride) / (1.25 passes + round trip + L · (time per token,
    transmission included)). A quarter of a pass is what a draft waits on average until a pass begins.

    Args:
        device: belief about the device.
        bandwidth_hz: part of the band that it is granted [Hz].
        pass_s: usual time of a pass [s].
        most: longest draft that makes sense [tokens].
        verifier: belief about the time of a pass.
        price: λ, what a second of the engine is worth; default 0 [tokens/s].
        alone_per_s: what the session has without its device, see `alone_tokens_per_s`; default 0 [tokens/s].

    Returns: the length; 0 if no length gives more than `alone_per_s`.

    """
    if most < 1 or bandwidth_hz <= 0.0:
        return 0
    token_s = device.seconds_per_token + (device.bits_per_token or 0.0) / device.rate_bits_per_s(bandwidth_hz)
    rate, cycle_s = device.acceptance_rate or 0.0, (1.0 + MISSED) * pass_s + 2.0 * device.delay_s

    def net_per_s(length: int) -> float:
        return _net(device.weight, rate, length, verifier, price) / (cycle_s + length * token_s)

    best = max(range(1, most + 1), key=net_per_s)
    return best if net_per_s(best) > alone_per_s else 0


def alone_tokens_per_s(
    device: Device,
    verifier: Verification,
    price: float,
    pass_s: float,
    drafter: EdgeDrafter | None = None,
    edge_room: int = 0,
    present: int = 1,
) -> float:
    """Net tokens per second of a session that rides in every pass without its device [tokens/s].

    Args:
        device: belief about the device, for its weight and the edge's acceptance rate.
        verifier: belief about the time of a pass.
        price: λ, what a second of the engine is worth [tokens/s].
        pass_s: usual time of a pass [s].
        drafter: belief about the edge's own drafter; default None, it does not draft.
        edge_room: longest draft of it that makes sense; default 0 [tokens].
        present: number of sessions for which it drafts; default 1.

    """
    best = _net(device.weight, 0.0, 0, verifier, price) / pass_s
    if drafter is not None:
        own_rate, step_s = device.edge_acceptance_rate, drafter.step_s(present)
        rate = drafter.acceptance_rate if own_rate is None else own_rate
        for length in range(1, edge_room + 1):
            net = _net(device.weight, rate, length, verifier, price) - price * length * drafter.per_device_s
            best = max(best, net / (pass_s + length * step_s))
    return best


def _net(weight: float, rate: float, length: int, verifier: Verification, price: float) -> float:
    """Expected weighted tokens of a draft, less the price of the engine's time for its ride [tokens]."""
    ride_s = verifier.per_device_s + verifier.per_token_s * (length + 1)
    return weight * float(expected_tokens(rate, length)) - price * ride_s
