"""The event loop of an edge."""

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop of uvloop where that is installed, else Python's own; with uvloop a frame costs an edge a third."""
    try:
        import uvloop
    except ImportError:  # Windows, or a small installation
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
