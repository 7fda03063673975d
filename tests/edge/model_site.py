"""The real server over real sockets, in this process, with a tiny model: what tests of it share."""

import asyncio
from functools import cache

from aiohttp import web
from tests.steady_beliefs import AtOnce, SteadyBeliefs

from multispin.control import Verification
from multispin.device import DeviceClient
from multispin.edge import EdgeServer
from multispin.edge.paced import PacedEngine
from multispin.models import (
    ModelBatchDrafter,
    Verifier,
    decode_alone,
    load_model,
    load_tokenizer,
)
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import (
    PROTOCOL_VERSION,
    SESSION_PATH,
    Hello,
    Profile,
)
from multispin.speculation import (
    NoDrafter,
    PromptLookupDrafter,
    SamplingParams,
    bits_per_id,
)

PROMPT = list(b"the quick brown fox")


PASS_S = 0.02


PROFILE = Profile(0.001, 5.0)


HOT = SamplingParams(1.2, top_p=0.95, seed=12)


def alone(folder, prompt, params, count):
    """The target's own text; many tests ask for the same ones."""
    return list(_alone(folder, tuple(prompt), params, count))


@cache
def _alone(folder, prompt, params, count):
    return tuple(decode_alone(load_model(folder), prompt, params, count))


class Site:
    """A server on a free port, for the length of an `async with`."""

    def __init__(
        self,
        folder,
        slots=4,
        port=0,
        policy="heterogeneous",
        longest=8,
        mode="rounds",
        edge=None,
        server=None,
        **limits,
    ):
        self.folder, self.port, self.events = folder, port, []
        self._server = {"planning": AtOnce()} | (server or {})
        self.verifier = verifier = Verifier(load_model(folder), slots, 256)
        self.fingerprint = load_tokenizer(folder).fingerprint
        settings = ControllerSettings(
            *(policy, 1e5, bits_per_id(verifier.vocabulary_size), longest), mode=mode, edge_drafts=edge is not None
        )
        # A pass that takes its time: drafts of the edge and of devices in streams pay on any machine, however busy.
        quick = edge is None and mode != "streams"
        engine = verifier if quick else PacedEngine(verifier, Verification(PASS_S, 0.0, 0.0))
        beliefs = SteadyBeliefs(settings, PASS_S)
        beliefs.leaves_out = policy != "fixed"
        self.passes = Passes(
            *(engine, Controller(settings, beliefs), self.fingerprint, Limits(**limits)),
            seed=3,
            edge_drafter=None if edge is None else ModelBatchDrafter(edge, slots, 256),
        )

    async def __aenter__(self):
        self.server = EdgeServer(self.passes, self.events.append, **self._server)
        self.runner = web.AppRunner(self.server.application())
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"ws://127.0.0.1:{self.port}{SESSION_PATH}"
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    def hello(self, name="phone", drafts=True, fingerprint=None):
        return Hello(PROTOCOL_VERSION, fingerprint or self.fingerprint, name, "q5", drafts, PROFILE)

    def client(self, drafter, name="phone", **options):
        return DeviceClient(self.url, self.hello(name, not isinstance(drafter, NoDrafter)), drafter, **options)


def run(scenario, limit_s=120):
    return asyncio.run(asyncio.wait_for(scenario, limit_s))


class CuttingProxy:
    """A TCP proxy that cuts its connections after so many bytes, a few times."""

    def __init__(self, port, cuts):
        self.target, self.cuts = port, list(cuts)

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target)
        budget = [self.cuts.pop(0) if self.cuts else 10**9]

        async def pump(source, sink):
            try:
                while data := await source.read(64):
                    budget[0] -= len(data)
                    if budget[0] < 0:
                        break
                    sink.write(data)
                    await sink.drain()
            finally:
                for end in (writer, upstream_writer):
                    end.transport.abort()

        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)


class Forbidden(PromptLookupDrafter):
    """Always guesses the same token."""

    def draft(self, committed, length, params):
        return [5] * length
