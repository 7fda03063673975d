"""Plans for every device's next round. Pure mathematics on frozen, validated values in SI units."""

from typing import TYPE_CHECKING

from multispin.lazily import lazily

if TYPE_CHECKING:
    from multispin.control.baselines import next_length
    from multispin.control.files import dump_scenario, load_scenario, parse_scenario
    from multispin.control.plans import DevicePlan, InfeasibleError, Plan
    from multispin.control.policies import (
        POLICIES,
        POLICY_TABLE,
        REACTIVE,
        RUNTIME_POLICIES,
        WITHOUT_DEVICES,
        Policy,
        plan,
        plan_for_lengths,
        policy_named,
    )
    from multispin.control.scenario import Cell, Device, EdgeDrafter, Mode, Scenario, Verification
    from multispin.control.who import Choice, Decision, decide

__all__ = [
    "POLICIES",
    "POLICY_TABLE",
    "REACTIVE",
    "RUNTIME_POLICIES",
    "WITHOUT_DEVICES",
    "Cell",
    "Choice",
    "Decision",
    "Device",
    "DevicePlan",
    "EdgeDrafter",
    "InfeasibleError",
    "Mode",
    "Plan",
    "Policy",
    "Scenario",
    "Verification",
    "decide",
    "dump_scenario",
    "load_scenario",
    "next_length",
    "parse_scenario",
    "plan",
    "plan_for_lengths",
    "policy_named",
]

__getattr__ = lazily(
    __name__,
    {
        "baselines": ("next_length",),
        "files": ("dump_scenario", "load_scenario", "parse_scenario"),
        "plans": ("DevicePlan", "InfeasibleError", "Plan"),
        "policies": (
            "POLICIES",
            "POLICY_TABLE",
            "REACTIVE",
            "RUNTIME_POLICIES",
            "WITHOUT_DEVICES",
            "Policy",
            "plan",
            "plan_for_lengths",
            "policy_named",
        ),
        "scenario": ("Cell", "Device", "EdgeDrafter", "Mode", "Scenario", "Verification"),
        "who": ("Choice", "Decision", "decide"),
    },
)
