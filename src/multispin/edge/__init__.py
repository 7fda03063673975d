"""The server: the round loop, admission, and the HTTP and WebSocket application around them."""

from multispin.edge.batch import Batch, Job, Limits, RoundReport
from multispin.edge.controller import Controller, ControllerSettings, Member
from multispin.edge.rounds import Edge
from multispin.edge.server import EdgeServer

__all__ = [
    "Batch",
    "Controller",
    "ControllerSettings",
    "Edge",
    "EdgeServer",
    "Job",
    "Limits",
    "Member",
    "RoundReport",
]
