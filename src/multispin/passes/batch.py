"""The values that pass through a round: what bounds it, what is verified in it, what came of it."""

from dataclasses import dataclass
from typing import NamedTuple

from multispin.control import Plan
from multispin.speculation import Feed

LEAST_PREFILL_TOKENS = 8
"""Prompt tokens that ride in any round, however short it is: nobody waits for ever."""
EXPIRY_PERIOD_S = 1.0
"""How often an edge looks for sessions that have been lost, or owed an answer, for too long."""


@dataclass(frozen=True)
class Limits:
    """What bounds an edge.

    Attributes:
        max_sessions: connected or resumable devices.
        max_waiting: requests that may wait for a slot.
        prefill_tokens_per_round: prompt tokens that may ride in one round.
        prefill_share: beside other people's drafts only so many as lengthen the round by this share of its planned
            time, as the controller knows the verifier, but always `LEAST_PREFILL_TOKENS`.
        resume_grace_s: how long a lost device's session is kept …
        slot_grace_s: … and its slot, while others wait for one: the text is read anew if the device comes back.
        deadline_factor: a round waits this many times its planned drafting and upload time …
        deadline_slack_s: … and this much longer, before it verifies without the late.
        draft_timeout_s: a device that is later than this is let go.

    """

    max_sessions: int = 256
    max_waiting: int = 64
    prefill_tokens_per_round: int = 64
    prefill_share: float = 0.5
    resume_grace_s: float = 30.0
    slot_grace_s: float = 3.0
    deadline_factor: float = 2.0
    deadline_slack_s: float = 0.5
    draft_timeout_s: float = 60.0


class Job(NamedTuple):
    """One session's part of a batch."""

    session: int
    feed: Feed
    drafted: int = 0
    granted: int = 0


@dataclass(frozen=True)
class Batch:
    """Everything that one forward pass verifies: drafts first, chunks of prompts after them."""

    round: int
    jobs: tuple[Job, ...]

    @property
    def tokens(self) -> int:
        """Tokens fed, Σ (L_k + 1) and the prompt chunks."""
        return sum(len(job.feed.tokens) for job in self.jobs)


@dataclass(frozen=True)
class RoundReport:
    """What a round was planned to be, and what it was.

    Attributes:
        round: its number.
        members: sessions verified in it.
        drafted: tokens drafted, per member.
        accepted: of them accepted, per member.
        delivered: tokens committed, per member.
        verify_s: time of the forward pass and the rules.
        prompt_tokens: prompt tokens that rode along.
        plan: the plan for the next round, if anybody is left.

    """

    round: int
    members: tuple[int, ...] = ()
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    delivered: tuple[int, ...] = ()
    verify_s: float = 0.0
    prompt_tokens: int = 0
    plan: Plan | None = None
