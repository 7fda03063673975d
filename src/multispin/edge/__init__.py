"""The server: the HTTP and WebSocket application around the passes."""

from multispin.edge.access import CALLER, Access, Caller, TokenExpiredError, bearer
from multispin.edge.audience import Audience
from multispin.edge.event_loop import new_event_loop
from multispin.edge.gate import Gate
from multispin.edge.listening import check_free, listening, place_of
from multispin.edge.server import EdgeServer, alive
from multispin.edge.tls import Certificate
from multispin.edge.tokens import TokenFile

__all__ = [
    "CALLER",
    "Access",
    "Audience",
    "Caller",
    "Certificate",
    "EdgeServer",
    "Gate",
    "TokenExpiredError",
    "TokenFile",
    "alive",
    "bearer",
    "check_free",
    "listening",
    "new_event_loop",
    "place_of",
]
