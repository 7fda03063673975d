"""The scheduler of streams under a virtual clock: texts are the target's, and nobody waits for who is not worth it."""

import gc
import math
import random

import pytest
import torch
from tests.passes.counting import CountingEngine, RandomDrafter, V, chain

from multispin.control import Device, EdgeDrafter, Verification
from multispin.control.streams import Go, Ride, Wait, choose
from multispin.errors import InputError
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.passes.flows import Flow, alone_tokens_per_s, grant_length, matters, window_of
from multispin.passes.streams import LOOK_S
from multispin.passes.windows import MOST_GONE
from multispin.protocol import (
    MAX_DRAFT_LENGTH,
    PROTOCOL_VERSION,
    Ask,
    Chunk,
    Close,
    Commit,
    DeviceSession,
    Error,
    Grant,
    Hello,
    Profile,
    Request,
    Streaming,
    Window,
)
from multispin.simulation.clock import EventQueue
from multispin.simulation.driver import VirtualDriver
from multispin.speculation import (
    ID_RULES,
    Failure,
    Rule,
    SamplingParams,
    SlotTable,
    certain_distribution,
    judge,
)


class Phone:
    """A device that streams: its session, its speed, its link and its luck."""

    def __init__(self, name, right, token_s, delay_s, drafts, thrift):
        self.right, self.token_s, self.delay_s = right, token_s, delay_s
        hello = Hello(PROTOCOL_VERSION, "abc", name, "q5", drafts, Profile(max(token_s, 1e-9), 5.0))
        self.session = DeviceSession(hello, max_wasted_share=thrift)
        self.drafting, self.heard, self.made, self.silent, self.connection = False, [], 0, False, 0
        self.accepted = self.rejected = 0
        self.ended_s = None


class Site(VirtualDriver):
    """An edge, and phones that stream."""

    def __init__(
        self, edge=None, pass_s=lambda jobs: 0.02, slots=8, mode="streams", engine=None, decide=choose, **limits
    ):
        self.engine, self.takes_s = engine or CountingEngine(slots), pass_s
        settings = ControllerSettings("heterogeneous", 1e6, 7, 16, mode=mode, edge_drafts=edge is not None)
        self.edge = None if edge is None else RandomDrafter(edge)
        passes = Passes(
            self.engine, Controller(settings), "abc", Limits(**limits), edge_drafter=self.edge, decide=decide
        )
        super().__init__(EventQueue(), passes)
        self.rng, self.phones, self.reports = random.Random(3), {}, []

    def join(self, name, tokens=60, right=0.8, token_s=0.005, delay_s=0.002, drafts=True, prompt=(1, 2, 3), **request):
        request.setdefault("params", SamplingParams())
        phone = Phone(name, right, token_s, delay_s, drafts, request.pop("thrift", 1.0))
        number = self.connect(phone)
        phone.session.begin(Request(prompt, max_tokens=tokens, **request))
        self.up(number, phone, phone.session.open())
        return number

    def connect(self, phone):
        phone.connection, phone.connected = phone.connection + 1, True
        number, answers = self.passes.connect(phone.session.greet(), self.queue.now_s)
        self.phones[number] = phone
        for answer in answers:
            self.hear(number, phone, phone.connection, answer)
        self.wake()
        return number

    def lose(self, number):
        phone = self.phones[number]
        phone.connection, phone.connected = phone.connection + 1, False
        phone.session.lose()
        self.passes.disconnect(number, self.queue.now_s)
        self.wake()

    def up(self, number, phone, message, frame_bytes=30):
        def arrive(connection=phone.connection):
            if connection == phone.connection and self.passes.session(number) is not None:
                for answer in self.passes.receive(number, message, frame_bytes, self.queue.now_s):
                    self.tell(number, answer)
                self.wake()

        self.queue.at(self.queue.now_s + phone.delay_s, arrive)

    def tell(self, number, message):
        phone = self.phones[number]
        connection = phone.connection
        if not phone.connected:
            return
        self.queue.at(self.queue.now_s + phone.delay_s, lambda: self.hear(number, phone, connection, message))

    def hear(self, number, phone, connection, message):
        session = phone.session
        if connection != phone.connection or session.finish:
            return
        phone.heard.append(message)
        if isinstance(message, Error):
            phone.connected = False
            return
        progress = session.receive(message)
        phone.accepted += progress.accepted
        phone.rejected += progress.drafted - progress.accepted
        if isinstance(message, Ask):
            self.up(number, phone, session.distribution(message))
        if session.finish:
            phone.ended_s = self.queue.now_s
            self.up(number, phone, Close(number))
        elif session.grant is not None and not phone.silent and session.wants_draft:
            grant = session.grant
            self.queue.at(self.queue.now_s + grant.length * phone.token_s, lambda: self.answer(number, phone, grant))
        else:
            self.draft(number, phone)

    def answer(self, number, phone, grant):
        session = phone.session
        if session.grant == grant:
            ids = [] if session.over else chain(self.rng, session.committed[-1], grant.length, phone.right)
            distributions = (
                [] if session.rule in ID_RULES else [certain_distribution(token, session.form) for token in ids]
            )
            self.up(number, phone, session.answer(ids, len(ids) * phone.token_s, distributions))

    def draft(self, number, phone):
        session = phone.session
        if phone.drafting or phone.silent or session.room_ahead <= 0:
            return
        phone.drafting = True
        epoch, text = session.epoch, session.ahead
        token = chain(self.rng, text[-1], 1, phone.right)

        def done():
            phone.drafting = False
            phone.made += 1
            session.drafted(epoch, len(text), token, phone.token_s)
            while (frame := session.chunk()) is not None:
                self.up(number, phone, frame)
            self.draft(number, phone)

        self.queue.at(self.queue.now_s + phone.token_s, done)

    def reported(self, report):
        self.reports.append(report)

    def pass_s(self, batch):
        return (self.takes_s(batch.jobs),) * 2

    def draft_here(self, step):
        return self.passes.draft(step), 0.002

    def run(self, until_s=60.0):
        while self.queue.now_s < until_s and not all(phone.session.finish for phone in self.phones.values()):
            if not self.queue.step():
                break
        return self


def expected(count, first=4):
    return [(first + i) % V for i in range(count)]


RNG = random.Random(5)


def whatever(ready, *_):
    """A decision that makes no sense: anybody, with anything of the device and the edge, or to wait."""
    some = [each for each in ready if RNG.random() < 0.7]
    rides = [Ride(each.session, RNG.randint(0, each.pending), RNG.randint(0, 4)) for each in some]
    return Go(tuple(rides), 0.0, 0.0) if rides else Wait(0.004 if ready else math.inf)


@pytest.mark.parametrize("edge", [None, 0.7])
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("decision", [choose, whatever])
def test_texts_are_the_targets_whoever_drafts_and_every_token_is_counted_once(right, edge, decision):
    site = Site(edge, lambda jobs: 0.05, decide=decision)
    numbers = [site.join(f"d{k}", 40 + k, right, 0.003 * (k + 1), 0.001 + 0.02 * k, drafts=k != 4) for k in range(6)]
    sessions = [site.passes.session(number) for number in numbers]
    site.run()
    for k, (number, session) in enumerate(zip(numbers, sessions, strict=True)):
        phone = site.phones[number]
        assert phone.session.generated == expected(40 + k)
        counts = session.counts
        assert counts.accepted + counts.rejected + counts.wasted == counts.received
        assert (counts.accepted, counts.rejected) == (phone.accepted, phone.rejected)
        assert phone.accepted + phone.rejected + phone.session.wasted + phone.drafting == phone.made
    drafting = [session.counts for session in sessions[:4]]
    # Where the edge drafts as well as the devices do, few of their tokens come in time.
    assert sum(counts.accepted for counts in drafting) > (-1 if not right else 0 if edge else 10)
    if edge and decision is whatever:
        assert site.edge.asked > 0


def test_devices_draft_on_while_they_are_verified_so_a_text_takes_fewer_passes_than_plain_decoding():
    site = Site(pass_s=lambda jobs: 0.05)
    number = site.join("d", 100, right=0.9, token_s=0.005)
    site.run()
    assert site.phones[number].session.generated == expected(100)
    assert len(site.engine.batches) < 40


def test_a_window_is_told_once_while_nothing_changes():
    site = Site()
    numbers = [site.join(f"d{k}", 100) for k in range(3)]
    site.run()
    for number in numbers:
        windows = [message for message in site.phones[number].heard if isinstance(message, Window)]
        assert 1 <= len(windows) <= 6
        assert all(1 <= window.chunk <= window.length <= MAX_DRAFT_LENGTH for window in windows)
        assert not any(isinstance(message, Grant) for message in site.phones[number].heard)


def test_shares_of_the_band_never_add_up_to_more_than_there_is():
    site = Site()
    for k in range(5):
        site.join(f"d{k}", 200)
        site.queue.step()
    while site.queue.now_s < 0.5:
        site.queue.step()
        granted = [s.stage.window.bandwidth_hz for s in site.passes.sessions.values() if isinstance(s.stage, Streaming)]
        assert sum(granted) <= 1e6 * (1 + 1e-9)


def test_a_device_that_cannot_draft_is_told_no_window_and_gets_a_token_a_pass():
    site = Site()
    number = site.join("d", 30, drafts=False)
    site.run()
    heard = site.phones[number].heard
    assert site.phones[number].session.generated == expected(30)
    assert sum(isinstance(message, Commit) for message in heard) == 30
    assert not any(isinstance(message, Window) for message in heard)


def test_a_silent_device_holds_up_nobody_and_gets_its_text():
    took_s = []
    for silent in (False, True):
        site = Site()
        others = [site.join(f"d{k}", 120) for k in range(3)]
        quiet = site.join("quiet", 60, right=0.0)
        site.phones[quiet].silent = silent
        site.run()
        took_s.append(max(site.phones[number].ended_s for number in others))
        assert all(phone.session.generated == expected(len(phone.session.generated)) for phone in site.phones.values())
        assert site.phones[quiet].session.finish == "length"
    assert took_s[1] <= 1.1 * took_s[0]


@pytest.mark.long
def test_a_device_behind_a_long_round_trip_does_not_slow_others_and_stays_near_plain():
    def ended(mode, delays, seed):
        site = Site(mode=mode, pass_s=lambda jobs: 0.02 + 0.002 * sum(len(job.feed.tokens) for job in jobs))
        site.rng.seed(seed)
        numbers = [site.join(f"d{k}", 100, delay_s=delay_s, drafts=mode != "plain") for k, delay_s in enumerate(delays)]
        site.run()
        assert all(site.phones[number].session.generated == expected(100) for number in numbers)
        return [site.phones[number].ended_s for number in numbers]

    def summed(mode, far_s):  # one draw differs from another by some 10 %
        draws = [ended(mode, [0.002] * 3 + [far_s], seed) for seed in range(6)]
        return sum(sum(each[:3]) for each in draws), sum(each[3] for each in draws)

    near, far, plain = summed("streams", 0.002), summed("streams", 0.1), summed("plain", 0.1)
    assert far[0] <= 1.15 * near[0]
    assert far[1] <= 1.1 * plain[1]  # the others' drafts make passes longer, and its own come too late to be of use


def test_a_pass_may_be_put_off_as_long_as_was_chosen_at_first_also_when_some_of_those_waited_for_have_come():
    until_s, left_s = 0.0, []

    def decide(ready, verifier, price, drafter, patience_s, for_all_s):
        nonlocal until_s
        now_s = site.queue.now_s
        if not ready:
            return Wait(math.inf)
        if until_s and now_s < until_s:
            left_s.append((patience_s, until_s - now_s))
            return Wait(until_s - now_s, puts_off=True)
        if not until_s:
            until_s = now_s + 0.05
            return Wait(0.05, puts_off=True)
        until_s = 0.0
        return Go(tuple(Ride(each.session, each.pending) for each in ready), 1.0, 0.02)

    site = Site(pass_s=lambda jobs: 0.02, decide=decide)
    for k in range(3):
        site.join(f"d{k}", 30)
    site.run(2.0)
    assert len(left_s) > 20
    assert all(patience_s >= still_s - 1e-9 for patience_s, still_s in left_s)


def test_who_comes_back_goes_on_with_a_new_chain():
    for seed in range(12):
        site = Site(edge=0.5 if seed % 3 == 0 else None)
        site.rng.seed(seed)
        numbers = [site.join(f"d{k}", 60, delay_s=0.004) for k in range(3)]
        rng = random.Random(seed)
        for _ in range(400):
            if all(phone.session.finish for phone in site.phones.values()) or not site.queue.step():
                break
            number = rng.choice(numbers)
            phone = site.phones[number]
            if (
                rng.random() < 0.05
                and phone.connected
                and site.passes.session(number).request
                and not phone.session.finish
            ):
                site.lose(number)
                for _ in range(rng.randint(0, 20)):
                    site.queue.step()
                site.connect(phone)
        site.run()
        assert all(site.phones[number].session.generated == expected(60) for number in numbers)


@pytest.mark.parametrize("begun", [True, False])
def test_what_the_edge_drafted_after_a_chain_that_has_ended_meanwhile_is_not_used(begun):
    """Its device may have begun another chain by then, or not yet."""

    def decide(ready, *_):
        rides = tuple(Ride(each.session, min(1, each.pending), 2) for each in ready)
        return Go(rides, 1.0, 0.02) if rides else Wait(math.inf)

    site, cut = Site(edge=1.0, decide=decide), []
    number = site.join("d", 200, right=1.0, token_s=0.0002, delay_s=0.0)
    when = "draft" if begun else "drafted"
    was = getattr(site.passes, when)

    def cuts(*step):
        if site.passes.session(number).stage.pending and len(cut) < 10:
            cut.append(len(site.engine.batches))  # the pass to come
            site.lose(number)
            site.connect(site.phones[number])
        return was(*step)

    setattr(site.passes, when, cuts)
    site.run()
    assert site.phones[number].session.generated == expected(200)
    assert len(cut) >= 3
    others = set(range(len(site.engine.batches))) - set(cut)
    assert all(max(site.engine.batches[each]) <= 2 for each in cut)  # the newest token, and one of the device at most
    assert any(max(site.engine.batches[each]) == 4 for each in others)


def test_a_text_that_lost_its_slot_is_read_again_and_streams_on():
    site = Site(slots=1, slot_grace_s=0.05)
    first = site.join("first", 200)
    while site.queue.now_s < 0.3:
        site.queue.step()
    site.lose(first)
    second = site.join("second", 20)
    site.queue.at(site.queue.now_s + 0.2, lambda: (site.passes.expire(site.queue.now_s), site.wake()))
    while not site.phones[second].session.finish:
        assert site.queue.step()
    assert site.phones[second].session.generated == expected(20)
    site.connect(site.phones[first])
    site.run()
    assert site.phones[first].session.generated == expected(200)


def test_prompts_are_read_in_chunks_beside_streams():
    site = Site(prefill_tokens_per_round=16)
    short = site.join("short", 60)
    long = site.join("long", 30, prompt=tuple(range(90)))
    site.run()
    assert site.phones[short].session.generated == expected(60)
    assert site.phones[long].session.generated == expected(30, first=90)
    assert max(report.prompt_tokens for report in site.reports) <= 16


class RandomTarget(SlotTable):
    """A target with random distributions, which can apply every rule."""

    joins = True

    def __init__(self, slots):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules, self.lacks = 400, V, frozenset(Rule), frozenset()
        self.logits = 2.0 * torch.randn(V, V, generator=torch.Generator().manual_seed(2))

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        return [None if feed.params is None else self.judge(feed) for feed in feeds]

    def judge(self, feed):
        logits = self.logits[list(feed.tokens[feed.context :])]
        return judge(feed.draft, feed.evidence, logits, feed.newest + 1, feed.params)


@pytest.mark.parametrize("by", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_texts_under_a_rejection_rule_draft_in_grants_beside_the_streams(by):
    site = Site(engine=RandomTarget(8))
    params = SamplingParams(1.0, seed=4)
    streams = [site.join(f"d{k}", 40, params=params) for k in range(2)]
    granted = [site.join(f"r{k}", 40, rule=by, params=params, retained=20) for k in range(2)]
    silent = site.join("silent", 20, rule=by, params=params)
    site.phones[silent].silent = True
    site.run()
    for number in granted:
        phone = site.phones[number]
        assert phone.session.finish == "length"
        assert len(phone.session.generated) == 40
        assert max(m.length for m in phone.heard if isinstance(m, Grant)) > 0
        assert not any(isinstance(message, Window | Commit) for message in phone.heard)
    texts = [site.phones[number].session.generated for number in streams]
    assert texts[0] == texts[1]  # the same prompt and seed
    assert len(texts[0]) == 40
    if by is not Rule.REJECTION_DOWN:  # there a silent device may owe a token that nobody else can find
        assert site.phones[silent].session.finish == "length"


def test_a_lost_device_takes_no_part_and_a_failed_one_ends_alone():
    site = Site()
    numbers = [site.join(f"d{k}", 60) for k in range(3)]
    while site.queue.now_s < 0.2:
        site.queue.step()
    site.lose(numbers[0])
    was = site.engine.verify
    slot = numbers.index(numbers[1])  # slots are handed out from 0

    def verify(feeds):
        found = was(feeds)
        return [Failure("broken") if feed.slot == slot else each for feed, each in zip(feeds, found, strict=True)]

    site.engine.verify = verify
    while not site.phones[numbers[2]].session.finish:
        assert site.queue.step()
    assert site.phones[numbers[2]].session.generated == expected(60)
    assert site.passes.session(numbers[1]) is None
    assert not site.passes.session(numbers[0]).request.finish


@pytest.mark.parametrize("seed", range(4))
def test_every_token_that_came_is_in_the_reports_also_of_who_leaves_comes_back_or_loses_its_slot(seed):
    site, rng, came = Site(slots=3, slot_grace_s=0.02, pass_s=lambda jobs: 0.03), random.Random(seed), 0
    site.rng.seed(seed)
    numbers = [site.join(f"d{k}", 60, right=0.9, token_s=0.002) for k in range(6)]
    was = site.passes.receive

    def receive(number, message, *more):
        nonlocal came
        came += message.length if isinstance(message, Chunk) else 0
        return was(number, message, *more)

    site.passes.receive = receive
    left = set()
    while not all(number in left or site.phones[number].session.finish for number in numbers):
        if not site.queue.step() and not any(not site.phones[number].connected for number in numbers):
            break
        number, chance = rng.choice(numbers), rng.random()
        phone = site.phones[number]
        if number in left or phone.session.finish or site.passes.session(number).request is None:
            continue
        if not phone.connected:
            if chance < 0.1:
                site.connect(phone)
        elif chance < 0.01:
            site.lose(number)
        elif chance < 0.013 and len(left) < 3:
            left.add(number)
            phone.connected, phone.connection = False, phone.connection + 1
            site.passes.leave(number)
        site.passes.expire(site.queue.now_s)
    site.run(site.queue.now_s + 1.0)
    verified = sum(sum(report.drafted) for report in site.reports)
    assert verified + site.passes.late_tokens == came > 300
    assert left


def test_a_thrifty_device_wastes_less_and_its_text_is_the_same():
    phones = []
    for most in (1.0, 0.45, 0.1):
        site = Site(pass_s=lambda jobs: 0.05)
        number = site.join("d", 300, right=0.7, token_s=0.004, thrift=most)
        site.run()
        phones.append(site.phones[number])
        assert phones[-1].session.generated == expected(300)
    free, thrifty, stingy = (phone.session.wasted / phone.made for phone in phones)
    assert thrifty < free - 0.03
    assert thrifty < 0.5
    assert stingy < 1.0
    assert phones[2].made < 0.4 * phones[0].made  # it rests
    assert phones[1].accepted > 100


def test_waits_for_what_is_expected_only_where_that_pays():
    site = Site(pass_s=lambda jobs: 0.02 + 0.04 * len(jobs))
    numbers = [site.join(f"d{k}", 80, right=0.9, token_s=0.03) for k in range(6)]
    site.run()
    assert all(site.phones[number].session.generated == expected(80) for number in numbers)
    assert any(len(batch) < 6 for batch in site.engine.batches[10:-10])  # a ride is dear: not everybody is in each pass


def test_windows_cover_the_round_trip_and_end_where_tokens_are_seldom_right():
    def view(rate, token_s, hz_s=1e-4):
        return lambda _: (rate, token_s, hz_s)

    assert window_of(view(0.9, 0.01), 0.0, 1e6, 0.05, 16)[0] == 11
    assert window_of(view(0.85, 0.01), 0.1, 1e6, 0.05, 63)[0] == 25  # 0.85²⁵ is below a fiftieth
    assert window_of(view(0.3, 0.01), 0.1, 1e6, 0.05, 63)[0] == 4  # 0.3⁴ is below a fiftieth
    assert window_of(view(0.9, 0.01), 0.0, 0.0, 0.05, 16) == (0, 1)
    assert window_of(view(0.9, 0.01), 0.0, 1e6, 1.0, 63)[1] == 1  # a longer frame only comes later …
    assert window_of(view(0.9, 0.01), 0.0, 1e6, 1.0, 63, devices=10)[1] == 4  # … but so many frames cost the edge
    assert window_of(view(0.9, 0.001), 0.0, 1e6, 0.02, 63, devices=7)[1] == 2  # also where passes are quick
    assert window_of(view(0.9, 0.1), 0.0, 1e6, 1.0, 63, devices=1000)[1] == 8  # two frames of each in a pass
    slow_link = window_of(lambda chunk: (0.9, 0.001, 1e4 / chunk), 0.0, 1e6, 0.002, 16)
    assert slow_link[1] > window_of(view(0.9, 0.001), 0.0, 1e6, 0.002, 16)[1]
    assert window_of(view(1.0, 0.0001), 1.0, 1e6, 1.0, 500)[0] == MAX_DRAFT_LENGTH
    # While the longest draft is verified the next one is drafted, and so on for as long as nothing is heard.
    assert window_of(view(0.99, 0.001), 0.0, 1e6, 0.2, 8)[0] == 16
    assert window_of(view(0.99, 0.001), 0.2, 1e6, 0.2, 8)[0] == 32
    dear_frames = window_of(lambda chunk: (0.99, 0.001, 1e4 / chunk), 0.0, 1e6, 0.2, 4)
    assert dear_frames == (8, 4)  # no frame has more than a pass can verify


def test_a_device_drafts_on_while_its_longest_draft_is_verified_and_no_pass_has_a_longer_one():
    site = Site(pass_s=lambda jobs: 0.3)
    number = site.join("d", 200, right=0.97, token_s=0.005)
    site.run()
    assert site.phones[number].session.generated == expected(200)
    windows = [message.length for message in site.phones[number].heard if isinstance(message, Window)]
    assert max(windows) > 16
    drafted = [tokens for report in site.reports for tokens in report.drafted]
    assert max(drafted) == 16
    assert drafted.count(16) > len(drafted) / 3  # the next one is there when the pass ends, but after a wrong token


def test_a_window_is_told_again_only_if_it_matters():
    assert not matters((10, 4, 100.0), (11, 4, 110.0))
    assert matters((10, 4, 100.0), (10, 4, 99.0))  # another device needs that band
    assert matters((10, 4, 100.0), (10, 4, 130.0))
    assert matters((10, 4, 100.0), (14, 4, 100.0))
    assert matters((10, 4, 100.0), (10, 2, 100.0))
    assert matters((2, 1, 100.0), (0, 1, 100.0))


def test_granted_drafts_are_as_long_as_gives_the_most_tokens_per_second():
    def length(rate, pass_s, price=0.0, alone_per_s=0.0, per_device_s=0.0):
        device = Device("d", 0.01, spectral_efficiency=5.0, acceptance_rate=rate, bits_per_token=7.0)
        return grant_length(device, 1e6, pass_s, 16, Verification(pass_s, per_device_s), price, alone_per_s)

    assert length(0.9, 0.4) == 16
    assert 1 <= length(0.5, 0.02) <= 3
    assert length(0.01, 0.01, alone_per_s=100.0) == 0  # it rides alone in each pass
    assert length(0.7, 0.05, 100.0, per_device_s=0.01) > length(0.7, 0.05)  # a ride that costs much is a full one


def test_a_session_without_its_device_has_the_best_draft_of_the_edge():
    device, engine = Device("d", 0.01, spectral_efficiency=5.0, acceptance_rate=0.9), Verification(0.04, 0.001, 0.0005)
    assert alone_tokens_per_s(device, engine, 100.0, 0.04) == pytest.approx((1.0 - 0.15) / 0.04)
    drafter = EdgeDrafter(0.004, 0.0, 0.5)
    two = (1.75 - 0.25) / 0.048
    assert alone_tokens_per_s(device, engine, 100.0, 0.04, drafter, 2) == pytest.approx(two)
    assert alone_tokens_per_s(device, engine, 100.0, 0.04, drafter, 16) == pytest.approx(two)
    each = alone_tokens_per_s(device, engine, 100.0, 0.04, EdgeDrafter(0.004, 0.001, 0.5), 1)
    assert each == pytest.approx((1.5 - 0.2 - 0.1) / 0.045)  # its part of the step costs, too
    assert alone_tokens_per_s(device, engine, 100.0, 0.04, EdgeDrafter(0.03, 0.0, 0.1), 16) == pytest.approx(
        0.85 / 0.04
    )


def test_streams_need_a_band_for_each_device():
    with pytest.raises(InputError, match="tdma"):
        ControllerSettings("heterogeneous", 1e5, 7, 8, mode="streams", multiple_access="tdma")


def test_who_waits_does_not_look_at_everybody_for_each_frame():
    looks, waits = [], False

    def decide(ready, *more):
        looks.append(len(ready))
        return Wait(1.0) if waits else choose(ready, *more)

    site = Site(slots=40, decide=decide)
    for number in range(40):
        site.join(f"d{number}", tokens=30)
    site.run(0.3)
    step_s = 1e-5

    looks.clear()
    waits = True
    while not looks:  # until the pass under way is over
        site.run(site.queue.now_s + 0.01)
    looks.clear()
    now_s, asked = site.queue.now_s, 400
    for frame in range(asked):  # a message after each of them
        site.passes.advance(now_s + frame * step_s)
    assert 1 <= len(looks) <= asked * step_s / (LOOK_S * looks[0]) + 1


def flows_in_memory():
    gc.collect()
    return sum(isinstance(each, Flow) for each in gc.get_objects())


def test_nothing_stays_of_texts_whose_clients_have_gone():
    before, site = flows_in_memory(), Site()
    site.join("patient", tokens=390, drafts=False)
    for turn in range(150):
        number = site.join(f"hasty {turn}", tokens=390, drafts=False)
        site.run(site.queue.now_s + 0.1)
        site.passes.leave(number)
        del site.phones[number]
    assert flows_in_memory() - before <= MOST_GONE + 4
