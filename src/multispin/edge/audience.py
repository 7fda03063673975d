"""Listeners to what happens at an edge: metrics, logs, the dashboard. A failing listener never stops the passes."""

import logging
from collections.abc import Callable

from multispin.protocol.events import EdgeEvent, Ended

MAX_COMPLAINTS = 20
"""Number of listeners' failures that are logged; further ones are only counted."""

log = logging.getLogger(__name__)
Listener = Callable[[EdgeEvent], None]


class Audience:
    """Hands every event to all listeners.

    A listener is called on the event loop and must not block. One that raises still gets the next event.

    Attributes:
        failures: how often a listener has raised.

    Args:
        listeners: listeners from the start.

    """

    def __init__(self, *listeners: Listener) -> None:
        self.failures = 0
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Send all further events to this listener, too."""
        self._listeners.append(listener)

    def tell(self, event: EdgeEvent | None) -> None:
        """Send an event to every listener; None sends nothing."""
        if event is None:
            return
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                self.failures += 1
                if self.failures <= MAX_COMPLAINTS:
                    log.exception("a listener failed at the event %s; the passes go on", type(event).__name__)


def log_text(event: EdgeEvent) -> None:
    """A listener that logs one line when a text ends."""
    if isinstance(event, Ended):
        log.info(
            *("%s: %d tokens in %.2f s (%s)", event.name, event.tokens, event.seconds, event.finish),
            extra={
                "session": event.session, "device": event.name, "request": event.request or None,
                "finish": event.finish, "prompt_tokens": event.prompt_tokens, "tokens": event.tokens,
                "first_token_s": event.first_token_s, "seconds": event.seconds,
            },
        )  # fmt: skip
