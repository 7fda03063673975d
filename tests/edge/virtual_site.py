"""A server and its devices without sockets, in virtual time: what they do is the same on any machine, however busy."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web
from tests.virtual_time import VirtualLoop

from multispin.device import LinkLostError, MemoryLink


class _EndWire:
    """The edge's end of a connection in memory, as the edge's `Wire`."""

    def __init__(self, end, address):
        self._end, self.address = end, address

    async def receive(self):
        try:
            return await self._end.receive()
        except LinkLostError:
            return None

    def send_now(self, frame):
        return self._end.send_now(frame)

    async def send(self, frame):
        await self._end.send(frame)

    async def close(self, edge_stops=False, floods=False):
        await self._end.close()


class _PassesTakeTime(VirtualLoop):
    """A virtual loop in whose time each pass of an edge takes `pass_s`."""

    def __init__(self, pass_s):
        super().__init__()
        self._pass_s = pass_s

    def run_in_executor(self, executor, function, *arguments):
        done = super().run_in_executor(executor, function, *arguments)
        if getattr(function, "__name__", "") != "verify":
            return done
        found = self.create_future()
        self.call_later(self._pass_s, lambda: found.cancelled() or found.set_result(done.result()))
        return found


@asynccontextmanager
async def in_memory(server):
    """The link of devices to a server that runs for the length of a block."""
    talks = set()

    def accept(_, end):
        talks.add(talk := asyncio.create_task(server.converse(_EndWire(end, "127.0.0.1"))))
        talk.add_done_callback(talks.discard)

    runner = web.AppRunner(server.application())
    await runner.setup()
    try:
        yield lambda: MemoryLink(accept)
    finally:
        await runner.cleanup()


def run(scenario, pass_s):
    """Run a coroutine in virtual time, in which each pass of an edge takes `pass_s`."""
    with asyncio.Runner(loop_factory=partial(_PassesTakeTime, pass_s)) as runner:
        return runner.run(scenario)
