"""Learns from drafts that devices make beside their texts, which go on meanwhile."""

from multispin.passes.seats import Seat, TrialDraft
from multispin.passes.state import EdgeState
from multispin.protocol import Downlink, Draft, comparison_of


def tried(
    state: EdgeState, seat: Seat, trial: TrialDraft, message: Draft, frame_bytes: int, now_s: float
) -> list[Downlink]:
    """Take a draft that was asked for beside the text. Returns what was committed meanwhile, for the device."""
    session = seat.session
    trial.ids = session.glance(message, trial.grant)
    state.observe_draft(seat, trial.grant, message, frame_bytes, now_s - trial.asked_s)
    state.controller.chooser.probes.end(session.number, now_s)
    compare(state, seat)
    return [*session.catch_up(message.base)]


def compare(state: EdgeState, seat: Seat) -> None:
    """Learn from a draft made beside the text, as soon as the text shows how much of it was right."""
    trial, request = seat.trial, seat.session.request
    if trial is None or trial.ids is None or request is None:
        return
    found = comparison_of(trial.ids, request.committed[trial.base : trial.base + len(trial.ids)])
    if found.contradicted or found.compared == len(trial.ids):
        state.controller.observe_outcome(seat.session.number, trial.grant.length, found.equal)
        seat.trial = None
