"""Who drafts: nobody, the edge, devices or whatever pays. Texts are the target's whoever does."""

import itertools
import random

import pytest
from tests.passes.counting import CountingEngine, RandomDrafter, V

from multispin.errors import InputError
from multispin.passes import Controller, ControllerSettings, DraftHere, Limits, LocalDriver, Passes, Sleep
from multispin.passes.probing import PROBE_LENGTH, PROBE_SHARE, Probes
from multispin.protocol import PROTOCOL_VERSION, Close, DeviceSession, Error, Grant, Hello, Profile, Request, Tail
from multispin.speculation import Failure, SamplingParams


class Site(LocalDriver):
    """An edge and devices that are right with probability `right`, or never answer."""

    def __init__(self, mode, edge=None, verify_s=0.1, policy="heterogeneous", slots=8, **limits):
        self.engine = CountingEngine(slots)
        settings = ControllerSettings(policy, 1e6, 7, 8, mode=mode, edge_drafts=edge is not None)
        self.edge = None if edge is None else RandomDrafter(edge)
        super().__init__(
            Passes(self.engine, Controller(settings), "abc", Limits(**limits), edge_drafter=self.edge), verify_s
        )
        self.rng, self.heard, self.silent, self.ended_s = random.Random(3), {}, set(), {}

    def join(self, name, max_tokens=60, seconds_per_token=0.01, **params):
        device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "q5", True, Profile(seconds_per_token, 5.0)))
        number = self.connect(device)
        device.begin(Request((1, 2, 3), SamplingParams(**params), max_tokens))
        self.say(number, device.open())
        return number

    def hear(self, number, message):
        self.heard.setdefault(number, []).append(message)
        if isinstance(message, Error):
            return
        super().hear(number, message)
        if number in self.devices and self.devices[number].finish and self.passes.session(number):
            self.ended_s[number] = self.now_s
            self.say(number, Close(number))

    def draft(self, number, right=1.0):
        device = self.devices[number]
        ids, newest = [], device.committed[-1]
        for _ in range(device.grant.length):
            newest = (newest + 1 if self.rng.random() < right else newest + 2) % V
            ids.append(newest)
        self.say(number, device.answer(ids, 0.01 * len(ids)))

    def advance_or_work(self):
        step = self.advance()
        if not isinstance(step, Sleep):
            self.work(step)

    def owing(self):
        return [
            n for n, d in self.devices.items() if d.grant and d.grant.length and not d.finish and n not in self.silent
        ]

    def go_on(self, right=1.0, passes=400, pass_s=0.1):
        """Let time go on: a pass at a time, drafts of devices between two of them."""
        for _ in range(passes):
            step = self.advance()
            while not isinstance(step, Sleep):
                self.now_s += pass_s if not isinstance(step, DraftHere) and hasattr(step, "batch") else 0.0
                self.work(step)
                for number in self.owing():
                    self.draft(number, right)
                step = self.advance()
            self.now_s = max(self.now_s, step.until_s or 0.0) if not self.owing() else self.now_s + 0.02
            for number in self.owing():
                self.draft(number, right)
            if all(device.finish for device in self.devices.values()):
                return


def expected(count):
    return [(4 + i) % V for i in range(count)]


@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    ("mode", "edge"),
    [("plain", None), ("edge", 0.6), ("mixture", None), ("mixture", 0.8), ("rounds", None), ("auto", 0.8)],
)
def test_texts_are_the_targets_whoever_drafts(mode, edge, right):
    site = Site(mode, edge)
    numbers = [site.join(f"d{k}", max_tokens=40 + k) for k in range(5)]
    site.go_on(right)
    for k, number in enumerate(numbers):
        assert site.devices[number].generated == expected(40 + k)
    if mode == "edge":
        assert site.edge.asked > 0


def test_plain_decoding_asks_nothing_of_devices_and_waits_for_nobody():
    site = Site("plain")
    number = site.join("d", max_tokens=30)
    assert site.run() == Sleep()  # the whole text, at one moment
    assert site.devices[number].generated == expected(30)
    assert not any(isinstance(message, Grant) for message in site.heard[number])


def test_a_device_that_never_answers_costs_the_others_one_deadline_and_its_text_goes_on():
    took_s = []
    for frozen in (False, True):
        site = Site("mixture", verify_s=1.0, deadline_slack_s=0.25)
        others = [site.join(f"d{k}", 120) for k in range(3)]
        if frozen:
            site.silent.add(site.join("frozen", 120))
        site.go_on(pass_s=1.0)
        took_s.append(max(site.ended_s[number] for number in others))
        assert all(device.generated == expected(120) for device in site.devices.values())
    assert took_s[1] <= 1.1 * took_s[0] + 1.0


def test_a_draft_that_comes_late_shows_that_its_device_drafts():
    """Otherwise one hiccup would leave its user without drafts until a probe, for 50 times as long as was waited."""
    site = Site("mixture", verify_s=0.1)
    number = site.join("d", 200)
    device, probes = site.devices[number], site.passes.controller.chooser.probes
    site.silent.add(number)
    while not (device.grant and device.grant.length):
        site.advance_or_work()
    late = device.grant.round
    while not probes.distrusted(number):
        site.now_s += 0.1
        site.advance_or_work()
    site.draft(number)
    assert not probes.distrusted(number)
    late_s = site.now_s
    while not (device.grant and device.grant.length and device.grant.round > late) and site.now_s < late_s + 2.0:
        site.now_s += 0.01
        site.advance_or_work()
    assert site.now_s < late_s + 1.0


def learned_uselessness(site, *numbers):
    """Make devices look useless: nothing that they draft is ever accepted, and they are slow."""
    beliefs = site.passes.controller.beliefs
    for number in numbers:
        for _ in range(60):
            beliefs.observe_outcome(number, 4, 0)


def test_a_probe_costs_no_token_and_shows_that_a_device_has_become_useful():
    site = Site("mixture", verify_s=0.05)
    number = site.join("d", max_tokens=300)
    learned_uselessness(site, number)
    beliefs, device = site.passes.controller.beliefs, site.devices[number]
    assert beliefs.acceptance_rate(number) < 0.05
    step = site.advance()
    while device.grant is None:
        if not isinstance(step, Sleep):
            site.work(step)
        step = site.advance()
    assert 0 < device.grant.length <= PROBE_LENGTH
    length, known = device.grant.length, len(device.committed)
    for _ in range(5):  # the text goes on, and the device is told nothing that would make it give up
        site.one_pass()
    assert len(device.committed) == known
    assert len(site.passes.session(number).request.committed) >= known + 5
    site.draft(number)
    assert isinstance(site.heard[number][-1], Tail)
    assert device.committed == site.passes.session(number).request.committed
    assert beliefs.acceptance_rate(number) > 0.05  # all of its tokens were right
    assert length == PROBE_LENGTH
    site.go_on()
    assert device.generated == expected(300)
    assert max(len(batch) and max(batch) for batch in site.engine.batches) > 1  # by now its drafts are verified


def test_a_probe_that_is_not_answered_is_given_up_and_the_device_hears_of_its_text():
    site = Site("mixture", verify_s=0.05)
    number = site.join("d", max_tokens=200)
    learned_uselessness(site, number)
    site.silent.add(number)
    site.go_on(pass_s=0.05)
    assert site.devices[number].generated == expected(200)
    assert sum(isinstance(message, Tail) for message in site.heard[number]) >= 1


@pytest.mark.parametrize("ends", ["late", "come", "text"])
def test_what_a_device_missed_during_a_probe_comes_in_messages_that_hold_its_log_probabilities(ends):
    site = Site("mixture", verify_s=0.05, deadline_slack_s=1.0, scored_tail=5)
    number = site.join("d", max_tokens=60, logprobs=0)
    learned_uselessness(site, number)
    site.silent.add(number)
    while not isinstance(site.heard[number][-1], Grant):
        site.advance_or_work()
    while site.passes.session(number).request.generated < 40:
        site.one_pass()
    match ends:
        case "late":
            site.now_s += 60.0
            site.advance()
        case "come":
            site.draft(number)
        case "text":
            while not site.devices[number].finish:
                site.one_pass()
    assert len([message for message in site.heard[number] if isinstance(message, Tail) and message.count]) > 5
    assert all(len(message.scores) <= 5 for message in site.heard[number] if isinstance(message, Tail))
    assert len(site.devices[number].generated) >= 40


@pytest.mark.parametrize("ends", ["connection", "text"])
def test_a_device_is_probed_again_after_a_probe_that_ended_with_its_connection_or_its_text(ends):
    site = Site("mixture", verify_s=0.05)
    number = site.join("d", max_tokens=30 if ends == "text" else 300)
    device, probes = site.devices[number], site.passes.controller.chooser.probes
    learned_uselessness(site, number)
    site.silent.add(number)
    site.say = lambda *_: None  # also at the end of its text
    while device.grant is None:
        site.advance_or_work()
    assert not probes.due(number, 1e6)
    if ends == "connection":
        site.lose(number)
    else:
        while not device.finish:
            site.one_pass()
    assert not probes.due(number, site.now_s)
    assert probes.due(number, site.now_s + 60.0)


def test_probes_take_no_more_than_their_share_and_find_a_change_in_time():
    probes, now_s, spent_s, begun = Probes(), 0.0, 0.0, []
    took_s = 0.3
    while now_s < 2000.0:
        if probes.due(1, now_s):
            probes.begin(1, now_s)
            begun.append(now_s)
            now_s += took_s
            spent_s += took_s
            probes.end(1, now_s)
        now_s += 0.01
    assert spent_s / now_s <= PROBE_SHARE * 1.05
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert max(gaps) <= took_s / PROBE_SHARE + took_s + 0.05


def test_a_device_that_missed_a_deadline_is_not_trusted_before_a_probe_has_come():
    probes = Probes()
    probes.miss(1, 10.0, 2.0)
    assert probes.distrusted(1)
    assert not probes.due(1, 10.0 + 2.0)
    assert probes.due(1, 10.0 + 2.0 / PROBE_SHARE)
    probes.begin(1, 200.0)
    probes.end(1, 200.5)
    assert not probes.distrusted(1)


def test_a_draft_that_nobody_waits_for_is_looked_at_when_it_comes():
    site = Site("mixture", verify_s=1.0)
    back, other = site.join("back"), site.join("other")
    while not {back, other} <= set(site.owing()):
        site.advance_or_work()
    phone = site.devices[back]
    site.lose(back)
    site.draft(other)
    while other not in site.owing():  # the next round is granted without the device that is gone
        site.advance_or_work()
    site.connect(phone)
    slept = site.run()
    assert site.passes.waits(site.now_s)
    site.draft(back)  # of the round before
    assert not site.passes.waits(site.now_s)
    step = site.advance()
    assert step.until_s < slept.until_s  # a pass is made with it before the other's draft is late
    assert site.passes.waits(site.now_s)


@pytest.mark.parametrize("mode", ["streams", "rounds"])
def test_the_time_of_a_pass_in_which_the_engine_failed_is_not_learned(mode):
    site = Site(mode)
    believed = site.passes.controller.beliefs.verification
    before = believed.predict(1, 4), believed.predict(8, 40)
    for failed in (True, False):
        site.join("d", 20)
        while not hasattr(step := site.advance(), "batch"):
            assert not isinstance(step, Sleep)
        found = site.passes.verify(step.batch)
        if failed:
            found = [Failure("the engine failed")] * len(found)
        site.passes.verified(step.batch, found, 1e-6, 0.0)
        site.advance()
        assert (before == (believed.predict(1, 4), believed.predict(8, 40))) == failed


def test_modes_that_cannot_be_are_refused():
    for settings, what in (
        ({"mode": "both"}, "mode"),
        ({"mode": "edge"}, "drafter"),
        ({"mode": "auto", "multiple_access": "tdma"}, "tdma"),
        ({"mode": "mixture", "multiple_access": "tdma"}, "tdma"),
    ):
        with pytest.raises(InputError, match=what):
            ControllerSettings("heterogeneous", 1e5, 7, 8, **settings)


class DearTokens(Site):
    """A site whose passes take 30 ms and 1 ms per token, and whose devices take 10 ms."""

    def __init__(self, **limits):
        self.asked_s = {}
        super().__init__("mixture", **limits)
        self.engine.max_length = 4096
        self.alone = []  # tokens of passes of prompts alone while drafts were awaited

    def verify(self, step):
        tokens = sum(len(job.feed.tokens) for job in step.batch.jobs)
        if self.owing() and all(job.feed.params is None for job in step.batch.jobs):
            self.alone.append(tokens)
        pass_s = 0.03 + 0.001 * tokens
        self.now_s += pass_s
        self.passes.verified(step.batch, self.passes.verify(step.batch), pass_s, self.now_s)

    def go_on_until(self, end_s):
        while self.now_s < end_s:
            step = self.advance()
            if isinstance(step, Sleep):
                self.now_s = min(self.now_s + 0.005, step.until_s or end_s)
                for number in self.owing():
                    device = self.devices[number]
                    if self.now_s - self.asked_s[number] >= 0.01 * device.grant.length:
                        self.draft(number)
            else:
                self.work(step)

    def hear(self, number, message):
        self.asked_s[number] = self.now_s
        super().hear(number, message)


def test_prompts_alone_are_read_in_small_pieces_while_drafts_are_awaited():
    site = DearTokens(prefill_share=0.5)
    for k in range(4):
        site.join(f"d{k}", max_tokens=2000)
    site.go_on_until(3.0)
    device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", "reader", "none", False, Profile(0.01, 5.0)))
    number = site.connect(device)
    device.begin(Request(tuple(k % V for k in range(3000)), SamplingParams(), 1))
    site.say(number, device.open())
    site.go_on_until(13.0)
    assert len(site.alone) > 5
    assert max(site.alone) <= 1.2 * 0.5 * 31  # a pass without them takes 31 ms
