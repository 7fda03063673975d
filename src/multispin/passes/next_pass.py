"""The next pass of streams: who rides in it, what the edge's own drafter adds, and its batch.

This file knows nothing of decisions and prices.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from multispin.control.streams import Ride
from multispin.passes.batches import collect, job_of, pending_job, prompt_due
from multispin.passes.edge_drafts import EdgeDrafts
from multispin.passes.plans import DEVICE, EDGE
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import Batch, DraftHere, Job
from multispin.protocol import Pending, Streaming


class _PlannedRide(NamedTuple):
    """One session's part of the next pass.

    Attributes:
        seat: seat of the session.
        ride: the decision for the session.
        epoch: epoch of its device's chain.

    """

    seat: Seat
    ride: Ride
    epoch: int


class NextPass:
    """The next pass.

    Args:
        state: sessions and messages that the parts of the loop share.
        edge_drafts: the edge's own drafter at work; None if it has none.

    """

    def __init__(self, state: EdgeState, edge_drafts: EdgeDrafts | None) -> None:
        self._state = state
        self._edge_drafts = edge_drafts
        self._rides: list[_PlannedRide] = []

    def board(self, rides: Sequence[Ride]) -> None:
        """Set which sessions are in this pass."""
        self._rides = [_planned(self._state.seats[ride.session], ride) for ride in rides]

    def to_draft(self) -> DraftHere | None:
        """The task of the edge's own drafter for this pass; None if there is nothing to draft."""
        if self._edge_drafts is None or not any(ride.edge_tokens for _, ride, _ in self._rides):
            return None
        texts: list[tuple[Seat, Sequence[int], int]] = []
        for seat, ride, _ in self._rides:
            request, stage = seat.session.request, seat.session.stage
            if request is None or not ride.edge_tokens:
                continue
            text: Sequence[int] = request.committed
            if isinstance(stage, Streaming):
                text = [*text, *stage.pending[: ride.device_tokens]]
            else:
                seat.drafter, seat.to_draft = EDGE, ride.edge_tokens
            texts.append((seat, text, ride.edge_tokens))
        return self._edge_drafts.step(texts)

    def batch(
        self, number: int, added: Mapping[int, Sequence[int]], begin: Callable[[Seat], Ride | None]
    ) -> Batch | None:
        """The batch of all riders and prompts; None if it would be empty. The riders of the pass after it are cleared.

        A session that has gone while the edge's drafter worked is left out, and so are drafts after a chain that has
        ended.

        Args:
            number: number of the pass.
            added: ids that the edge's drafter has drafted, by session.
            begin: the first ride of a session, in the pass that reads the last of its prompt; None if it cannot ride
                yet.

        """
        jobs = [job for each in self._rides if (job := self._job(each, added)) is not None]
        self._rides = []
        if not jobs and not any(prompt_due(self._state, seat) for seat in self._state.seats):
            return None
        return collect(self._state, number, jobs, lambda seat: self._first_job(seat, begin(seat)))

    def _first_job(self, seat: Seat, ride: Ride | None) -> Job | None:
        return None if ride is None else self._job(_planned(seat, ride), {})

    def _job(self, each: _PlannedRide, added: Mapping[int, Sequence[int]]) -> Job | None:
        seat, ride, epoch = each
        session, stage = seat.session, seat.session.stage
        if self._state.seats.get(session.number) is not seat or not seat.running:
            return None
        if isinstance(stage, Pending):
            return pending_job(seat)
        if not isinstance(stage, Streaming):
            return None
        more, own = added.get(session.number, ()), min(ride.device_tokens, session.room)
        if own and (stage.epoch != epoch or own > len(stage.pending)):
            more = ()
        ids = stage.take(own, more[: session.room - own])
        own = min(own, len(ids))
        return job_of(seat, ids, None, own, EDGE if len(ids) > own == 0 else DEVICE)


def _planned(seat: Seat, ride: Ride) -> _PlannedRide:
    stage = seat.session.stage
    return _PlannedRide(seat, ride, stage.epoch if isinstance(stage, Streaming) else 0)
