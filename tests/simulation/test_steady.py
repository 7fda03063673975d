"""Streams of a site as `advise` has them simulated."""

from dataclasses import replace
from pathlib import Path

import pytest

from multispin.control import Cell, Device, Scenario, Verification
from multispin.control.exact.fluid import fluid
from multispin.control.texts import Texts
from multispin.errors import InputError
from multispin.simulation.steady import streamed, texts_of

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


def test_texts_and_prompts_cost_streams_their_share():
    """Texts of 30 tokens lose about half of a pass at their end, and their prompt takes a ride."""
    endless, short = streamed(SITE, 1), streamed(SITE, 1, Texts(30, 60))
    assert 0.6 * endless.goodput_tokens_per_s < short.goodput_tokens_per_s < 0.93 * endless.goodput_tokens_per_s


def test_texts_are_those_of_the_file(tmp_path):
    text = (Path(__file__).parents[2] / "src/multispin/data/sites/desk-32b.toml").read_text()
    (tmp_path / "site.toml").write_text(text)
    assert texts_of(tmp_path / "site.toml") == Texts((64, 256), (16, 120))
    head, _, rest = text.partition("[simulation]")
    (tmp_path / "endless.toml").write_text(head + rest[rest.index("[cell]") :])
    assert texts_of(tmp_path / "endless.toml") is None
