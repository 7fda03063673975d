"""Channels that change between rounds, and when a draft has left."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from multispin.control import Device
from multispin.errors import InputError
from multispin.simulation.clock import EventQueue
from multispin.simulation.uplink import (
    FrameQueue,
    FrequencyDivision,
    RayleighChannel,
    TimeDivision,
    load_efficiency_trace,
)

DEVICE = Device("d", 0.01, 5.0, acceptance_rate=0.8)


def gains(channel, times):
    snr = 2**DEVICE.spectral_efficiency - 1
    return np.array([(2 ** channel.heard(DEVICE, t).spectral_efficiency - 1) / snr for t in times])


def test_fading_is_rayleigh_around_the_scenarios_ratio():
    seen = gains(RayleighChannel(0.0, np.random.default_rng(1)), np.arange(4000))
    # |h|² is exponential with mean 1: mean and a tail probability within 4.5 standard errors.
    assert abs(seen.mean() - 1) < 4.5 / math.sqrt(4000)
    share = np.mean(seen > 2)
    assert abs(share - math.exp(-2)) < 4.5 * math.sqrt(math.exp(-2) * (1 - math.exp(-2)) / 4000)


@pytest.mark.parametrize("efficiency", [499.9, 500.1, 1e12, 1e30])
def test_fading_goes_with_any_spectral_efficiency(efficiency):
    """2^r overflows from r = 1024 on."""
    ordinary, great = (RayleighChannel(0.0, np.random.default_rng(3)) for _ in range(2))
    device = replace(DEVICE, spectral_efficiency=efficiency)
    for now_s in range(20):
        gain = gains(ordinary, [now_s])[0]
        assert great.heard(device, now_s).spectral_efficiency == pytest.approx(efficiency + math.log2(gain), rel=1e-9)


def test_fading_remembers_itself_for_its_coherence_time():
    # The power's correlation is ρ², ρ = exp(−Δt / coherence).
    slow, fast = (gains(RayleighChannel(10.0, np.random.default_rng(2)), np.arange(20_000) * step) for step in (1, 30))
    near, far = (np.corrcoef(seen[:-1], seen[1:])[0, 1] for seen in (slow, fast))
    assert near == pytest.approx(math.exp(-0.2), abs=0.05)
    assert abs(far) < 0.05
    assert slow.mean() == pytest.approx(1.0, abs=0.15)


def test_a_recorded_link_is_played_again_and_again(tmp_path):
    file = tmp_path / "link.csv"
    file.write_text("time_s,bit_per_s_per_hz\n0,4\n1,2\n3,1\n")
    link = load_efficiency_trace(file)
    # The last value lasts as long as the one before it, 2 s, so the recording is 5 s long.
    times = (0.0, 0.9, 1.0, 2.9, 3.5, 4.9, 5.1, 6.5)
    assert [link.heard(DEVICE, t).spectral_efficiency for t in times] == [4, 4, 2, 2, 1, 1, 4, 2]


def test_a_recorded_link_of_one_line_is_constant(tmp_path):
    file = tmp_path / "link.csv"
    file.write_text("0,4\n")
    assert load_efficiency_trace(file).heard(DEVICE, 1e6).spectral_efficiency == 4


@pytest.mark.parametrize(
    "text", [None, "", "time,value\n", "0,1\nx,2\n", "1,2\n", "0,1\n0,2\n", "0,-1\n", "0,1,2\n0,1,2\n"]
)
def test_a_damaged_recording_of_a_link_is_refused(text, tmp_path):
    file = tmp_path / "link.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"link\.csv"):
        load_efficiency_trace(file)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no device files here")
def test_a_recording_without_an_end_or_with_a_mark_of_its_byte_order(tmp_path):
    with pytest.raises(InputError, match="/dev/zero is longer than"):
        load_efficiency_trace(Path("/dev/zero"))
    with pytest.raises(InputError, match="cannot be read"):
        load_efficiency_trace(tmp_path / "no\0name")
    file = tmp_path / "link.csv"
    file.write_bytes("\ufeff0,4\r\n1,2\r\n".encode())
    assert load_efficiency_trace(file).times_s == (0.0, 1.0)


def test_a_draft_leaves_at_the_granted_rate():
    air = FrequencyDivision()
    assert air.send(DEVICE, 2.0, 1000.0, 100.0) == pytest.approx((2.0, 2.0 + 1000.0 / 500.0))
    assert air.send(DEVICE, 2.0, 1000.0, 0.0) == (2.0, math.inf)


def test_one_after_the_other_waits_for_the_air():
    air = TimeDivision()
    assert air.send(DEVICE, 1.0, 1000.0, 100.0) == pytest.approx((1.0, 3.0))
    assert air.send(DEVICE, 1.5, 500.0, 100.0) == pytest.approx((3.0, 4.0))
    assert air.send(DEVICE, 9.0, 500.0, 100.0) == pytest.approx((9.0, 10.0))


def test_frames_leave_one_after_the_other_and_at_the_speed_that_the_link_has_meanwhile():
    events, link = EventQueue(), [5.0]
    frames, left = FrameQueue(events, lambda: replace(DEVICE, spectral_efficiency=link[0])), {}

    def becomes(efficiency):
        link[0] = efficiency
        frames.link_changed()

    for name, bits, late_s in (("first", 1000.0, 0.0), ("second", 1000.0, 0.0), ("third", 500.0, 3.0)):
        frames.send(bits, 100.0, lambda air_s, name=name: left.setdefault(name, (events.now_s, air_s)), late_s)
    events.at(3.0, lambda: becomes(0.001))  # the other half of the second frame would take 5,000 s now
    events.at(1003.0, lambda: becomes(5.0))  # and a hundredth of the frame has left meanwhile
    while events.step():
        pass
    assert left["first"] == pytest.approx((2.0, 2.0))
    assert left["second"] == pytest.approx((1003.0 + 0.8, 1001.8))
    assert left["third"] == pytest.approx((1003.8 + 3.0 + 1.0, 4.0))
