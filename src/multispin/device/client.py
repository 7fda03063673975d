"""The device: drafts when it gets a grant or a window, sends its drafts, and reconnects after every loss.

The drafter runs in a thread of its own and goes on while the connection is lost. A draft made meanwhile still answers
the grant if the edge waits for it. In a stream the device drafts token by token, as far ahead as the edge's window
allows, and starts over as soon as the text differs from its draft. An emulated device waits until its profile's time
per token has passed.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from multispin.device.address import without_secrets
from multispin.device.link import DelayedLink, Link, LinkLostError, ShapedLink, WebSocketLink
from multispin.device.retry import Patience, Retries
from multispin.device.silence import Silence
from multispin.errors import InputError
from multispin.protocol import (
    Ask,
    Chunk,
    Close,
    Commit,
    DeviceSession,
    Distribution,
    Draft,
    Grant,
    Hello,
    Progress,
    RefusedError,
    Request,
    SessionGoneError,
    Tail,
    Uplink,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    encode,
    websocket_frame_bytes,
)
from multispin.protocol.device_stages import DeviceStage, Disconnected, Greeting, Resuming, Welcomed
from multispin.protocol.limits import CLOSE_TIMEOUT_S
from multispin.speculation import ID_RULES, Drafter, SamplingParams, TruncatedDistribution

MAX_MESSAGES_TO_SEND = 8
"""Most messages that wait for a slow uplink; then the device stops reading. No honest edge asks for more at once."""
_LATER = frozenset({"full", "shutdown", "timeout", "too-slow"})
"""Codes of refusals after which the device tries again: another edge, or this one later, may accept."""


class EdgeAwayError(InputError):
    """No edge could be reached within the device's patience."""


class SilentError(LinkLostError):
    """The edge keeps the connection open but sends nothing about the text."""


@dataclass(frozen=True)
class Emulation:
    """The speed and the link that this device emulates.

    Attributes:
        seconds_per_token: least time to draft a token [s]; default 0, as fast as the device can.
        spectral_efficiency: spectral efficiency of the emulated uplink [bit/s/Hz]; default 0, no emulated uplink.
        delay_s: additional one-way delay of every message [s]; default 0.

    """

    seconds_per_token: float = 0.0
    spectral_efficiency: float = 0.0
    delay_s: float = 0.0


@dataclass
class Counters:
    """Counts of a device in one request.

    Attributes:
        drafted: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        granted: tokens granted in all rounds with a verdict.
        rounds: number of verdicts received.
        uplink_bytes: bytes sent, WebSocket framing included.
        draft_bytes: bytes sent in drafts and in the distributions that the edge asked for.
        downlink_bytes: bytes received, WebSocket framing included.
        wasted: tokens of streams that were drafted and never verified.
        reconnects: number of connections that were lost or could not be made.

    """

    drafted: int = 0
    accepted: int = 0
    granted: int = 0
    rounds: int = 0
    uplink_bytes: int = 0
    draft_bytes: int = 0
    downlink_bytes: int = 0
    wasted: int = 0
    reconnects: int = 0


@dataclass(frozen=True)
class Outage:
    """A failed attempt to reach an edge.

    Attributes:
        url: address that was tried, without secrets.
        why: reason of the failure.
        delay_s: time until the next attempt [s].
        limit_s: time without an edge after which the device gives up [s].

    """

    url: str
    why: str
    delay_s: float
    limit_s: float


class DeviceClient:
    """One device: its session, its drafter, and the link between it and an edge.

    Attributes:
        session: state of the protocol, with the text.
        counters: counts of the present request.
        silence: counts of the present text's tokens that were written without drafts, by reason.

    Args:
        url: address of the edge's session endpoint, or several, which are tried in turn.
        hello: the device's first message.
        drafter: drafter that proposes the next tokens.
        emulation: speed and link that the device emulates; default none.
        on_progress: called with every advance of the text; default: nothing is called.
        decode: function that turns token ids into text with the target's tokenizer; needed for stop strings; default
            None.
        link: link that carries the messages; default a WebSocket.
        patience: how long to go on without an edge; default `Patience()`.
        on_outage: called with every failed attempt to reach an edge; default: nothing is called.
        max_wasted_share: largest share of its drafted tokens that may be wasted in streams, 0 … 1; the device drafts
            less far ahead to keep it; default 1, as far ahead as the edge allows.

    """

    def __init__(
        self,
        url: str | Sequence[str],
        hello: Hello,
        drafter: Drafter,
        emulation: Emulation | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
        link: Link | None = None,
        patience: Patience | None = None,
        on_outage: Callable[[Outage], None] = lambda _: None,
        max_wasted_share: float = 1.0,
    ) -> None:
        self.session = DeviceSession(hello, decode, max_wasted_share)
        self.counters = Counters()
        self._urls = (url,) if isinstance(url, str) else tuple(url)
        if not self._urls:
            raise InputError("no address of an edge was given")
        self._url = self._urls[0]
        self._drafter = drafter
        self.silence = Silence(drafter)
        self._emulation = emulation or Emulation()
        self._on_progress = on_progress
        self._on_outage = on_outage
        self._patience = patience or Patience()
        self._link: Link = link or WebSocketLink()
        if self._emulation.delay_s > 0:
            self._link = DelayedLink(self._link, self._emulation.delay_s)
        if self._emulation.spectral_efficiency > 0:
            self._link = ShapedLink(self._link, self._emulation.spectral_efficiency)
        self._outbox: asyncio.Queue[Uplink] = asyncio.Queue(MAX_MESSAGES_TO_SEND)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafter")
        self._drafting: asyncio.Task[None] | None = None
        self._drafting_for: tuple[Grant | int, int] | None = None  # grant, or epoch of a chain; position
        self._begun = 0  # tokens of a stream that the drafter has begun and the session has not got
        self._failure: asyncio.Future[None] | None = None  # set when the drafter fails
        self._turn_s = 0.0  # time since which the edge has to send something [s]

    async def generate(self, request: Request) -> list[int]:
        """Generate one text, and return its token ids.

        Raises:
            RefusedError: the edge refuses this request; the message has its reason.
            InputError: no edge can be reached, or its messages are malformed.

        """
        self.counters, self.silence = Counters(), Silence(self._drafter)
        self.session.begin(request)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._drafter.prepare, request.prompt)
        self._failure = loop.create_future()
        retries = Retries(self._patience)
        try:
            while not self.session.finish:
                try:
                    await self._connection(retries)
                except (LinkLostError, RefusedError) as error:
                    if not self.session.finish:  # otherwise the connection broke during its last messages
                        await self._wait(retries, error)
            return self.session.generated
        finally:
            self._stop_drafting()
            try:
                await self._say_goodbye()
            finally:  # even if the goodbye is cancelled: the next text begins anew
                self.session.forget_edge()

    def close(self) -> None:
        """Stop the drafting thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # One connection -----------------------------------------------------------------------------------------------

    async def _connection(self, retries: Retries) -> None:
        """Run one connection from its greeting to the end of the text; raises if it ends before."""
        await self._link.connect(self._url)
        self._outbox = asyncio.Queue(MAX_MESSAGES_TO_SEND)
        self._outbox.put_nowait(self.session.greet())
        self._turn_s = asyncio.get_running_loop().time()
        parts = self._read(retries), self._write(), self._watch(retries)
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await self._first_of(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _first_of(self, *tasks: "asyncio.Task[None]", timeout_s: float | None = None) -> None:
        """Wait until one of the tasks ends, the drafter fails, or time is up; raises the exception of what ended."""
        assert self._failure is not None
        done, _ = await asyncio.wait([*tasks, self._failure], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()

    async def _wait(self, retries: Retries, error: LinkLostError | RefusedError) -> None:
        """After a lost connection, choose the next address and wait; raises the error when it is time to give up."""
        session, tried, now_s = self.session, self._url, asyncio.get_running_loop().time()
        if isinstance(error, RefusedError) and not (isinstance(error, SessionGoneError) or error.code in _LATER):
            raise error
        # An edge that has welcomed the device may still hold its session: try it once more before the next address.
        moves_on = session.welcome is None or isinstance(error, RefusedError | SilentError) or not session.joined
        stage = session.stage
        session.lose()
        await self._link.close()
        asked_s = error.retry_after_s if isinstance(error, RefusedError) and len(self._urls) == 1 else 0.0
        delay_s = retries.delay_s(now_s, asked_s)
        if delay_s is None:
            if isinstance(error, RefusedError) and not isinstance(error, SessionGoneError):
                raise error
            raise EdgeAwayError(self._why_given_up(without_secrets(tried), stage, error)) from None
        if moves_on and len(self._urls) > 1:
            self._url = self._urls[(self._urls.index(self._url) + 1) % len(self._urls)]
            self._forget_edge(retries)
        elif isinstance(error, RefusedError):
            self._forget_edge(retries)
        self.counters.reconnects += 1
        self._on_outage(Outage(without_secrets(tried), str(error), delay_s, retries.limit_s))
        await self._first_of(timeout_s=delay_s)

    def _why_given_up(self, tried: str, stage: DeviceStage, error: LinkLostError | RefusedError) -> str:
        """The sentence for the user: how far the last attempt came, at which address, and what to do."""
        if isinstance(error, SilentError):
            return (
                f"the edge at {tried} keeps the connection open but does not go on ({error}): restart it, or give "
                "another address"
            )
        if isinstance(stage, Greeting) or (isinstance(stage, Resuming) and not stage.welcomed):
            return (
                f"the server at {tried} takes connections, but does not answer as an edge ({error}): start `multispin "
                "serve` there, or give another address"
            )
        if not isinstance(stage, Disconnected) or isinstance(error, SessionGoneError):
            return (
                f"the edge at {tried} greets this device, and then does not keep its session ({error}): look at the "
                "edge's log, or give another address"
            )
        tried = ", ".join(map(without_secrets, self._urls))
        return f"cannot reach the edge at {tried} ({error}): start `multispin serve` there, or give another address"

    def _forget_edge(self, retries: Retries) -> None:
        """Forget the edge's session, so that the next connection opens the text anew."""
        self._stop_drafting()
        self.session.forget_edge()
        retries.session_ended()

    async def _say_goodbye(self) -> None:
        """Tell the edge that the session is over, so that its slot is free at once; then close."""
        try:
            if self.session.welcome is not None:
                with contextlib.suppress(LinkLostError, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._send(Close(self.session.session_number))
        finally:  # even if the goodbye is cancelled
            await self._link.close()

    async def _read(self, retries: Retries) -> None:
        """Take the edge's messages until the text ends."""
        loop, session = asyncio.get_running_loop(), self.session
        while not session.finish:
            frame = await self._link.receive()
            self._turn_s = loop.time()
            self.counters.downlink_bytes += websocket_frame_bytes(len(frame), masked=False)
            message = decode_downlink(frame)
            if session.tells_of_passes(message):
                retries.passes_go_on()
            progress = session.receive(message)
            self._count(progress, retries)
            match message:
                case Welcome():
                    retries.welcomed(loop.time())
                    if isinstance(session.stage, Welcomed):
                        await self._outbox.put(session.open())
                case Ask():
                    await self._outbox.put(session.distribution(message))
                case Grant() | Verdict() | Tail():
                    grant = message if isinstance(message, Grant) else message.grant
                    if grant is not None:
                        self._link.granted(grant.bandwidth_hz)
                        self.silence.offer(grant.length)
                case Window():
                    self._link.granted(message.bandwidth_hz)
                    self.silence.offer(message.length)
            if isinstance(message, Window | Commit):
                self._go_ahead()
                continue
            if (draft := session.unsent()) is not None:
                await self._outbox.put(draft)
            if session.wants_draft:
                self._start_drafting()

    async def _watch(self, retries: Retries) -> None:
        """End the connection if the edge has to send something and sends nothing for too long; pongs do not count."""
        loop, session, patience = asyncio.get_running_loop(), self.session, self._patience
        while True:
            limit_s = patience.greeting_s if session.is_greeting else patience.silence_s
            if session.wants_draft:  # the device has to draft first
                self._turn_s = loop.time()
            left_s = self._turn_s + limit_s - loop.time()
            if left_s <= 0.0 and session.is_greeting:
                if isinstance(session.stage, Resuming):  # welcomed, perhaps, but not told what becomes of the text
                    retries.silent_since(self._turn_s, loop.time())
                raise LinkLostError(f"the edge did not answer the greeting within {limit_s:.0f} s")
            if left_s <= 0.0:
                retries.silent_since(self._turn_s, loop.time())
                raise SilentError(f"the edge has sent nothing about this text for {limit_s:g} s")
            await asyncio.sleep(min(left_s, patience.greeting_s, patience.silence_s))  # the turn may change meanwhile

    async def _write(self) -> None:
        """Send the queued messages one after the other."""
        while True:
            message = await self._outbox.get()
            # A chunk that waited for a slow link may belong to an ended chain, and the edge would drop it.
            if not isinstance(message, Chunk) or message.epoch == self.session.epoch:
                await self._send(message)
            self._put_chunks()

    async def _send(self, message: Uplink) -> None:
        frame = encode(message)
        wire_bytes = websocket_frame_bytes(len(frame), masked=True)
        self.counters.uplink_bytes += wire_bytes
        if isinstance(message, Draft | Distribution | Chunk):
            self.counters.draft_bytes += wire_bytes
        await self._link.send(frame)
        self._turn_s = asyncio.get_running_loop().time()

    def _count(self, progress: Progress, retries: Retries) -> None:
        self.counters.wasted = self.session.wasted
        if progress.tokens:
            retries.progressed()
            self.counters.rounds += 1
            self.counters.drafted += progress.drafted
            self.counters.accepted += progress.accepted
            if not progress.drafted:
                self.silence.written(len(progress.tokens), len(self.session.committed), self.session.rests)
        if progress.tokens or progress.finish:
            self._on_progress(progress)

    # Drafting -----------------------------------------------------------------------------------------------------

    def _start_drafting(self) -> None:
        """Start drafting for the open grant, unless that runs already; a draft for an older grant is abandoned."""
        grant = self.session.grant
        assert grant is not None
        what = (grant, len(self.session.committed))
        if self._drafting is None or self._drafting.done() or self._drafting_for != what:
            self._stop_drafting()
            self._drafting_for = what
            self._drafting = asyncio.create_task(self._draft(grant))
            self._drafting.add_done_callback(self._note_failure)

    def _stop_drafting(self) -> None:
        if self._drafting is not None:
            self._drafting.cancel()
            self._drafting = None

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        failure, error = self._failure, task.exception()
        if failure is not None and error is not None and not failure.done():
            failure.set_exception(error)

    async def _draft(self, grant: Grant) -> None:
        """Draft, wait out the emulated speed, and send. It does not matter if the connection is lost meanwhile."""
        loop = asyncio.get_running_loop()
        session, began_s = self.session, asyncio.get_running_loop().time()
        committed, length = list(session.committed), 0 if session.over else grant.length
        ids: list[int] = []
        distributions: list[TruncatedDistribution] = []
        if length and session.rule in ID_RULES:
            ids = await loop.run_in_executor(self._thread, self._drafter.draft, committed, length, session.params)
            size = session.form.vocabulary_size  # a drafter may know special tokens that the edge's target lacks
            ids = list(itertools.takewhile(lambda token: token < size, ids))
        elif length:
            ids, distributions = await loop.run_in_executor(
                self._thread, self._drafter.draft_distributions, committed, length, session.params, session.form
            )
        if length:
            self.silence.asked(len(ids))
        await asyncio.sleep(began_s + len(ids) * self._emulation.seconds_per_token - loop.time())
        if session.grant != grant or len(session.committed) != len(committed):
            return  # the grant is no longer open
        draft = session.answer(ids, loop.time() - began_s, distributions)
        self.counters.granted += grant.length
        if session.joined:
            await self._outbox.put(draft)

    # Drafting ahead -----------------------------------------------------------------------------------------------

    def _go_ahead(self) -> None:
        """Draft on as far as the window allows; a draft for a position that is committed by now is abandoned."""
        session, busy = self.session, self._drafting is not None and not self._drafting.done()
        if busy and self._drafting_for is not None:
            epoch, place = self._drafting_for
            if epoch != session.epoch or place < len(session.committed):
                self._stop_drafting()
                session.wasted += self._begun
                self.counters.wasted = session.wasted
                busy = False
        if not busy and session.room_ahead > 0:
            self._drafting_for, self._begun = (session.epoch, len(session.ahead)), 0
            self._drafting = asyncio.create_task(self._draft_ahead())
            self._drafting.add_done_callback(self._note_failure)

    async def _draft_ahead(self) -> None:
        """Draft token after token, wait out the emulated speed of each, and queue what fills a chunk."""
        loop, session = asyncio.get_running_loop(), self.session
        while session.room_ahead > 0:
            epoch, text, began_s = session.epoch, session.ahead, loop.time()
            self._drafting_for, self._begun = (epoch, len(text)), 0
            # The thread may still be busy with an abandoned token; that time does not count for this one.
            ids, took_s = await loop.run_in_executor(self._thread, self._draft_one, text, session.params)
            self._begun = len(ids)
            self.silence.asked(len(ids))
            least_s = len(ids) * self._emulation.seconds_per_token
            await asyncio.sleep(began_s + least_s - loop.time())
            session.drafted(epoch, len(text), ids, max(took_s, least_s))
            self._put_chunks()

    def _draft_one(self, text: list[int], params: SamplingParams) -> tuple[list[int], float]:
        """One more drafted token, if the drafter has one, and the time that it took [s]. Runs in its thread."""
        self._begun, began_s = 1, time.perf_counter()
        ids = self._drafter.draft(text, 1, params)
        return ids, time.perf_counter() - began_s

    def _put_chunks(self) -> None:
        """Queue the stream's next chunks; what does not fit waits until the queue has room."""
        while not self._outbox.full() and (chunk := self.session.chunk()) is not None:
            self._outbox.put_nowait(chunk)
