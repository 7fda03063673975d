"""The device: its client, the links that carry its messages, and how it reconnects."""

from multispin.device.address import session_url
from multispin.device.client import Counters, DeviceClient, EdgeAwayError, Emulation, Outage
from multispin.device.link import (
    DelayedLink,
    Link,
    LinkLostError,
    MemoryEnd,
    MemoryLink,
    ShapedLink,
    UntrustedError,
    WebSocketLink,
    memory_pair,
)
from multispin.device.retry import Patience, Retries
from multispin.device.silence import Silence, Why
from multispin.device.trust import trusting

__all__ = [
    "Counters",
    "DelayedLink",
    "DeviceClient",
    "EdgeAwayError",
    "Emulation",
    "Link",
    "LinkLostError",
    "MemoryEnd",
    "MemoryLink",
    "Outage",
    "Patience",
    "Retries",
    "ShapedLink",
    "Silence",
    "UntrustedError",
    "WebSocketLink",
    "Why",
    "memory_pair",
    "session_url",
    "trusting",
]
