"""The device's client over in-memory links, in virtual time: nothing here opens a socket or waits for a clock."""

import asyncio
import random

import pytest
import torch
from tests.virtual_time import run

from multispin.device import (
    DeviceClient,
    Emulation,
    LinkLostError,
    MemoryLink,
    Patience,
)
from multispin.errors import InputError
from multispin.protocol import (
    PROTOCOL_VERSION,
    Ask,
    Close,
    Distribution,
    Draft,
    EdgeSession,
    Error,
    Grant,
    Hello,
    Idle,
    Open,
    Pending,
    Profile,
    ProtocolError,
    RefusedError,
    Request,
    Resume,
    Tail,
    Verdict,
    Welcome,
    decode_uplink,
    encode,
    websocket_frame_bytes,
)
from multispin.speculation import NoDrafter, Rule, SamplingParams, certain_distribution, draw, judge, pack_ids

V, PROMPT = 20, (1, 2, 3)
HELLO = Hello(PROTOCOL_VERSION, "abc", "phone", "q5", True, Profile(0.05, 3.0))
LOGITS = 3.0 * torch.randn(V, V, generator=torch.Generator().manual_seed(4))
"""The target: next-token logits by the newest token."""
URL = "memory://edge"
REMEDY = "start `multispin serve` there, or give another address"


def truth(params, length, prompt=PROMPT):
    text = list(prompt)
    while len(text) < len(prompt) + length:
        text += draw(LOGITS[text[-1]][None], [len(text)], params)
    return text[len(prompt) :]


class Guesser:
    """Two tokens of the truth, then a wrong one."""

    def __init__(self, params, length):
        self.text = [*PROMPT, *truth(params, length)]
        self.drafts = 0

    def prepare(self, committed):
        pass

    def draft(self, committed, length, params):
        self.drafts += 1
        base = len(committed)
        return [self.text[at] if at < base + 2 else 7 for at in range(base, min(base + length, len(self.text)))]

    def draft_distributions(self, committed, length, params, form):
        ids = self.draft(committed, length, params)
        return ids, [certain_distribution(token, form) for token in ids]


class MemoryEdge:
    """An edge of one session at a time, over in-memory links.

    Args:
        breaks_s: draws the time after which a connection breaks; none for a good link.
        verify_s: time of a verification.
        keeps: whether a session outlives its connection.
    """

    def __init__(self, breaks_s=lambda: None, verify_s=0.05, keeps=True, welcome=None, granted=3, band_hz=1e5):
        self.breaks_s, self.verify_s, self.keeps, self.granted, self.band_hz = (
            breaks_s,
            verify_s,
            keeps,
            granted,
            band_hz,
        )
        self.limits = welcome or Welcome(1, "secret", 9, V, 400, 30.0)
        self.session = self.end = None
        self.away_until_s, self.round = 0.0, 0
        self.heard, self.connections, self.urls, self.tasks = [], 0, [], []

    def link(self):
        return MemoryLink(self.accept)

    def accept(self, url, end):
        loop = asyncio.get_running_loop()
        self.urls.append(url)
        if loop.time() < self.away_until_s:
            raise LinkLostError("connection refused")
        self.connections += 1
        self.tasks.append(asyncio.create_task(self.serve(end)))
        if (breaks_s := self.breaks_s()) is not None:
            loop.call_later(breaks_s, end.cut)

    async def serve(self, end):
        try:
            while True:
                message = decode_uplink(await end.receive())
                self.heard.append(message)
                for answer in self.answers(message, end):
                    await end.send(encode(answer))
                await self.go_on(end)
        except LinkLostError:
            pass
        except ProtocolError as error:
            await end.send(encode(Error(error.code, str(error))))
            await end.close()

    def answers(self, message, end):
        match message:
            case Hello():
                self.session = EdgeSession(1, "secret", message, V)
                return [self.limits]
            case Resume():
                if self.session is None or not self.keeps:
                    raise ProtocolError("unknown-session", "nothing to resume")
                return [self.limits, *self.session.catch_up(message.length)]
            case Open():
                self.session.open(message, 400)
                return []
            case Draft():
                return self.session.receive(message)
            case Distribution():
                return [self.session.receive_distribution(message)]
            case Close():
                self.session = None
        return []

    async def go_on(self, end):
        session = self.session
        while session is not None and session.request and not session.request.finish:
            if isinstance(session.stage, Idle):
                self.round += 1
                grant = session.give(self.round, min(self.granted, session.room), self.band_hz)
                await end.send(encode(grant))
            if not isinstance(session.stage, Pending):
                return
            await asyncio.sleep(self.verify_s)
            if not isinstance(session.stage, Pending):
                return
            request, draft = session.request, session.stage.draft
            rows = LOGITS[[request.committed[-1], *draft]]
            finding = judge(draft, session.stage.evidence, rows, len(request.committed), request.params)
            await end.send(encode(session.settle(finding)))


def params_of(rule):
    return SamplingParams() if rule is Rule.GREEDY else SamplingParams(1.0, seed=8)


@pytest.mark.parametrize("seconds_per_token", [0.01, 0.4], ids=["fast", "slower than the link lives"])
@pytest.mark.parametrize("rule", list(Rule))
def test_a_link_that_breaks_again_and_again_ends_with_the_same_text(rule, seconds_per_token):
    params, length = params_of(rule), 120
    outages = []

    async def scenario():
        rng = random.Random(rule.value)
        edge = MemoryEdge(lambda: rng.uniform(0.2, 1.0))
        drafter = Guesser(params, length)
        client = DeviceClient(
            URL, HELLO, drafter, Emulation(seconds_per_token), link=edge.link(), on_outage=outages.append
        )
        ids = await client.generate(Request(PROMPT, params, length, rule=rule))
        return ids, client.counters, edge, drafter, client.session.finish

    ids, counters, edge, drafter, finish = run(scenario())
    assert finish == "length"
    assert len(ids) == length
    assert counters.reconnects == len(outages) == edge.connections - 1 > 3
    assert counters.accepted > 0
    assert drafter.drafts <= counters.rounds + 2  # a draft that is under way is not begun anew
    if rule in (Rule.GREEDY, Rule.COUPLED):
        assert ids == truth(params, length)


def test_an_edge_that_forgets_is_told_the_text_so_far():
    async def scenario():
        edge = MemoryEdge(lambda: 0.3, keeps=False)
        client = DeviceClient(URL, HELLO, Guesser(SamplingParams(), 40), link=edge.link())
        ids = await client.generate(Request(PROMPT, SamplingParams(), 40))
        return ids, [message.continued for message in edge.heard if isinstance(message, Open)]

    ids, continued = run(scenario())
    assert ids == truth(SamplingParams(), 40)
    assert continued[0] == 0
    assert len(continued) > 2
    assert continued == sorted(set(continued))


@pytest.mark.parametrize("away_s", [1.0, 20.0, 290.0])
def test_an_edge_that_is_away_for_as_long_as_a_model_loads_is_waited_for(away_s):
    async def scenario():
        edge, loop = MemoryEdge(keeps=False), asyncio.get_running_loop()

        def goes():
            edge.away_until_s = loop.time() + away_s
            edge.end.cut()

        def first(url, end):
            edge.accept(url, end)
            if edge.connections == 1:
                edge.end = end
                loop.call_later(0.5, goes)

        client = DeviceClient(URL, HELLO, Guesser(SamplingParams(), 40), link=MemoryLink(first))
        ids = await client.generate(Request(PROMPT, SamplingParams(), 40))
        return ids, loop.time(), client.counters.reconnects

    ids, took_s, reconnects = run(scenario())
    assert ids == truth(SamplingParams(), 40)
    # The longest delay may just have begun when the edge is back, which has forgotten the session: one more follows.
    assert away_s < took_s < 0.5 + away_s + 2.0 * Patience().longest_delay_s + 1.0
    assert reconnects <= 8 + away_s / 2.5


def test_patience_ends_and_says_what_was_wrong():
    async def scenario(patience, edge):
        client = DeviceClient(URL, HELLO, NoDrafter(), link=edge.link(), patience=patience)
        try:
            await client.generate(Request(PROMPT, SamplingParams(), 10))
        except InputError as error:
            return str(error), asyncio.get_running_loop().time()

    never, dropping = MemoryEdge(), MemoryEdge(lambda: 0.01, keeps=False)  # welcomes, and goes
    never.away_until_s = float("inf")
    said, took_s = run(scenario(Patience(at_first_s=7.0), never))
    assert said == f"cannot reach the edge at {URL} (connection refused): {REMEDY}"
    assert took_s == pytest.approx(7.0, abs=0.1)
    said, took_s = run(scenario(Patience(once_known_s=60.0), dropping))
    assert said.startswith(f"the edge at {URL} greets this device, and then does not keep its session (")
    assert 60.0 <= took_s < 70.0
    assert dropping.connections < 40


WELCOME = Welcome(1, "secret", 9, V, 100, 30.0)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], f"the server at {URL} takes connections, but does not answer as an edge"),
        ([WELCOME], f"the edge at {URL} greets this device, and then does not keep its session"),
        ([WELCOME, Tail(1, 3, b"", 0)], f"the edge at {URL} greets this device, and then does not keep its session"),
    ],
    ids=["closes at once", "greets and closes", "takes the request and closes"],
)
def test_an_edge_that_closes_every_connection_is_told_from_one_that_is_not_there(messages, sentence):
    async def serve(end):
        for message in messages:
            await end.receive()
            await end.send(encode(message))
        await end.close()

    async def scenario():
        tasks = []
        link = MemoryLink(lambda url, end: tasks.append(asyncio.ensure_future(serve(end))))
        client = DeviceClient(URL, HELLO, NoDrafter(), link=link, patience=Patience(5.0, 5.0))
        with pytest.raises(InputError) as refusal:
            await client.generate(Request(PROMPT, SamplingParams(), 20))
        return str(refusal.value)

    assert run(scenario()).startswith(f"{sentence} (the ")  # edge closed the connection, or it broke


def test_several_addresses_are_tried_in_turn_and_a_broken_connection_first_where_it_was():
    async def scenario():
        good, bad = MemoryEdge(lambda: 0.5), MemoryEdge()
        bad.away_until_s = float("inf")
        edges = {"ws://a": bad, "ws://b": good}
        tried, outages = [], []

        def accept(url, end):
            tried.append(url)
            edges[url].accept(url, end)

        client = DeviceClient(
            list(edges), HELLO, Guesser(SamplingParams(), 30), link=MemoryLink(accept), on_outage=outages.append
        )
        ids = await client.generate(Request(PROMPT, SamplingParams(), 30))
        greetings = [type(message).__name__ for message in good.heard if isinstance(message, Hello | Resume)]
        return ids, tried, greetings, [outage.url for outage in outages]

    ids, tried, greetings, missed = run(scenario())
    assert ids == truth(SamplingParams(), 30)
    assert tried[:2] == ["ws://a", "ws://b"]
    assert set(tried[2:]) == {"ws://b"}
    assert missed == tried[:-1]  # each outage names the address that was tried, not the next one
    assert greetings[0] == "Hello"
    assert set(greetings[1:]) == {"Resume"}


def test_another_edge_is_tried_when_one_is_full():
    async def scenario():
        full, free = MemoryEdge(), MemoryEdge()

        def refuse(message, end):
            raise ProtocolError("full", "no room here")

        full.answers = refuse
        edges = {"ws://a": full, "ws://b": free}
        link = MemoryLink(lambda url, end: edges[url].accept(url, end))
        client = DeviceClient(["ws://a", "ws://b"], HELLO, NoDrafter(), link=link)
        ids = await client.generate(Request(PROMPT, SamplingParams(), 10))
        alone = DeviceClient("ws://a", HELLO, NoDrafter(), link=link, patience=Patience(at_first_s=3.0))
        with pytest.raises(RefusedError, match="no room here"):
            await alone.generate(Request(PROMPT, SamplingParams(), 10))
        return ids

    assert run(scenario()) == truth(SamplingParams(), 10)


@pytest.mark.parametrize(
    ("request_", "welcome", "sentence"),
    [
        (
            Request(PROMPT, SamplingParams(), 398),
            None,
            "3 prompt tokens and 398 to generate make 401, over this edge's",
        ),
        (
            Request((1,) * 70_000, SamplingParams(), 5),
            Welcome(1, "secret", 9, 2**31 - 1, 100_000, 30.0),
            "makes a message of .* bytes; the limit is 262144",
        ),
        (Request((1, V), SamplingParams(), 5), None, f"token {V} of the prompt is outside the target's 0 … {V - 1}"),
        (Request(PROMPT, SamplingParams(), 5, stop_ids=(V,)), None, f"stop id {V} is outside"),
    ],
    ids=["too long", "too large for a frame", "unknown ids", "unknown stop ids"],
)
def test_what_an_edge_cannot_take_is_said_in_one_sentence_and_not_tried_again(request_, welcome, sentence):
    async def scenario():
        edge = MemoryEdge(welcome=welcome)
        with pytest.raises(InputError, match=sentence):
            await DeviceClient(URL, HELLO, NoDrafter(), link=edge.link()).generate(request_)
        await asyncio.sleep(1.0)
        return edge.connections, edge.heard[-1]

    connections, last = run(scenario())
    assert connections == 1
    assert last == Close(1)  # the edge need not keep the session


def test_a_request_that_is_given_up_frees_what_the_edge_holds_at_once():
    async def scenario():
        edge = MemoryEdge(verify_s=1.0)
        client = DeviceClient(URL, HELLO, NoDrafter(), link=edge.link())
        work = asyncio.create_task(client.generate(Request(PROMPT, SamplingParams(), 40)))
        await asyncio.sleep(2.5)
        work.cancel()
        await asyncio.sleep(2.5)
        assert edge.heard[-1] == Close(1)
        return await client.generate(Request(PROMPT, SamplingParams(), 10))  # and the next one is served

    assert run(scenario()) == truth(SamplingParams(), 10)


def test_an_edge_that_takes_the_connection_and_says_nothing_is_as_good_as_none():
    async def scenario():
        edge = MemoryEdge()
        edge.answers = lambda message, end: []
        client = DeviceClient(URL, HELLO, NoDrafter(), link=edge.link(), patience=Patience(at_first_s=25.0))
        with pytest.raises(InputError, match="did not answer the greeting within 10 s"):
            await client.generate(Request(PROMPT, SamplingParams(), 40))
        return edge.connections

    assert run(scenario()) == 4


def test_an_edge_that_resumes_a_session_and_says_nothing_of_the_text_counts_as_lost():
    async def scenario():
        edge = MemoryEdge(lambda: 0.3 if edge.connections == 1 else None)
        answers, go_on = edge.answers, edge.go_on
        edge.answers = lambda message, end: [edge.limits] if isinstance(message, Resume) else answers(message, end)
        edge.go_on = lambda end: go_on(end) if edge.connections == 1 else asyncio.sleep(0)
        client = DeviceClient(URL, HELLO, NoDrafter(), link=edge.link(), patience=Patience(once_known_s=60.0))
        with pytest.raises(InputError, match="did not answer the greeting within 10 s"):
            await client.generate(Request(PROMPT, SamplingParams(), 40))
        assert asyncio.get_running_loop().time() < 80.0  # its time on such connections counts, too
        return edge.connections

    assert run(scenario()) > 2


@pytest.mark.parametrize("urls", [1, 2])
def test_an_edge_that_keeps_the_connection_and_says_nothing_of_the_text_is_left(urls):
    async def scenario():
        edge, outages = MemoryEdge(), []
        edge.go_on = lambda end: asyncio.sleep(0)  # it takes the request, resumes it, and makes no pass
        addresses = [f"{URL}{place}" for place in range(urls)]
        client = DeviceClient(addresses, HELLO, NoDrafter(), link=edge.link(), on_outage=outages.append)
        with pytest.raises(InputError, match="the edge has sent nothing about this text for 120 s"):
            await client.generate(Request(PROMPT, SamplingParams(), 40))
        assert asyncio.get_running_loop().time() < 400.0
        assert outages
        return edge.urls, [isinstance(message, Resume) for message in edge.heard].count(True)

    tried, resumed = run(scenario())
    assert len(set(tried[:2])) == urls  # elsewhere at once, if there is another
    assert resumed == (0 if urls == 2 else len(tried) - 1)


def test_a_draft_that_takes_long_is_no_silence_of_the_edge():
    async def scenario():
        edge = MemoryEdge()
        client = DeviceClient(URL, HELLO, Guesser(SamplingParams(), 4), Emulation(200.0), link=edge.link())
        text = await client.generate(Request(PROMPT, SamplingParams(), 4))
        assert asyncio.get_running_loop().time() > 200.0
        assert client.counters.reconnects == 0
        return text

    assert run(scenario()) == truth(SamplingParams(), 4)


def test_emulated_speed_and_uplink_take_their_time():
    async def scenario(emulation, band_hz):
        edge = MemoryEdge(verify_s=0.0, band_hz=band_hz)
        client = DeviceClient(URL, HELLO, Guesser(SamplingParams(), 30), emulation, link=edge.link())
        await client.generate(Request(PROMPT, SamplingParams(), 30))
        return asyncio.get_running_loop().time(), client.counters, edge.heard

    at_once, _, _ = run(scenario(Emulation(), 1e3))
    assert at_once == 0.0
    took_s, counters, heard = run(scenario(Emulation(0.25), 1e3))
    drafted = sum(message.length for message in heard if isinstance(message, Draft))
    assert took_s == pytest.approx(0.25 * drafted)
    assert all(message.draft_us == 250_000 * message.length for message in heard if isinstance(message, Draft))
    took_s, counters, heard = run(scenario(Emulation(0.0, 2.0), 1e3))
    paced = [message for message in heard if isinstance(message, Draft | Close)]
    on_air_bits = sum(8 * websocket_frame_bytes(len(encode(message)), masked=True) for message in paced)
    assert took_s == pytest.approx(on_air_bits / 2e3)
    sizes = [websocket_frame_bytes(len(encode(message)), masked=True) for message in heard]
    assert counters.uplink_bytes == sum(sizes)


def hostile(*frames):
    """A link to an edge that welcomes the device, takes its request, and then sends these frames as they are."""

    async def serve(end):
        try:
            await end.receive()
            await end.send(encode(Welcome(1, "secret", 9, V, 100, 30.0)))
            await end.receive()
            for frame in frames:
                await end.send(frame)
            while True:
                await end.receive()
        except LinkLostError:
            pass

    tasks = []
    return MemoryLink(lambda url, end: tasks.append(asyncio.ensure_future(serve(end))))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (Verdict(1, 1, 3, 0, 10**6), "token 1000000, which is outside its vocabulary of 20"),
        (Verdict(1, 1, 3, 5, 1), "accepted 5 tokens at 3 that were never sent"),
        (Tail(1, 3, pack_ids([1] * 30, V), 30), "more than the 20 tokens"),
        (Grant(1, 1, 3, float("inf")), "granted a band of inf Hz"),
        (Welcome(1, "again", 9, V, 100, 30.0), "in the middle"),
        (Ask(1, 4, 0), "from which nothing was drafted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_edge_that_lies_ends_the_request_with_one_sentence(message, sentence):
    async def scenario():
        client = DeviceClient(
            URL, HELLO, Guesser(SamplingParams(), 20), Emulation(0.0, 1.0), link=hostile(encode(message))
        )
        with pytest.raises(InputError, match=sentence) as refusal:
            await client.generate(Request(PROMPT, SamplingParams(), 20))
        assert "\n" not in str(refusal.value)

    run(scenario())


def test_a_flood_of_grants_costs_one_draft_at_a_time():
    async def scenario():
        flood = [encode(Grant(1, number, 3, 1e4)) for number in range(5000)]
        drafter = Guesser(SamplingParams(), 20)
        client = DeviceClient(URL, HELLO, drafter, Emulation(1.0), link=hostile(*flood))
        work = asyncio.create_task(client.generate(Request(PROMPT, SamplingParams(), 20)))
        tasks = []
        for _ in range(100):
            await asyncio.sleep(0.01)
            tasks.append(len(asyncio.all_tasks()))
        work.cancel()
        return max(tasks)

    assert run(scenario()) < 15


def test_a_drafter_that_fails_ends_the_request_even_while_the_connection_is_away():
    class Broken(Guesser):
        def draft(self, committed, length, params):
            raise RuntimeError("out of memory")

    async def scenario():
        edge = MemoryEdge()
        with pytest.raises(RuntimeError, match="out of memory"):
            await DeviceClient(URL, HELLO, Broken(SamplingParams(), 20), link=edge.link()).generate(
                Request(PROMPT, SamplingParams(), 20)
            )

    run(scenario())


class LinkThatClosesSlowly(MemoryLink):
    async def close(self):
        await asyncio.sleep(0.5)
        await super().close()


def test_a_client_whose_goodbye_is_cancelled_begins_its_next_text_anew():
    async def scenario():
        edge = MemoryEdge()
        client = DeviceClient(URL, HELLO, Guesser(SamplingParams(), 30), link=LinkThatClosesSlowly(edge.accept))
        left = asyncio.create_task(client.generate(Request(PROMPT, SamplingParams(), 30)))
        await asyncio.sleep(1.0)
        assert client.session.welcome is not None
        left.cancel()
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.wait([left])
        assert client.session.welcome is None
        return await client.generate(Request(PROMPT, SamplingParams(), 30))

    assert run(scenario()) == truth(SamplingParams(), 30)
