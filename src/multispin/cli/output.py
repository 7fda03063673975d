"""Output of a server, written by a thread, so that a slow or absent reader cannot hold up the work.

A terminal that is stopped with Ctrl-S, a pipe that nobody reads or a full disk lose lines, which are counted. They
never delay a pass.
"""

import contextlib
import json
import logging
import os
import queue
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from multispin.outside import one_line

MAX_LINES = 10_000
"""Most lines that wait to be written; further ones are dropped and counted."""
MAX_CHARACTERS = 8192
"""Longest line of a log [characters]."""
FLUSH_TIMEOUT_S = 2.0
"""Time that a server waits for its last lines when it ends [s]."""

FIELDS = ("session", "device", "request", "finish", "prompt_tokens", "tokens", "first_token_s", "seconds")
"""Fields of `extra` that a log line may have beside its message."""
DIGITS = 4
"""Decimals of a number in a log line: a tenth of a millisecond for a time in seconds."""


class Output:
    """A stream behind a bounded queue.

    Attributes:
        dropped: lines that were not written.

    Args:
        stream: stream for the lines; None if it was closed when the program began: then all lines are dropped.
        max_lines: most lines that wait to be written; default `MAX_LINES`.
        flush_timeout_s: longest time that `close` waits for the last lines [s]; default `FLUSH_TIMEOUT_S`.

    """

    def __init__(
        self, stream: TextIO | None, max_lines: int = MAX_LINES, flush_timeout_s: float = FLUSH_TIMEOUT_S
    ) -> None:
        self.dropped = 0
        self._stream, self._flush_timeout_s = stream, flush_timeout_s
        self._lines: queue.Queue[str | None] = queue.Queue(max_lines)
        self._done = threading.Event()
        threading.Thread(target=self._work, name="output", daemon=True).start()

    @property
    def watched(self) -> bool:
        """Whether the stream is a terminal, which somebody may watch."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it was closed meanwhile
            return False

    def line(self, text: str) -> None:
        """Queue a line, without waiting until it is written."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write the queued lines, for at most `flush_timeout_s`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=self._flush_timeout_s)
        self._done.wait(self._flush_timeout_s)

    def _work(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(f"{line}\n")
            except (OSError, ValueError):  # nobody reads, no space is left, or the stream is closed
                self.dropped += 1
        self._done.set()

    def _write(self, text: str) -> None:
        """Write past the stream's own buffer if possible: a blocked thread would hold the buffer's lock at exit."""
        if self._stream is None:
            raise ValueError("the stream was closed when the program began")
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._stream.write(text)
            self._stream.flush()
            return
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        while data:
            data = data[os.write(descriptor, data) :]


class OutputHandler(logging.Handler):
    """Writes log messages as lines of text or JSON to an `Output`.

    Args:
        output: output for the lines.
        as_json: whether a line is a JSON object.

    """

    def __init__(self, output: Output, as_json: bool) -> None:
        super().__init__()
        self._output, self._as_json = output, as_json

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a message; one that cannot be formatted is counted as dropped."""
        try:
            self._output.line(self._line(record))
        except Exception:
            self._output.dropped += 1

    def _line(self, record: logging.LogRecord) -> str:
        message = record.getMessage()[:MAX_CHARACTERS]
        if record.exc_info and record.exc_info[0] is not None:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        if not self._as_json:
            if record.exc_info:  # a traceback keeps its lines
                return "\n".join(map(one_line, f"multispin: {message}"[:MAX_CHARACTERS].split("\n")))
            return one_line(f"multispin: {message}")[:MAX_CHARACTERS]
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message[:MAX_CHARACTERS],
        }
        for name in FIELDS:
            if (value := getattr(record, name, None)) is not None:
                said[name] = _shown(value)
        return json.dumps(said)  # ASCII, so without control characters for a terminal


def _shown(value: Any) -> Any:
    """A field's value as it stands in a log line."""
    if isinstance(value, float):
        return round(value, DIGITS)
    return value[:200] if isinstance(value, str) else value
