"""How long passes wait for the first frames of devices, and how long these frames then are."""

import numpy as np
import pytest

from multispin.control.goodput import expected_tokens
from multispin.passes.first_frames import FirstFrame, first_frame, waited_s
from multispin.passes.flows import window_of

FRAME_BITS, ID_BITS, BITS_PER_HZ_S = 176.0, 16.0, 3.0
MOST = 16


def narrow(rate, token_s=0.006):
    """What is believed of a device whose frames have more bits than the ids in them."""
    return lambda length: (rate, token_s, (ID_BITS + FRAME_BITS / length) / BITS_PER_HZ_S)


def goodput(frames, others, pass_s, token_s, wait_s):
    """Tokens per second where each pass waits that long for everybody's first frame."""
    lengths = [min(MOST, frame.tokens(wait_s)) for frame in frames]
    tokens = sum(expected_tokens(frame.acceptance_rate, length) for frame, length in zip(frames, lengths, strict=True))
    return (tokens + others) / (wait_s + pass_s + token_s * sum(lengths))


def test_a_first_frame_comes_after_its_drafting_its_way_and_its_bits():
    frame = first_frame(narrow(0.7), 0.01, 1e3)
    assert frame.acceptance_rate == 0.7
    for length in (1, 5, 16):
        sent_s = (FRAME_BITS + ID_BITS * length) / (BITS_PER_HZ_S * 1e3)
        assert frame.fixed_s + frame.token_s * length == pytest.approx(0.02 + 0.006 * length + sent_s)
        assert frame.tokens(frame.fixed_s + frame.token_s * length) == length
    assert frame.tokens(0.5 * frame.fixed_s) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_other_wait_gives_more_tokens_per_second(seed):
    draw = np.random.default_rng(seed)
    frames = [
        FirstFrame(draw.uniform(0.05, 0.95), draw.uniform(0, 0.1), draw.uniform(0.002, 0.02))
        for _ in range(draw.integers(1, 4))
    ]
    others, pass_s, token_s = int(draw.integers(3)), draw.uniform(0.01, 0.5), draw.choice([0.0, 0.002])
    alone = (len(frames) + others) / pass_s
    waited = waited_s(frames, others, pass_s, token_s, MOST, alone)
    best = max(goodput(frames, others, pass_s, token_s, wait_s) for wait_s in np.linspace(0.0, 0.45, 2000))
    got = goodput(frames, others, pass_s, token_s, waited + 1e-9)
    assert got >= (1 - 1e-3) * best
    assert (waited > 0.0) == (best > alone)


def test_passes_wait_for_nobody_where_the_edge_alone_makes_more():
    frames = [FirstFrame(0.8, 0.05, 0.01)] * 4
    waited = waited_s(frames, 0, 0.3, 0.0, MOST, 4 / 0.3)
    assert waited > 0.05
    assert waited_s(frames, 0, 0.3, 0.0, MOST, 100.0) == 0.0
    assert waited_s([], 3, 0.3, 0.0, MOST, 10.0) == 0.0


def test_of_many_times_some_are_compared():
    frames = [FirstFrame(0.8, 0.001 * k, 0.01 + 0.0001 * k) for k in range(50)]
    waited = waited_s(frames, 0, 0.3, 0.0, MOST, 50 / 0.3)
    best = max(goodput(frames, 0, 0.3, 0.0, wait_s) for wait_s in np.linspace(0.0, 0.3, 500))
    assert goodput(frames, 0, 0.3, 0.0, waited + 1e-9) > 0.98 * best


def test_on_a_narrow_band_a_frame_is_long_unless_passes_wait_for_it():
    view = narrow(0.8)
    long = window_of(view, 0.001, 1e3, 0.35, MOST)
    frame = first_frame(view, 0.001, 1e3)
    assert long[1] == 16
    six_s = frame.fixed_s + 6.5 * frame.token_s
    assert window_of(view, 0.001, 1e3, 0.35, MOST, waited_s=six_s)[1] == 6
    assert window_of(view, 0.001, 1e3, 0.35, MOST, waited_s=0.5 * frame.fixed_s) == long  # it comes too late anyway
    wide = window_of(view, 0.001, 1e6, 0.35, MOST)
    assert window_of(view, 0.001, 1e6, 0.35, MOST, waited_s=0.3) == wide  # a longer wait makes no frame longer


def test_frames_that_passes_wait_for_are_no_shorter_than_the_edge_can_take():
    view = narrow(0.8)
    frame = first_frame(view, 0.001, 1e5)
    one_s = frame.fixed_s + 1.5 * frame.token_s
    assert window_of(view, 0.001, 1e5, 2.0, MOST, waited_s=one_s)[1] == 1
    assert window_of(view, 0.001, 1e5, 2.0, MOST, devices=200, waited_s=one_s)[1] == 16
