"""The clients of `bench_server.py`: many devices and HTTP clients in one process, as cheap as they can be.

A device has the protocol's real state machine and a real WebSocket. Its drafter says 1 for each token, which is what
the stub's text has in four places of five, and takes the time that it is told.
"""

import asyncio
import contextlib
import random
import sys
import time

import aiohttp

from multispin.protocol import (
    PROTOCOL_VERSION,
    SESSION_PATH,
    DeviceSession,
    Hello,
    Profile,
    Request,
    decode_downlink,
    encode,
)
from multispin.speculation import SamplingParams

MAX_TOKENS = 6000


def right_token(place):
    """The stub's token at a place of any text."""
    return 2 if (place * 2654435761 >> 7) % 5 == 0 else 1


class PlayedDevice:
    """One device.

    Args:
        number: its number, which it is called by.
        token_s: time that it takes to draft a token [s].
        send: sends a frame to the edge.
        later: has something done after so long [s]; returns what can be cancelled.

    """

    def __init__(self, number, token_s, send, later):
        self._hello = Hello(
            PROTOCOL_VERSION, "stub", f"device {number}", "ones", True, Profile(max(1e-6, token_s), 5.0)
        )
        self._session = DeviceSession(self._hello)
        self._request = Request((2, 3, 4 + number % 100), SamplingParams(), MAX_TOKENS)
        self._token_s, self._send_frame, self._call_later = token_s, send, later
        self._timer = None

    def begin(self):
        """Greet the edge."""
        self._session.begin(self._request)
        self._send(self._session.greet())

    def hear(self, frame):
        """Take a frame of the edge."""
        session = self._session
        session.receive(decode_downlink(frame))
        if session.finish:
            session.begin(self._request)
        if type(session.stage).__name__ == "Welcomed":
            self._send(session.open())
        elif session.wants_draft:
            self._later(self._answer, session.grant.length)
        elif session.room_ahead:
            self._go_ahead()

    def _send(self, message):
        self._send_frame(encode(message))

    def _later(self, work, tokens):
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(tokens * self._token_s, work)

    def _answer(self):
        grant, self._timer = self._session.grant, None
        if grant is not None:
            self._send(self._session.answer([1] * grant.length, grant.length * self._token_s))

    def _go_ahead(self):
        """Draft as many tokens as go into a frame, and so on until the window is full."""
        session, stage = self._session, self._session.stage
        self._count = min(session.room_ahead, stage.window.chunk - (len(stage.ids) - stage.sent) % stage.window.chunk)
        if self._timer is None or self._timer_epoch != session.epoch:
            self._timer_epoch = session.epoch
            self._later(self._drafted, self._count)

    def _drafted(self):
        session, self._timer = self._session, None
        if not session.room_ahead or session.epoch != self._timer_epoch:
            return
        count = min(session.room_ahead, self._count)
        session.drafted(session.epoch, len(session.ahead), [1] * count, count * self._token_s)
        while (chunk := session.chunk()) is not None:
            self._send(chunk)
        if session.room_ahead:
            self._go_ahead()


async def _converse(socket, number, token_s):
    """A device behind a WebSocket."""
    loop, sending = asyncio.get_running_loop(), set()

    def send(frame):
        task = loop.create_task(socket.send_bytes(frame))
        sending.add(task)
        task.add_done_callback(sending.discard)

    device = PlayedDevice(number, token_s, send, loop.call_later)
    device.begin()
    async for frame in socket:
        device.hear(frame.data)


async def play(url, devices, http, token_s, prompt_tokens, frames, apart_s):
    """Play them until the parent is gone; each line on standard input asks for the processor time so far [s]."""
    connector = aiohttp.TCPConnector(limit=0)
    base = url.removesuffix(SESSION_PATH)

    async def device(number):
        async with session.ws_connect(url, compress=0, heartbeat=15.0) as socket:
            await (
                echo(socket, random.Random(number)) if url.endswith("/floor") else _converse(socket, number, token_s)
            )

    async def echo(socket, chance):
        async for frame in socket:
            if apart_s:
                await asyncio.sleep(chance.uniform(0.0, apart_s))
            await socket.send_bytes(frame.data)
            for _ in range(frames - 1):
                await asyncio.sleep(token_s)
                await socket.send_bytes(frame.data)

    async def browser():
        while True:
            body = {"prompt": "h" * prompt_tokens, "max_tokens": 512, "stream": True, "ignore_eos": True}
            async with session.post(base + "/v1/completions", json=body) as answer:
                async for _ in answer.content:
                    pass

    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        tasks = [asyncio.create_task(device(number)) for number in range(devices)]
        tasks += [asyncio.create_task(browser()) for _ in range(http)]
        asked = asyncio.create_task(asyncio.to_thread(_answer_questions))
        done, _ = await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.gather(*tasks)


def _answer_questions():
    for _ in sys.stdin:
        print(time.process_time(), flush=True)
