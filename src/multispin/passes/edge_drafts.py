"""Drafts of the edge's own drafter: what it is asked for before a pass, and what is done with what it drafted."""

from collections.abc import Sequence

from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import DraftHere, EdgeAsk, EdgeDraft
from multispin.protocol import Pending
from multispin.speculation import AheadMatcher, BatchDrafter, DraftAsk

UNTIMED_LENGTH = 2
"""Until it was seen how long the edge's drafter takes, it drafts no further: what is believed before is a guess."""
PROMPT_LENGTH = 32
"""A draft that has more tokens of its text to read first says nothing of the time of drafting [tokens]."""


class EdgeDrafts:
    """The edge's own drafter at work for the sessions.

    Attributes:
        timed: whether it was seen how long a draft takes.
        reads: whether its last draft had a prompt to read first, so that its time says nothing of drafting.

    Args:
        state: sessions and messages that the parts of the loop share.
        drafter: the edge's own drafter.

    """

    def __init__(self, state: EdgeState, drafter: BatchDrafter) -> None:
        self._state = state
        self._drafter = drafter
        # The drafter's slot for each of the engine's: it knows by its texts when another session has come into one.
        self._slots = [drafter.open() for _ in range(state.engine.slots)]
        self.timed = False
        self.reads = False

    def room(self, room: int) -> int:
        """Longest draft of the drafter that makes sense where this many more tokens fit."""
        return room if self.timed else min(room, UNTIMED_LENGTH)

    def wanted(self) -> DraftHere | None:
        """The drafter's task for sessions with empty drafts; None if there is nothing to draft."""
        return self.step(
            [
                (seat, seat.session.request.committed, seat.to_draft)
                for seat in self._state.seats
                if seat.to_draft and seat.session.request is not None and isinstance(seat.session.stage, Pending)
            ]
        )

    def step(self, wanted: Sequence[tuple[Seat, Sequence[int], int]]) -> DraftHere | None:
        """The drafter's task; None if there is nothing to draft.

        Args:
            wanted: sessions, the text after which to draft for each, and how many tokens.

        """
        asks = []
        for seat, text, length in wanted:
            request, slot = seat.session.request, seat.slot
            if length and request is not None and slot is not None:
                form = None if request.ids_only else request.form
                ahead = text[len(request.committed) :]  # drafted by the device
                matcher = None if request.matcher is None else AheadMatcher(request.matcher, ahead)
                ask = DraftAsk(self._slots[slot], tuple(text), length, request.params, matcher)
                asks.append(EdgeAsk(seat.session.number, ask, form))
        if not asks:
            return None
        # What its device drafted, and what was accepted of it, is new in almost every pass of a stream: reading that is
        # part of the time. A prompt, or what came while nobody asked for drafts, is not.
        self.reads = any(self._drafter.unread(each.ask.slot, each.ask.committed) > PROMPT_LENGTH for each in asks)
        self._state.seats.begin_batch(self._state.seats[each.session].slot or 0 for each in asks)
        return DraftHere(tuple(asks))

    def draft(self, step: DraftHere) -> list[EdgeDraft]:
        """Run the edge's own drafter. Slow; safe to run in another thread, the one of `verify`."""
        drafter, found = self._drafter, dict[int, EdgeDraft]()
        plain = [each for each in step.asks if each.form is None]
        for each, ids in zip(plain, drafter.draft([each.ask for each in plain]) if plain else [], strict=True):
            found[each.session] = ids, []
        for form in {each.form for each in step.asks if each.form is not None}:
            group = [each for each in step.asks if each.form == form]
            for each, drafted in zip(
                group, drafter.draft_distributions([each.ask for each in group], form), strict=True
            ):
                found[each.session] = drafted
        return [found[each.session] for each in step.asks]

    def drafted(self, step: DraftHere, drafts: Sequence[EdgeDraft], draft_s: float, now_s: float) -> None:
        """Take what the edge's own drafter drafted, one draft per ask; it took `draft_s`."""
        self._state.seats.end_batch()
        for each, (ids, distributions) in zip(step.asks, drafts, strict=True):
            seat = self._state.seats.get(each.session)
            if seat is not None and seat.to_draft and isinstance(seat.session.stage, Pending):
                seat.to_draft = 0
                seat.session.draft_here(ids, distributions)
        if not self.reads and any(ids for ids, _ in drafts):  # a drafter that has failed was not timed
            self.timed = True
            self._state.controller.beliefs.observe_edge_draft([len(ids) for ids, _ in drafts], draft_s)
        self._state.controller.chooser.edge_drafted(now_s, timed=not self.reads)
