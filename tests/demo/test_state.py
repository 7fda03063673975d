"""From events to what a demo reports: rates in the time of the site, and whether the machine kept pace."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from multispin.control import decide
from multispin.control.advice import advise
from multispin.demo.crew import DeviceSpec
from multispin.demo.order import DemoOrder, Play
from multispin.demo.result import result_of
from multispin.demo.site import SITE, DemoSite, read_site
from multispin.demo.state import DemoState, DeviceState
from multispin.demo.view import REPEAT_S, LogLines, expectation, live_view, progress_line, slowest_gain
from multispin.protocol.events import Done, Round, RoundDevice, RoundGrant
from multispin.speculation import Rule, SamplingParams

CREW = tuple(DeviceSpec(name, "large", 0.01, 4.0, "code", "Hi", 0) for name in ("a", "b"))


def batch(time_s, rows, verify_s=0.1, granted=True):
    """A round in which each named device drafted, had accepted and was given so many tokens."""
    devices = tuple(RoundDevice(name, *counts, 0.7, 0.012) for name, counts in rows.items())
    grants = tuple(RoundGrant(spec.name, 4, 1e4) for spec in CREW) if granted else ()
    return Round(1, time_s, verify_s, 0, 1.0 if granted else None, 8.0 if granted else None, devices, grants)


def played(*events):
    state = DemoState({spec.name: DeviceState(spec) for spec in CREW}, "test", 2.0)
    for event in events:
        state.edge_event(event)
    for device in state.devices.values():
        total = device.timed_tokens
        text = Done((1,) * total, "x", total, "stop", "greedy", 9.0, 6, 3, 2, 50, 40, 0)
        state.device_event(device, text)
    state.ended_s = 9.0
    return state


def order(*plays):
    return DemoOrder(
        CREW, plays, (SITE, read_site(SITE)), 2.0, "t", "embedded", "float32", (), SamplingParams(), Rule.GREEDY,
        48, 0, (), (), (),
    )  # fmt: skip


def test_a_users_rate_is_over_the_time_from_its_first_grant_to_its_last_token():
    state = played(
        batch(10.0, {}),
        batch(12.0, {"a": (4, 3, 4), "b": (4, 0, 1)}),
        batch(14.0, {"a": (4, 1, 2), "b": (4, 1, 2)}),
        batch(20.0, {"b": (4, 2, 3)}),
    )
    assert state.devices["a"].tokens_per_s == pytest.approx(6 / 4)
    assert state.devices["b"].tokens_per_s == pytest.approx(6 / 10)


def test_a_line_of_progress_that_says_nothing_new_is_not_written_again_and_again():
    times, written = iter([0.0, 2.0, REPEAT_S - 1.0, REPEAT_S, REPEAT_S + 2.0, REPEAT_S + 4.0]), []
    lines = LogLines(lambda: next(times), written.append)
    for line in ("starting", "starting", "starting", "starting", "pass 1", "starting"):
        lines(line)
    assert written == ["starting", "starting", "pass 1", "starting"]


def test_progress_counts_passes_and_shows_windows_in_streams_too():
    state = played(*(batch(float(time_s), {"a": (2, 1, 2)}, granted=False) for time_s in range(3)))
    window = RoundGrant(CREW[0].name, 7, 5e3)
    state.edge_event(Round(4, 3.0, 0.1, 0, None, None, (), (window,)))
    assert (state.passes, state.rounds) == (3, 0)
    assert (state.devices["a"].length, state.devices["a"].bandwidth_hz) == (7, 5e3)
    state.began_s = 1.0
    assert "pass 3" in progress_line(state)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(live_view(state))
    assert "pass 3" in console.export_text()


def test_without_grants_a_users_time_begins_with_its_first_tokens_which_do_not_count():
    state = played(*(batch(time_s, {"a": (0, 0, 1)}, granted=False) for time_s in (1.0, 2.0, 4.0)))
    assert state.devices["a"].tokens_per_s == pytest.approx(2 / 3)
    assert state.devices["b"].tokens_per_s == 0.0


def test_a_play_without_plans_has_a_goodput_and_passes_too():
    state = played(*(batch(time_s, {"a": (4, 1, 2), "b": (4, 1, 2)}, granted=False) for time_s in (1.0, 2.0, 4.0)))
    result = result_of(order(Play("streams", "fair")), None, [state], [{"a": True, "b": True}], None)
    assert result.goodput_tokens_per_s == result.comparison[0].goodput_tokens_per_s == pytest.approx(8 / 3)
    assert result.rounds == 3


def test_the_comparison_is_in_the_time_of_the_site():
    site = DemoSite(SITE, read_site(SITE), 2.0)
    plain = played(*(batch(float(t), {"a": (0, 0, 1), "b": (0, 0, 1)}, granted=t == 0) for t in range(5)))
    rounds = played(batch(0.0, {}), batch(2.0, {"a": (4, 3, 4), "b": (4, 1, 2)}))
    asked = order(Play("plain", "heterogeneous"), Play("rounds", "heterogeneous"))
    same = {"a": True, "b": True}
    result = result_of(asked, site, [plain, rounds], [same, same | {"b": False}], None)
    first, second = result.comparison
    assert (first.mode, first.policy, second.mode, second.policy) == ("plain", None, "rounds", "heterogeneous")
    assert first.goodput_tokens_per_s == pytest.approx(2 * 2 * 1.0)  # two users, played twice as slowly
    assert second.per_user_tokens_per_s == pytest.approx(second.goodput_tokens_per_s / 2)
    assert second.goodput_tokens_per_s == pytest.approx(2 * (4 + 2) / 2)
    assert slowest_gain(second, first) == pytest.approx(1.0)
    assert slowest_gain(first, None) is None
    assert (first.identical, second.identical, result.all_identical) == (True, False, False)
    assert result.mode == "rounds"  # devices are told of the play in which they draft
    assert [device.identical_to_target for device in result.devices] == [True, False]
    assert result.document()["comparison"][1]["users"][0]["tokens_per_s"] == pytest.approx(4.0)


def test_late_passes_and_slow_drafting_are_told():
    site = DemoSite("a100-27b", read_site("a100-27b"), 2.0)
    due_s = site.verification.verify_s([4, 4])
    rows = {"a": (4, 3, 4), "b": (4, 1, 2)}
    state = played(batch(0.0, {}), batch(2.0, rows, due_s), batch(4.0, rows, 1.5 * due_s), batch(5.0, rows, due_s))
    (play,) = result_of(order(Play("rounds", "fixed")), site, [state], [{}], None).comparison
    assert play.late_passes == pytest.approx(1 / 4)
    assert play.slowest_drafting == pytest.approx(0.012 / (2 * 0.01))
    assert play.identical is None


def test_a_lost_device_has_no_part_in_the_sums():
    state = played(batch(0.0, {}), batch(2.0, {"a": (4, 3, 4), "b": (4, 1, 2)}))
    state.devices["b"] = replace(state.devices["b"], done=None, lost="it was killed")
    result = result_of(order(Play("rounds", "fixed")), None, [state], [{"a": True}], None)
    assert [user.name for user in result.comparison[0].users] == ["a"]
    assert [device.lost for device in result.devices] == [None, "it was killed"]


def test_each_play_has_its_own_arguments_and_name():
    edge, rounds = Play("edge", "fixed", "small"), Play("rounds", "fixed")
    assert edge.serve == ("--mode", "edge", "--policy", "fixed", "--edge-draft", "small")
    assert rounds.serve == ("--mode", "rounds", "--policy", "fixed")
    assert [play.label for play in (edge, rounds, Play("auto", "fair"))] == ["edge", "rounds, fixed", "auto"]
    assert order(Play("plain", "fixed"), edge, rounds).main == 2
    assert order(edge).main == 0


def test_rates_count_from_when_all_prompts_were_read():
    alone = [batch(time_s, {"a": (0, 0, 1)}, granted=False) for time_s in (1.0, 5.0)]
    state = played(*alone, *(batch(time_s, {"a": (0, 0, 2), "b": (0, 0, 1)}, granted=False) for time_s in (6.0, 8.0)))
    assert state.devices["a"].tokens_per_s == pytest.approx(2 / 2)
    assert state.devices["b"].tokens_per_s == pytest.approx(1 / 2)


def test_a_text_that_was_complete_before_all_prompts_were_read_counts_as_it_was_written():
    rows = ((1.0, {"a": (0, 0, 1)}), (3.0, {"a": (0, 0, 1)}), (9.0, {"b": (0, 0, 1)}), (10.0, {"b": (0, 0, 1)}))
    state = played(*(batch(time_s, row, granted=False) for time_s, row in rows))
    assert state.devices["a"].tokens_per_s == pytest.approx(1 / 2)
    assert state.devices["b"].tokens_per_s == pytest.approx(1.0)


def test_a_user_is_credited_with_what_the_edge_drafted_for_it_too():
    state = played(batch(1.0, {}), batch(2.0, {"a": (5, 4, 5)}), batch(3.0, {"a": (3, 0, 1), "b": (2, 2, 3)}))
    asked = order(Play("edge", "heterogeneous", "small"))
    result = result_of(asked, None, [state], [{}], None)
    a, b = result.comparison[0].users
    assert (a.drafted, a.accepted) == (8, 4)
    assert (b.drafted, b.accepted) == (2, 2)
    assert (result.devices[0].drafted, result.devices[0].accepted) == (6, 3)  # what the device itself says


def test_streams_are_told_of_device_by_device():
    assert order(Play("plain", "fixed"), Play("streams", "fixed"), Play("auto", "fixed")).main == 1


def test_the_last_sentence_is_for_streams_where_they_pay():
    said = expectation(read_site(SITE))
    assert "the devices should draft, in streams" in said
    assert re.search(r"in streams 1\d\d \(simulated\)", said)


def test_the_last_sentence_is_against_devices_where_they_do_not_pay_and_names_each_choice_once():
    said = expectation(read_site("h100-7b"))
    assert "the edge should draft, and no device" in said
    assert said.count("the edge 6") == 1
    assert "heterogeneous (which lets no device draft)" in said
    assert "may be chance" in said


def test_the_last_sentence_promises_what_advise_promises_where_frames_take_much_of_the_band():
    site = read_site("a100-27b")
    narrow = replace(site, cell=replace(site.cell, bandwidth_hz=4e3))
    by_mode = {option.mode: option for option in advise(narrow, policies=("heterogeneous",)).options}
    assert by_mode["rounds"].goodput_tokens_per_s < 0.95 * dict(decide(narrow).alternatives)["rounds"]
    said = expectation(narrow)
    assert f"heterogeneous {by_mode['rounds'].goodput_tokens_per_s:.0f}," in said
    assert f"nobody {by_mode['plain'].goodput_tokens_per_s:.0f}," in said
