"""The loop without sockets and clocks: seats, planning, batches and settling."""

from multispin.passes.batch import Batch, Job, Limits, RoundReport
from multispin.passes.controller import Controller, ControllerSettings, Member
from multispin.passes.rounds import Edge

__all__ = [
    "Batch",
    "Controller",
    "ControllerSettings",
    "Edge",
    "Job",
    "Limits",
    "Member",
    "RoundReport",
]
