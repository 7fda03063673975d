"""Frames of drafts take their part of the band: against the bits that are sent, and against the simulator."""

from dataclasses import replace

import pytest

from multispin.control import Cell, Device, Mode, Scenario, Verification, decide
from multispin.control.frames import FRAME_BITS, decide_with_frames
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

NARROW = Scenario(
    Cell(1e4, 16, 25, 0),
    Verification(0.1, 0.01, 0.0005),
    tuple(Device(f"d{k}", 0.008 + 0.0005 * k, 3.0, 0.8, delay_s=0.005) for k in range(8)),
)


def by_drafts(scenario: Scenario, tokens_s: float) -> float:
    """Tokens per second if every round lasts as long as its longest draft, sent with its frame."""
    made = decide_with_frames(scenario, mode="rounds")
    phase_s, fed = 0.0, 0
    for choice, device in zip(made.sessions, scenario.devices, strict=True):
        fed += choice.draft_length + 1
        if choice.draft_length:
            bits = tokens_s * choice.draft_length + FRAME_BITS
            sent_s = bits / (3.0 * choice.bandwidth_hz)
            phase_s = max(phase_s, choice.draft_length * device.seconds_per_token + sent_s + 2 * device.delay_s)
    verify_s = scenario.verifier.fixed_s + 8 * scenario.verifier.per_device_s + fed * scenario.verifier.per_token_s
    expected = sum((1 - 0.8 ** (choice.draft_length + 1)) / 0.2 for choice in made.sessions)
    return expected / (phase_s + verify_s)


@pytest.mark.parametrize("band_hz", [3e3, 1e4, 1e5, 1e7])
def test_what_is_promised_is_what_drafts_with_their_frames_give(band_hz):
    scenario = replace(NARROW, cell=replace(NARROW.cell, bandwidth_hz=band_hz))
    promised = decide_with_frames(scenario, mode="rounds").goodput_tokens_per_s
    assert promised == pytest.approx(by_drafts(scenario, 16.0), rel=2e-3)
    assert promised <= decide(scenario, mode="rounds").goodput_tokens_per_s * (1 + 1e-9)


def test_modes_of_a_device_are_charged_too():
    modes = (Mode("ids", 0.8), Mode("more", 0.85, bits_per_token=40.0))
    devices = tuple(replace(device, acceptance_rate=None, modes=modes) for device in NARROW.devices)
    both = decide_with_frames(replace(NARROW, devices=devices), mode="rounds").goodput_tokens_per_s
    assert both < 0.95 * decide(replace(NARROW, devices=devices), mode="rounds").goodput_tokens_per_s


def test_rounds_on_a_narrow_band_make_what_is_promised():
    """An edge that learns everything, from its start; by tokens alone the model promises 20 % more."""
    site = Site(Setup(NARROW, Behaviour(frame_bits=FRAME_BITS)), "heterogeneous", 1, mode="rounds")
    site.run(100)
    texts = [session.request for session in site.passes.sessions.values()]
    made = sum(len(text.committed) for text in texts if text is not None) / site.queue.now_s
    assert decide_with_frames(NARROW, mode="rounds").goodput_tokens_per_s == pytest.approx(made, rel=0.1)
    assert decide(NARROW, mode="rounds").goodput_tokens_per_s > 1.1 * made
