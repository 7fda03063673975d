"""The event loop of an edge."""

import asyncio
import sys

SWITCH_S = 0.001
"""A thread that plans gives Python's lock back to the loop after this long [s]; Python's default is five times that."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop of uvloop where that is installed, else Python's own; with uvloop a frame costs an edge a third."""
    sys.setswitchinterval(SWITCH_S)
    try:
        import uvloop
    except ImportError:  # Windows, or a small installation
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
