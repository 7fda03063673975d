"""Test vectors for devices in other languages: `python clients/make_vectors.py` writes clients/vectors/*.json.

The vectors come from this package's own code. `tests/vectors` checks that they still do, and runs the JavaScript client
against them. docs/protocol.md says how to read them.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec.structs import replace

from multispin.device import Silence, Why
from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    Chunk,
    Close,
    Commit,
    DeviceSession,
    Distribution,
    Draft,
    EdgeSession,
    Error,
    Grant,
    Hello,
    Open,
    Profile,
    Request,
    Resume,
    Streaming,
    Tail,
    Verdict,
    Welcome,
    Window,
    decode_downlink,
    encode,
)
from multispin.protocol.device_stages import Complete, Disconnected, DraftDue
from multispin.protocol.device_stream import DeviceStreaming
from multispin.protocol.thrift import Thrift
from multispin.speculation import NoDrafter, Rule, SamplingParams, Score, accept_matching, pack_ids
from multispin.speculation.noise import MAX_SEED, high_words, noise_keys_of, uniform_numpy
from multispin.speculation.penalties import draw_after

FOLDER = Path(__file__).parent / "vectors"
STAGES = {Disconnected: "Away", DraftDue: "Granted", DeviceStreaming: "Streaming", Complete: "Ended"}
"""A device's stages that vectors and the JavaScript client name otherwise than the Python classes."""
V = 50
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))
WELCOME = Welcome(7, "resume-me", 99, V, 100, 30.0)


def vectors() -> dict[str, Any]:
    """Every file of vectors by its name, as JSON values."""
    return {
        "ids.json": ids(),
        "messages.json": messages(),
        "noise.json": noise(),
        "draws.json": draws(),
        "thrift.json": thrift(),
        "silence.json": silence(),
        "sessions.json": sessions(),
    }


def ids() -> list[dict[str, Any]]:
    """Packed token ids."""
    cases = [(2, [1, 0, 1]), (50, []), (50, [0, 49, 7]), (32_000, [31_999]), (49_152, list(range(40_000, 40_007)))]
    return [{"vocabulary_size": size, "ids": each, "packed": pack_ids(each, size).hex()} for size, each in cases]


def messages() -> dict[str, Any]:
    """One frame of each kind with its fields, and frames that must be refused."""
    grant = Grant(3, 70_000, 8, 12_500.5)
    kinds = [
        HELLO,
        Hello(PROTOCOL_VERSION, "0123456789abcdef", "Ada's phone ☎", "small", False, Profile(0.25, 1.0), "s" * 40),
        WELCOME,
        replace(WELCOME, seed=2**62 + 1, resume_grace_s=0.5),
        Open(3, pack_ids([1, 2, 3], V), 3, 64, 0.0, 0, 1.0, 0),
        Open(
            *(3, b"\xff" * 300, 400, 64, 0.7, 40, 0.9, MAX_SEED, (0, 2), 5, Rule.COUPLED, 512, 8, 4, ((7, -100.0),)),
            *(0.05, -1.5, 0.25, 1.1, "start: /a+/", 3),
        ),
        grant,
        Grant(3, 1, 0, 0.0),
        Draft(3, 9, 100, 4, pack_ids([1, 2, 3, 4], V), 123_456),
        Draft(3, 9, 100, 0, b"", 0, 17),
        Verdict(3, 9, 100, 4, 41),
        Verdict(3, 9, 100, 2, 41, "", grant),
        Verdict(3, 9, 100, 0, 2, "stop"),
        Verdict(3, 9, 100, 1, 0, "", None, b"\x01\x02"),
        Verdict(3, 9, 100, 1, 41, "", None, b"", (Score(-0.5, ((41, -0.5), (2, -1.25))), Score(-2.0))),
        Tail(3, 90, pack_ids([5, 6], V), 2, "", grant),
        Tail(3, 90, b"", 0, "length"),
        Resume(PROTOCOL_VERSION, "resume-me", 117, "secret"),
        Close(3),
        Error("too-slow", "64 messages wait for this device to read them"),
        Error("shutdown", "this edge is stopping", 12.5),
        Ask(3, 9, 2),
        Distribution(3, 9, 2, b"\x00\xff"),
        Window(3, 12, 4, 12_500.5),
        Chunk(17, 117, 3, pack_ids([7, 8, 9], V), 90_000),
        Commit(117, 17, 3, 2, (41, 5)),
        Commit(117, 17, 0, 0, (2,), "stop"),
    ]
    whole = encode(grant)
    bad = [b"", b"\xc1", b"\x93\x04\x01\x02", whole[:-1], whole + b"\x00", b"\x91\x63", b"\x81\x01\x02", b"\xa5Grant"]
    bad += [
        encode(replace(grant, length=64)),
        encode(replace(grant, session=-1)),
        b"\x92\x0a\xa2\xff\xfe",
        b"\xdd\xff\xff\xff\xff",
    ]
    for frame in bad:
        try:
            decode_downlink(frame)
        except InputError:
            continue
        raise AssertionError(f"{frame.hex()} is a message")
    return {
        "good": [{"frame": encode(each).hex(), "message": plain(each)} for each in kinds],
        "refused": [frame.hex() for frame in bad],
    }


def noise() -> list[dict[str, Any]]:
    """Keys, upper words and uniform variates of some (seed, position)."""
    tokens = np.array([0, 1, 2, 255, 31_999, 49_151, 151_935, 2**31 - 1])
    cases = [(0, 0), (1, 0), (0, 1), (12, 345), (2**53 + 1, 7), (MAX_SEED, 2**20)]
    return [
        {
            "seed": str(seed),
            "position": position,
            "keys": list(noise_keys_of(seed, position)),
            "tokens": tokens.tolist(),
            "high": high_words(seed, position, tokens).tolist(),
            "uniform": uniform_numpy(seed, position, tokens).tolist(),
        }
        for seed, position in cases
    ]


def draws() -> dict[str, Any]:
    """Tokens that the edge draws from rows of logits, each after a text of its own.

    Logits are eighths, so that they are exact. Id i of every text is `step`·i modulo the number of logits.
    """
    rows = np.round(np.random.default_rng(5).normal(0, 3, (6, 400)) * 8) / 8
    rows[0, 7] = rows[0, 300] = rows[0].max()  # equals: the first counts
    rows[1, 50:] = -20.0
    settings = [
        SamplingParams(),
        SamplingParams(1.0, seed=3),
        SamplingParams(0.7, seed=2**60 + 1),
        SamplingParams(1.3, top_k=5, seed=4),
        SamplingParams(1.0, top_p=0.6, seed=5),
        SamplingParams(0.9, 40, 0.95, 6, ((3, 100.0), (4, -100.0))),
        SamplingParams(1.0, seed=7, withheld=(1, 2, 390), withheld_until=12),
        SamplingParams(logit_bias=((9, 50.0),), withheld=(9,), withheld_until=11),
    ]
    settings += [
        SamplingParams(1.0, seed=8, min_p=0.2),
        SamplingParams(0.8, seed=9, presence_penalty=0.5, frequency_penalty=0.25, prompt_tokens=9),
        SamplingParams(1.1, seed=10, repetition_penalty=1.5, prompt_tokens=5),
        SamplingParams(repetition_penalty=2.0, presence_penalty=-1.0, prompt_tokens=10),
    ]
    positions, step = [10, 11, 12, 4_000, 9, 70_000], 7
    texts = [[step * index % rows.shape[1] for index in range(position)] for position in positions]
    logits = torch.tensor(rows, dtype=torch.float32)
    cases = [
        {
            "params": {
                "temperature": each.temperature,
                "topK": each.top_k,
                "topP": each.top_p,
                "seed": str(each.seed),
                "logitBias": [list(pair) for pair in each.logit_bias],
                "minP": each.min_p,
                "presencePenalty": each.presence_penalty,
                "frequencyPenalty": each.frequency_penalty,
                "repetitionPenalty": each.repetition_penalty,
                "promptTokens": each.prompt_tokens,
                "withheld": list(each.withheld),
                "withheldUntil": each.withheld_until,
            },
            "tokens": [draw_after(row[None], text, (), each) for row, text in zip(logits, texts, strict=True)],
        }
        for each in settings
    ]
    return {"rows": rows.tolist(), "positions": positions, "step": step, "cases": cases}


def thrift() -> list[dict[str, Any]]:
    """How far ahead a device drafts after each commit, for several bounds on what is wasted."""
    cases = []
    for most, window in [(1.0, 16), (0.7, 16), (0.5, 63), (0.45, 16), (0.3, 5), (0.1, 16), (0.0, 63)]:
        kept, steps = Thrift(most), list[list[int]]()
        rng = np.random.default_rng(len(cases))
        for _ in range(160):
            ahead = 16 if kept.ahead is None else kept.ahead
            made = int(rng.integers(1, 21)) if ahead else 0
            wasted = min(made, round(made * abs(ahead - 7) / 16 + 0.3 * float(rng.random())))
            kept.observe(made - wasted, wasted, window)
            steps.append([made - wasted, wasted, -1 if kept.ahead is None else kept.ahead])
        cases.append({"max_wasted_share": most, "window": window, "steps": steps})
    return cases


def silence() -> dict[str, Any]:
    """Why texts were written without drafts: what happens to each text, and what a person is told in the end."""
    steps: list[list[list[Any]]] = [
        [["written", 40, 50, False]],
        [["offer", 0], ["written", 1, 11, False]],
        [["offer", 4], ["written", 1, 11, False]],
        [["offer", 4], ["asked", 3], ["written", 20, 31, False]],
        [["offer", 4], ["asked", 0], ["written", 20, 31, False]],
        [["offer", 4], ["asked", 0], ["written", 40, 51, False]],
        [["offer", 4], ["asked", 4], ["written", 40, 51, True]],
        [["offer", 4], ["asked", 4], ["written", 10, 21, True], ["written", 10, 31, False], ["written", 2, 33, True]],
        [["offer", 4], ["offer", 0], ["written", 40, 60, False], ["offer", 4], ["asked", 1], ["written", 3, 63, False]],
        [["offer", 8], ["asked", 2], ["written", 50, 150, False], ["offer", 0], ["written", 60, 210, True]],
    ]
    remedies, cases = {Why.RESTING: "a setting"}, []
    for events, most, drafted in itertools.product(steps, (None, 100), (0, 7)):
        kept = Silence(SimpleNamespace(max_length=most) if most else NoDrafter())  # type: ignore[arg-type]
        for name, *arguments in events:
            getattr(kept, name)(*arguments)
        told = kept.sentence(drafted, 250, remedies)
        cases.append({"most": most, "events": events, "drafted": drafted, "told": told})
    return {"remedies": remedies, "cases": cases}


class Script:
    """A conversation of the two real halves, written down as it happens.

    Each step says what the device does, the frame that it sends for it, or the frame that comes from the edge; and how
    the device stands afterwards.
    """

    def __init__(self, name: str, request: Request, max_wasted_share: float = 1.0) -> None:
        self.name, self.request, self.steps = name, request, list[dict[str, Any]]()
        self.max_wasted_share = max_wasted_share
        self.device = DeviceSession(HELLO, max_wasted_share=max_wasted_share)
        self.edge = EdgeSession(7, WELCOME.resume_token, HELLO, V)

    def do(self, what: str, **how: Any) -> Any:
        """The device does something; its frame is recorded."""
        message = getattr(self.device, what)(**how)
        arguments = [v for v in how.values() if not isinstance(v, Request)]
        self._note({"do": what, "arguments": arguments, "frame": None if message is None else encode(message).hex()})
        return message

    def hear(self, message: Any) -> None:
        """The edge says something."""
        error = ""
        try:
            self.device.receive(message)
        except InputError as problem:
            error = type(problem).__name__
        self._note({"edge": encode(message).hex(), "error": error})

    def join(self) -> None:
        """From nothing to an open request."""
        self.do("greet")
        self.hear(WELCOME)
        self.do("begin", request=self.request)
        self.edge.open(self.do("open"), 100)

    def settle(self, drafted: list[int], truth: list[int]) -> Verdict:
        """The edge's verdict on a draft, by a target that writes `truth`."""
        base = len(self.edge.request.committed)  # type: ignore[union-attr]
        return self.edge.settle(accept_matching(drafted, truth[base : base + len(drafted) + 1]))

    def ahead(self, ids: list[int], sends: bool = True) -> None:
        """The device has drafted these tokens ahead; all of its frames go to the edge."""
        device = self.device
        epoch, start = device.epoch, len(device.ahead)
        device.drafted(epoch, start, ids, 0.05)
        self._note({"do": "drafted", "arguments": [epoch, start, ids, 0.05], "frame": None})
        while (chunk := device.chunk()) is not None:
            self._note({"do": "chunk", "arguments": [], "frame": encode(chunk).hex()})
            if sends:
                self.edge.receive_chunk(chunk)

    def passes(self, truth: list[int], most: int) -> None:
        """A pass takes at most so many of the tokens that came, and its Commit is heard."""
        stage, request = self.edge.stage, self.edge.request
        assert isinstance(stage, Streaming)
        assert request is not None
        riding = list(stage.take(min(most, self.edge.room)))
        base = len(request.committed)
        outcome = accept_matching(riding, truth[base : base + len(riding) + 1])
        self.hear(self.edge.settle_stream(outcome)[0])

    def _note(self, step: dict[str, Any]) -> None:
        device = self.device
        self.steps.append(
            step
            | {
                "stage": STAGES.get(type(device.stage), type(device.stage).__name__),
                "committed": list(device.committed),
                "finish": device.finish,
                "wants_draft": device.wants_draft,
                "room_ahead": device.room_ahead,
                "epoch": device.epoch,
                "wasted": device.wasted,
            }
        )

    def written(self) -> dict[str, Any]:
        """The script as JSON values."""
        request = self.request
        return {
            "name": self.name,
            "request": {
                "prompt": list(request.prompt),
                "maxTokens": request.max_tokens,
                "stopIds": list(request.stop_ids),
                "temperature": request.params.temperature,
                "seed": None if request.seed_of_edge else str(request.params.seed),
            },
            "max_wasted_share": self.max_wasted_share,
            "steps": self.steps,
        }


def sessions() -> dict[str, Any]:
    """Conversations that a device's session must take part in, as the one of this package does."""
    truth = [1, 2, 3]
    while len(truth) < 40:
        truth.append((3 * truth[-1] + truth[-2] + 1) % V)
    plain_request = Request((1, 2, 3), SamplingParams(), 12)
    scripts = [whole_text(plain_request, truth), lost_and_found(plain_request, truth), refusals(plain_request)]
    hot = Request((1, 2, 3), SamplingParams(0.8), 6, stop_ids=(truth[5],), seed_of_edge=True)
    scripts += [whole_text(hot, truth), gone(plain_request, truth), stream(truth), stream_lost(truth)]
    scripts += [stream_refusals(plain_request), stream_thrifty()]
    return {"hello": plain(HELLO), "scripts": [each.written() for each in scripts]}


def whole_text(request: Request, truth: list[int]) -> Script:
    """Drafts of several lengths, accepted in part, until the text ends."""
    script = Script(f"a whole text, {request.acceptance_rule.value}", request)
    script.join()
    for number, (length, wrong) in enumerate([(3, 2), (0, 0), (4, 4), (2, 0), (5, 5)], 1):
        if script.device.finish:
            break
        script.hear(script.edge.give(number, length, 1e4))
        base = len(script.device.committed)
        drafted = [*truth[base : base + wrong], *[0] * (length - wrong)]
        if length:
            script.edge.receive(script.do("answer", ids=drafted, draft_s=0.05))
        script.hear(script.settle(drafted, truth))
    assert script.device.finish
    return script


def lost_and_found(request: Request, truth: list[int]) -> Script:
    """The connection breaks before and after a draft is sent; answers come twice."""
    script = Script("a lost connection", request)
    script.join()
    script.hear(script.edge.give(1, 3, 1e4))
    script.do("lose")
    draft = script.do("answer", ids=truth[3:6], draft_s=0.05)
    resume = script.do("greet")
    script.hear(WELCOME)
    for message in script.edge.catch_up(resume.length):
        script.hear(message)
    script.do("unsent")
    script.edge.receive(draft)
    verdict = script.settle(truth[3:6], truth)
    script.hear(verdict)
    script.hear(verdict)
    script.hear(script.edge.give(2, 2, 1e4))
    draft = script.do("answer", ids=truth[7:9], draft_s=0.05)
    script.edge.receive(draft)
    script.settle(truth[7:9], truth)  # its verdict is lost
    script.do("lose")
    resume = script.do("greet")
    script.hear(WELCOME)
    for message in script.edge.catch_up(resume.length):
        script.hear(message)
    return script


def refusals(request: Request) -> Script:
    """What a device does not take from an edge; each ends the request."""
    script = Script("what an edge must not say", request)
    script.hear(Grant(7, 1, 3, 1e4))
    script.do("greet")
    script.hear(Grant(7, 1, 3, 1e4))
    script.hear(WELCOME)
    script.hear(WELCOME)
    script.do("begin", request=request)
    script.do("open")
    for message in (
        Grant(8, 1, 3, 1e4),
        Grant(7, 1, 3, float("inf")),
        Verdict(7, 1, 3, 1, 5),
        Verdict(7, 1, 9, 0, 5),
        Verdict(7, 1, 3, 0, V),
        Verdict(7, 1, 3, 0, 5, "because"),
        Verdict(7, 1, 3, 0, 5, scores=(Score(-1.0),)),
        Tail(7, 2, b"", 0),
        Tail(7, 3, pack_ids([1] * 13, V), 13),
        Tail(7, 3, b"\xff", 1),
        Error("too-slow", "you do not read"),
    ):
        script.hear(message)
    return script


def gone(request: Request, truth: list[int]) -> Script:
    """The edge has forgotten the session: the device greets anew and opens from where it stands."""
    script = Script("a session that is gone", request)
    script.join()
    script.hear(script.edge.give(1, 1, 1e4))
    script.edge.receive(script.do("answer", ids=truth[3:4], draft_s=0.05))
    script.hear(script.settle(truth[3:4], truth))
    script.do("lose")
    script.do("greet")
    script.hear(Error("unknown-session", "this edge does not know the session"))
    script.do("greet")
    script.hear(replace(WELCOME, session=8))
    script.do("open")
    return script


def stream(truth: list[int]) -> Script:
    """A stream whose chain goes on, is overtaken, and dies, until the text ends."""
    script = Script("a stream", Request((1, 2, 3), SamplingParams(), 16))
    script.join()
    script.hear(script.edge.stream(6, 2, 1e4))
    script.ahead(truth[3:5])
    script.ahead(truth[5:6])
    script.passes(truth, 1)  # a pass of the first chunk alone; its bonus token is drafted already
    script.ahead(truth[6:7])
    script.ahead([])  # the drafter has nothing to say
    script.passes(truth, 4)
    script.ahead([truth[len(script.device.committed)], 0, 0])  # the second of these is wrong
    script.passes(truth, 3)
    script.hear(script.edge.stream(0, 2, 1e4))  # a window of nothing: what was being drafted is kept, and not sent
    script.ahead(truth[len(script.device.ahead) :][:1])
    assert script.device.stage.ids  # type: ignore[union-attr]
    assert not script.device.stage.sent  # type: ignore[union-attr]
    script.passes(truth, 0)
    script.hear(script.edge.stream(63, 4, 1e4))
    while not script.device.finish:
        begin = len(script.device.ahead)
        if script.device.room_ahead:
            script.ahead(truth[begin : begin + 1])
        else:
            script.ahead([])  # what was kept is sent now
            script.passes(truth, 63)
    return script


def stream_thrifty() -> Script:
    """A device that wastes much drafts less far ahead, and then rests for a while."""
    script = Script("a stream of a thrifty device", Request((1, 2, 3), SamplingParams(), 90), 0.2)
    script.join()
    script.hear(script.edge.stream(63, 4, 1e4))
    truth = [5] * 100
    rested = False
    while len(script.device.committed) < 80:
        room = script.device.room_ahead
        if room:  # every second token is wrong, so that what follows it is wasted
            script.ahead(([5, 0] * room)[:room])
        rested |= not room and not script.device.stage.ids  # type: ignore[union-attr]
        script.passes(truth, 1)
    assert rested
    return script


def stream_lost(truth: list[int]) -> Script:
    """The connection of a stream breaks: what was ahead is dropped, and another chain begins after the Window."""
    script = Script("a stream that is cut", Request((1, 2, 3), SamplingParams(0.7, seed=5), 9))
    script.join()
    script.hear(script.edge.stream(4, 2, 1e4))
    script.ahead(truth[3:5])
    script.do("lose")
    script.ahead(truth[5:6])  # ends when nobody waits for it
    resume = script.do("greet")
    script.hear(WELCOME)
    for message in script.edge.catch_up(resume.length):
        script.hear(message)
    script.ahead([truth[3], 0])
    script.passes(truth, 2)
    script.hear(Commit(3, 1, 0, 0, (9,)))  # comes twice
    return script


def stream_refusals(request: Request) -> Script:
    """What a device does not take from an edge in a stream."""
    script = Script("what an edge must not say in a stream", request)
    script.hear(Commit(3, 0, 0, 0, (5,)))
    script.join()
    script.hear(Window(8, 4, 2, 1e4))
    script.hear(Window(7, 4, 2, float("inf")))
    script.hear(Window(7, 4, 2, 1e4))
    script.ahead([5, 6], sends=False)
    for message in (
        Grant(7, 1, 3, 1e4),
        Verdict(7, 1, 3, 0, 5),
        Tail(7, 3, b"", 0),
        Commit(4, 1, 0, 0, (5,)),
        Commit(3, 1, 3, 3, (5,)),
        Commit(3, 1, 1, 2, (5,)),
        Commit(3, 1, 0, 0, (V,)),
        Commit(3, 1, 0, 0, (5,) * 13),
        Commit(3, 1, 0, 0, (5,), "because"),
    ):
        script.hear(message)
    return script


def plain(message: Any) -> Any:
    """A message as a JSON object: bytes in hexadecimal digits, integers beyond 2^53 as text."""
    found = msgspec.structs.asdict(message)
    return {"type": type(message).__name__, **{name: _value(value) for name, value in found.items()}}


def _value(value: Any) -> Any:
    match value:
        case bytes():
            return {"hex": value.hex()}
        case int() if value > 2**53:
            return {"integer": str(value)}
        case Profile():
            return [value.seconds_per_token, value.spectral_efficiency]
        case Grant():
            return plain(value)
        case Rule():
            return value.value
        case tuple():
            return [_value(each) for each in value]
        case _:
            return value


def as_text(found: Any) -> str:
    """JSON as it stands in a file: one case a line."""
    if isinstance(found, Mapping):
        inner = ",\n".join(f"{json.dumps(key)}: {as_text(value).strip()}" for key, value in found.items())
        return "{\n" + inner + "\n}\n"
    if isinstance(found, list):
        return "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in found) + "\n]\n"
    return json.dumps(found, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, found in vectors().items():
        (FOLDER / name).write_text(as_text(found), encoding="utf-8")
