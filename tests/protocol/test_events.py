"""The JSON lines that processes tell their parent: scripts read them by these keys."""

import json

import msgspec
import pytest

from multispin.protocol.events import (
    Begin,
    Closed,
    Connected,
    Done,
    Expired,
    Listening,
    Lost,
    Ready,
    Refused,
    Round,
    RoundDevice,
    RoundGrant,
    Tried,
    Try,
    Written,
    as_line,
    as_order,
    from_line,
    from_order,
)

ROUND = Round(
    3, 1.5, 0.02, 0, 0.4, 20.0, (RoundDevice("a", 4, 3, 4, 0.75, 0.05),), (RoundGrant("a", 5, 2e4),
    RoundGrant("b", 0, 0.0)),
)  # fmt: skip
DONE = Done((1, 2), "x„", 2, "stop", "greedy", 0.5, 4, 3, 2, 99, 80, 0)
LINES = [
    (Listening("h", 1, "t", 4, 9), {"event": "listening", "host": "h", "port": 1, "target": "t", "slots": 4,
                                    "cache_bytes": 9}),
    (Connected(1, "a", "q8", False), {"event": "connected", "session": 1, "name": "a", "drafter": "q8",
                                      "again": False}),
    (Lost(1, "a"), {"event": "lost", "session": 1, "name": "a"}),
    (Expired(1, "a"), {"event": "expired", "session": 1, "name": "a"}),
    (Closed(1), {"event": "closed", "session": 1}),
    (Refused(1, "a", "why"), {"event": "refused", "session": 1, "name": "a", "why": "why"}),
    (Ready(), {"event": "ready"}),
    (Tried(0.02), {"event": "tried", "seconds_per_token": 0.02}),
    (Written(2, "xy", 4, 3), {"event": "progress", "tokens": 2, "text": "xy", "drafted": 4, "accepted": 3}),
    (ROUND, {
        "event": "round", "round": 3, "time_s": 1.5, "verify_s": 0.02, "prompt_tokens": 0, "planned_round_s": 0.4,
        "planned_goodput_tokens_per_s": 20.0,
        "devices": [{"name": "a", "drafted": 4, "accepted": 3, "tokens": 4, "acceptance_rate": 0.75,
                     "seconds_per_token": 0.05, "session": 0, "drafter": ""}],
        "grants": [{"name": "a", "length": 5, "bandwidth_hz": 2e4, "session": 0},
                   {"name": "b", "length": 0, "bandwidth_hz": 0.0, "session": 0}],
        "late_tokens": 0,
        "planned_pass_s": None,
        "planned_tokens": None,
    }),
    (DONE, {
        "event": "done", "ids": [1, 2], "text": "x„", "tokens": 2, "finish": "stop", "rule": "greedy", "seconds": 0.5,
        "drafted": 4, "accepted": 3, "rounds": 2, "uplink_bytes": 99, "draft_bytes": 80, "reconnects": 0,
        "wasted": 0, "downlink_bytes": 0, "undrafted": "", "note": "",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("event", "fields"), LINES, ids=[type(event).__name__ for event, _ in LINES])
def test_a_line_has_the_keys_that_scripts_read_and_comes_back_as_it_was(event, fields):
    line = as_line(event)
    assert "\n" not in line
    assert line.isascii()  # whatever the encoding of standard output
    assert list(json.loads(line).items()) == list(fields.items())
    assert from_line(line) == event


@pytest.mark.parametrize(
    "line", ['{"event": "nonsense"}', '{"event": "lost", "session": 1, "name": "a", "more": 1}', "x"]
)
def test_a_line_that_is_no_event_is_refused(line):
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        from_line(line)


def test_an_order_comes_back_as_it_was_and_an_empty_line_says_begin():
    for order in (Begin("ws://x", slower=3.0), Try(8)):
        line = as_order(order).decode()
        assert line.endswith("\n")
        assert from_order(line.strip()) == order
    assert from_order("") == Begin()
    with pytest.raises(msgspec.ValidationError):
        from_order('{"order": "begin", "speed": 3}')
