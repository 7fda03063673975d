"""What the chaos and the soak are made of: real edges, devices and links around a target that anyone can work out.

The target is a function of position and token, so that a token lost, doubled or out of place shows in all that follow.
"""

import asyncio
import random
import time
from contextlib import asynccontextmanager

from multispin.device import DeviceClient, Patience
from multispin.device.link import LinkLostError, WebSocketLink
from multispin.edge import EdgeServer, listening
from multispin.edge.metrics import Metrics
from multispin.gateway import Gateway, local_sessions
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile
from multispin.speculation import ID_RULES, NoDrafter, Outcome, SlotTable

V = 97
MAX_LENGTH = 4096
MODES = ("plain", "rounds", "mixture", "streams", "auto")
MODEL = "chaos"
PATIENCE_S = 60.0
COME_BACK_S = 0.3
"""An edge that stops has its devices come back so soon."""


def following(position, token):
    """The target's token after `token`, which stands at `position`."""
    return (31 * token + 7 * position + 3) % V


def undisturbed(prompt, count):
    """The text of `count` tokens that follows a prompt."""
    text = list(prompt)
    while len(text) < len(prompt) + count:
        text.append(following(len(text) - 1, text[-1]))
    return text[len(prompt) :]


class Engine(SlotTable):
    """The target, at 4 ms a pass."""

    max_length, vocabulary_size, rules = MAX_LENGTH, V, ID_RULES

    def verify(self, feeds):
        self.take(feeds)
        time.sleep(0.004)
        return [None if feed.params is None else self._judged(feed.start, feed.tokens) for feed in feeds]

    @staticmethod
    def _judged(start, tokens):
        own = [following(start + place, token) for place, token in enumerate(tokens)]
        accepted = 0
        while accepted < len(tokens) - 1 and tokens[accepted + 1] == own[accepted]:
            accepted += 1
        return Outcome(accepted, own[accepted])


class Guesser(NoDrafter):
    """Right about three tokens of four."""

    def __init__(self, seed):
        self._rng = random.Random(seed)

    def draft(self, committed, length, params):
        text = list(committed)
        for _ in range(length):
            text.append((following(len(text) - 1, text[-1]) + (self._rng.random() < 0.25)) % V)
        return text[len(committed) :]


class Letters:
    """One letter for one token: the words of HTTP clients."""

    stop_ids, size, knows_tools = (), V, False

    def encode(self, text, special_tokens=True):
        return [ord(letter) - 256 for letter in text]

    def encode_messages(self, messages, variables, tools=None, answered=True, special_tokens=False):
        return self.encode(messages[-1]["content"])

    def token_bytes(self, token):
        return self.decode([token]).encode()

    def decode(self, ids, special_tokens=False):
        return "".join(chr(256 + token) for token in ids)


class BadLink(WebSocketLink):
    """A WebSocket that is cut, delayed and frozen at random."""

    def __init__(self, rng):
        super().__init__()
        self._rng = rng

    async def _trouble(self):
        chance = self._rng.random()
        if chance < 0.03:
            raise LinkLostError("cut")
        if chance < 0.2:
            await asyncio.sleep(self._rng.choice([0.002, 0.02, 0.3]))

    async def send(self, frame):
        await self._trouble()
        await super().send(frame)

    async def receive(self):
        frame = await super().receive()
        await self._trouble()
        return frame


def client_of(url, name, seed, link=None):
    """A device that drafts and does not give up soon."""
    hello = Hello(PROTOCOL_VERSION, MODEL, name, "q5", True, Profile(0.001, 5.0))
    patience = Patience(PATIENCE_S, PATIENCE_S, 0.02, 0.2)
    return DeviceClient(url, hello, Guesser(seed), link=link or WebSocketLink(), patience=patience)


@asynccontextmanager
async def an_edge(port, mode, slots, engine=None, words=None, grace_s=2.0):
    """An edge with the OpenAI-compatible API and `/metrics`, while the block runs; gives its port.

    It forgets a device that has been lost for `grace_s`.
    """
    controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode=mode))
    limits = Limits(resume_grace_s=grace_s, slot_grace_s=0.3, deadline_slack_s=0.05, draft_timeout_s=5.0)
    server = EdgeServer(Passes(engine or Engine(slots), controller, MODEL, limits), come_back_s=COME_BACK_S)
    application, words = server.application(), words or Letters()
    source = local_sessions(server, MODEL, words.decode, slots + limits.max_waiting, MAX_LENGTH)
    Gateway(source, words, MODEL).add_routes(application)
    metrics = Metrics(MODEL, server.counts)
    server.audience.add(metrics.tell)
    application.router.add_get("/metrics", metrics.answer)
    async with listening(application, "127.0.0.1", port) as own_port:
        yield own_port
