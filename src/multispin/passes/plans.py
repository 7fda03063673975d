"""Inputs and results of a plan in any mode, with sessions by number."""

from dataclasses import dataclass
from typing import NamedTuple

from multispin.control.who import DEVICE, EDGE, NOBODY

__all__ = ["DEVICE", "EDGE", "NOBODY", "Member", "Probe", "RoundPlan", "SessionPlan"]


class Member(NamedTuple):
    """A session that takes part in the next pass.

    Attributes:
        session: number of the session.
        room: longest useful draft of its device, limited by the remaining tokens; 0 if it cannot draft.
        edge_room: longest useful draft of the edge's own drafter [tokens]; default 0.
        comparable: whether its text shows how many tokens of a draft would have been accepted, as under `greedy` and
            `coupled`, where the target's tokens do not depend on drafts; default True.

    """

    session: int
    room: int
    edge_room: int = 0
    comparable: bool = True


class Probe(NamedTuple):
    """A short draft that a device is asked for to learn how good it is.

    Attributes:
        draft_length: length of the draft [tokens].
        bandwidth_hz: band for it [Hz].
        expected_s: expected time until it arrives [s].

    """

    draft_length: int
    bandwidth_hz: float
    expected_s: float


class SessionPlan(NamedTuple):
    """The plan for one session.

    Attributes:
        session: number of the session.
        draft_length: L_k [tokens]; 0 is plain decoding.
        bandwidth_hz: B_k [Hz]; 0 unless its device drafts.
        drafter: `DEVICE`, `EDGE` or `NOBODY`.
        probe: an additional draft of the device, for which nobody waits; default None.

    """

    session: int
    draft_length: int
    bandwidth_hz: float
    drafter: str = DEVICE
    probe: Probe | None = None


@dataclass(frozen=True)
class RoundPlan:
    """The plan for all sessions, until the next one.

    Attributes:
        sessions: one plan per session, in the order of the members.
        round_s: planned time from one plan to the next [s].
        goodput_tokens_per_s: planned goodput [tokens/s].
        phase_s: planned time from the grants to the arrival of the last draft [s]; None: what the verification of
            everybody's token leaves of `round_s`.
        extra_passes: number of passes for the sessions without device drafts while the others' drafts are awaited.

    """

    sessions: tuple[SessionPlan, ...]
    round_s: float
    goodput_tokens_per_s: float
    phase_s: float | None = None
    extra_passes: int = 0

    @property
    def lengths(self) -> list[int]:
        """Draft length of each session [tokens]."""
        return [each.draft_length for each in self.sessions]
