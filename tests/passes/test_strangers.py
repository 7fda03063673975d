"""What sessions may hold that others need: places, slots, and the room for prompts in a pass."""

import pytest

from multispin.passes import Controller, ControllerSettings, Limits, LocalDriver, Passes, Verify
from multispin.protocol import (
    PROTOCOL_VERSION,
    Close,
    DeviceSession,
    Hello,
    Profile,
    ProtocolError,
    RefusedError,
    Request,
)
from multispin.speculation import ID_RULES, Failure, Outcome, SamplingParams, SlotTable

V = 100


class Counter(SlotTable):
    def __init__(self, slots):
        super().__init__(slots)
        self.max_length, self.vocabulary_size, self.rules = 512, V, ID_RULES

    def verify(self, feeds):
        self.take(feeds)
        return [None if feed.params is None else Outcome(0, 1) for feed in feeds]


class Site(LocalDriver):
    def __init__(self, slots=2, engine=None, **limits):
        tokens = iter(f"token-{index}" for index in range(1000))
        controller = Controller(ControllerSettings("fixed", 1e5, 7, 8))
        super().__init__(
            Passes(engine or Counter(slots), controller, "abc", Limits(**limits), new_token=lambda: next(tokens))
        )

    def greet(self, name="device", drafts=False, origin=""):
        hello = Hello(PROTOCOL_VERSION, "abc", name, "none", drafts, Profile(0.05, 3.0))
        return self.connect(DeviceSession(hello), origin)

    def open(self, number, prompt=(1, 2, 3), tokens=4):
        device = self.devices[number]
        device.begin(Request(prompt, SamplingParams(), tokens))
        self.say(number, device.open())


class Choosy(Counter):
    """An engine that cannot judge what one of its slots asks."""

    bad_slot = None

    def __init__(self, slots):
        super().__init__(slots)
        self.opened = []

    def open(self):
        self.opened.append(super().open())
        return self.opened[-1]

    def verify(self, feeds):
        self.take(feeds)
        found = [None if feed.params is None else Outcome(0, 1) for feed in feeds]
        return [
            Failure("no number") if feed.slot == self.bad_slot else each
            for feed, each in zip(feeds, found, strict=True)
        ]


def test_a_request_that_cannot_be_judged_ends_itself_and_nobody_else():
    engine = Choosy(3)
    site = Site(engine=engine)
    numbers = [site.greet() for _ in range(3)]
    for number in numbers:
        site.open(number, tokens=30)
    for _ in range(3):
        site.one_pass()
    engine.bad_slot = engine.opened[1]
    with pytest.raises(RefusedError, match="no number"):
        site.run()
    assert set(site.passes.sessions) == {numbers[0], numbers[2]}
    engine.bad_slot = None
    for number in (numbers[0], numbers[2]):
        while not site.devices[number].finish:
            site.run()
            site.now_s += 1.0
    assert site.greet() not in numbers


def test_sessions_that_ask_for_nothing_make_room_for_newcomers():
    site = Site(max_sessions=3)
    idle = [site.greet(), site.greet()]
    busy = site.greet()
    site.open(busy)
    with pytest.raises(ProtocolError, match="3 sessions"):
        site.greet()  # all have just come
    site.now_s = 5.0
    newcomer = site.greet()
    assert set(site.passes.sessions) == {idle[1], busy, newcomer}
    with pytest.raises(ProtocolError, match="ended"):
        site.say(idle[0], Close(idle[0]))
    site.greet()
    with pytest.raises(ProtocolError, match="3 sessions"):
        site.greet()  # those that are left are at work, or have just come
    assert busy in site.passes.sessions


def test_however_many_sessions_some_addresses_open_there_is_room_for_another_address():
    site = Site(max_sessions=16, max_share=0.5)
    for origin, most in (("a", 8), ("b", 4), ("c", 2), ("d", 1)):
        for _ in range(most):
            site.greet(origin=origin)
        with pytest.raises(ProtocolError, match=rf"{most} of this edge's 16 sessions come from here"):
            site.greet(origin=origin)
    site.greet(origin="e")
    with pytest.raises(ProtocolError, match="holds 16 sessions"):
        site.greet(origin="f")


@pytest.mark.parametrize(("origin", "share"), [("", 0.5), ("a", 1.0)])
def test_who_counts_as_nobody_or_where_no_share_is_set_all_sessions_can_be_had(origin, share):
    site = Site(max_sessions=4, max_share=share)
    for _ in range(4):
        site.greet(origin=origin)
    with pytest.raises(ProtocolError, match="4 sessions"):
        site.greet(origin=origin)


def test_at_its_share_an_address_makes_room_by_its_own_session_that_asks_for_nothing():
    site = Site(max_sessions=4, max_share=0.5)
    other = site.greet(origin="b")
    mine = [site.greet(origin="a"), site.greet(origin="a")]
    site.now_s = 5.0
    newcomer = site.greet(origin="a")
    assert set(site.passes.sessions) == {other, mine[1], newcomer}


def test_in_a_full_house_room_is_made_by_whoever_has_most_sessions():
    site = Site(max_sessions=4, max_share=0.5)
    first = site.greet(origin="b")
    mine = [site.greet(origin="a"), site.greet(origin="a")]
    site.greet(origin="c")
    site.now_s = 5.0
    site.greet(origin="d")
    assert first in site.passes.sessions
    assert mine[0] not in site.passes.sessions


def test_requests_of_one_address_leave_room_to_wait_for_those_of_others():
    site = Site(slots=2, max_waiting=8, max_share=0.5)
    numbers = [site.greet(origin="a") for _ in range(7)]
    for number in numbers[:6]:  # two slots, and half of the places to wait
        site.open(number)
    with pytest.raises(ProtocolError, match="6 requests from here"):
        site.open(numbers[6])
    site.open(site.greet(origin="b"))


def test_the_next_slot_goes_to_whoever_has_fewest():
    site, ended = Site(slots=2), []
    numbers = [site.greet(origin=origin) for origin in "aaaab"]
    for number in numbers:
        site.open(number, tokens=40 if number == numbers[0] else 4)
    while len(ended) < len(numbers):
        site.one_pass()
        ended += [number for number in numbers if number not in ended and site.devices[number].finish]
    assert ended == [numbers[each] for each in (4, 1, 2, 3, 0)]


def test_of_those_who_have_no_slot_now_whoever_got_none_for_longest_is_next():
    site, ended = Site(slots=1), []
    numbers = [site.greet(origin=origin) for origin in "aaaab"]
    site.open(numbers[0])
    site.one_pass()
    for number in numbers[1:]:
        site.open(number)
    while len(ended) < len(numbers):
        site.one_pass()
        ended += [number for number in numbers if number not in ended and site.devices[number].finish]
    assert ended == [numbers[each] for each in (0, 4, 1, 2, 3)]


@pytest.mark.parametrize("waiting", [0, 1])
def test_requests_that_come_at_once_need_not_wait_where_slots_are_free(waiting):
    site = Site(slots=3, max_waiting=waiting)
    numbers = [site.greet() for _ in range(4 + waiting)]
    for number in numbers[:-1]:
        site.open(number)
    with pytest.raises(ProtocolError, match=f"{waiting} requests wait already"):
        site.open(numbers[-1])
    site.one_pass()
    assert site.passes.waiting == waiting


def test_a_session_that_asks_for_nothing_is_let_go_in_the_end():
    site = Site(idle_timeout_s=60.0)
    idle, busy = site.greet(), site.greet()
    site.open(busy)
    site.now_s = 59.0
    assert site.passes.expire(site.now_s) == []
    site.now_s = 61.0
    assert site.passes.expire(site.now_s) == [idle]


def test_a_session_whose_long_text_has_just_ended_is_not_idle_yet():
    site = Site(idle_timeout_s=60.0)
    number = site.greet()  # it says nothing while its text is written
    site.open(number, tokens=3)
    while not site.devices[number].finish:
        site.one_pass()
        site.now_s += 50.0
        assert site.passes.expire(site.now_s) == []
    site.now_s += 5.0
    site.open(number, tokens=3)


def test_coming_back_gains_no_time_for_an_owed_draft():
    site = Site(draft_timeout_s=60.0, resume_grace_s=30.0)
    number = site.greet("mute", drafts=True)
    site.open(number, tokens=40)
    while site.passes.session(number).grant is None:
        site.run()
        site.now_s += 1.0
    device = site.devices[number]
    for _ in range(3):
        site.now_s += 25.0
        assert number in site.passes.sessions
        site.lose(number)
        site.connect(device)
        gone = site.passes.expire(site.now_s)
    assert gone == [number]


def test_who_opens_one_long_prompt_after_the_other_does_not_starve_a_newcomer():
    site = Site(slots=3, prefill_tokens_per_round=16)
    greedy = [site.greet(), site.greet()]
    newcomer = site.greet()
    for number in greedy:
        site.open(number, tuple(range(90)), tokens=1)
    opened = False
    for turn in range(60):
        step = site.advance()
        if isinstance(step, Verify):
            site.verify(step)
        if turn == 4:
            site.open(newcomer, tuple(range(50)), tokens=1)
            opened = True
        for number in greedy:
            if site.devices[number].finish:
                site.open(number, tuple(range(90)), tokens=1)
        if opened and site.devices[newcomer].finish:
            return
    pytest.fail("the newcomer's prompt was never read")
