"""The rejection rules over real sockets, with drafters of every kind, and with devices that cheat."""

import asyncio

import pytest
from msgspec.structs import replace
from tests.edge.model_site import HOT, PROFILE, PROMPT, CuttingProxy, Forbidden, Site, alone, run
from tests.slots import free_slots

from multispin.device import DeviceClient, Emulation, WebSocketLink
from multispin.errors import InputError
from multispin.models import (
    ModelDrafter,
    load_model,
    round_weights,
)
from multispin.protocol import (
    PROTOCOL_VERSION,
    SESSION_PATH,
    Distribution,
    Draft,
    Hello,
    RefusedError,
    Request,
    Verdict,
    decode_downlink,
    decode_uplink,
    encode,
)
from multispin.protocol.events import Round
from multispin.speculation import (
    NoDrafter,
    PromptLookupDrafter,
    Rule,
    SamplingParams,
    certain_distribution,
    pack_distributions,
    unpack_offer,
)


@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_the_edge_drafts_under_the_rejection_rules_too(tiny_folder, rule):
    async def scenario():
        edge = round_weights(load_model(tiny_folder), 6)
        async with Site(tiny_folder, mode="edge", edge=edge) as site:
            clients = [site.client(NoDrafter(), f"device-{i}") for i in range(3)]
            texts = await asyncio.gather(
                *(c.generate(Request([*PROMPT, i], HOT, 40, rule=rule)) for i, c in enumerate(clients))
            )
        return texts, [event for event in site.events if isinstance(event, Round)]

    texts, rounds = run(scenario())
    assert [len(text) for text in texts] == [40] * 3
    # How much the edge drafts depends on what it measures: a busy machine may find that little of it pays.
    assert sum(device.accepted for each in rounds for device in each.devices) > 0


@pytest.mark.long
@pytest.mark.parametrize("mode", ["rounds", "streams"])
@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_drafters_of_every_kind_write_whole_texts_under_the_rejection_rules(tiny_folder, rule, mode):
    async def scenario():
        drafters = [
            ModelDrafter(round_weights(load_model(tiny_folder), 4), 256),
            ModelDrafter(load_model(tiny_folder), 256),
            PromptLookupDrafter(),
            NoDrafter(),
        ]
        async with Site(tiny_folder, policy="fixed", longest=4, mode=mode) as site:
            clients = [site.client(drafter, f"device-{i}") for i, drafter in enumerate(drafters)]
            # Most of the 257 tokens stand in the prompt: prompt lookup finds some, whatever text is drawn.
            prompt = list(range(200))
            texts = await asyncio.gather(
                *(c.generate(Request([*prompt, 10 + i], HOT, 30, rule=rule)) for i, c in enumerate(clients))
            )
            assert site.passes.sessions == {}
            assert free_slots(site.verifier) == site.verifier.slots
        return texts, clients

    texts, clients = run(scenario())
    assert [len(text) for text in texts] == [30] * 4
    assert [client.session.finish for client in clients] == ["length"] * 4
    if mode == "streams":  # where distributions over this band take longer than passes without drafts
        return
    rough, same, lookup, plain = (client.counters for client in clients)
    assert same.accepted > 0.8 * same.drafted > 0  # what 16 bits cannot hold is refused
    assert 0 < rough.accepted < rough.drafted
    assert lookup.drafted > 0
    assert plain.drafted == 0


def test_distributions_sent_at_once_and_distributions_sent_when_asked_for_make_the_same_text(tiny_folder):
    # Of one drafted token a block decides as a single decision does; longer blocks accept more.
    async def scenario(rule):
        async with Site(tiny_folder, policy="fixed", longest=1) as site:
            client = site.client(ModelDrafter(round_weights(load_model(tiny_folder), 4), 256))
            return await client.generate(Request(PROMPT, HOT, 40, rule=rule)), client.counters

    texts, counters = zip(*(run(scenario(rule)) for rule in (Rule.REJECTION, Rule.REJECTION_UP)), strict=True)
    assert texts[0] == texts[1]
    assert counters[0].accepted == counters[1].accepted < counters[1].drafted
    assert counters[1].draft_bytes < counters[0].draft_bytes


@pytest.mark.parametrize("rule", [Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_a_broken_connection_does_not_end_a_request_that_is_half_decided(tiny_folder, rule):
    async def scenario():
        cuts = [900, 1000, 1100, 1300, 1200, 1700]
        async with Site(tiny_folder, longest=2) as site, CuttingProxy(site.port, cuts) as proxy:
            site.url = f"ws://127.0.0.1:{proxy.port}{SESSION_PATH}"
            client = site.client(ModelDrafter(round_weights(load_model(tiny_folder), 4), 256))
            text = await client.generate(Request(PROMPT, HOT, 60, rule=rule, retained=16))
            return text, client.counters.reconnects

    text, reconnects = run(scenario())
    assert len(text) == 60
    assert reconnects >= 3  # it takes 20 verdicts or more


@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_an_emulated_uplink_carries_what_is_owed_when_no_band_is_granted(tiny_folder, rule):
    async def scenario():
        async with Site(tiny_folder) as site:
            client = site.client(Forbidden(), emulation=Emulation(0.0, 5.0))
            params = SamplingParams(1.0, seed=3, logit_bias=((5, -100.0),))
            return [await client.generate(Request(PROMPT, params, length, rule=rule)) for length in (2, 3, 4)]

    texts = run(scenario())
    assert [len(text) for text in texts] == [2, 3, 4]
    assert not any(5 in text for text in texts)


class LyingLink(WebSocketLink):
    """Says something else than its device, once it has the occasion."""

    def __init__(self, lie):
        super().__init__()
        self.lie, self.offer, self.session = lie, b"", None

    async def send(self, frame):
        await super().send(encode(self.lie(self, decode_uplink(frame))))

    async def receive(self):
        frame = await super().receive()
        if isinstance(message := decode_downlink(frame), Verdict):
            self.offer = message.offer
        return frame


def _with(kind, **values):
    return lambda _, message: replace(message, **values) if isinstance(message, kind) else message


def _distribution_of_another_round(_, message):
    return replace(message, round=message.round + 1) if isinstance(message, Distribution) else message


def _distribution_unasked(_, message):
    return Distribution(message.session, message.round, 0, b"") if isinstance(message, Draft) else message


def _distribution_of_another_token(link, message):
    if not isinstance(message, Distribution):
        return message
    refused = link.session.stage.ids[message.accepted]
    form = link.session.form
    return replace(
        message,
        distribution=pack_distributions([certain_distribution((refused + 1) % form.vocabulary_size, form)], form),
    )


def _impossible_token(link, message):
    if not isinstance(message, Draft) or message.head is None:
        return message
    floor, rest_token = unpack_offer(link.offer, link.session.form)
    possible = {*map(int, floor.ids), rest_token}
    return replace(message, head=next(token for token in range(1000) if token not in possible))


def _token_kept_back(_, message):
    return replace(message, head=None) if isinstance(message, Draft) else message


LIES = {
    "a distribution that gives the token another weight": (
        Rule.REJECTION_UP,
        _distribution_of_another_token,
        "bad-message",
    ),
    "a distribution too large": (Rule.REJECTION_UP, _with(Distribution, distribution=b"x" * 50_000), "bad-message"),
    "a distribution for another round": (Rule.REJECTION_UP, _distribution_of_another_round, "unexpected"),
    "a distribution that nobody asked for": (Rule.REJECTION_UP, _distribution_unasked, "unexpected"),
    "weights of nothing": (Rule.REJECTION_UP, _with(Draft, length=1, payload=bytes(4)), "bad-message"),
    "distributions too large": (Rule.REJECTION, _with(Draft, length=1, payload=b"x" * 50_000), "bad-message"),
    "distributions cut short": (Rule.REJECTION, _with(Draft, length=1, payload=b"\x7f"), "bad-message"),
    "a token that no distribution gives": (Rule.REJECTION_DOWN, _impossible_token, "bad-head"),
    "a token kept back": (Rule.REJECTION_DOWN, _token_kept_back, "bad-head"),
    "a token without an offer": (Rule.REJECTION_DOWN, _with(Draft, head=1), "bad-head"),
    "evidence for a rule without any": (Rule.COUPLED, _with(Draft, length=1, payload=b"x" * 50_000), "bad-message"),
}


def test_who_cheats_under_a_rejection_rule_ends_its_own_session_and_no_other(tiny_folder):
    async def scenario():
        async with Site(tiny_folder, policy="fixed") as site:
            good = site.client(ModelDrafter(load_model(tiny_folder), 256), emulation=Emulation(0.01, 0.0))
            work = asyncio.create_task(good.generate(Request(PROMPT, HOT, 100)))
            drafter = ModelDrafter(round_weights(load_model(tiny_folder), 3), 256)
            for what, (rule, lie, code) in LIES.items():
                link = LyingLink(lie)
                bad = DeviceClient(site.url, site.hello("bad"), drafter, link=link)
                link.session = bad.session
                with pytest.raises(RefusedError) as refusal:
                    await bad.generate(Request(PROMPT, HOT, 60, rule=rule, retained=8, probability_bits=8))
                assert refusal.value.code == code, what
                bad.close()
            return await work, len(site.passes.sessions)

    text, left = run(scenario())
    assert text == alone(tiny_folder, PROMPT, HOT, 100)
    assert left == 0


def test_a_rule_that_the_engine_cannot_apply_is_refused_with_those_that_it_can(tiny_folder):
    async def scenario():
        async with Site(tiny_folder) as site:
            type(site.passes.engine).rules, kept = (
                frozenset({Rule.GREEDY, Rule.COUPLED}),
                type(site.passes.engine).rules,
            )
            try:
                await site.client(NoDrafter()).generate(Request(PROMPT, HOT, 10, rule=Rule.REJECTION))
            finally:
                type(site.passes.engine).rules = kept

    with pytest.raises(RefusedError, match="use coupled or greedy"):
        run(scenario())


def test_a_rule_that_does_not_fit_the_temperature_is_refused_before_anything_is_sent(tiny_folder):
    async def scenario():
        await DeviceClient(
            "ws://127.0.0.1:9", Hello(PROTOCOL_VERSION, "f", "n", "d", True, PROFILE), NoDrafter()
        ).generate(Request(PROMPT, SamplingParams(), 10, rule=Rule.REJECTION))

    with pytest.raises(InputError, match="rejection needs a temperature above 0"):
        run(scenario())
