"""The server: the HTTP and WebSocket application around the passes."""

from multispin.edge.audience import Audience, Subscription
from multispin.edge.listening import listening, place_of
from multispin.edge.server import EdgeServer

__all__ = ["Audience", "EdgeServer", "Subscription", "listening", "place_of"]
