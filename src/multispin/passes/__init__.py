"""The loop without sockets and clocks: seats, planning, batches and settling."""

from multispin.passes.beliefs import Beliefs, LearnedBeliefs
from multispin.passes.controller import Controller, ControllerSettings, Member, RoundPlan, SessionPlan
from multispin.passes.limits import EXPIRY_PERIOD_S, Limits
from multispin.passes.local import LocalDriver
from multispin.passes.loop import Passes
from multispin.passes.steps import Batch, Job, RoundReport, Send, Sleep, Step, Verify

__all__ = [
    "EXPIRY_PERIOD_S",
    "Batch",
    "Beliefs",
    "Controller",
    "ControllerSettings",
    "Job",
    "LearnedBeliefs",
    "Limits",
    "LocalDriver",
    "Member",
    "Passes",
    "RoundPlan",
    "RoundReport",
    "Send",
    "SessionPlan",
    "Sleep",
    "Step",
    "Verify",
]
