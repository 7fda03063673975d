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
from multispin.control.scenario import Cell, Device, EdgeDrafter, Mode, Scenario, Verification
from multispin.control.who import Choice, Decision, decide

__all__ = [
    "POLICIES",
    "REACTIVE",
    "RUNTIME_POLICIES",
    "Cell",
    "Choice",
    "Decision",
    "Device",
    "DevicePlan",
    "EdgeDrafter",
    "InfeasibleError",
    "Mode",
    "Plan",
    "Scenario",
    "Verification",
    "decide",
    "dump_scenario",
    "load_scenario",
    "next_length",
    "parse_scenario",
    "plan",
    "plan_for_lengths",
]
