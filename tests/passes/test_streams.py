"""The scheduler of streams under a virtual clock: texts are the target's, and nobody waits for who is not worth it."""

import math
import random
from functools import partial

import pytest
import torch
from tests.passes.counting import CountingEngine, RandomDrafter, V, chain

from multispin.control import Device
from multispin.control.streams import Go, Ride, Wait, choose
from multispin.errors import InputError
from multispin.passes import Controller, ControllerSettings, DraftHere, Limits, Passes, Send, Sleep, Verify
from multispin.passes.flows import grant_length, matters, window_of
from multispin.passes.streams import LOOK_S, MOST_GONE
from multispin.protocol import (
    MAX_DRAFT_LENGTH,
    PROTOCOL_VERSION,
    Ask,
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


class Site:
    """What a server does with a real clock."""

    def __init__(self, edge=None, pass_s=lambda jobs: 0.02, slots=8, mode="streams", engine=None, **limits):
        self.queue, self.engine, self.pass_s = EventQueue(), engine or CountingEngine(slots), pass_s
        settings = ControllerSettings("heterogeneous", 1e6, 7, 16, mode=mode, edge_drafts=edge is not None)
        self.edge = None if edge is None else RandomDrafter(edge)
        self.passes = Passes(self.engine, Controller(settings), "abc", Limits(**limits), edge_drafter=self.edge)
        self.rng, self.phones, self.sleeping_s, self.reports = random.Random(3), {}, -1.0, []

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
                    self.down(number, answer)
                self.wake()

        self.queue.at(self.queue.now_s + phone.delay_s, arrive)

    def down(self, number, message):
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

    def wake(self):
        self.queue.at(self.queue.now_s, self.look)

    def look(self):
        while True:
            match self.passes.advance(self.queue.now_s):
                case Send(messages, report):
                    if report is not None:
                        self.reports.append(report)
                    for number, message in messages:
                        self.down(number, message)
                case DraftHere() as step:
                    drafts = self.passes.draft(step)
                    self.queue.at(self.queue.now_s + 0.002, partial(self.drafted, step, drafts))
                    return
                case Verify(batch):
                    findings, took_s = self.passes.verify(batch), self.pass_s(batch.jobs)
                    self.queue.at(self.queue.now_s + took_s, partial(self.verified, batch, findings, took_s))
                    return
                case Sleep(until_s):
                    if until_s is not None and until_s != self.sleeping_s:
                        self.sleeping_s = until_s
                        self.queue.at(until_s, self.look)
                    return

    def drafted(self, step, drafts):
        self.passes.drafted(step, drafts, 0.002, self.queue.now_s)
        self.look()

    def verified(self, batch, findings, took_s):
        self.passes.verified(batch, findings, took_s, self.queue.now_s)
        self.look()

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
def test_texts_are_the_targets_whoever_drafts_and_every_token_is_counted_once(right, edge, decision, monkeypatch):
    monkeypatch.setattr("multispin.passes.streams.choose", decision)
    site = Site(edge, lambda jobs: 0.05)
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
    assert sum(counts.accepted for counts in drafting) > (10 if right else -1)
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
        assert all(1 <= window.chunk <= window.length <= 16 for window in windows)
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


def test_a_device_behind_a_long_round_trip_does_not_slow_others_and_stays_near_plain():
    def ended(mode, delays):
        site = Site(mode=mode, pass_s=lambda jobs: 0.02 + 0.002 * sum(len(job.feed.tokens) for job in jobs))
        numbers = [site.join(f"d{k}", 100, delay_s=delay_s, drafts=mode != "plain") for k, delay_s in enumerate(delays)]
        site.run()
        assert all(site.phones[number].session.generated == expected(100) for number in numbers)
        return [site.phones[number].ended_s for number in numbers]

    near = ended("streams", [0.002] * 4)
    far = ended("streams", [0.002] * 3 + [0.1])
    plain = ended("plain", [0.002] * 3 + [0.1])
    assert max(far[:3]) <= 1.15 * max(near)
    assert far[3] <= 1.12 * plain[3]  # the others' drafts make passes longer, and its own come too late to be of use


def test_who_comes_back_goes_on_with_a_new_chain():
    for seed in range(12):
        site = Site(edge=0.5 if seed % 3 == 0 else None)
        site.rng.seed(seed)
        numbers = [site.join(f"d{k}", 60, delay_s=0.004) for k in range(3)]
        rng = random.Random(seed)
        told = []
        while site.queue.step() and not (len(told) > 2 and told[-2] == 0 < told[-1]):
            told = [each.length for each in site.phones[number].heard if isinstance(each, Window)]
        tried += len(told) > 2
        site.lose(number)
        site.passes.leave(number)
        del site.phones[number]
    assert tried == 8


def test_nothing_stays_of_texts_whose_clients_have_gone():
    site = Site()
    site.join("patient", tokens=390, drafts=False)
    for turn in range(300):
        number = site.join(f"hasty {turn}", tokens=390, drafts=False)
        site.run(site.queue.now_s + 0.1)
        site.passes.leave(number)
        del site.phones[number]
    assert len(site.passes._scheduler._flows) <= MOST_GONE + 4
