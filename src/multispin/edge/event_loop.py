"""Makes the event loop of an edge."""

import asyncio
import sys

SWITCH_S = 0.001
"""Longest time for which a planning thread keeps Python's lock from the loop [s], a fifth of Python's default."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of uvloop if it is installed, else Python's own, in which a frame takes three times as long."""
    sys.setswitchinterval(SWITCH_S)
    try:
        import uvloop
    except ImportError:  # on Windows, or if it is not installed
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
