"""Values between the loop and its driver: the four steps that it can ask for, and the report of a pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.passes.plans import DEVICE, RoundPlan
from multispin.protocol import Downlink
from multispin.speculation import DistributionFormat, DraftAsk, Feed, Matcher, TruncatedDistribution

Addressed = tuple[int, Downlink]
"""A session's number, and what is to be sent to its device."""


class Job(NamedTuple):
    """One session's part of a batch.

    Attributes:
        session: number of the session.
        feed: the tokens that it brings.
        drafted: how many of them were drafted.
        granted: how many could have been drafted.
        drafter: drafter of the tokens: `DEVICE` or `EDGE`.
        matcher: follows the text, where its request has a grammar; else None.

    """

    session: int
    feed: Feed
    drafted: int = 0
    granted: int = 0
    drafter: str = DEVICE
    matcher: Matcher | None = None


@dataclass(frozen=True)
class Batch:
    """Everything that one forward pass verifies: drafts first, chunks of prompts after them.

    Attributes:
        round: number of the round that it belongs to.
        jobs: verification jobs, one per session.

    """

    round: int
    jobs: tuple[Job, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens fed: Σ (L_k + 1), and the prompt chunks."""
        return sum(len(job.feed.tokens) for job in self.jobs)


@dataclass(frozen=True)
class RoundReport:
    """The report of a round, and the plan of the next one.

    Attributes:
        round: number of the round.
        members: sessions whose drafts were decided.
        drafted: tokens drafted, per member.
        accepted: drafted tokens that were accepted, per member.
        delivered: tokens committed, per member.
        verify_s: time of the forward pass and the acceptance rules [s].
        prompt_tokens: prompt tokens that rode along.
        plan: the plan for the next round; None if nobody is left, and in streams.
        planned_pass_s: expected time of the pass without prompts [s]; in streams only.
        planned_tokens: expected tokens of text of the pass; in streams only.

    """

    round: int
    members: tuple[int, ...] = ()
    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    delivered: tuple[int, ...] = ()
    verify_s: float = 0.0
    prompt_tokens: int = 0
    plan: RoundPlan | None = None
    planned_pass_s: float | None = None
    planned_tokens: float | None = None


@dataclass(frozen=True)
class Sleep:
    """There is nothing to do before `until_s` or the next message.

    Attributes:
        until_s: time on the driver's clock [s]; None: only a message changes anything.

    """

    until_s: float | None = None


class EdgeAsk(NamedTuple):
    """One session that the edge's own drafter is to draft for.

    Attributes:
        session: number of the session.
        ask: slot, text, length and sampling parameters.
        form: how distributions are written, under the rejection rules; None where ids are enough.

    """

    session: int
    ask: DraftAsk
    form: DistributionFormat | None


EdgeDraft = tuple[list[int], list[TruncatedDistribution]]
"""Drafted ids, and the distributions that they were drawn from if these were wanted."""


@dataclass(frozen=True)
class DraftHere:
    """The edge's own drafter is to draft for these sessions; `Passes.drafted` takes what it did.

    Attributes:
        asks: drafting tasks, one per session.

    """

    asks: tuple[EdgeAsk, ...]


@dataclass(frozen=True)
class Verify:
    """This batch is to be verified; `Passes.verified` takes what was found.

    Attributes:
        batch: the batch to verify.

    """

    batch: Batch


@dataclass(frozen=True)
class Send:
    """These messages are to be sent.

    Attributes:
        messages: the messages, in the order in which they were made.
        report: report of the round that they end; None if they end none.

    """

    messages: Sequence[Addressed]
    report: RoundReport | None = None


Step = Sleep | DraftHere | Verify | Send
