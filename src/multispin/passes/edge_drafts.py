"""Drafts of the edge's own drafter: its tasks before a pass, and what is done with its drafts."""

from collections.abc import Sequence

from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import DraftHere, EdgeAsk, EdgeDraft
from multispin.protocol import Pending
from multispin.speculation import AheadMatcher, BatchDrafter, DraftAsk

UNTIMED_LENGTH = 2
"""Longest draft of the edge's drafter before its time was measured [tokens], since its cost is only a guess."""
PROMPT_LENGTH = 32
"""Most unread tokens of a text for which the time of a draft still shows the speed of drafting [tokens]."""


class EdgeDrafts:
    """The edge's own drafter at work for the sessions.

    Attributes:
        timed: whether the time of a draft has been measured.
        reads: whether the last draft had to read a prompt first, so that its time does not show the speed of drafting.

    Args:
        state: sessions and messages that the parts of the loop share.
        drafter: the edge's own drafter.

    """

    def __init__(self, state: EdgeState, drafter: BatchDrafter) -> None:
        self._state = state
        self._drafter = drafter
        # One drafter slot for each engine slot. The drafter sees from its text when another session uses a slot.
        self._slots = [drafter.open() for _ in range(state.engine.slots)]
        self.timed = False
        self.reads = False

    def room(self, room: int) -> int:
        """Longest useful draft of the drafter if this many more tokens fit [tokens]."""
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
            wanted: for each session its seat, the text to draft after, and the number of tokens.

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
        # A stream has new device tokens in almost every pass, so reading them is part of the drafting time. Reading a
        # prompt, or text that came while no drafts were asked for, is not.
        self.reads = any(self._drafter.unread(each.ask.slot, each.ask.committed) > PROMPT_LENGTH for each in asks)
        self._state.seats.begin_batch(self._state.seats[each.session].slot or 0 for each in asks)
        return DraftHere(tuple(asks))

    def draft(self, step: DraftHere) -> list[EdgeDraft]:
        """Run the edge's own drafter. Slow; may run in another thread, the same as `verify`."""
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
        """Take the drafts of the edge's own drafter, one per ask; `draft_s` is their time [s]."""
        self._state.seats.end_batch()
        for each, (ids, distributions) in zip(step.asks, drafts, strict=True):
            seat = self._state.seats.get(each.session)
            if seat is not None and seat.to_draft and isinstance(seat.session.stage, Pending):
                seat.to_draft = 0
                seat.session.draft_here(ids, distributions)
        if not self.reads and any(ids for ids, _ in drafts):  # a failed draft is not timed
            self.timed = True
            self._state.controller.beliefs.observe_edge_draft([len(ids) for ids, _ in drafts], draft_s)
        self._state.controller.chooser.edge_drafted(now_s, timed=not self.reads)
