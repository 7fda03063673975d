"""The loop without sockets and clocks: seats, planning, batches and settling."""

from typing import TYPE_CHECKING

from multispin.lazily import lazily

if TYPE_CHECKING:
    from multispin.passes.beliefs import Beliefs, LearnedBeliefs
    from multispin.passes.controller import Controller
    from multispin.passes.limits import EXPIRY_PERIOD_S, Limits
    from multispin.passes.local import LocalDriver
    from multispin.passes.loop import Passes
    from multispin.passes.plans import Member, RoundPlan, SessionPlan
    from multispin.passes.settings import ControllerSettings
    from multispin.passes.steps import Batch, DraftHere, EdgeDraft, Job, RoundReport, Send, Sleep, Step, Verify

__all__ = [
    "EXPIRY_PERIOD_S",
    "Batch",
    "Beliefs",
    "Controller",
    "ControllerSettings",
    "DraftHere",
    "EdgeDraft",
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

__getattr__ = lazily(
    __name__,
    {
        "beliefs": ("Beliefs", "LearnedBeliefs"),
        "controller": ("Controller",),
        "limits": ("EXPIRY_PERIOD_S", "Limits"),
        "local": ("LocalDriver",),
        "loop": ("Passes",),
        "plans": ("Member", "RoundPlan", "SessionPlan"),
        "settings": ("ControllerSettings",),
        "steps": ("Batch", "DraftHere", "EdgeDraft", "Job", "RoundReport", "Send", "Sleep", "Step", "Verify"),
    },
)
