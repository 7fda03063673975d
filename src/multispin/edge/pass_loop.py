"""The loop of an edge: carries out what its passes ask for, with a real clock and a thread for the engine."""

import asyncio
import contextlib
import logging
import threading
import time
from asyncio import Future
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import wraps
from typing import Protocol, TypeVar

from multispin.edge.account import Account
from multispin.edge.audience import Audience
from multispin.passes import Batch, DraftHere, EdgeDraft, Passes, RoundReport, Send, Sleep, Verify
from multispin.protocol import Downlink
from multispin.speculation import Failure, Finding

MAX_ENGINE_FAULTS = 3
"""Consecutive failures of the engine, or of the edge's own drafter, that end the edge. Before that, a failure of the
engine ends the sessions of its pass, and a failure of the drafter leaves its pass without the edge's drafts."""

log = logging.getLogger(__name__)
_Task = TypeVar("_Task", Batch, DraftHere)
_Found = TypeVar("_Found")
_NOTHING: EdgeDraft = [], []
_FAILURE: Finding | Failure | None = Failure("the engine failed in this pass: open the request again")


class Post(Protocol):
    """Sends messages to devices."""

    def send(self, number: int, message: Downlink) -> None:
        """Send a message to the device of a session, if it is connected."""

    def spend(self, number: int, tokens: int, now_s: float) -> None:
        """Count tokens of a session's text against its holder's quota."""


class PassLoop:
    """Runs the passes of one edge. Long plans are made in a thread; until a plan is ready, the last one is used.

    Args:
        passes: sessions and passes of the edge.
        account: turns what happened in passes into events.
        audience: listeners that are told of the events.
        planning: executor with one thread for plans, shut down when this edge ends; default a new one.

    """

    def __init__(self, passes: Passes, account: Account, audience: Audience, planning: Executor | None = None) -> None:
        self._passes, self._account, self._audience = passes, account, audience
        self._wake = asyncio.Event()
        self._ending = False  # the running pass is the last one
        self._unsent: list[tuple[Send, float]] = []  # to be carried out while the engine works, and since when [s]
        self._faults = Counter[str]()  # consecutive failures of the engine and of the edge's drafter
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._planning_thread = planning or ThreadPoolExecutor(1, thread_name_prefix="planning")
        passes.controller.plan_in(self._planning_thread, time.thread_time)

    def wake(self) -> None:
        """Ask the passes at once whether there is anything to do, since something has happened."""
        self._wake.set()

    def end(self) -> None:
        """Let `run` return as soon as no pass is running."""
        self._ending = True
        self._wake.set()

    def close(self) -> None:
        """Wait for both threads to end."""
        for thread in (self._engine_thread, self._planning_thread):
            thread.shutdown(wait=True, cancel_futures=True)

    async def run(self, post: Post) -> None:
        """Carry out what the passes ask for, until `end` is called and no pass is running.

        The engine would stand idle while messages are sent and listeners are told of a pass. So this is done after the
        next pass has begun, if it begins at once.
        """
        over = False
        while not over:
            self._wake.clear()
            match self._passes.advance(self._now_s()):
                case Send() as step:
                    self._unsent.append((step, self._now_s()))
                    over = self._ending and step.report is not None
                case DraftHere() as step:
                    await self._draft(step, post)
                case Verify(batch):
                    await self._verify(batch, post)
                case Sleep(until_s):
                    self._send(post)
                    over = await self._sleep(until_s)
        self._send(post)

    async def _sleep(self, until_s: float | None) -> bool:
        """Wait until something happens or the loop's clock reaches this time [s]; whether the edge ends instead."""
        if self._ending:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await self._wake.wait()
        return False

    async def _draft(self, step: DraftHere, post: Post) -> None:
        began_s, working = self._now_s(), self._in_engine_thread(self._passes.draft, step)
        self._send(post)
        drafts = await self._found("the edge's drafter", working, len(step.asks), _NOTHING)
        self._passes.drafted(step, drafts, self._now_s() - began_s, self._now_s())

    async def _verify(self, batch: Batch, post: Post) -> None:
        began_s, working = self._now_s(), self._in_engine_thread(self._passes.verify, batch)
        self._send(post)  # tells of the pass before, so the account hears of this one afterwards
        self._account.batch(batch, began_s)
        findings = await self._found("the engine", working, len(batch.jobs), _FAILURE)
        self._passes.verified(batch, findings, self._now_s() - began_s, self._now_s())

    def _send(self, post: Post) -> None:
        """Send the messages that wait, and tell of the passes that ended with them."""
        for step, made_s in self._unsent:
            for number, message in step.messages:
                post.send(number, message)
            if step.report is not None:
                self._tell(step.report, post, made_s)
        self._unsent.clear()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _in_engine_thread(self, work: Callable[[_Task], Sequence[_Found]], task: _Task) -> Future[Sequence[_Found]]:
        """Begin to work in the engine's thread. It has begun when this returns: else what the event loop does next
        would keep Python's lock from it for a millisecond or more.
        """
        begun = threading.Event()

        @wraps(work)
        def begin() -> Sequence[_Found]:
            begun.set()
            return work(task)

        working = asyncio.get_running_loop().run_in_executor(self._engine_thread, begin)
        begun.wait()
        return working

    async def _found(
        self, whose: str, working: Future[Sequence[_Found]], parts: int, instead: _Found
    ) -> Sequence[_Found]:
        """What was found in the engine's thread. A failure is logged and answered with `instead` for each part, or
        raised if `MAX_ENGINE_FAULTS` came in a row.
        """
        try:
            found = await working
        except Exception:
            self._faults[whose] += 1
            if self._faults[whose] >= MAX_ENGINE_FAULTS:
                raise
            log.exception("%s failed in a pass of %d sessions", whose, parts)
            return [instead] * parts
        self._faults[whose] = 0
        return found

    def _tell(self, report: RoundReport, post: Post, now_s: float) -> None:
        """Send the events of a pass and of the texts that ended in it."""
        self._audience.tell(self._account.round(report, now_s))
        for number, tokens in zip(report.members, report.delivered, strict=True):
            self._audience.tell(self._account.finished(number, now_s))
            post.spend(number, tokens, now_s)
