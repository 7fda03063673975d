"""Streams of a site as `advise` has them simulated."""

from dataclasses import replace

import pytest

from multispin.control import Cell, Device, Scenario, Verification
from multispin.control.exact.fluid import fluid
from multispin.errors import InputError
from multispin.simulation.steady import streamed

SITE = Scenario(
    Cell(2e6, 16, 16, 0),
    Verification(0.08, 0.02),
    tuple(Device(f"laptop-{k}", 0.012, 3.0, 0.85, delay_s=0.003) for k in range(3)),
)


@pytest.mark.long
def test_what_is_simulated_is_between_plain_decoding_and_the_bound():
    plain = 3 / (0.08 + 3 * 0.02)
    found = streamed(SITE, 2)
    assert plain < found.goodput_tokens_per_s <= 1.02 * fluid(SITE).upper_bound_tokens_per_s  # chance: some 1 %
    assert plain / 3 * 0.95 < found.slowest_tokens_per_s <= found.goodput_tokens_per_s / 3
    assert streamed(SITE, 2) == found


def test_drafters_that_are_never_right_leave_plain_decoding():
    useless = replace(SITE, devices=tuple(replace(d, acceptance_rate=1e-6) for d in SITE.devices))
    assert streamed(useless, 1).goodput_tokens_per_s == pytest.approx(3 / 0.14, rel=0.05)


def test_devices_that_send_in_turns_cannot_stream():
    with pytest.raises(InputError):
        streamed(replace(SITE, cell=replace(SITE.cell, multiple_access="tdma")), 1)
