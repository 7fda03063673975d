"""The state behind the dashboard: bounded, and what the events say."""

import json

from multispin.protocol.events import Closed, Connected, Ended, Expired, Lost, Opened, Round, RoundDevice, RoundGrant
from multispin.web.board import HISTORY_S, MAX_PASSES, MAX_SESSIONS, MAX_SHOWN, Board


def a_round(number=1, time_s=10.0, devices=(), grants=(), verify_s=0.05):
    return Round(number, time_s, verify_s, 0, None, None, tuple(devices), tuple(grants))


def device(session, tokens=3, drafted=4, accepted=2, by="device", rate=0.5):
    return RoundDevice(f"phone {session}", drafted, accepted, tokens, rate, 0.01, session, by)


def test_a_session_is_shown_with_who_drafts_for_it_and_what_it_may_do():
    board = Board("big")
    board.tell(Connected(1, "phone 1", "small", False))
    board.tell(Opened(1, "phone 1", "", 5, 100, 9.0))
    board.tell(a_round(devices=[device(1)], grants=[RoundGrant("phone 1", 7, 2e4, 1)]))
    (shown,) = board.shown(10.5)["sessions"]
    assert shown["drafter"] == "small"
    assert (shown["by"], shown["length"], shown["bandwidth_hz"]) == ("device", 7, 2e4)
    assert (shown["tokens"], shown["drafted"], shown["accepted"], shown["writing"]) == (3, 4, 2, True)
    board.tell(a_round(2, 10.5, [device(1)]))  # nothing new is planned: the grant stands
    assert board.shown(10.5)["sessions"][0]["length"] == 7
    board.tell(a_round(3, 11.0, [device(1, by="nobody", drafted=0, accepted=0, tokens=1)]))
    (shown,) = board.shown(11.0)["sessions"]
    assert (shown["by"], shown["length"], shown["tokens"]) == ("device", 0, 7)


def test_who_drafts_is_who_did_most_often_lately_so_that_it_can_be_read():
    board, found = Board("big"), []

    def write(*passes):
        for by in passes:
            board.tell(a_round(devices=[device(1, by=by)]))
            (shown,) = board.shown(10.5)["sessions"]
            found.append(shown["by"])

    write(*["nobody"] * 2, *["device", "nobody"] * 20)
    assert found[:3] == ["nobody", "nobody", "device"]
    assert set(found[3:]) == {"device"}  # though every second pass came before a draft
    write(*["edge"] * 16)
    assert (found.index("edge"), found[-1]) == (47, "edge")  # 6 of 16, and 5 by its device
    write(*["nobody"] * 16, *["device", *["nobody"] * 15] * 2)
    assert set(found[-32:]) == {"nobody"}  # a probe now and then is no drafting
    write("device", *["nobody"] * 2)
    board.tell(Opened(1, "phone 1", "", 5, 100, 9.0))
    write("edge")
    assert found[-1] == "edge"  # of another text


def test_names_that_would_turn_the_direction_of_a_line_or_hide_are_escaped():
    board = Board("big")
    board.tell(Connected(1, "\u202eevil", "\u200bsmall", False))
    (shown,) = board.shown(10.0)["sessions"]
    assert (shown["name"], shown["drafter"]) == (r"\u202eevil", r"\u200bsmall")


def test_acceptance_is_that_of_whoever_drafts():
    board = Board("big")
    board.tell(a_round(devices=[device(1, rate=0.9)]))
    assert board.shown(10.0)["sessions"][0]["acceptance_rate"] == 0.9  # what is believed of the device
    board.tell(a_round(2, devices=[device(2, by="edge", drafted=5, accepted=1, rate=0.6)]))
    board.tell(a_round(3, devices=[device(2, by="edge", drafted=5, accepted=3, rate=0.6)]))
    board.tell(a_round(4, devices=[device(2, by="nobody", drafted=0, accepted=0, rate=0.6)]))
    assert board.shown(10.0)["sessions"][1]["acceptance_rate"] == 0.4


def test_a_text_that_ends_and_a_device_that_goes_are_seen():
    board = Board("big")
    board.tell(Connected(1, "phone 1", "small", False))
    board.tell(a_round(devices=[device(1)]))
    board.tell(Ended(1, "phone 1", "", "stop", 5, 3, 4, 2, 0.1, 1.0, 10.0))
    assert not board.shown(10.0)["sessions"][0]["writing"]
    board.tell(Lost(1, "phone 1"))
    assert board.shown(10.0)["sessions"][0]["state"] == "away"
    board.tell(Connected(1, "phone 1", "small", True))
    assert board.shown(10.0)["sessions"][0]["state"] == "connected"
    board.tell(Expired(1, "phone 1"))
    board.tell(Closed(2))
    assert board.shown(10.0)["sessions"] == []


def test_silent_seconds_count_as_zeros():
    board = Board("big")
    for time_s in (5.2, 5.9, 8.0):
        board.tell(a_round(time_s=time_s, devices=[device(1)]))
    assert board.shown(8.0)["seconds"] == [[5, 6, 8, 4], [6, 0, 0, 0], [7, 0, 0, 0], [8, 3, 4, 2]]
    board.tell(a_round(time_s=8.0 + 10 * HISTORY_S, devices=[device(1)]))
    assert len(board.shown(0.0)["seconds"]) == HISTORY_S


def test_only_passes_of_the_last_seconds_are_shown():
    board = Board("big")
    for number in range(5 * MAX_PASSES):
        board.tell(a_round(number, number / 2, [device(1), device(2, by="edge")]))
    passes = board.shown(5 * MAX_PASSES / 2)["passes"]
    assert 0 < len(passes) <= MAX_PASSES
    assert passes[-1]["texts"] == {"device": 1, "edge": 1, "nobody": 0}
    assert passes[-1]["begin_s"] == passes[-1]["end_s"] - 0.05


def test_memory_is_bounded_whatever_comes():
    board = Board("big")
    for session in range(3 * MAX_SESSIONS):
        board.tell(Connected(session, "☎" * 80, "d" * 80, False))
        board.tell(a_round(session, session / 9, [device(session, rate=float("nan"))]))
    shown = board.shown(3 * MAX_SESSIONS / 9)
    assert len(shown["sessions"]) == MAX_SHOWN
    assert shown["all"]["sessions"] == MAX_SESSIONS
    assert len(json.dumps(shown, allow_nan=False)) < 150_000


def test_what_is_said_of_all_sessions_counts_those_that_are_not_shown():
    board, many = Board("big"), range(3 * MAX_SHOWN)
    for number in many:
        board.tell(Connected(number, f"phone {number}", "small", False))
    board.tell(a_round(devices=map(device, many), grants=[RoundGrant(f"phone {k}", 7, 1e3, k) for k in many]))
    board.tell(Ended(1, "phone 1", "", "stop", 5, 3, 4, 2, 0.1, 1.0, 10.0))
    shown = board.shown(10.5)
    assert len(shown["sessions"]) == MAX_SHOWN
    assert shown["all"] == {"sessions": len(many), "writing": len(many) - 1, "bandwidth_hz": 1e3 * len(many)}


def test_a_window_of_a_stream_holds_until_there_is_another_one():
    board = Board("target")
    row = RoundDevice("a", 4, 3, 4, 0.8, 0.01, 1, "device")
    streams = {"planned_pass_s": 0.1, "planned_tokens": 3.5}
    for number, grants in enumerate([(RoundGrant("a", 6, 5e3, 1),), (), ()]):
        board.tell(Round(number, float(number), 0.1, 0, None, None, (row,), grants, **streams))
    [shown] = board.shown(3.0)["sessions"]
    assert (shown["length"], shown["bandwidth_hz"]) == (6, 5e3)
    for by, length in (("nobody", 6), ("edge", 2), ("nobody", 6)):
        row = RoundDevice("a", 2 if by == "edge" else 0, 0, 1, 0.8, 0.01, 1, by)
        board.tell(Round(4, 4.0, 0.1, 0, None, None, (row,), (), **streams))
        assert board.shown(4.0)["sessions"][0]["length"] == length
