"""An edge whose target is a stub: sockets, protocol and passes are the real ones, and nothing takes long."""

import asyncio

import pytest

from multispin.device import DeviceClient
from multispin.edge import EdgeServer, listening
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile
from multispin.speculation import ID_RULES, NoDrafter, Outcome, SlotTable

VOCABULARY = 100


class StubEngine(SlotTable):
    """A target that always writes token 1, so that a draft of ones is accepted."""

    max_length, vocabulary_size, rules = 4096, VOCABULARY, ID_RULES

    def verify(self, feeds):
        self.take(feeds)
        return [None if feed.params is None else Outcome(_ones(feed.tokens[1:]), 1) for feed in feeds]


def _ones(tokens):
    return next((place for place, token in enumerate(tokens) if token != 1), len(tokens))


class OneDrafter(NoDrafter):
    """Drafts what the stub writes."""

    def draft(self, committed, length, params):
        return [1] * length


class StubSite:
    """A stub edge on a free port, for the length of an `async with`."""

    host = "127.0.0.1"
    Drafter, Engine = OneDrafter, StubEngine

    def __init__(self, slots=4, mode="rounds", engine=None, server=None, listen=None, **limits):
        controller = Controller(ControllerSettings("fixed", 1e6, 7, 8, mode=mode))
        controller.beliefs.leaves_out = False  # in rounds devices draft, whatever this machine finds worth waiting for
        self.events = []
        self.passes = Passes(engine or StubEngine(slots), controller, "stub", Limits(**limits))
        self.server = EdgeServer(self.passes, self.events.append, **(server or {}))
        self._listen, self.url = listen or {}, "memory://edge"

    async def __aenter__(self):
        self.application = self.server.application()
        self._listening = listening(self.application, self.host, 0, **self._listen)
        self.port = await self._listening.__aenter__()
        self.url = f"ws://{self.host}:{self.port}{SESSION_PATH}"
        return self

    async def __aexit__(self, *_):
        await self._listening.__aexit__(None, None, None)

    def hello(self, name="laptop", drafts=True, credential=""):
        return Hello(PROTOCOL_VERSION, "stub", name, "q5", drafts, Profile(0.001, 5.0), credential)

    def client(self, drafter=None, name="laptop", credential="", **options):
        drafter = drafter or OneDrafter()
        drafts = isinstance(drafter, OneDrafter)
        return DeviceClient(self.url, self.hello(name, drafts, credential), drafter, **options)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def stub_site():
    """The class of a stub edge."""
    return StubSite


@pytest.fixture
def run():
    """Runs a scenario for at most a minute."""

    def runner(scenario, limit_s=60):
        return asyncio.run(asyncio.wait_for(scenario, limit_s))

    return runner
