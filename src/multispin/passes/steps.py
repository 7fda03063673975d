"""Values between the loop and its driver: the four steps that the loop can ask for, and the report of a pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.passes.plans import DEVICE, RoundPlan
from multispin.protocol import Downlink
from multispin.speculation import DistributionFormat, DraftAsk, Feed, Matcher, TruncatedDistribution

Addressed = tuple[int, Downlink]
"""A session's number, and a message for its device."""


class Job(NamedTuple):
    """One session's part of a batch.

    Attributes:
        session: number of the session.
        feed: the tokens that it brings.
        drafted: number of drafted tokens.
        granted: number of tokens that could have been drafted.
        drafter: drafter of the tokens: `DEVICE` or `EDGE`.
        matcher: the grammar's matcher; None without a grammar.

    """

    session: int
    feed: Feed
    drafted: int = 0
    granted: int = 0
    drafter: str = DEVICE
    matcher: Matcher | None = None


@dataclass(frozen=True)
class Batch:
    """Everything in one forward pass: drafts first, then chunks of prompts.

    Attributes:
        round: number of its round.
        jobs: verification jobs, one per session.

    """

    round: int
    jobs: tuple[Job, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens fed: Σ (L_k + 1), plus the prompt chunks."""
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
        form: format of distributions under the rejection rules; None: only ids.

    """

    session: int
    ask: DraftAsk
    form: DistributionFormat | None


EdgeDraft = tuple[list[int], list[TruncatedDistribution]]
"""Drafted ids, and the distributions that they were drawn from if requested."""


@dataclass(frozen=True)
class DraftHere:
    """Let the edge's own drafter draft for these sessions, and pass the drafts to `Passes.drafted`.

    Attributes:
        asks: drafting tasks, one per session.

    """

    asks: tuple[EdgeAsk, ...]


@dataclass(frozen=True)
class Verify:
    """Verify this batch, and pass the findings to `Passes.verified`.

    Attributes:
        batch: the batch to verify.

    """

    batch: Batch


@dataclass(frozen=True)
class Send:
    """Send these messages.

    Attributes:
        messages: the messages, in the order in which they were made.
        report: report of the round that they end; None if they end none.

    """

    messages: Sequence[Addressed]
    report: RoundReport | None = None


Step = Sleep | DraftHere | Verify | Send
