"""Turns an edge's texts and passes into the events that logs, metrics and pages show."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from multispin.passes import Batch, Passes, RoundReport
from multispin.passes.plans import DEVICE, NOBODY
from multispin.protocol import Streaming, Window
from multispin.protocol.events import Ended, Opened, Round, RoundDevice, RoundGrant


class Counts(NamedTuple):
    """An edge's counts at the moment.

    Attributes:
        running: texts that have a slot.
        waiting: requests that wait for one.
        sessions: numbers of all sessions.
        connections: open connections of devices.
        slots: texts that fit at once.
        price_tokens_per_s: price of time that decisions use [tokens/s].
        wrong_credentials: wrong credentials that have come.
        failed_listeners: how often a listener has raised.

    """

    running: int
    waiting: int
    sessions: Collection[int]
    connections: int
    slots: int
    price_tokens_per_s: float
    wrong_credentials: int
    failed_listeners: int


@dataclass
class _TextUnderWay:
    """A text that is being written.

    Attributes:
        name: name of its device.
        request: name of the HTTP request that it belongs to; empty for a device's own.
        prompt_tokens: tokens of its prompt.
        opened_s: time at which its request came [s].
        began_s: time at which the first pass with it began [s]; None before.
        first_s: time at which its first token was committed [s]; None before.
        tokens: number of committed tokens.
        drafted: tokens drafted for it and verified.
        accepted: accepted tokens among them.

    """

    name: str
    request: str
    prompt_tokens: int
    opened_s: float
    began_s: float | None = None
    first_s: float | None = None
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class Account:
    """Follows every text from its request to its end.

    Args:
        passes: the passes of the edge.

    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._texts: dict[int, _TextUnderWay] = {}
        self._drafters: dict[int, str] = {}  # who drafted for each session in its last batch
        self._late_tokens = 0  # reported so far
        self._windows: dict[int, Window] = {}  # of the texts that stream, as last reported

    @property
    def open_texts(self) -> int:
        """Texts that wait or are being written."""
        return len(self._texts)

    def opened(self, number: int, request: str, now_s: float) -> Opened | None:
        """The event for a newly opened request; None if it was complete at once."""
        session = self._passes.session(number)
        if session is None or session.request is None or session.request.finish:
            return None
        name, running = session.hello.name, session.request
        self._texts[number] = _TextUnderWay(name, request, running.prompt_tokens, now_s)
        return Opened(number, name, request, running.prompt_tokens, running.remaining, now_s)

    def batch(self, batch: Batch, now_s: float) -> None:
        """Note who drafted in a batch that is about to be verified."""
        for job in batch.jobs:
            if (text := self._texts.get(job.session)) is not None and text.began_s is None:
                text.began_s = now_s
            if job.feed.params is not None:
                self._drafters[job.session] = job.drafter if job.drafted else NOBODY

    def finished(self, number: int, now_s: float) -> Ended | None:
        """The event for the end of a session's text; None if it goes on."""
        session = self._passes.session(number)
        if number not in self._texts or session is None or session.request is None or not session.request.finish:
            return None
        return self.gone(number, session.request.finish, now_s)

    def gone(self, number: int, finish: str, now_s: float) -> Ended | None:
        """The event for a text that ended, or whose session ended first; None if no text was being written."""
        self._drafters.pop(number, None)
        self._windows.pop(number, None)
        text = self._texts.pop(number, None)
        if text is None:
            return None
        first_token_s, queue_s = (
            None if at_s is None else at_s - text.opened_s for at_s in (text.first_s, text.began_s)
        )
        return Ended(
            *(number, text.name, text.request, finish, text.prompt_tokens, text.tokens, text.drafted, text.accepted),
            *(first_token_s, now_s - text.opened_s, now_s, queue_s),
        )

    def round(self, report: RoundReport, now_s: float) -> Round:
        """The event for a pass and for the plan of the next ones."""
        rows = list(zip(report.members, report.drafted, report.accepted, report.delivered, strict=True))
        for number, drafted, accepted, delivered in rows:
            if (text := self._texts.get(number)) is not None:
                text.first_s = now_s if text.first_s is None else text.first_s
                text.tokens, text.drafted = text.tokens + delivered, text.drafted + drafted
                text.accepted += accepted
        sessions, plan = self._passes.sessions, report.plan
        beliefs = self._passes.controller.beliefs
        late, self._late_tokens = self._passes.late_tokens - self._late_tokens, self._passes.late_tokens
        return Round(
            round=report.round,
            time_s=now_s,
            verify_s=report.verify_s,
            prompt_tokens=report.prompt_tokens,
            planned_round_s=plan.round_s if plan else None,
            planned_goodput_tokens_per_s=plan.goodput_tokens_per_s if plan else None,
            devices=tuple(
                RoundDevice(
                    sessions[number].hello.name,
                    drafted,
                    accepted,
                    delivered,
                    beliefs.acceptance_rate(number),
                    beliefs.seconds_per_token(number),
                    number,
                    self._drafters.get(number, NOBODY),
                )
                for number, drafted, accepted, delivered in rows
                if number in sessions
            ),
            grants=tuple(
                RoundGrant(sessions[each.session].hello.name, each.draft_length, each.bandwidth_hz, each.session)
                for each in (plan.sessions if plan else ())
                if each.drafter == DEVICE
            )
            or tuple(self._new_windows(report.members)),
            late_tokens=late,
            planned_pass_s=report.planned_pass_s,
            planned_tokens=report.planned_tokens,
        )

    def _new_windows(self, members: Sequence[int]) -> Iterator[RoundGrant]:
        """The windows that have changed since the last report, among a pass's members."""
        for number in members:
            session = self._passes.session(number)
            if session is None or not isinstance(session.stage, Streaming) or number not in self._texts:
                continue
            window = session.stage.window
            if window is not self._windows.get(number):
                self._windows[number] = window
                yield RoundGrant(session.hello.name, window.length, window.bandwidth_hz, number)
