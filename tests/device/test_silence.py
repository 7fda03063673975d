"""A device that drafts nothing for long says why."""

import pytest
from tests.device.test_client import HELLO, PROMPT, URL, Guesser, MemoryEdge
from tests.virtual_time import run

from multispin.device import DeviceClient, Emulation, Silence, Why
from multispin.device.silence import LONG_TOKENS, Bounded
from multispin.protocol import Request
from multispin.speculation import NoDrafter, PromptLookupDrafter, Rule, SamplingParams

LENGTH = 60
PARAMS = SamplingParams(1.0, seed=8)


class Short(Guesser):
    """Drafts in texts of at most `max_length` tokens."""

    def __init__(self, max_length):
        super().__init__(PARAMS, LENGTH)
        self.max_length = max_length

    def draft(self, committed, length, params):
        return super().draft(committed, length, params) if len(committed) <= self.max_length else []


def written(drafter, granted=3, rule=Rule.COUPLED):
    """The client, after a text in rounds."""
    client = DeviceClient(URL, HELLO, drafter, Emulation(), link=MemoryEdge(granted=granted).link())
    run(client.generate(Request(PROMPT, PARAMS, LENGTH, rule=rule)))
    return client


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.REJECTION])
@pytest.mark.parametrize(
    ("drafter", "granted", "why", "least"),
    [
        (Short(2), 3, Why.CONTEXT, LENGTH - 1),
        (Short(40), 3, Why.CONTEXT, LENGTH - 40),
        (Short(400), 3, None, 0),
        (Short(400), 0, Why.NOT_ASKED, LENGTH),
        (NoDrafter(), 3, Why.NOTHING, LENGTH - 1),
    ],
)
def test_a_text_without_drafts_has_a_reason(rule, drafter, granted, why, least):
    """No draft is asked for where one token is left, which the edge writes itself."""
    client = written(drafter, granted, rule)
    assert client.silence.reason(client.counters.drafted) is why
    assert why is None or client.silence.tokens[why] >= least
    assert client.silence.tokens.total() <= LENGTH


def test_the_next_text_is_counted_anew():
    client = DeviceClient(URL, HELLO, Short(2), Emulation(), link=(edge := MemoryEdge()).link())
    request = Request(PROMPT, PARAMS, LENGTH, rule=Rule.COUPLED)

    async def scenario():
        for _ in range(2):
            edge.session = None
            await client.generate(request)

    run(scenario())
    assert client.silence.tokens.total() == LENGTH


def counted(*events, drafter=None, text_tokens=10):
    """What was counted of passes without drafts: (tokens offered, tokens drafted or None, tokens written, rests)."""
    silence = Silence(drafter or NoDrafter())
    for offered, drafted, tokens, rests in events:
        silence.offer(offered)
        if drafted is not None:
            silence.asked(drafted)
        silence.written(tokens, text_tokens, rests)
    return silence


@pytest.mark.parametrize(
    ("events", "verified", "why"),
    [
        ([(3, 2, 9, False)], 0, Why.LATE),
        ([(3, 2, 999, False)], 1, None),  # some were verified: in streams many passes find none ready
        ([(3, None, 20, True), (0, None, 19, False)], 0, Why.RESTING),
        ([(0, None, LONG_TOKENS, False)], 1, Why.NOT_ASKED),
        ([(0, None, LONG_TOKENS - 1, False)], 1, None),
        ([(0, None, 1, False)], 0, None),  # nothing can be drafted in a text of one token
        ([(3, 0, 1, False), (3, 2, 1, False)], 0, Why.NOTHING),
        ([], 5, None),
    ],
)
def test_a_person_is_told_the_main_reason_and_no_trifle(events, verified, why):
    assert counted(*events).reason(verified) is why


def test_an_edge_that_has_asked_in_vain_and_asks_no_more_is_not_the_reason():
    passes, drafter = [(3, 0, 1, False), *[(0, None, 30, False)] * 3], Short(9)
    assert counted(*passes, drafter=drafter).tokens == {Why.CONTEXT: 91}
    assert counted(*passes[1:], drafter=drafter).tokens == {Why.NOT_ASKED: 90}
    assert counted(*passes, drafter=drafter, text_tokens=9).tokens == {Why.NOTHING: 1, Why.NOT_ASKED: 90}


def test_drafters_of_models_say_how_long_a_text_they_read():
    assert isinstance(Short(40), Bounded)
    assert not isinstance(PromptLookupDrafter(), Bounded)
