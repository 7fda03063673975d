"""Who is told what happens at an edge: metrics, logs, a page that shows it. Telling them can never stop the passes."""

import logging
from collections.abc import Callable

from multispin.protocol.events import EdgeEvent, Ended

MAX_COMPLAINTS = 20
"""The first failures of listeners, this many, are logged; the rest are only counted."""

log = logging.getLogger(__name__)
Listener = Callable[[EdgeEvent], None]


class Audience:
    """Hands every event to all listeners.

    A listener is called on the event loop and must not block. One that raises is told the next event all the same.

    Attributes:
        failures: how often a listener has raised.

    Args:
        listeners: listeners from the start.

    """

    def __init__(self, *listeners: Listener) -> None:
        self.failures = 0
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Tell a further listener everything from now on."""
        self._listeners.append(listener)

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
