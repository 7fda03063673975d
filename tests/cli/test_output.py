"""A server's output: nobody who reads it, or does not, holds up the work."""

import io
import json
import logging
import os
import time

import pytest

from multispin.cli.output import MAX_CHARACTERS, Output, OutputHandler
from multispin.cli.serving import say
from multispin.protocol.events import Round, RoundDevice


def logger_to(stream, as_json):
    out = Output(stream)
    logger = logging.Logger("multispin.test")
    logger.addHandler(OutputHandler(out, as_json))
    return logger, out


def test_lines_come_in_order_and_the_last_ones_too():
    stream = io.StringIO()
    out = Output(stream)
    for number in range(1000):
        out.line(f"line {number}")
    out.close()
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(1000)]
    assert out.dropped == 0


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb"):
        out = Output(stream, max_lines=100, flush_timeout_s=0.2)
        for _ in range(2000):
            out.line("x" * 1000)  # 2 MB; a pipe takes 64 KiB
        out.close()
        assert 1500 < out.dropped < 2000
        os.close(os.dup(reader))
        reading = os.read(reader, 2**20)  # the writer thread can go on and end
        assert reading
        os.set_blocking(reader, False)
        for _ in range(100):
            try:
                os.read(reader, 2**20)
            except BlockingIOError:
                time.sleep(0.01)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110
def test_a_full_disk_costs_lines_only():
    with open("/dev/full", "w") as stream:  # noqa: PTH123
        out = Output(stream)
        for _ in range(10):
            out.line("x")
        out.close()
        assert out.dropped == 10


def test_a_line_of_json_says_who_and_is_one_line():
    stream = io.StringIO()
    logger, out = logger_to(stream, True)
    logger.warning(
        "from %s", "a\nb\x1b[31m", extra={"session": 3, "device": "x" * 500, "request": "req-1", "seconds": 1.23456789}
    )
    logger.error("long %s", "y" * 50_000)
    logger.info("broken %d", "no number")
    out.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["message"] == "from a\nb\x1b[31m"
    assert (lines[0]["session"], lines[0]["request"], lines[0]["level"]) == (3, "req-1", "warning")
    assert (len(lines[0]["device"]), lines[0]["seconds"]) == (200, 1.2346)
    assert len(lines[1]["message"]) == MAX_CHARACTERS
    assert "\x1b" not in stream.getvalue()
    assert (len(lines), out.dropped) == (2, 1)


def test_a_line_of_text_cannot_forge_another():
    stream = io.StringIO()
    logger, out = logger_to(stream, False)
    logger.warning("from %s", "a\nmultispin: all is well\x1b[31m")
    out.close()
    assert stream.getvalue() == "multispin: from a\\nmultispin: all is well\\x1b[31m\n"


def test_a_stream_that_was_closed_when_the_program_began_drops_its_lines_and_ends_at_once():
    output = Output(None, flush_timeout_s=3600.0)
    for _ in range(3):
        output.line("nobody hears this")
    output.close()
    assert output.dropped == 3


def test_only_a_terminal_is_watched(tmp_path):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, (tmp_path / "log").open("w") as file:
        assert [Output(each).watched for each in (terminal, file, io.StringIO(), None)] == [True, False, False, False]
    assert not Output(terminal).watched  # closed by now
    os.close(ours)


@pytest.mark.parametrize("watched", [True, False])
def test_passes_are_told_on_a_terminal_and_not_to_a_log(watched):
    class Lines:
        said, line = "", lambda self, text: setattr(self, "said", text)

    output = Lines()
    output.watched = watched
    device = RoundDevice("anna", drafted=4, accepted=3, tokens=4, acceptance_rate=0.8, seconds_per_token=0.01)
    say(output, "ws", Round(7, 1.0, 0.02, 0, None, None, (device,), ()))
    assert ("anna 3/4" in output.said) == watched
