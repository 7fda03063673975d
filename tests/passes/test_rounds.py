"""The loop of passes under a clock that the test turns, with an engine that only counts."""

import pytest
from tests.slots import free_slots

from multispin.passes import Controller, ControllerSettings, Limits, LocalDriver, Passes, Sleep
from multispin.passes.limits import LEAST_PREFILL_TOKENS, UNSEEN_PREFILL_TOKENS
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


class Site(LocalDriver):
    """An edge and its devices, in one test."""

    def __init__(self, slots=4, policy="homogeneous", **limits):
        self.engine = CountingEngine(slots)
        control = Controller(ControllerSettings(policy, 1e5, 7, 8))
        tokens = iter(f"token-{i}" for i in range(1000))
        super().__init__(Passes(self.engine, control, "abc", Limits(**limits), new_token=lambda: next(tokens)))

    def join(self, name, prompt=(1, 2, 3), max_tokens=12, drafts=True):
        device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", name, "q5", drafts, Profile(0.05, 3.0)))
        number = self.connect(device)
        device.begin(Request(prompt, SamplingParams(), max_tokens))
        self.say(number, device.open())
        return number

    def draft(self, *numbers, right=True):
        for number in numbers:
            device = self.devices[number]
            start = device.committed[-1] if right else 50
            ids = [(start + i + 1) % V for i in range(device.grant.length)]
            self.say(number, device.answer(ids, 0.05 * len(ids)))

    def away(self, number):
        """Lose a connection; returns the device, which may come back."""
        device = self.devices[number]
        self.lose(number)
        return device

    def owing(self):
        return [n for n, d in self.devices.items() if d.grant is not None and d.grant.length and not d.finish]


def expected(prompt, count):
    return [(prompt[-1] + i + 1) % V for i in range(count)]


def test_prompts_are_read_and_then_everybody_drafts_until_the_end():
    site = Site()
    numbers = [site.join(f"d{i}", prompt=(i, i + 1, i + 2)) for i in range(3)]
    for step in range(200):
        site.run()
        for number in site.owing():
            site.draft(number, right=step % 3 != 0)
        site.now_s += 0.3
        if all(device.finish for device in site.devices.values()):
            break
    for i, number in enumerate(numbers):
        assert site.devices[number].generated == expected((i + 2,), 12)
    assert free_slots(site.engine) == 4  # every slot came back


def start(site, *names, **options):
    """Join, read the prompts, and grant the first round."""
    numbers = [site.join(name, **options) for name in names]
    site.run()
    return numbers


def test_a_round_waits_for_all_drafts():
    site = Site()
    fast, slow = start(site, "fast", "slow")
    assert set(site.owing()) == {fast, slow}
    assert site.run().until_s > site.now_s  # nothing to verify yet
    site.draft(fast)
    assert site.run().until_s > site.now_s
    site.draft(slow)
    assert set(site.one_pass().members) == {fast, slow}


def test_a_round_does_not_wait_beyond_its_deadline():
    """Planned drafting and upload time times the factor, and the slack: then the draft at hand is verified alone."""
    site = Site(deadline_factor=3.0, deadline_slack_s=0.25)
    fast, slow = start(site, "fast", "slow")
    plan = site.reports[-1].plan
    drafting_s = plan.round_s - site.passes.controller.beliefs.verification.predict(2, 2)
    deadline_s = site.run().until_s
    assert deadline_s == pytest.approx(3.0 * drafting_s + 0.25)
    site.draft(fast)
    site.now_s = deadline_s - 1e-6
    assert site.run() == Sleep(deadline_s)
    site.now_s = deadline_s
    assert site.one_pass().members == (fast,)
    assert slow in site.owing()


def test_a_newcomer_waits_for_the_round_under_way():
    site = Site()
    first, second = start(site, "first", "second")
    site.join("newcomer", prompt=(1,))
    assert site.run().until_s is not None  # a round of its own would find no band free
    site.draft(first, second)
    assert len(site.one_pass().plan.sessions) == 3


def test_a_late_device_misses_the_batch_and_joins_the_next_with_its_band_reserved():
    site = Site()
    fast, slow = start(site, "fast", "slow")
    late_grant = site.devices[slow].grant
    site.draft(fast)
    site.now_s = site.run().until_s
    report = site.one_pass()
    assert report.members == (fast,)
    assert [planned.session for planned in report.plan.sessions] == [fast]  # no second grant for the late one
    assert sum(planned.bandwidth_hz for planned in report.plan.sessions) <= 1e5 - late_grant.bandwidth_hz + 1e-6
    assert site.devices[slow].grant == late_grant
    site.draft(slow, fast)  # now it comes
    assert set(site.one_pass().members) == {fast, slow}
    assert len(site.devices[slow].generated) > 0


def test_nobody_waits_a_second_time_for_the_same_late_draft():
    site = Site()
    fast, _ = start(site, "fast", "slow")
    site.draft(fast)
    site.now_s = site.run().until_s
    site.run()
    site.draft(fast)
    assert site.one_pass().members == (fast,)


def test_a_device_without_a_drafter_rides_along_one_token_a_round():
    site = Site()
    plain = site.join("plain", drafts=False)
    site.one_pass()  # its prompt
    for _ in range(3):
        report = site.one_pass()
        assert (report.drafted, report.delivered) == ((0,), (1,))
    assert site.devices[plain].generated == expected((3,), 3)


def test_a_lost_device_is_not_waited_for_and_resumes_where_it_was():
    site = Site()
    stays, goes = start(site, "stays", "goes")
    device = site.away(goes)
    site.draft(stays)
    assert site.one_pass().members == (stays,)
    heard = []
    device.receive, receive = lambda message: (heard.append(type(message)), receive(message)), device.receive
    assert site.connect(device) == goes
    assert heard == [Welcome, Tail]
    assert device.grant is not None  # the draft it owed is still wanted
    site.draft(goes, stays)
    assert goes in site.one_pass().members


def test_a_device_that_comes_back_before_the_round_ends_is_awaited_again():
    site = Site()
    stays, goes = start(site, "stays", "goes")
    device = site.away(goes)
    site.run()
    site.connect(device)
    site.draft(stays)
    assert site.run().until_s is not None
    site.draft(goes)
    assert set(site.one_pass().members) == {stays, goes}


def test_a_device_that_stays_away_is_forgotten_and_its_slot_given_back():
    site = Site(slots=1, resume_grace_s=10.0)
    (gone,) = start(site, "gone")
    waiting = site.join("waiting")
    device = site.away(gone)
    site.now_s += 9.0
    assert site.passes.expire(site.now_s) == []
    site.now_s += 2.0
    assert site.passes.expire(site.now_s) == [gone]
    with pytest.raises(ProtocolError, match="no session to resume"):
        site.connect(device)
    site.run()
    assert site.devices[waiting].grant is not None


def go_on(site, *numbers):
    """Rounds until these texts have ended; returns the sessions in the order in which their texts began."""
    begun = []
    for _ in range(60):
        site.run()
        begun += [n for n, device in site.devices.items() if device.generated and n not in begun]
        site.draft(*site.owing())
        if all(site.devices[number].finish for number in numbers):
            return begun
    raise AssertionError("no end")


@pytest.mark.parametrize("at_hand", [False, True])
def test_a_lost_device_gives_its_slot_to_who_waits_and_its_text_goes_on_when_it_is_back(at_hand):
    site = Site(slots=1, slot_grace_s=3.0)
    (lost,) = start(site, "lost")
    site.draft(lost)
    site.run()
    waits = site.join("waits", prompt=(7, 8))
    if at_hand:
        site.draft(lost)
    gone = site.away(lost)
    site.now_s += 2.0
    assert site.passes.expire(site.now_s) == []
    assert site.passes.session(lost).grant is not None
    site.now_s += 2.0
    assert site.passes.expire(site.now_s) == []  # the session stays, without its slot
    assert site.passes.session(lost).grant is None
    go_on(site, waits)
    assert site.connect(gone) == lost
    go_on(site, lost)
    assert site.devices[waits].generated == expected((7, 8), 12)
    assert gone.generated == expected((1, 2, 3), 12)


def test_who_comes_back_to_a_full_edge_is_next_and_who_is_lost_while_waiting_is_passed_over():
    site = Site(slots=1, slot_grace_s=0.0)
    (lost,) = start(site, "lost")
    back = site.away(lost)
    first, away, last = site.join("first"), site.join("away"), site.join("last")
    site.now_s += 1.0
    site.passes.expire(site.now_s)
    site.run()  # the first of those who wait has the slot now
    gone = site.away(away)
    site.connect(back)
    assert go_on(site, first, lost, last) == [first, lost, last]
    site.connect(gone)
    go_on(site, away)
    assert all(device.generated == expected((1, 2, 3), 12) for device in site.devices.values())


def test_who_come_back_to_a_full_edge_are_served_in_the_order_of_their_return():
    site = Site(slots=2, slot_grace_s=0.0)
    one, two = start(site, "one", "two")
    backs = [site.away(one), site.away(two)]
    others = [site.join(name) for name in ("third", "fourth", "fifth")]
    site.now_s += 1.0
    site.passes.expire(site.now_s)
    site.run()  # both slots go to the third and the fourth
    for back in backs:
        site.connect(back)
    third, fourth, fifth = others
    assert go_on(site, one, two, *others) == [third, fourth, one, two, fifth]
    assert all(device.generated == expected((1, 2, 3), 12) for device in site.devices.values())


def test_a_lost_devices_prompt_is_not_read_on_while_others_wait():
    site = Site(slots=1, slot_grace_s=0.0, prefill_tokens_per_round=4)
    lost = site.join("lost", prompt=tuple(range(30)))
    site.one_pass()
    gone = site.away(lost)
    waits = site.join("waits")
    assert site.run() == Sleep()  # there is nothing to read for who is there
    site.now_s += 1.0
    site.passes.expire(site.now_s)
    go_on(site, waits)
    site.connect(gone)
    go_on(site, lost)
    assert gone.generated == expected((29,), 12)


def test_a_lost_device_keeps_its_slot_while_nobody_waits():
    site = Site(slots=2, slot_grace_s=0.0)
    (lost,) = start(site, "lost")
    site.lose(lost)
    site.join("other")  # there is a slot for it
    site.now_s += 5.0
    site.passes.expire(site.now_s)
    assert site.passes.session(lost).grant is not None


def test_a_connected_device_that_never_drafts_is_let_go():
    site = Site(draft_timeout_s=5.0)
    (mute,) = start(site, "mute")
    site.now_s += 6.0
    assert site.passes.expire(site.now_s) == [mute]


def test_a_device_may_leave_while_its_draft_is_being_verified():
    site = Site(slots=2)
    leaves, stays = start(site, "leaves", "stays")
    site.draft(leaves, stays)
    step = site.advance()
    assert {job.session for job in step.batch.jobs} == {leaves, stays}
    site.say(leaves, Close(leaves))
    del site.devices[leaves]
    newcomer = site.join("newcomer")  # must not get the slot that the batch still uses
    assert site.run() == Sleep()  # the batch is under way
    site.verify(step)
    step = site.advance()
    assert step.report.members == (stays,)
    assert leaves not in {number for number, _ in step.messages}
    site.draft(stays)
    site.run()
    assert site.devices[newcomer].grant is not None


def test_a_long_prompt_is_read_in_pieces_beside_the_others_drafts():
    site = Site(prefill_tokens_per_round=8)
    (running,) = start(site, "running")
    site.join("reader", prompt=tuple(range(30)))
    assert site.owing() == [running]
    pieces = []
    for _ in range(5):
        site.draft(*site.owing())
        pieces.append(site.one_pass().prompt_tokens)
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
        planned_s = site.reports[-1].plan.round_s
        per_token_s = site.passes.controller.beliefs.verification.per_token_s
        tokens = site.one_pass().prompt_tokens
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
        Site().passes.connect(Close(1), 0.0)


def test_a_continued_text_that_is_complete_ends_at_once():
    site = Site()
    device = DeviceSession(Hello(PROTOCOL_VERSION, "abc", "back", "q5", True, Profile(0.05, 3.0)))
    number = site.connect(device)
    device.begin(Request((1, 2, 3), SamplingParams(), 2))
    device.committed.extend([4, 5])
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
        site.draft(*site.owing())
        site.run()
    assert all(device.finish == "length" for device in site.devices.values())


def test_where_tokens_cost_nothing_a_prompt_is_read_in_pieces_that_grow_with_what_was_seen():
    site = Site(prefill_tokens_per_round=150)
    site.engine.max_length = 500
    assert site.verify_s == 0.1  # whatever is in a pass
    (running,) = start(site, "running", max_tokens=300)
    for _ in range(20):
        site.draft(running)
        site.one_pass()
    site.join("reader", prompt=tuple(range(97)) * 4, max_tokens=1)
    pieces = []
    while sum(pieces) < 387:
        site.draft(*site.owing())
        largest = max(map(sum, site.engine.batches))
        pieces.append(site.one_pass().prompt_tokens)
        assert pieces[-1] <= UNSEEN_PREFILL_TOKENS or sum(site.engine.batches[-1]) <= 1.5 * largest
    assert pieces[0] == UNSEEN_PREFILL_TOKENS
    assert max(pieces) == 150
    assert len(pieces) <= 5


@pytest.mark.parametrize("share", [0.5, 100.0])
def test_no_piece_of_a_prompt_is_longer_than_the_engine_takes(share):
    site = Site(prefill_tokens_per_round=1000, prefill_share=share)
    site.engine.max_length, site.engine.longest_chunk = 500, 20
    (running,) = start(site, "running", max_tokens=300)
    site.join("reader", prompt=tuple(range(90)), max_tokens=1)
    while site.owing() == [running]:
        site.draft(running)
        assert site.one_pass().prompt_tokens <= 20
    assert 20 in {max(batch) for batch in site.engine.batches}
