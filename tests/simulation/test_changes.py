"""A device that was of no use and has become useful drafts again, in every mode that leaves devices out."""

from dataclasses import replace

import pytest

from multispin.control import Cell, Device, Scenario, Verification
from multispin.passes.probing import PROBE_SHARE
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site

DEVICES = tuple(Device(f"d{k}", 0.006 + 0.001 * k, 3.0, 0.8, delay_s=0.003) for k in range(4))
SITE = Scenario(Cell(5e5, 16, 12, 0), Verification(0.0227, 0.0127), DEVICES)
TRIAL_S = 0.2
"""A trial takes no longer here: four tokens, a round trip and a pass or two."""
TRIALS = {"rounds": 3, "mixture": 6, "auto": 3}
"""What is believed of a device is old, and some trials are needed to believe another thing."""


@pytest.mark.long
@pytest.mark.parametrize("mode", ["rounds", "mixture", "auto"])
@pytest.mark.parametrize(
    "trouble", [{"acceptance_rate": 0.0}, {"seconds_per_token": 0.9}, {"spectral_efficiency": 1e-3}]
)
def test_it_is_found_again_within_some_trials_and_drafts_as_before(mode, trouble):
    site = Site(Setup(SITE, Behaviour(frame_bits=176)), "heterogeneous", 1, mode=mode)
    site.run(20)
    device = site.devices[0]
    device.becomes(replace(DEVICES[0], **trouble))
    site.run(100)
    bad_s, accepted = site.queue.now_s, device.record.accepted
    site.run(140)
    before = (device.record.accepted - accepted) / (site.queue.now_s - bad_s)
    device.becomes(DEVICES[0])
    since_s, accepted = site.queue.now_s, device.record.accepted
    trial_s = TRIAL_S + 4 * trouble.get("seconds_per_token", 0.0)
    until_s = since_s + TRIALS[mode] * (1.0 + 1.0 / PROBE_SHARE) * trial_s
    while device.record.accepted < accepted + 20 and site.queue.now_s < until_s:
        site.run(site.rounds + 1)
    assert device.record.accepted >= accepted + 20
    since_s, accepted = site.queue.now_s, device.record.accepted
    site.run(site.rounds + 60)
    assert (device.record.accepted - accepted) / (site.queue.now_s - since_s) > max(3.0, 3.0 * before)


def test_rounds_that_left_out_all_devices_find_one_again():
    """A probe takes at most its drafting and a pass: t = 3.6 s. Each is followed by another within 51 t."""
    slow = tuple(Device(f"d{k}", 0.4 + 0.008 * k, 3.0, 0.85, delay_s=0.003) for k in range(8))
    site = Site(Setup(Scenario(SITE.cell, Verification(2.0, 0.0), slow), Behaviour(frame_bits=176)), "heterogeneous", 1)
    site.run(20)
    for device, good in zip(site.devices, slow, strict=True):
        device.becomes(replace(good, acceptance_rate=0.0))
    site.run(150)
    device = site.devices[0]
    device.becomes(slow[0])
    until_s, accepted = site.queue.now_s + TRIALS["rounds"] * (1.0 + 1.0 / PROBE_SHARE) * 3.6, device.record.accepted
    while device.record.accepted < accepted + 20 and site.queue.now_s < until_s:
        site.run(site.rounds + 1)
    assert device.record.accepted >= accepted + 20
