"""What is expected of a stream, and when."""

import math

import pytest

from multispin.control import Device
from multispin.passes.flows import LATER, Flow, window_of
from multispin.protocol import Streaming, Window
from multispin.protocol.edge_stream import StreamCounts

TOKEN_S, CHUNK, DELAY_S = 0.01, 4, 0.005
FRAME_S = 2 * DELAY_S + CHUNK * 2 * TOKEN_S  # drafted, and then on the air for as long


VIEW = 0.8, TOKEN_S, TOKEN_S * 1e3


@pytest.mark.parametrize(
    ("after_s", "expected"), [(0.5 * FRAME_S, True), (FRAME_S + 0.002, True), (LATER * FRAME_S + 0.001, False)]
)
def test_a_frame_that_comes_some_milliseconds_later_than_believed_is_still_waited_for(after_s, expected):
    stage = Streaming(Window(1, 8, CHUNK, 1e3), 1, StreamCounts())
    flow = Flow(0.0, 3, Device("1", TOKEN_S, 5.0, 0.8, delay_s=DELAY_S))
    made = flow.comes(stage, VIEW, after_s)
    assert (made.next_s > 0.0) == expected
    assert made.next_tokens == CHUNK


def test_a_device_that_rests_is_not_waited_for_until_it_has_sent_more_than_that():
    stage = Streaming(Window(1, 16, CHUNK, 1e3), 1, StreamCounts())
    flow = Flow(0.0, 3, Device("1", TOKEN_S, 5.0, 0.8, delay_s=DELAY_S))

    def expected(pending, now_s):
        stage.pending, stage.alive = [7] * pending, True
        return flow.comes(stage, VIEW, now_s).next_s < math.inf

    gap_s = CHUNK * TOKEN_S
    assert expected(8, gap_s)
    assert not expected(8, 2 * gap_s)  # it has sent nothing for twice as long as it takes
    flow.arrived_s = 1.0
    assert not expected(8, 1.0)  # and so it does when it has sent as many again
    assert expected(4, 1.0)
    assert expected(12, 1.0)  # it goes on further than that
    assert expected(8, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("most", [1, 2, 8, 16])
def test_a_frame_is_never_longer_than_its_window(rate, most):
    for bandwidth_hz, devices in ((1e2, 1), (1e4, 1), (1e6, 1), (1e6, 500)):
        ahead, frame = window_of(
            lambda tokens: (rate, 0.001, 16.0 + 176.0 / tokens), 0.01, bandwidth_hz, 0.2, most, devices
        )
        assert 1 <= frame <= ahead
