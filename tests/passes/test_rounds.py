"""The round loop under a clock that the test turns, with an engine that only counts."""

import pytest

from multispin.passes import Controller, ControllerSettings, Edge, Limits
from multispin.passes.batch import LEAST_PREFILL_TOKENS
from multispin.protocol import (
    PROTOCOL_VERSION,
    Close,
    DeviceSession,
    Grant,
    Hello,
    Profile,
    ProtocolError,
    Request,
    Tail,
    Welcome,
)
from multispin.speculation import ID_RULES, SamplingParams, SlotTable, accept_matching

V = 100


class CountingEngine(SlotTable):
    """A target whose next token is the newest plus one, modulo V; checks that its slots are used properly."""

    def __init__(self, slots=4, max_length=64):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules = max_length, V, ID_RULES
        self.batches = []

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        self.batches.append([len(feed.tokens) for feed in feeds])
        outcomes = []
        for feed in feeds:
            emitted = [(token + 1) % V for token in feed.tokens]
            outcomes.append(None if feed.params is None else accept_matching(feed.tokens[1:], emitted))
        return outcomes


class Site:
    """An edge and its devices, in one test."""

    def __init__(self, slots=4, policy="homogeneous", **limits):
        self.engine, self.now = CountingEngine(slots), 0.0
        settings = ControllerSettings(policy, 1e5, 7, 8)
        tokens = iter(f"token-{i}" for i in range(1000))
        self.edge = Edge(self.engine, Controller(settings), "abc", Limits(**limits), new_token=lambda: next(tokens))
        self.devices = {}

    def join(self, name, prompt=(1, 2, 3), max_tokens=12, drafts=True):
        device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "q5", drafts, Profile(0.05, 3.0)))
        number, answers = self.edge.connect(device.greet(), self.now)
        for answer in answers:
            device.receive(answer)
        device.begin(Request(prompt, SamplingParams(), max_tokens))
        self.say(number, device.open())
        self.devices[number] = device
        return number

    def say(self, number, message, size=40):
        for answer in self.edge.receive(number, message, size, self.now):
            self.devices[number].receive(answer)

    def schedule(self):
        plan, grants = self.edge.schedule(self.now)
        for number, grant in grants.items():
            self.devices[number].receive(grant)
        return plan, grants

    def draft(self, number, right=True):
        device = self.devices[number]
        start = device.committed[-1] if right else 50
        ids = [(start + i + 1) % V for i in range(device.grant.length)]
        self.say(number, device.answer(ids, 0.05 * len(ids)))

    def batch(self, deliver=True):
        batch = self.edge.collect()
        report, messages = self.edge.deliver(batch, self.edge.verify(batch), 0.1, self.now)
        for number, message in messages:
            if number in self.devices and deliver:
                self.devices[number].receive(message)
        return report

    def owing(self):
        return [n for n, d in self.devices.items() if d.grant is not None and d.grant.length and not d.finish]


def expected(prompt, count):
    return [(prompt[-1] + i + 1) % V for i in range(count)]


def test_prompts_are_read_and_then_everybody_drafts_until_the_end():
    site = Site()
    numbers = [site.join(f"d{i}", prompt=(i, i + 1, i + 2)) for i in range(3)]
    for step in range(200):
        if site.edge.wait_s(site.now) is None:
            site.schedule()
        for number in site.owing():
            site.draft(number, right=step % 3 != 0)
        if site.edge.wait_s(site.now) == 0.0:
            site.batch()
        site.now += 0.3
        if all(device.finish for device in site.devices.values()):
            break
    for i, number in enumerate(numbers):
        assert site.devices[number].generated == expected((i + 2,), 12)
    assert site.engine.free_slots == 4  # every slot came back


def start(site, *names, **options):
    """Join, read the prompts, and grant the first round."""
    numbers = [site.join(name, **options) for name in names]
    site.schedule()
    site.batch()
    return numbers


def test_a_round_waits_for_all_drafts_but_not_beyond_its_deadline():
    site = Site()
    fast, slow = start(site, "fast", "slow")
    assert set(site.owing()) == {fast, slow}
    assert site.edge.wait_s(site.now) > 0  # nothing to verify yet
    site.draft(fast)
    wait_s = site.edge.wait_s(site.now)
    assert wait_s > 0
    site.draft(slow)
    assert site.edge.wait_s(site.now) == 0.0


def test_a_newcomer_waits_for_the_round_under_way():
    site = Site()
    first, second = start(site, "first", "second")
    site.join("newcomer", prompt=(1,))
    assert site.edge.wait_s(site.now) > 0  # a round of its own would find no band free
    site.draft(first)
    site.draft(second)
    assert len(site.batch().plan.devices) == 3


def test_a_late_device_misses_the_batch_and_joins_the_next_with_its_band_reserved():
    site = Site()
    fast, slow = start(site, "fast", "slow")
    held_hz = site.devices[slow].grant.bandwidth_hz
    late_grant = site.devices[slow].grant
    site.draft(fast)
    site.now += site.edge.wait_s(site.now) + 0.01
    report = site.batch()
    assert report.members == (fast,)
    assert [device.name for device in report.plan.devices] == [str(fast)]  # no second grant for the late one
    assert sum(device.bandwidth_hz for device in report.plan.devices) <= 1e5 - held_hz + 1e-6
    assert site.devices[slow].grant == late_grant
    site.draft(slow)  # now it comes
    site.draft(fast)
    report = site.batch()
    assert set(report.members) == {fast, slow}
    assert len(site.devices[slow].generated) > 0


def test_nobody_waits_a_second_time_for_the_same_late_draft():
    site = Site()
    fast, _ = start(site, "fast", "slow")
    site.draft(fast)
    site.now += site.edge.wait_s(site.now) + 0.01
    site.batch()
    site.draft(fast)
    assert site.edge.wait_s(site.now) == 0.0


def test_a_device_without_a_drafter_rides_along_one_token_a_round():
    site = Site()
    (plain,) = start(site, "plain", drafts=False)
    for _ in range(3):
        assert site.edge.wait_s(site.now) == 0.0
        report = site.batch()
        assert (report.drafted, report.delivered) == ((0,), (1,))
    assert site.devices[plain].generated == expected((3,), 3)


def test_a_lost_device_is_not_waited_for_and_resumes_where_it_was():
    site = Site()
    stays, goes = start(site, "stays", "goes")
    site.edge.disconnect(goes, site.now)
    site.draft(stays)
    assert site.edge.wait_s(site.now) == 0.0
    site.batch()
    device = site.devices[goes]
    number, answers = site.edge.connect(device.greet(), site.now)
    assert number == goes
    assert [type(answer) for answer in answers] == [Welcome, Tail]
    for answer in answers:
        device.receive(answer)
    assert device.grant is not None  # the draft it owed is still wanted
    site.draft(goes)
    site.draft(stays)
    assert goes in site.batch().members


def test_a_device_that_stays_away_is_forgotten_and_its_slot_given_back():
    site = Site(slots=1, resume_grace_s=10.0)
    (gone,) = start(site, "gone")
    waiting = site.join("waiting")
    site.edge.disconnect(gone, site.now)
    site.now += 9.0
    assert site.edge.expire(site.now) == []
    site.now += 2.0
    assert site.edge.expire(site.now) == [gone]
    with pytest.raises(ProtocolError, match="no session to resume"):
        site.edge.connect(site.devices[gone].greet(), site.now)
    site.devices.pop(gone)
    site.schedule()
    site.batch()
    assert site.devices[waiting].grant is not None


def come_back(site, number):
    device = site.devices[number]
    found, answers = site.edge.connect(device.greet(), site.now)
    assert found == number
    for answer in answers:
        device.receive(answer)


def go_on(site, *numbers):
    """Rounds until these texts have ended."""
    for _ in range(60):
        if site.edge.wait_s(site.now) is None:
            site.schedule()
        for number in site.owing():
            if site.devices[number].wants_draft:
                site.draft(number)
        if all(site.devices[number].finish for number in numbers):
            return
        if site.edge.wait_s(site.now) == 0.0:
            site.batch()
    raise AssertionError("no end")


@pytest.mark.parametrize("at_hand", [False, True])
def test_a_lost_device_gives_its_slot_to_who_waits_and_its_text_goes_on_when_it_is_back(at_hand):
    site = Site(slots=1, slot_grace_s=3.0)
    (lost,) = start(site, "lost")
    site.draft(lost)
    site.batch()
    waits = site.join("waits", prompt=(7, 8))
    if at_hand:
        site.draft(lost)
    site.edge.disconnect(lost, site.now)
    site.now += 2.0
    assert site.edge.expire(site.now) == []
    assert site.edge.sessions[lost].grant is not None
    site.now += 2.0
    assert site.edge.expire(site.now) == []  # the session stays, without its slot
    assert site.edge.sessions[lost].grant is None
    gone, site.devices = site.devices.pop(lost), {waits: site.devices[waits]}
    go_on(site, waits)
    site.devices[lost] = gone
    come_back(site, lost)
    go_on(site, lost)
    assert site.devices[waits].generated == expected((7, 8), 12)
    assert gone.generated == expected((1, 2, 3), 12)


def test_who_comes_back_to_a_full_edge_is_next_and_who_is_lost_while_waiting_is_passed_over():
    site = Site(slots=1, slot_grace_s=0.0)
    (lost,) = start(site, "lost")
    site.edge.disconnect(lost, site.now)
    first, away, last = site.join("first"), site.join("away"), site.join("last")
    site.now += 1.0
    site.edge.expire(site.now)
    site.edge.disconnect(away, site.now)
    gone = site.devices.pop(away)
    come_back(site, lost)
    go_on(site, first)
    go_on(site, lost)
    assert not site.devices[last].generated
    go_on(site, last)
    site.devices[away] = gone
    come_back(site, away)
    go_on(site, away)
    assert all(device.generated == expected((1, 2, 3), 12) for device in site.devices.values())


def test_who_come_back_to_a_full_edge_are_served_in_the_order_of_their_return():
    site = Site(slots=2, slot_grace_s=0.0)
    one, two = start(site, "one", "two")
    site.edge.disconnect(one, site.now)
    site.edge.disconnect(two, site.now)
    others = [site.join(name) for name in ("third", "fourth", "fifth")]
    site.now += 1.0
    site.edge.expire(site.now)
    come_back(site, one)
    come_back(site, two)
    assert list(site.edge._waiting) == [one, two, *others]
    go_on(site, one, two, *others)
    assert all(device.generated == expected((1, 2, 3), 12) for device in site.devices.values())


def test_a_lost_devices_prompt_is_not_read_on_while_others_wait():
    site = Site(slots=1, slot_grace_s=0.0, prefill_tokens_per_round=4)
    lost = site.join("lost", prompt=tuple(range(30)))
    site.batch()
    site.edge.disconnect(lost, site.now)
    waits = site.join("waits")
    assert site.edge.wait_s(site.now) is None  # there is nothing to read for who is there
    site.now += 1.0
    site.edge.expire(site.now)
    gone = site.devices.pop(lost)
    go_on(site, waits)
    site.devices[lost] = gone
    come_back(site, lost)
    go_on(site, lost)
    assert gone.generated == expected((29,), 12)


def test_a_lost_device_keeps_its_slot_while_nobody_waits():
    site = Site(slots=2, slot_grace_s=0.0)
    (lost,) = start(site, "lost")
    site.edge.disconnect(lost, site.now)
    site.join("other")  # there is a slot for it
    site.now += 5.0
    site.edge.expire(site.now)
    assert site.edge.sessions[lost].grant is not None


def test_a_connected_device_that_never_drafts_is_let_go():
    site = Site(draft_timeout_s=5.0)
    (mute,) = start(site, "mute")
    site.now += 6.0
    assert site.edge.expire(site.now) == [mute]


def test_a_device_may_leave_while_its_draft_is_being_verified():
    site = Site(slots=2)
    leaves, stays = start(site, "leaves", "stays")
    site.draft(leaves)
    site.draft(stays)
    batch = site.edge.collect()
    outcomes = site.edge.verify(batch)
    site.say(leaves, Close(leaves))
    newcomer = site.join("newcomer")  # must not get the slot that the batch still uses
    assert site.edge.sessions[newcomer].request is not None
    report, messages = site.edge.deliver(batch, outcomes, 0.1, site.now)
    assert report.members == (stays,)
    assert leaves not in {number for number, _ in messages}
    del site.devices[leaves]
    for number, message in messages:
        site.devices[number].receive(message)
    site.draft(stays)
    site.batch()
    assert site.devices[newcomer].grant is not None


def test_a_long_prompt_is_read_in_pieces_beside_the_others_drafts():
    site = Site(prefill_tokens_per_round=8)
    (running,) = start(site, "running")
    site.join("reader", prompt=tuple(range(30)))
    pieces = []
    for _ in range(5):
        site.draft(running) if site.devices[running].grant else None
        pieces.append(site.batch().prompt_tokens)
    assert pieces == [8, 8, 8, 5, 0]
    assert all(batch[0] <= 9 for batch in site.engine.batches)


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_a_prompt_lengthens_the_others_rounds_by_no_more_than_the_stated_share(share):
    site = Site(prefill_tokens_per_round=40, prefill_share=share)
    (running,) = start(site, "running")
    site.join("reader", prompt=tuple(range(60)), max_tokens=1)
    seen = []
    while site.devices[running].grant and len(seen) < 4:
        site.draft(running)
        planned_s, per_token_s = site.edge._planned_round_s, site.edge.controller.verification.per_token_s
        tokens = site.batch().prompt_tokens
        if tokens:
            seen.append(tokens)
            assert tokens <= 40
            assert tokens * per_token_s <= share * planned_s or tokens <= LEAST_PREFILL_TOKENS
    assert seen
    assert (seen[0] > LEAST_PREFILL_TOKENS) == (share > 0)  # it uses what it may


def test_requests_wait_for_a_slot_in_order_and_not_without_limit():
    site = Site(slots=1, max_waiting=2)
    start(site, "first")
    site.join("second")
    site.join("third")
    with pytest.raises(ProtocolError, match="limit"):
        site.join("fourth")


def test_sessions_are_bounded():
    site = Site(max_sessions=1)
    site.join("first")
    with pytest.raises(ProtocolError, match="1 sessions"):
        site.join("second")


def test_the_first_message_must_be_a_greeting():
    with pytest.raises(ProtocolError, match="Hello"):
        Site().edge.connect(Close(1), 0.0)


def test_a_continued_text_that_is_complete_ends_at_once():
    site = Site()
    device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", "back", "q5", True, Profile(0.05, 3.0)))
    number, (welcome,) = site.edge.connect(device.greet(), 0.0)
    device.receive(welcome)
    device.begin(Request((1, 2, 3), SamplingParams(), 2))
    device.committed += [4, 5]
    site.devices[number] = device
    site.say(number, device.open())
    assert device.finish == "length"


@pytest.mark.parametrize("policy", ["homogeneous", "fixed", "heterogeneous", "fair", "uniform-bandwidth"])
def test_a_plan_never_grants_more_than_the_band_or_the_room_that_is_left(policy):
    site = Site(policy=policy)
    start(site, "a", "b", "c", max_tokens=6)
    for _ in range(30):
        grants = [d.grant for d in site.devices.values() if d.grant is not None]
        assert sum(grant.bandwidth_hz for grant in grants) <= 1e5 * (1 + 1e-9)
        for device in site.devices.values():
            if device.grant is not None:
                assert isinstance(device.grant, Grant)
                assert device.grant.length <= 6 - len(device.generated) - 1
        for number in site.owing():
            site.draft(number)
        if site.edge.wait_s(site.now) == 0.0:
            site.batch()
    assert all(device.finish == "length" for device in site.devices.values())
