"""The contents of a pass: drafts, and as many prompt tokens as may ride along."""

from collections.abc import Callable, Sequence

from multispin.errors import InputError
from multispin.passes.limits import LEAST_PREFILL_TOKENS, UNSEEN_PREFILL_TOKENS
from multispin.passes.plans import DEVICE, EDGE
from multispin.passes.seats import Seat
from multispin.passes.state import EdgeState
from multispin.passes.steps import Batch, Job
from multispin.protocol import Pending
from multispin.speculation import Evidence, Failure, Feed, masks_along


def collect(
    state: EdgeState,
    number: int,
    drafts: Sequence[Job],
    begin: Callable[[Seat], Job | None],
    planned_s: float = 0.0,
    awaits: bool = False,
) -> Batch:
    """Put drafts into a batch, and as many prompt tokens as may ride along.

    Args:
        state: sessions and messages that the parts of the loop share.
        number: number of the round or pass.
        drafts: the sessions' drafts, see `pending_job` and `job_of`.
        begin: gives the first draft of a session, which follows the end of its prompt, or an empty one for one token;
            None if the session cannot begin yet. Asked only where the engine takes both in one feed (`Engine.joins`).
        planned_s: planned time of a round [s]: prompts may lengthen the round by the share `prefill_share` of it;
            default 0: the share is of the pass's own time.
        awaits: whether drafts are awaited that the next pass is for, so that a pass of prompts alone must not be long
            either; default no.

    """
    jobs = sorted(drafts, key=lambda job: job.session)
    waiting = [seat for seat in state.seats if prompt_due(state, seat)]
    budget = _prompt_budget(state, jobs, planned_s, awaits) if waiting else 0
    # The text that got its slot first comes first, so a client that opens many prompts waits like everybody else.
    for seat in sorted(waiting, key=lambda seat: seat.turn):
        left = prompt_due(state, seat)
        if budget and seat.slot is not None and seat.session.request is not None:
            start, count = state.engine.cached(seat.slot), min(left, budget)
            chunk = tuple(seat.session.request.committed[start : start + count])
            first = begin(seat) if count == left and state.engine.joins else None
            jobs.append(
                Job(seat.session.number, Feed(seat.slot, start, chunk, None))
                if first is None
                else first._replace(feed=_joined(chunk, first.feed))
            )
            budget -= count
    state.seats.begin_batch(job.feed.slot for job in jobs)
    return Batch(number, tuple(jobs))


def _joined(chunk: tuple[int, ...], feed: Feed) -> Feed:
    """A session's draft behind the end of its prompt, as one feed."""
    return feed._replace(start=feed.start - len(chunk), tokens=(*chunk, *feed.tokens), context=len(chunk))


def prompt_due(state: EdgeState, seat: Seat) -> int:
    """Number of prompt tokens to read now. A lost device's prompt is read on when it is back and still has its slot."""
    return state.seats.unread(seat) if seat.connected else 0


def _prompt_budget(state: EdgeState, drafts: Sequence[Job], planned_s: float, awaits: bool) -> int:
    """Most prompt tokens for a pass: by their known cost, they lengthen it by at most `prefill_share`."""
    verification, share = state.controller.beliefs.verification, state.limits.prefill_share
    tokens = sum(len(job.feed.tokens) for job in drafts)
    known = max(UNSEEN_PREFILL_TOKENS, int((1.0 + share) * verification.most_tokens) - tokens)
    most = min(state.limits.prefill_tokens_per_round, state.engine.longest_chunk, known)
    without_s = verification.predict(max(1, len(drafts)), max(1, tokens))
    allowed_s = share * max(planned_s, without_s)
    if verification.per_token_s * most <= allowed_s:
        return most
    least = LEAST_PREFILL_TOKENS if drafts or awaits else UNSEEN_PREFILL_TOKENS
    return min(most, max(least, int(allowed_s / verification.per_token_s)))


def masked_feed(job: Job) -> Feed | Failure:
    """A job's tokens with the ids that its grammar allows at each position; a Failure if the grammar cannot tell."""
    if job.matcher is None or job.feed.params is None:
        return job.feed
    try:
        return job.feed._replace(masks=masks_along(job.matcher, job.feed.draft))
    except InputError as error:
        return Failure(str(error), of_request=True)


def pending_job(seat: Seat) -> Job:
    """A session's pending draft, as a part of a batch."""
    stage = seat.session.stage
    assert isinstance(stage, Pending)
    drafter = EDGE if seat.drafter == EDGE and not stage.grant.length else DEVICE
    return job_of(seat, stage.draft, stage.evidence, stage.grant.length, drafter)


def job_of(
    seat: Seat, draft: Sequence[int], evidence: Evidence | None = None, granted: int = 0, drafter: str = DEVICE
) -> Job:
    """A draft for a session, as a part of a batch."""
    request = seat.session.request
    assert seat.slot is not None
    assert request is not None
    newest = len(request.committed) - 1
    text = tuple(request.committed) if request.params.remembers else ()
    feed = Feed(seat.slot, newest, (request.committed[-1], *draft), request.params, evidence, text)
    return Job(seat.session.number, feed, len(draft), granted, drafter, request.matcher)
