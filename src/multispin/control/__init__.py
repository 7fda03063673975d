"""What should every device do in the next round? Pure mathematics on frozen, validated, SI-unit values."""

from multispin.control.baselines import next_length
from multispin.control.files import dump_scenario, load_scenario, parse_scenario
from multispin.control.policies import (
    POLICIES,
    REACTIVE,
    RUNTIME_POLICIES,
    DevicePlan,
    InfeasibleError,
    Plan,
    plan,
    plan_for_lengths,
)
from multispin.control.scenario import Cell, Device, Mode, Scenario, Verification

__all__ = [
    "POLICIES",
    "REACTIVE",
    "RUNTIME_POLICIES",
    "Cell",
    "Device",
    "DevicePlan",
    "InfeasibleError",
    "Mode",
    "Plan",
    "Scenario",
    "Verification",
    "dump_scenario",
    "load_scenario",
    "next_length",
    "parse_scenario",
    "plan",
    "plan_for_lengths",
]
