"""Beliefs of a simulated controller: what it has learned, or the truth, all of it or all but α.

Either way the scenario's limits of draft lengths, weights and least goodputs are its own: they are settings, not
something to learn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from multispin.control import Device, EdgeDrafter, Scenario, Verification
from multispin.passes import LearnedBeliefs
from multispin.passes.beliefs import Believed, View
from multispin.simulation.device import SimulatedDevice


class BoundedBeliefs(LearnedBeliefs):
    """Learns, and keeps to each device's shortest and longest drafts, weight and least goodput of the scenario.

    Args:
        scenario: scenario that holds them.
        devices: all devices at the site, by session number.
        frame_bits: frame overhead per draft [bit], assumed until a device's own is measured.
        delays: whether delay and rate of a link are fitted together, as in `LearnedBeliefs`.

    """

    def __init__(
        self, scenario: Scenario, devices: Mapping[int, SimulatedDevice], frame_bits: float, delays: bool
    ) -> None:
        cell = scenario.cell
        super().__init__(math.ceil(cell.bits_per_token), cell.max_draft_length, frame_bits, delays=delays)
        self.leaves_out = cell.min_draft_length == 0
        self._scenario = scenario
        self._devices = devices

    def charge(self, session: int, token_bits: float | None = None, refusal_bits: float = 0.0) -> None:
        """A token takes the bits that the scenario says: the simulated vocabulary is small."""
        known = self._devices.get(session)
        super().charge(
            session, token_bits if token_bits is None or known is None else known.bits_per_token, refusal_bits
        )

    def device(self, session: int, room: int, length: int, edge_room: int = 0) -> Device:
        """The planner's device, within the scenario's limits and with what the scenario asks for it."""
        truth = self._devices[session].truth
        shortest, longest = self._scenario.limits(truth)
        edge_longest = min(edge_room, self._scenario.cell.max_draft_length)
        believed = self._belief(session).device(session, min(longest, room), length, edge_longest, shortest)
        if truth.weight == 1.0 and truth.min_goodput_tokens_per_s is None:
            return believed
        return replace(believed, weight=truth.weight, min_goodput_tokens_per_s=truth.min_goodput_tokens_per_s)

    def snapshot(self, sessions: Sequence[int]) -> Believed:
        """These beliefs themselves: a simulated plan takes no time, and no other thread makes it."""
        return self


class TrueBeliefs(LearnedBeliefs):
    """Knows the verifier, every device's speed and link, and perhaps how often its drafts are accepted.

    What it does not know, and what reports show of sessions, it learns like any other controller.

    Args:
        scenario: true scenario of the site.
        devices: all devices at the site, by session number.
        now_s: function that returns the time [s]; a device's link is known as it is now.
        knows_acceptance: whether acceptance is known, the default; otherwise it is learned.
        frame_bits: size of a draft's frame without its tokens [bit]; default 0, the paper's payload.

    """

    def __init__(
        self,
        scenario: Scenario,
        devices: Mapping[int, SimulatedDevice],
        now_s: Callable[[], float],
        knows_acceptance: bool = True,
        frame_bits: float = 0.0,
    ) -> None:
        super().__init__(scenario.cell.bits_per_token, scenario.cell.max_draft_length)
        self.leaves_out = False
        self._frame_bits_known = frame_bits
        self._truth = scenario
        self._devices = devices
        self._now_s = now_s
        self._knows_acceptance = knows_acceptance

    def observe_draft(
        self, session: int, length: int, draft_s: float, frame_bits: int, bandwidth_hz: float, upload_s: float
    ) -> None:
        """Do nothing: the truth is known already."""

    def view(self, session: int, length: int) -> View:
        """The true inputs of the best draft length."""
        device = self._devices[session]
        heard = device.listen(self._now_s())
        rate = heard.acceptance_rate or 0.0
        return (
            rate if self._knows_acceptance else self.acceptance_rate(session),
            heard.seconds_per_token,
            self._bits_per_token(device, length) / heard.efficiency_at(self._truth.cell.bandwidth_hz),
        )

    def snapshot(self, sessions: Sequence[int]) -> Believed:
        """These beliefs themselves: a simulated plan takes no time, and no other thread makes it."""
        return self

    def delay_s(self, session: int) -> float:
        """One-way delay between a device and the edge, in truth [s]."""
        return self._devices[session].truth.delay_s

    def fixed_share(self, session: int) -> float:
        """Share of a one-token draft's bits that a longer draft does not send again."""
        return self._frame_bits_known / (self._frame_bits_known + self._devices[session].bits_per_token)

    def device(self, session: int, room: int, length: int, edge_room: int = 0) -> Device:
        """The scenario's device as its link is now."""
        device = self._devices[session]
        shortest, longest = self._truth.limits(device.truth)
        longest = min(longest, room)
        heard = device.listen(self._now_s())
        if not self._knows_acceptance:
            heard = replace(heard, acceptance_rate=self.acceptance_rate(session), acceptance_profile=None)
        return replace(
            heard,
            name=str(session),
            bits_per_token=self._bits_per_token(device, length),
            max_draft_length=longest,
            min_draft_length=min(shortest, longest),
            edge_max_draft_length=edge_room,
        )

    def _bits_per_token(self, device: SimulatedDevice, length: int) -> float:
        return device.bits_per_token + self._frame_bits_known / max(1, length)

    def verifier(self) -> Verification:
        """The scenario's verifier."""
        return self._truth.verifier

    def edge_drafter(self) -> EdgeDrafter:
        """The scenario's edge drafter."""
        return self._truth.edge_drafter or super().edge_drafter()
