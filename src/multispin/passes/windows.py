"""Windows of streams: how far each device may draft ahead, over which band, and which devices are only tried.

Each text in a stream has a window, which is sent when the text begins and again when it has changed enough. A device
that does not pay has a window of 0 except in its trials (`paying`). This file knows nothing of who rides in a pass.
"""

from collections.abc import Sequence
from functools import partial

from multispin.control import Device
from multispin.passes.bands import Bands
from multispin.passes.beliefs import View
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.first_frames import first_frame, waited_s
from multispin.passes.flows import Flow, matters, window_of
from multispin.passes.grants import Grants, is_idle
from multispin.passes.planning import MOST_DRAFT_S
from multispin.passes.probing import PROBE_LENGTH
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.protocol import Chunk, Streaming

LOOK_EVERY = 8
"""Number of a session's passes after which its window is computed again."""
MOST_GONE = 64
"""Most ended sessions whose streams are remembered."""
TRIALS_AT_ONCE = 8
"""One of this many devices may be tried at a time, and at least one."""
TRIED_RATE = 0.8
"""Acceptance rate assumed in a trial, so that the device drafts and a few of its tokens are verified."""


class Windows:
    """The streams of all sessions, and their windows.

    Attributes:
        pass_s: usual time of a pass; the scheduler keeps it up to date [s].

    Args:
        state: sessions and messages that the parts of the loop share.
        grants: grants of the texts under a rejection rule.
        edge_drafts: the edge's own drafter at work; None if it has none.

    """

    def __init__(self, state: EdgeState, grants: Grants, edge_drafts: EdgeDrafts | None) -> None:
        self._state = state
        self._seats = state.seats
        self._beliefs = state.controller.beliefs
        self._settings = state.controller.settings
        self._prices = state.controller.prices
        self._paying = state.controller.paying
        self._grants = grants
        self._edge_drafts = edge_drafts
        self._bands = Bands(state.controller.settings.bandwidth_hz)
        self._flows: dict[int, Flow] = {}
        self._drafting = 0  # devices that draft
        self._present = 0  # sessions with a text
        self._waited_s = 0.0  # how long passes wait best for devices that begin again [s] …
        self._waited_for: object = None  # … by the prices for which that was found
        self.pass_s = self._beliefs.verifier().verify_s([0])

    def flow(self, number: int) -> Flow | None:
        """The state of a session's stream; None before it has one."""
        return self._flows.get(number)

    def forget(self, number: int) -> None:
        """Forget a session's stream. Its device starts over in another epoch."""
        self._flows.pop(number, None)

    def edge_room(self, seat: Seat) -> int:
        """Longest useful draft of the edge's own drafter for a session [tokens]."""
        return 0 if self._edge_drafts is None else self._edge_drafts.room(seat.session.room)

    def device(self, seat: Seat) -> Device:
        """The beliefs about a session's device."""
        return self._beliefs.device(seat.session.number, seat.session.room, 1, self.edge_room(seat))

    def least_rate(self, number: int) -> float:
        """Least acceptance rate to assume for a device; above 0 in a trial, where earlier observations do not count."""
        return TRIED_RATE if self._paying.tried(number) else 0.0

    # Before a pass ------------------------------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """Send a window to each device that can take part now, for the first time or again."""
        drafting: list[Seat] = []
        idle: list[Seat] = []
        resting: list[Seat] = []
        present = 0
        for seat in self._seats:
            if not (seat.running and seat.connected):
                continue
            session, present = seat.session, present + 1
            if session.hello.drafts:
                (resting if self._rests(seat) else drafting).append(seat)
            if session.number not in self._flows if isinstance(session.stage, Streaming) else is_idle(seat):
                idle.append(seat)
        self._drafting, self._present = len(drafting), present
        if len(self._flows) > 2 * len(self._seats) + MOST_GONE:  # of sessions that ended before their texts
            self._flows = {number: flow for number, flow in self._flows.items() if self._seats.get(number) is not None}
        self._bands.take_back_but_from(
            {seat.session.number for seat in resting if self._paying.tried(seat.session.number)}
        )
        if self._bands.look([seat.session.number for seat in drafting], self._prices.bands_hz, bool(resting)):
            self._tune_all()
        if self._prices.worth is not self._waited_for:
            self._find_waited(drafting, present)
        for seat in idle:
            self._begin(seat, now_s)
        if resting:
            self._try(resting, len(drafting), now_s)

    def _find_waited(self, drafting: Sequence[Seat], present: int) -> None:
        """Find again how long passes wait best, because prices were found again."""
        worth = self._waited_for = self._prices.worth
        if worth is None:
            return
        frames = [
            first_frame(partial(self._beliefs.view, number), flow.device.delay_s, band_hz)
            for number in (seat.session.number for seat in drafting)
            if (flow := self._flows.get(number)) is not None and (band_hz := self._bands.of(number)) > 0.0
        ]
        verifier, most = self._beliefs.verifier(), self._settings.max_draft_length
        pass_s, others = verifier.verify_s([0] * present), present - len(frames)
        self._waited_s = waited_s(frames, others, pass_s, verifier.per_token_s, most, worth.alone_tokens_per_s)

    def _begin(self, seat: Seat, now_s: float) -> None:
        """Give a text its first grant or window."""
        request, number = seat.session.request, seat.session.number
        assert request is not None
        if not request.ids_only:
            if not self._seats.unread(seat):
                timed = self._edge_drafts is not None and self._edge_drafts.timed
                band_hz, edge_room = self._bands.of(number), self.edge_room(seat)
                self._grants.grant(seat, band_hz, self.pass_s, self._present, now_s, edge_room, timed)
        else:  # its device may draft while its prompt is read
            flow = self._flows[number] = Flow(now_s, len(request.committed), self.device(seat))
            self._tune(seat, flow)

    def _tune_all(self) -> None:
        """Update all windows, since shares of the band have changed."""
        for number, flow in list(self._flows.items()):
            if (known := self._seats.get(number)) is None:
                del self._flows[number]
            else:
                self._tune(known, flow)

    def _tune(self, seat: Seat, flow: Flow) -> None:
        """Compute a device's window again, and send it if it has changed enough."""
        session, number = seat.session, seat.session.number
        stage, request = session.stage, session.request
        if request is None or not request.ids_only or not seat.running:
            return
        flow.device, flow.rides, flow.view = self.device(seat), 0, None
        length, chunk, band_hz = self._window(seat, flow)
        if not isinstance(stage, Streaming):
            window = session.stream(length, chunk, band_hz)
            if length:
                self._state.tell(number, window)
            return
        old = stage.window
        if matters((old.length, old.chunk, old.bandwidth_hz), (length, chunk, band_hz)):
            self._state.tell(number, session.stream(length, chunk, band_hz))

    def _window(self, seat: Seat, flow: Flow) -> tuple[int, int, float]:
        """A device's window (tokens ahead, tokens of a frame, band [Hz]); nothing while it rests."""
        number = seat.session.number
        if not seat.session.hello.drafts or (self._paying.rests(number) and not self._paying.tried(number)):
            return 0, 1, 0.0
        band_hz, least, most = self._bands.of(number), self.least_rate(number), self._settings.max_draft_length

        def view(tokens: int) -> View:
            rate, token_s, token_hz_s = self._beliefs.view(number, tokens)
            return max(rate, least), token_s, token_hz_s

        ahead = window_of(
            view, flow.device.delay_s, band_hz, self.pass_s, most, devices=self._drafting, waited_s=self._waited_s
        )
        return *ahead, band_hz

    # Trials -------------------------------------------------------------------------------------------------------

    def _rests(self, seat: Seat) -> bool:
        """Whether the seat's device is only tried now and then. Rules that draft in grants have their own probes."""
        request = seat.session.request
        return self._paying.rests(seat.session.number) and request is not None and request.ids_only

    def _try(self, resting: Sequence[Seat], drafting: int, now_s: float) -> None:
        """End trials whose time is over, and begin those that are due, a few at a time."""
        for seat in resting:
            if self._paying.late(seat.session.number, now_s):
                self._rest(seat, now_s)
        tried = sum(self._paying.tried(seat.session.number) for seat in resting)
        free = max(1, (len(resting) + drafting) // TRIALS_AT_ONCE) - tried
        for seat in resting:
            if free <= 0:
                return
            number, flow, request = seat.session.number, self._flows.get(seat.session.number), seat.session.request
            if flow is None or request is None or self._seats.unread(seat) or not self._paying.due(number, now_s):
                continue
            token_s = flow.device.seconds_per_token
            expected_s = 2.0 * (flow.device.delay_s + self.pass_s) + PROBE_LENGTH * token_s
            if expected_s > MOST_DRAFT_S or not self._bands.lend(number):
                continue
            self._paying.begin(number, expected_s, now_s)
            flow.starts_over(len(request.committed), now_s)
            self._tune(seat, flow)
            free -= 1

    def _rest(self, seat: Seat, now_s: float) -> None:
        """End a trial without success, and tell the device to stop."""
        number = seat.session.number
        self._end_trial(number, now_s)
        if (flow := self._flows.get(number)) is not None:
            self._tune(seat, flow)

    def _end_trial(self, number: int, now_s: float) -> None:
        self._paying.end(number, now_s)
        self._bands.take_back(number)

    # What comes, and what was found -------------------------------------------------------------------------------

    def take(self, seat: Seat, message: Chunk, frame_bytes: int, now_s: float) -> None:
        """Take in tokens of a stream, and learn from them."""
        session, number = seat.session, seat.session.number
        arrival = session.receive_chunk(message)
        flow, stage = self._flows.get(number), session.stage
        if flow is None or not isinstance(stage, Streaming):
            return
        way_s = flow.arrived(message, arrival, now_s)
        if way_s > 0.0 or flow.is_sample:
            draft_s, band_hz = message.draft_us * 1e-6, stage.window.bandwidth_hz
            self._beliefs.observe_draft(number, message.length, draft_s, 8 * frame_bytes, band_hz, way_s)
        comparison = arrival.comparison
        if comparison.compared:
            self._state.controller.observe_outcome(number, comparison.compared, comparison.equal)
            if comparison.contradicted and self._paying.tried(number):
                self._rest(seat, now_s)

    def ended(self, number: int, now_s: float) -> None:
        """Note that a text has ended, and with it any trial of its device."""
        self._flows.pop(number, None)
        self._end_trial(number, now_s)

    def settled(self, seat: Seat, contradicted: bool, stood: bool, changed: bool, now_s: float) -> None:
        """Note that a stream was in a pass, whose result is sent to its device.

        Args:
            seat: seat of the session.
            contradicted: whether the result ends its device's chain.
            stood: whether its device had filled its window, and may draft on now.
            changed: whether the device begins to rest, or to draft again.
            now_s: present time of the driver's clock [s].

        """
        number, request = seat.session.number, seat.session.request
        flow = self._flows.get(number)
        if flow is None or request is None:
            return
        flow.rode(now_s)
        if flow.young:
            flow.device = self.device(seat)
        if contradicted:
            flow.starts_over(len(request.committed), now_s)
        elif stood:
            flow.resumed_s = now_s
        if changed:
            self._bands.take_back(number)
            if self._paying.rests(number):
                self._bands.give_up(number)
                self._tune(seat, flow)
            else:  # it gets a band of its own again
                self._flows.pop(number)
            return
        if contradicted and self._paying.tried(number):
            self._rest(seat, now_s)
        if flow.rides >= LOOK_EVERY:
            self._tune(seat, flow)
