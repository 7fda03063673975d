"""Both state machines of a stream at the ends of a wire, and beside them a naive model.

The model compares whole texts where the protocol compares epochs and positions.
"""

import random
from collections import deque

from multispin.protocol import (
    PROTOCOL_VERSION,
    Chunk,
    Commit,
    DeviceSession,
    EdgeSession,
    Error,
    Hello,
    Open,
    Profile,
    Request,
    Resume,
    SessionGoneError,
    Streaming,
    Welcome,
    decode_downlink,
    decode_uplink,
    encode,
)
from multispin.protocol.device_stages import Welcomed
from multispin.protocol.device_stream import DeviceStreaming
from multispin.speculation import SamplingParams, Score, accept_matching, pack_ids

V, PROMPT = 8, (1, 2, 3)
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))


def following(token, place):
    """The target: the token after `token`, at `place`."""
    return (3 * token + place) % V


def truth(prompt, length):
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text.append(following(text[-1], len(text)))
    return text


class Wire:
    """A device and an edge, what is in flight between them, and the naive model of both."""

    def __init__(self, length=12, stop_ids=()):
        self.length, self.stop_ids = length, stop_ids
        self.device, self.edge = DeviceSession(HELLO), None
        self.device.begin(Request(PROMPT, SamplingParams(logprobs=0), length, stop_ids=stop_ids))
        self.scores = []  # what the device was told of its tokens: here the negative of each token's number
        self.up, self.down = deque(), deque()
        self.ghosts = []  # frames of a lost connection that come after all
        self.connected = self.greeted = False
        self.edges = 0
        self.begun = None  # what the device's thread works at
        self.made = self.accepted = self.rejected = 0  # by what the device was told
        self.chain = []  # naive edge: the whole text that the newest chunk belongs to
        self.believed = None  # naive device: the whole text that it drafts after

    # What can happen ------------------------------------------------------------------------------------------------

    def connect(self):
        self.connected = True
        self.up.append((encode(self.device.greet()), None))

    def cut(self):
        self.connected = self.greeted = False
        self.ghosts = [message for message in map(decode_uplink, (frame for frame, _ in self.up))
                       if isinstance(message, Chunk)]  # fmt: skip
        self.up.clear()
        self.down.clear()
        self.device.lose()
        self.believed = None

    def lose_edge(self):
        """The edge stops, and another one, without any memory, takes its place."""
        self.cut()
        self.edge, self.ghosts = None, []

    def hear_up(self):
        (frame, text), self.greeted = self.up.popleft(), True
        message = decode_uplink(frame)
        match message:
            case Hello():
                self.edges += 1
                self.edge, self.chain = EdgeSession(self.edges, f"secret {self.edges}", message, V), []
                self.tell(self.welcome())
            case Resume():
                if self.edge is None or self.edge.resume_token != message.resume_token:
                    self.down.append((encode(Error("unknown-session", "nothing to resume")), None))
                    return
                if self.edge.request is None:  # the Open was lost
                    self.tell(Error("no-request", "nothing to go on with"))
                    return
                self.tell(self.welcome(), *self.edge.catch_up(message.length))
                self.chain = []
            case Open():
                self.edge.open(message, 100)
            case Chunk():
                assert self.edge.awaits(message) or not self.edge.request.finish
                self.edge.receive_chunk(message)
                self.chain = text

    def welcome(self):
        return Welcome(self.edge.number, self.edge.resume_token, 5, V, 100, 30.0)

    def haunted(self):
        """Whether the edge has seen the chain of a ghost, as it has of all that come before a Resume was heard."""
        stage = self.streaming() if self.greeted else None
        return stage is not None and self.ghosts and self.ghosts[0].epoch <= stage.epoch

    def haunt(self):
        self.edge.receive_chunk(self.ghosts.pop(0))

    def tell(self, *messages):
        if self.greeted:
            self.down += [(encode(message), list(self.edge.request.committed) if self.edge.request else None)
                          for message in messages]  # fmt: skip

    def may_stream(self):
        edge = self.edge
        return edge is not None and edge.request is not None and not edge.request.finish and self.greeted

    def stream(self, length, chunk):
        self.tell(self.edge.stream(length, chunk, 1e4))

    def may_take(self):
        return self.streaming() is not None and self.streaming().riding is None

    def streaming(self):
        stage = self.edge.stage if self.edge is not None else None
        return stage if isinstance(stage, Streaming) else None

    def take(self, count):
        self.streaming().take(min(count, self.edge.room))

    def take_of_edge(self, count, ids):
        stage, room = self.streaming(), self.edge.room
        count = min(count, room, len(stage.pending))
        stage.take(count, ids[: room - count])

    def may_settle(self):
        return self.streaming() is not None and self.streaming().riding is not None

    def settle(self):
        ids, text = self.streaming().riding.ids, self.edge.request.committed
        own = [following(token, len(text) + i) for i, token in enumerate([text[-1], *ids])]
        outcome = accept_matching(list(ids), own)
        scores = tuple(Score(-float(token)) for token in own[: outcome.accepted + 1])
        commit, _ = self.edge.settle_stream(outcome._replace(scores=scores))
        self.tell(commit)

    def hear_down(self):
        frame, text = self.down.popleft()
        message = decode_downlink(frame)
        try:
            progress = self.device.receive(message)
        except SessionGoneError:
            self.cut()
            return
        self.accepted += progress.accepted
        self.scores += progress.scores
        self.rejected += progress.drafted - progress.accepted
        if isinstance(self.device.stage, Welcomed):
            self.up.append((encode(self.device.open()), None))
        if isinstance(self.device.stage, DeviceStreaming):
            if self.believed is None or (
                isinstance(message, Commit) and self.believed[: len(text)] != text[: len(self.believed)]
            ):
                self.believed = list(self.device.committed)
            if len(self.believed) < len(self.device.committed):
                self.believed = list(self.device.committed)

    def may_begin(self):
        return self.begun is None and self.device.room_ahead > 0

    def begin(self):
        self.begun = self.device.epoch, self.device.ahead

    def end(self, right):
        (epoch, text), self.begun = self.begun, None
        token = following(text[-1], len(text))
        token = token if right else (token + 1) % V
        self.made += 1
        current = epoch == self.device.epoch  # a new chain inherits nothing, not even what would fit
        self.device.drafted(epoch, len(text), [token], 0.01)
        if current and self.believed == text:
            self.believed = [*text, token]
        while (chunk := self.device.chunk()) is not None:
            self.up.append((encode(chunk), self.device.ahead[: chunk.start + chunk.length]))

    # What must hold -------------------------------------------------------------------------------------------------

    def check(self):
        whole = truth(PROMPT, self.length)
        assert self.device.committed == whole[: len(self.device.committed)]
        assert self.scores == [Score(-float(token)) for token in self.device.generated]
        if self.edge is None or self.edge.request is None:
            return
        text = self.edge.request.committed
        assert text == whole[: len(text)]
        counts, stage = self.edge.counts, self.streaming()
        under_way = 0
        if stage is not None:
            assert stage.pending == (self.chain[len(text) :] if self.chain[: len(text)] == text else [])
            under_way = len(stage.pending)
            if stage.riding is not None and not stage.riding.known:
                under_way += stage.riding.own
        assert counts.accepted + counts.rejected + counts.wasted + under_way == counts.received
        ahead = self.device.stage
        own = len(ahead.ids) if isinstance(ahead, DeviceStreaming) else 0
        assert self.accepted + self.rejected + self.device.wasted + own == self.made
        if isinstance(ahead, DeviceStreaming) and self.believed is not None:
            assert self.device.ahead == self.believed

    # A schedule -----------------------------------------------------------------------------------------------------

    def step(self, rng, accuracy, loss):
        """Something that can happen, drawn at random."""
        if not self.connected:
            self.connect()
            return
        if rng.random() < loss:
            rng.choice([self.cut, self.cut, self.lose_edge])()
            return
        able = [name for name, test in [
            ("hear_up", self.up), ("hear_down", self.down), ("begin", self.may_begin()), ("end", self.begun),
            ("take", self.may_take()), ("settle", self.may_settle()), ("haunt", self.haunted()),
        ] if test]  # fmt: skip
        if self.may_stream() and (self.streaming() is None or rng.random() < 0.05):
            able = ["stream"]
        match rng.choice(able or ["settle"]):
            case "stream":
                self.stream(rng.randint(1, 6), rng.randint(1, 4))
            case "end":
                self.end(rng.random() < accuracy)
            case "take" if rng.random() < 0.1:
                self.take_of_edge(rng.randint(0, 3), [rng.randrange(V) for _ in range(3)])
            case "take":
                self.take(rng.randint(0, 6))
            case name:
                getattr(self, name)()

    def play(self, seed, accuracy, loss=0.02, steps=3000):
        rng = random.Random(seed)
        for _ in range(steps):
            if self.device.finish:
                break
            self.step(rng, accuracy, loss)
            self.check()
        assert self.device.finish == "length"
        assert self.device.committed == truth(PROMPT, self.length) == self.edge.request.committed
        return self


def pair(length=12):
    """A device and an edge with an open text that streams: windows of 4 tokens, frames of 2."""
    wire = Wire(length)
    wire.connect()
    for _ in range(2):
        wire.hear_up()
        while wire.down:
            wire.hear_down()
    wire.stream(4, 2)
    wire.hear_down()
    return wire


def chunk(epoch, start, *ids):
    return Chunk(epoch, start, len(ids), pack_ids(ids, V), 10)
