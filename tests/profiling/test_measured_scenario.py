"""What was measured, as a scenario."""

import pytest

from multispin.control import Verification
from multispin.errors import InputError
from multispin.profiling.scenario import MeasuredDevice, measured_format, measured_scenario

VERIFIER = Verification(0.01, 0.001, 0.0002)
SMALL = MeasuredDevice("small-chat", 0.02, 1.0, 0.9)
LOOKUP = MeasuredDevice("lookup-chat", 0.001, 0.4, None)


def test_each_measured_drafter_is_a_device_and_none_promises_drafts_without_end():
    made = measured_scenario(49152, VERIFIER, [SMALL, LOOKUP], 1e6, 3.0)
    assert (made.cell.bandwidth_hz, made.cell.bits_per_token, made.verifier) == (1e6, 16, VERIFIER)
    assert [device.name for device in made.devices] == ["small-chat", "lookup-chat"]
    assert [device.acceptance_rate for device in made.devices] == [0.9999, 0.4]
    assert [device.modes for device in made.devices] == [(), ()]


def test_a_drafter_with_a_distribution_may_choose_its_rule():
    small, lookup = measured_scenario(49152, VERIFIER, [SMALL, LOOKUP], 1e6, 3.0, modes=True).devices
    assert {mode.name: mode.acceptance_rate for mode in small.modes} == {
        "coupled": 0.9999,
        "rejection": 0.9,
        "rejection-up": 0.9,
    }
    assert small.acceptance_rate is None
    assert (lookup.modes, lookup.acceptance_rate) == ((), 0.4)
    assert measured_format(300).retained == 300


def test_without_a_measured_drafter_there_is_no_scenario():
    with pytest.raises(InputError, match="a scenario needs a drafter whose acceptance was measured"):
        measured_scenario(49152, VERIFIER, [], 1e6, 3.0)
