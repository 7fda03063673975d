"""Who is told what happens at an edge: metrics, logs, a page that shows it. Telling them can never stop the passes."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from multispin.protocol.events import EdgeEvent, Ended

MAX_QUEUED_EVENTS = 1000
"""Events that wait for one subscriber; then the oldest give way."""
MAX_COMPLAINTS = 20
"""The first failures of listeners, this many, are logged; the rest are only counted."""

log = logging.getLogger(__name__)
Listener = Callable[[EdgeEvent], None]


class Subscription:
    """The events of an edge for one reader that takes its time; `async for` gives them.

    Attributes:
        lost: events that gave way because the reader was too slow.

    """

    def __init__(self) -> None:
        self.lost = 0
        self._events: deque[EdgeEvent] = deque()
        self._arrived = asyncio.Event()

    def put(self, event: EdgeEvent) -> None:
        """Add an event; the oldest gives way if `MAX_QUEUED_EVENTS` wait."""
        if len(self._events) >= MAX_QUEUED_EVENTS:
            self._events.popleft()
            self.lost += 1
        self._events.append(event)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[EdgeEvent]:
        while True:
            await self._arrived.wait()
            while self._events:
                yield self._events.popleft()
            self._arrived.clear()


class Audience:
    """Hands every event to all listeners.

    A listener is called on the event loop and must not block. One that raises is told the next event all the same.

    Attributes:
        failures: how often a listener has raised.

    Args:
        listeners: who is told from the start.

    """

    def __init__(self, *listeners: Listener) -> None:
        self.failures = 0
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Tell a further listener everything from now on."""
        self._listeners.append(listener)

    @contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """A queue of all events for as long as a block runs, for a reader such as an HTTP stream."""
        subscription = Subscription()
        self._listeners.append(subscription.put)
        try:
            yield subscription
        finally:
            self._listeners.remove(subscription.put)

    def tell(self, event: EdgeEvent | None) -> None:
        """Tell everybody; None is no event, and nobody is told."""
        if event is None:
            return
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                self.failures += 1
                if self.failures <= MAX_COMPLAINTS:
                    log.exception("somebody could not be told of %s; the passes go on", type(event).__name__)


def log_text(event: EdgeEvent) -> None:
    """A listener: the end of a text is a line of the log."""
    if isinstance(event, Ended):
        log.info(
            *("%s: %d tokens in %.2f s (%s)", event.name, event.tokens, event.seconds, event.finish),
            extra={
                "session": event.session, "device": event.name, "request": event.request or None,
                "finish": event.finish, "prompt_tokens": event.prompt_tokens, "tokens": event.tokens,
                "first_token_s": event.first_token_s, "seconds": event.seconds,
            },
        )  # fmt: skip
