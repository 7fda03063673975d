"""All limits of an edge, by name."""

import math
from dataclasses import dataclass

from multispin.protocol.limits import MAX_SCORED_TAIL

LEAST_PREFILL_TOKENS = 8
"""Prompt tokens that every pass may read, however short it is, so that nobody waits for ever."""
UNSEEN_PREFILL_TOKENS = 64
"""A pass with more prompt tokens than this may exceed the largest recent one by at most `Limits.prefill_share`, since
the cost of a token is known only near sizes that were measured. A pass of prompts alone may always have this many."""
EXPIRY_PERIOD_S = 1.0
"""Time between two checks for sessions that have been lost, or have not answered, for too long [s]."""


@dataclass(frozen=True)
class Limits:
    """Limits of an edge.

    Attributes:
        max_sessions: most sessions: connected devices, HTTP requests, and lost devices that may come back; default 256.
        max_waiting: most requests that may wait for a slot; default 64.
        max_share: share of the sessions, and of the places to wait, that all others leave, which one origin may have: a
            token, or where none is shown an address; default 0.5.
        prefill_tokens_per_round: most prompt tokens in one pass; the engine may take fewer (`Engine.longest_chunk`);
            default 512.
        prefill_share: largest share of a pass's own time, or of its round's planned time, by which prompt tokens may
            lengthen it, by the estimated cost of a token; default 0.5. `LEAST_PREFILL_TOKENS` are always read.
        resume_grace_s: time for which a lost device's session is kept [s]; default 30.0.
        slot_grace_s: time for which a lost device keeps its slot while others wait for one [s]; default 3.0. If it
            comes back later, its text is read again.
        deadline_factor: a round waits for drafts at most this many times its planned drafting and upload time, plus
            `deadline_slack_s`. Then it verifies without the late ones.
        deadline_slack_s: time that is added to that wait [s]; default 0.5.
        choose_deadline: whether a round waits only as long as waiting has raised the goodput (`round_deadlines`), or
            always as long as the two values above allow; default True.
        longest_wait_s: in streams, longest time for which a session may be in no pass [s]; default 2.0.
        draft_timeout_s: time without an answer after which a connected device is disconnected [s]; default 60.0.
        idle_timeout_s: time without a request after which a device is disconnected [s]; default 600.0.
        word_period_s: time between two messages to a device that waits for a slot or for its prompt to be read, which
            show it that passes go on [s]; default 15.0.
        scored_tail: most tokens in a message that catches up a text with log probabilities; default `MAX_SCORED_TAIL`,
            which a frame can hold.

    """

    max_sessions: int = 256
    max_waiting: int = 64
    max_share: float = 0.5
    prefill_tokens_per_round: int = 512
    prefill_share: float = 0.5
    resume_grace_s: float = 30.0
    slot_grace_s: float = 3.0
    deadline_factor: float = 2.0
    deadline_slack_s: float = 0.5
    choose_deadline: bool = True
    longest_wait_s: float = 2.0
    draft_timeout_s: float = 60.0
    idle_timeout_s: float = 600.0
    word_period_s: float = 15.0
    scored_tail: int = MAX_SCORED_TAIL


def most_of_one(places: int, others: int, share: float) -> int:
    """How many places one origin may have, so that there is room for further ones.

    Args:
        places: all places.
        others: places that others have.
        share: share of the rest that is allowed.
    """
    return math.ceil(share * max(0, places - others))
