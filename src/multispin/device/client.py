"""The device: drafts when it is granted, paces its uplink, and comes back after every loss.

The drafting itself runs in a thread of its own; an emulated device waits until its profile's time per token has
passed, and its drafts leave through a token bucket at granted bandwidth times spectral efficiency.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp

from multispin.device.retry import Backoff
from multispin.errors import InputError
from multispin.protocol import (
    MAX_FRAME_BYTES,
    Ask,
    Close,
    DeviceSession,
    Draft,
    Hello,
    Law,
    Progress,
    RefusedError,
    Request,
    Tail,
    Uplink,
    decode_downlink,
    encode,
    websocket_frame_bytes,
)
from multispin.radio import TokenBucket
from multispin.speculation import ID_RULES, Drafter, TruncatedLaw

CONNECT_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0
FIRST_ATTEMPTS = 3
"""Attempts at an edge that has never answered; one that has is given more."""
_GONE = {"unknown-session", "no-request", "ahead"}
"""Refusals of a resume after which the device greets anew and opens from where it stands."""


@dataclass(frozen=True)
class Emulation:
    """What this device pretends to be.

    Attributes:
        seconds_per_token: drafting never takes less; 0 to draft as fast as it can.
        spectral_efficiency: bit/s/Hz of the emulated uplink; 0 for none.

    """

    seconds_per_token: float = 0.0
    spectral_efficiency: float = 0.0


@dataclass
class Counters:
    """What a device did in one request.

    Attributes:
        drafted: tokens drafted and verified.
        accepted: of them accepted.
        granted: tokens granted, over all rounds.
        rounds: verdicts received.
        uplink_bytes: bytes sent, WebSocket framing included.
        draft_bytes: of them in drafts, and in the laws that the edge asked for.
        reconnects: connections lost and made again.

    """

    drafted: int = 0
    accepted: int = 0
    granted: int = 0
    rounds: int = 0
    uplink_bytes: int = 0
    draft_bytes: int = 0
    reconnects: int = 0


class DeviceClient:
    """One device and its connection.

    Args:
        url: of the edge's session endpoint.
        hello: how the device introduces itself.
        drafter: guesses.
        emulation: what it pretends to be.
        on_progress: told of every advance of the text.
        max_reconnects: attempts in a row before it gives up on an edge that has answered.
        decode: text of token ids, by the target's tokenizer; needed for requests with stop strings only.

    """

    def __init__(
        self,
        url: str,
        hello: Hello,
        drafter: Drafter,
        emulation: Emulation | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        max_reconnects: int = 8,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self.session = DeviceSession(hello, decode)
        self.counters = Counters()
        self._url = url
        self._drafter = drafter
        self._emulation = emulation or Emulation()
        self._on_progress = on_progress
        self._max_reconnects = max_reconnects
        self._bucket = TokenBucket(0.0)
        self._failure: Exception | None = None  # of the drafter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drafter")

    async def generate(self, request: Request) -> list[int]:
        """Have one text generated; returns its ids.

        Raises:
            RefusedError: the edge will not serve this request, and says why.
            InputError: the edge cannot be reached.

        """
        self.counters = Counters()
        self.session.begin(request)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._drafter.prepare, request.prompt)
        backoff = Backoff(min(FIRST_ATTEMPTS, self._max_reconnects))
        while True:
            try:
                await self._connection(backoff)
            except aiohttp.InvalidURL:
                raise InputError(f"{self._url} is not an address: write ws://HOST:PORT") from None
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                delay_s = backoff.next_delay_s()
                if delay_s is None:
                    raise InputError(f"cannot reach the edge at {self._url}: {error or type(error).__name__}") from None
                self.counters.reconnects += 1
                await asyncio.sleep(delay_s)
            else:
                return self.session.generated

    def close(self) -> None:
        """Stop the drafting thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _connection(self, backoff: Backoff) -> None:
        """One connection, from greeting to the end of the text."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.ws_connect(self._url, compress=0, max_msg_size=MAX_FRAME_BYTES, heartbeat=HEARTBEAT_S) as socket,
        ):
            resuming = self.session.welcome is not None
            await self._send(socket, self.session.greet())
            drafting: asyncio.Task[None] | None = None
            try:
                async for frame in socket:
                    if frame.type is not aiohttp.WSMsgType.BINARY:
                        raise InputError("the edge sent a frame that is not binary: is this a Multi-SPIN edge?")
                    message = decode_downlink(frame.data)
                    try:
                        progress = self.session.receive(message)
                    except RefusedError as error:
                        if resuming and error.code in _GONE:
                            self.session.forget_edge()
                            raise aiohttp.ClientConnectionError(str(error)) from None
                        raise
                    if isinstance(message, Tail):
                        resuming = False
                    backoff.reset(self._max_reconnects)
                    self._count(progress)
                    if self.session.finish:
                        await self._send(socket, Close(self.session.session_number))
                        self.session.forget_edge()
                        return
                    if self.session.welcome is message and not resuming:
                        await self._send(socket, self.session.open())
                    if isinstance(message, Ask):
                        drafting = asyncio.create_task(self._work(self._answer_ask(socket, message), socket))
                    elif self.session.wants_draft:
                        drafting = asyncio.create_task(self._work(self._answer_grant(socket), socket))
            finally:
                if drafting is not None and not drafting.done():
                    drafting.cancel()
            if self._failure is not None:
                raise self._failure
            raise aiohttp.ClientConnectionError("the edge closed the connection")

    async def _work(self, answer: Coroutine[None, None, None], socket: aiohttp.ClientWebSocketResponse) -> None:
        """Make and send an answer; a failure closes the connection, so that it is noticed."""
        try:
            await answer
        except Exception as error:
            self._failure = error
            await socket.close()

    async def _answer_grant(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Draft, wait out the emulated speed, pace the uplink, send."""
        loop = asyncio.get_running_loop()
        session, emulation = self.session, self._emulation
        grant = session.grant
        assert grant is not None
        began_s = loop.time()
        committed, length = list(session.committed), 0 if session.over else grant.length
        ids: list[int] = []
        laws: list[TruncatedLaw] = []
        if length and session.rule in ID_RULES:
            ids = await loop.run_in_executor(self._thread, self._drafter.draft, committed, length, session.params)
        elif length:
            ids, laws = await loop.run_in_executor(
                self._thread, self._drafter.draft_laws, committed, length, session.params, session.form
            )
        await asyncio.sleep(began_s + len(ids) * emulation.seconds_per_token - loop.time())
        draft = session.answer(ids, loop.time() - began_s, laws)
        # A grant of nothing has no band. A token that is owed nevertheless goes up at the rate of the draft before.
        if emulation.spectral_efficiency > 0 and grant.bandwidth_hz > 0:
            self._bucket.set_rate(loop.time(), grant.bandwidth_hz * emulation.spectral_efficiency)
        self.counters.granted += grant.length
        await self._upload(socket, draft)

    async def _answer_ask(self, socket: aiohttp.ClientWebSocketResponse, ask: Ask) -> None:
        """Send the law of a refused token, over the band of the draft that it belongs to."""
        await self._upload(socket, self.session.law(ask))

    async def _upload(self, socket: aiohttp.ClientWebSocketResponse, message: Draft | Law) -> None:
        """Send at the pace of the emulated uplink."""
        if self._emulation.spectral_efficiency > 0:
            loop = asyncio.get_running_loop()
            frame_bits = 8 * websocket_frame_bytes(len(encode(message)), masked=True)
            await asyncio.sleep(self._bucket.reserve(loop.time(), frame_bits) - loop.time())
        await self._send(socket, message)

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, message: Uplink) -> None:
        frame = encode(message)
        wire_bytes = websocket_frame_bytes(len(frame), masked=True)
        self.counters.uplink_bytes += wire_bytes
        if isinstance(message, Draft | Law):
            self.counters.draft_bytes += wire_bytes
        await socket.send_bytes(frame)

    def _count(self, progress: Progress) -> None:
        if progress.tokens:
            self.counters.rounds += 1
            self.counters.drafted += progress.drafted
            self.counters.accepted += progress.accepted
        if progress.tokens or progress.finish:
            self._on_progress(progress)
