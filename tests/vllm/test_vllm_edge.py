"""The loop of passes before vLLM, under a clock that the test turns: late, lost, leaving and waiting devices.

Run against both engines; the loop itself is tested in tests/edge.
"""

from dataclasses import replace

import pytest

from multispin.models import decode_alone
from multispin.passes import Controller, ControllerSettings, Limits, LocalDriver, Passes
from multispin.protocol import PROTOCOL_VERSION, Close, DeviceSession, Hello, Profile, Request
from multispin.speculation import SamplingParams, TextStream, bits_per_id

GREEDY, HOT = SamplingParams(), SamplingParams(0.9, seed=12)
PROMPTS = {name: list(range(10 * i, 10 * i + 5 + 13 * i)) for i, name in enumerate("abcde", start=1)}
MAX_TOKENS = 14


def decode(ids):
    return "".join(f"{token}," for token in ids)


class Site(LocalDriver):
    """An edge and its devices, in one test. A device drafts what the target will say, and then something else."""

    def __init__(self, engine, model, **limits):
        self.engine, self.model = engine, model
        control = Controller(ControllerSettings("homogeneous", 1e5, bits_per_id(engine.vocabulary_size), 8))
        tokens = iter(f"token-{i}" for i in range(100))
        super().__init__(Passes(engine, control, "abc", Limits(**limits), new_token=lambda: next(tokens)))
        self.alone = {}

    def join(self, name, params=GREEDY, **ends):
        prompt = PROMPTS[name]
        strings = ends.pop("strings", ())
        hello = Hello(PROTOCOL_VERSION, "abc", name, "q5", True, Profile(0.05, 3.0))
        device = DeviceSession(hello, decode)
        device.begin(Request(prompt, params, MAX_TOKENS, stop_strings=strings, **ends))
        number = self.connect(device)
        stream = TextStream(decode, strings)
        self.alone[number] = decode_alone(self.model, prompt, params, MAX_TOKENS, **ends, stream=stream)
        self.say(number, device.open())
        return number

    def draft(self, *numbers):
        for number in numbers:
            device = self.devices[number]
            if device.grant is None or device.finish or not device.grant.length:
                continue
            right = self.alone[number][len(device.generated) :][: max(1, device.grant.length - 1)]
            ids = [*right, *[7] * (device.grant.length - len(right))]
            self.say(number, device.answer(ids, 0.05 * len(ids)))

    def hear(self, number, message):
        super().hear(number, message)
        device = self.devices.get(number)
        if device and device.finish and self.passes.session(number):  # a stop string, which only the device sees
            self.say(number, Close(number))

    def start(self, *names, **options):
        """Join, read the prompts, and grant the first round."""
        numbers = [self.join(name, **options) for name in names]
        until_s = self.run().until_s
        while not all(self.devices[number].grant for number in numbers):  # a longer prompt is still to be read
            self.now_s = until_s
            until_s = self.run().until_s
        return numbers

    def finish(self, *numbers):
        """Let these write to their ends; every text must be the target's own."""
        for _ in range(200):
            if all(self.devices[number].finish for number in numbers):
                break
            self.draft(*numbers)
            self.now_s = max(self.now_s + 0.3, self.run().until_s or 0.0)
        for number in numbers:
            assert self.devices[number].generated == self.alone[number]


@pytest.fixture
def site(engine, model):
    return Site(engine, model, resume_grace_s=10.0)


@pytest.mark.parametrize("name", ["a", "c"])  # the prompt of c fills a block of vLLM's cache
@pytest.mark.parametrize("params", [GREEDY, HOT], ids=["greedy", "coupled"])
def test_the_pass_that_reads_the_last_of_a_prompt_brings_a_token(site, name, params):
    (number,) = site.start(name, params=params)
    assert site.devices[number].generated == site.alone[number][:1]  # nothing is drafted yet
    site.finish(number)


def test_a_late_device_misses_the_batch_and_its_draft_is_verified_in_the_next(site):
    fast, slow = site.start("a", "c", params=HOT)
    site.draft(fast)
    site.now_s = site.run().until_s
    assert site.one_pass().members == (fast,)
    assert site.devices[slow].generated == site.alone[slow][:1]  # the token that came with its prompt
    site.draft(slow, fast)
    assert set(site.one_pass().members) == {fast, slow}
    assert len(site.devices[slow].generated) > 2
    site.finish(fast, slow)


def test_a_lost_device_resumes_where_it_was(site):
    stays, goes = site.start("a", "b", params=HOT)
    site.draft(stays, goes)
    site.run()
    device = site.devices[goes]
    site.lose(goes)
    for _ in range(2):
        site.draft(stays)
        site.run()
    before = list(device.generated)
    assert site.connect(device) == goes
    assert device.generated == before
    site.finish(stays, goes)


def test_a_forgotten_device_gives_its_slot_to_one_that_waits(site):
    first, gone, third = site.start("a", "b", "c")
    waits = site.join("e")
    site.lose(gone)
    site.now_s += 11.0
    assert site.passes.expire(site.now_s) == [gone]
    site.finish(first, third, waits)


def test_a_device_may_leave_while_its_draft_is_verified(site):
    leaves, stays = site.start("b", "d", params=HOT)
    site.draft(leaves, stays)
    step = site.advance()
    site.say(leaves, Close(leaves))
    site.verify(step)
    assert site.one_pass().members == (stays,)
    del site.devices[leaves]
    newcomers = [site.join("b", params=HOT), site.join("e", params=HOT)]
    site.finish(stays, *newcomers)


def test_more_requests_than_slots_are_all_answered(site):
    numbers = [site.join(name, GREEDY if name in "ace" else HOT) for name in PROMPTS]
    assert len(numbers) > site.engine.slots
    site.finish(*numbers)


@pytest.mark.parametrize("params", [GREEDY, HOT], ids=["greedy", "coupled"])
def test_texts_end_where_the_target_alone_ends_them(site, model, params):
    """Bias, stop ids, a minimal length and stop strings, for one device among others that write on."""
    plain = decode_alone(model, PROMPTS["a"], params, MAX_TOKENS)
    biased = replace(params, logit_bias=((plain[0], -100.0), (plain[1], 1.5)))
    free = decode_alone(model, PROMPTS["a"], biased, MAX_TOKENS)
    stop_ids = tuple(sorted(set(free[:3])))  # all met early
    late = decode_alone(model, PROMPTS["a"], biased, MAX_TOKENS, stop_ids, 6)
    assert 6 <= len(late) <= MAX_TOKENS
    assert plain[0] not in late
    stops = (f"{free[3]},{free[4]}",)
    (others,) = site.start("b", params=HOT)
    ids = site.join("a", biased, stop_ids=stop_ids, min_tokens=6)
    strings = site.join("a", biased, strings=stops)
    site.finish(others, ids, strings)
    assert site.alone[ids] == late
    assert len(site.alone[strings]) <= 5
    assert site.devices[strings].finish == "stop"
    assert site.passes.sessions == {}
