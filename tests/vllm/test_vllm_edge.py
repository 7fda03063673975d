"""The round loop before vLLM, under a clock that the test turns: late, lost, leaving and waiting devices.

Run against both engines; the loop itself is tested in tests/edge.
"""

from dataclasses import replace

import pytest

from multispin.models import decode_alone
from multispin.passes import Controller, ControllerSettings, Edge, Limits
from multispin.protocol import PROTOCOL_VERSION, Close, DeviceSession, Hello, Profile, Request
from multispin.speculation import SamplingParams, StopStrings, bits_per_id

GREEDY, HOT = SamplingParams(), SamplingParams(0.9, seed=12)
PROMPTS = {name: list(range(10 * i, 10 * i + 5 + 13 * i)) for i, name in enumerate("abcde", start=1)}
MAX_TOKENS = 14


class Site:
    """An edge and its devices, in one test. A device drafts what the target will say, and then something else."""

    def __init__(self, engine, model, **limits):
        self.engine, self.model, self.now = engine, model, 0.0
        settings = ControllerSettings("homogeneous", 1e5, bits_per_id(engine.vocabulary_size), 8)
        tokens = iter(f"token-{i}" for i in range(100))
        self.edge = Edge(engine, Controller(settings), "abc", Limits(**limits), new_token=lambda: next(tokens))
        self.devices, self.alone = {}, {}

    def join(self, name, params=GREEDY, **ends):
        prompt = PROMPTS[name]
        stops = ends.get("stops")
        hello = Hello(PROTOCOL_VERSION, "abc", name, "q5", True, Profile(0.05, 3.0))
        device = DeviceSession(hello, stops.decode if stops else None)
        ids = {key: value for key, value in ends.items() if key != "stops"}
        device.begin(Request(prompt, params, MAX_TOKENS, stop_strings=stops.strings if stops else (), **ids))
        number = self.greet(device)
        self.devices[number] = device
        self.alone[number] = decode_alone(self.model, prompt, params, MAX_TOKENS, **ends)
        self.say(number, device.open())
        return number

    def greet(self, device):
        number, answers = self.edge.connect(device.greet(), self.now)
        for answer in answers:
            device.receive(answer)
        return number

    def say(self, number, message):
        for answer in self.edge.receive(number, message, 40, self.now):
            self.devices[number].receive(answer)

    def draft(self, number):
        device = self.devices[number]
        if device.grant is None or device.finish:
            return
        right = self.alone[number][len(device.generated) :][: max(1, device.grant.length - 1)]
        ids = [*right, *[7] * (device.grant.length - len(right))]
        self.say(number, device.answer(ids, 0.05 * len(ids)))

    def batch(self, meanwhile=lambda: None):
        batch = self.edge.collect()
        findings = self.edge.verify(batch)
        meanwhile()
        report, messages = self.edge.deliver(batch, findings, 0.1, self.now)
        self.hear(messages)
        return report

    def hear(self, messages):
        for number, message in messages:
            if (device := self.devices.get(number)) is not None:
                device.receive(message)
                if device.finish and number in self.edge.sessions:  # a stop string, which only the device sees
                    self.say(number, Close(number))

    def start(self, *names, **options):
        """Join, read the prompts, and grant the first round."""
        numbers = [self.join(name, **options) for name in names]
        while not all(self.devices[number].grant for number in numbers):
            self.hear(self.edge.schedule(self.now)[1].items())
            self.batch()
        return numbers

    def finish(self, *numbers):
        """Let these write to their ends; every text must be the target's own."""
        for _ in range(200):
            if all(self.devices[number].finish for number in numbers):
                break
            for number in numbers:
                self.draft(number)
            self.now += 0.3 + (self.edge.wait_s(self.now) or 0.0)
            self.batch()
        for number in numbers:
            assert self.devices[number].generated == self.alone[number]


@pytest.fixture
def site(engine, model):
    return Site(engine, model, resume_grace_s=10.0)


def test_a_late_device_misses_the_batch_and_its_draft_is_verified_in_the_next(site):
    fast, slow = site.start("a", "c", params=HOT)
    site.draft(fast)
    assert site.edge.wait_s(site.now) > 0
    site.now += site.edge.wait_s(site.now) + 0.01
    assert site.batch().members == (fast,)
    assert site.devices[slow].generated == []
    site.draft(slow)
    site.draft(fast)
    assert set(site.batch().members) == {fast, slow}
    assert len(site.devices[slow].generated) > 1
    site.finish(fast, slow)


def test_a_lost_device_resumes_where_it_was(site):
    stays, goes = site.start("a", "b", params=HOT)
    site.draft(stays)
    site.draft(goes)
    site.batch()
    site.edge.disconnect(goes, site.now)
    for _ in range(2):
        site.draft(stays)
        site.batch()
    before = list(site.devices[goes].generated)
    assert site.greet(site.devices[goes]) == goes
    assert site.devices[goes].generated == before
    site.finish(stays, goes)


def test_a_forgotten_device_gives_its_slot_to_one_that_waits(site):
    first, gone, third = site.start("a", "b", "c")
    waits = site.join("e")
    site.edge.disconnect(gone, site.now)
    site.now += 11.0
    assert site.edge.expire(site.now) == [gone]
    del site.devices[gone]
    site.finish(first, third, waits)


def test_a_device_may_leave_while_its_draft_is_verified(site):
    leaves, stays = site.start("b", "d", params=HOT)
    site.draft(leaves)
    site.draft(stays)
    report = site.batch(lambda: site.say(leaves, Close(leaves)))
    assert report.members == (stays,)
    del site.devices[leaves]
    newcomers = [site.join("b", params=HOT), site.join("e", params=HOT)]
    site.finish(stays, *newcomers)


def test_more_requests_than_slots_are_all_answered(site):
    numbers = [site.join(name, GREEDY if name in "ace" else HOT) for name in PROMPTS]
    assert len(numbers) > site.engine.slots
    site.hear(site.edge.schedule(site.now)[1].items())
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
    stops = StopStrings((f"{free[3]},{free[4]}",), lambda ids: "".join(f"{token}," for token in ids))
    (others,) = site.start("b", params=HOT)
    ids = site.join("a", biased, stop_ids=stop_ids, min_tokens=6)
    strings = site.join("a", biased, stops=stops)
    site.finish(others, ids, strings)
    assert site.alone[ids] == late
    assert len(site.alone[strings]) <= 5
    assert site.devices[strings].finish == "stop"
    assert site.edge.sessions == {}
