"""Drafts in grants beside streams, for texts under a rejection rule.

These rules need a distribution for each token and a fresh start after each verdict, so the devices do not stream. Their
drafts ride in whatever pass finds them ready, and a pass may wait for them (`control.streams`).
"""

import heapq

from multispin.passes.flows import alone_tokens_per_s, grant_length
from multispin.passes.planning import MOST_DRAFT_S
from multispin.passes.plans import DEVICE, EDGE, NOBODY
from multispin.passes.probing import PROBE_LENGTH
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import Job
from multispin.protocol import Ask, Downlink, Draft, Granted, Idle, Pending, Tail, Verdict
from multispin.speculation import Finding

UNTIMED_TOKENS = 8
"""Tokens with which each text begins without its device while the speed of the edge's own drafter is not known."""


class Grants:
    """The sessions that draft in grants.

    Args:
        state: sessions and messages that the parts of the loop share.

    """

    def __init__(self, state: EdgeState) -> None:
        self._state = state
        self._number = 0  # of the newest grant
        self._due: list[tuple[float, int, int]] = []  # heap of (when a draft is late [s], session, grant)
        self._probes = state.controller.chooser.probes

    @property
    def due_s(self) -> float | None:
        """Time from which the next draft is late [s]; None if none is awaited."""
        return self._due[0][0] if self._due else None

    def grant(
        self, seat: Seat, bandwidth_hz: float, pass_s: float, present: int, now_s: float, edge_room: int, timed: bool
    ) -> None:
        """Let an idle session take part in the next passes: its device drafts, or it rides in each of them without it.

        A device whose last draft was late, or whose drafts do not pay, is only probed now and then. A device that needs
        longer than `MOST_DRAFT_S` for a token is asked for nothing. While the speed of the edge's own drafter is not
        known, each text begins without its device, so that the drafter can be tried and timed.

        Args:
            seat: its seat.
            bandwidth_hz: its part of the band [Hz].
            pass_s: usual time of a pass [s].
            present: number of sessions, among which a step of the edge's drafter is shared.
            now_s: present time of the driver's clock [s].
            edge_room: longest draft of the edge's own drafter that makes sense; 0 if it cannot draft [tokens].
            timed: whether that drafter's speed is known.

        """
        session, limits, request = seat.session, self._state.limits, seat.session.request
        controller = self._state.controller
        room, length = min(session.room, controller.settings.max_draft_length), 0
        device = controller.beliefs.device(session.number, room, max(1, controller.settings.max_draft_length // 2))
        rate_bits_per_s = max(1e-9, device.rate_bits_per_s(bandwidth_hz))
        token_s = device.seconds_per_token + (device.bits_per_token or 0.0) / rate_bits_per_s
        room = min(room, int(max(0.0, MOST_DRAFT_S - 2.0 * device.delay_s) / token_s))
        untried = edge_room > 0 and not timed and request is not None and request.generated < UNTIMED_TOKENS
        if session.hello.drafts and not untried:
            if not self._probes.distrusted(session.number):
                verifier, price = controller.beliefs.verifier(), controller.prices.engine_tokens_per_s
                drafter = controller.beliefs.edge_drafter() if edge_room and timed else None
                alone_per_s = alone_tokens_per_s(device, verifier, price, pass_s, drafter, edge_room, present)
                length = grant_length(device, bandwidth_hz, pass_s, room, verifier, price, alone_per_s)
            if not length and room and self._probes.due(session.number, now_s):
                self._probes.begin(session.number, now_s)
                length = min(PROBE_LENGTH, room)
        self._number += 1
        seat.drafter, seat.asked_at_s = (DEVICE if length else NOBODY), now_s
        seat.planned_s = 2.0 * device.delay_s + length * token_s if length else 0.0
        grant = session.give(self._number, length, bandwidth_hz if length else 0.0)
        if isinstance(session.stage, Pending):
            return
        self._state.tell(session.number, grant)
        late_s = now_s + limits.deadline_factor * seat.planned_s + limits.deadline_slack_s
        heapq.heappush(self._due, (late_s, session.number, grant.round))

    def begin(self, seat: Seat, now_s: float) -> bool:
        """Let a session have one token without a draft in the pass that reads the last of its prompt, if it can."""
        session = seat.session
        if not is_idle(seat) or session.offer is not None:
            return False
        self._number += 1
        seat.drafter, seat.asked_at_s = NOBODY, now_s
        session.give(self._number, 0, 0.0)
        return True

    def let_go_of_the_late(self, now_s: float) -> None:
        """Take back grants whose drafts have not come in time. Their sessions go on without them."""
        while self._due and self._due[0][0] <= now_s:
            _, number, grant = heapq.heappop(self._due)
            seat = self._state.seats.get(number)
            stage = seat.session.stage if seat is not None and seat.connected else None
            if seat is not None and isinstance(stage, Granted) and stage.grant.round == grant and stage.offer is None:
                seat.session.withdraw()
                self._probes.miss(number, now_s, now_s - seat.asked_at_s)

    def receive(self, seat: Seat, message: Draft, frame_bytes: int, now_s: float) -> list[Downlink]:
        """Take in a draft. Returns the immediate answers."""
        return self._state.receive_draft(seat, message, frame_bytes, now_s) or []

    def settle(self, seat: Seat, job: Job, finding: Finding, now_s: float) -> Verdict | Ask | Tail | None:
        """Decide a draft. Returns the message for the device."""
        answer = self._state.settle(seat, job, finding)
        if isinstance(answer, Ask):
            seat.asked_at_s = now_s
        elif answer is not None and job.drafter == EDGE and job.drafted:  # the device does not have these tokens
            return seat.session.tail(answer.base)
        return answer


def is_idle(seat: Seat) -> bool:
    """Whether a session could be granted a draft, since nothing of it is open."""
    return isinstance(seat.session.stage, Idle)
