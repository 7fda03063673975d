"""Hands on what arrives over one connection, so that one peer cannot occupy the event loop.

A peer may send a megabyte in pieces of one byte: chunks of a body, empty WebSocket frames, TCP segments. Each piece
costs as much as a message. So pieces are handed on for a short time, then the other connections have their turn. A
connection that takes more than its share of the loop's time is not read for a while. Nothing is lost: what comes
meanwhile waits in the system's buffer, where tiny segments become one.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

PORTION_BYTES = 1024
"""Size of the first portion that is handed on [bytes]. While portions are cheap, each is twice as large as the last."""
AT_ONCE_S = 0.002
"""Longest time for which arrived data is handed on without a break, unless one portion takes longer [s]."""
CONNECTION_SHARE = 0.1
"""Largest share of the loop's time that one connection may take in the long run."""
BURST_S = 0.05
"""Time that one connection may take at once [s]."""
READ_S, REQUEST_S = 5e-5, 3e-4
"""Additional cost of a read of the socket, and of an HTTP request [s]."""
MAX_KEPT_BYTES = 2**20
"""Most data that is kept for later [bytes]. A connection that brings more ends."""


class Arriving:
    """Hands on what arrives over one connection.

    Args:
        inner: takes what has arrived.
        clock: returns the time [s]; default `time.perf_counter`.

    """

    def __init__(self, inner: asyncio.Protocol, clock: Callable[[], float] = perf_counter) -> None:
        self._inner, self._clock = inner, clock
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None  # runs while reading is paused
        self._kept = b""  # handed on when the pause ends
        self._debt_s, self._at_s = 0.0, 0.0  # time taken beyond its share; when that was computed

    def over(self, transport: asyncio.Transport) -> None:
        """Use this transport, now that the connection is made."""
        self._transport = transport

    def charge(self, seconds: float) -> None:
        """Count time that was spent on what has arrived [s]."""
        self._debt_s += seconds

    def take(self, data: bytes) -> None:
        """Take arrived data: hand it on now or after the pause."""
        if self._timer is None:
            self._hand_on(data)
            return
        self._kept += data  # the server resumed reading by itself, after a pause of its own
        if self._transport is not None:
            self._transport.pause_reading()
            if len(self._kept) > MAX_KEPT_BYTES:
                self._transport.abort()

    def end(self) -> None:
        """Nothing more arrives: hand on what is left."""
        self.drop()
        kept, self._kept = self._kept, b""
        if kept:
            self._inner.data_received(kept)

    def drop(self) -> None:
        """The connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_on(self, data: bytes) -> None:
        now_s = began_s = self._clock()
        done, size = 0, PORTION_BYTES
        while done < len(data) and now_s - began_s < AT_ONCE_S:
            self._inner.data_received(data[done : done + size])
            done, size, now_s = done + size, 2 * size, self._clock()
        self._kept = data[done:]
        owed_s = max(0.0, self._debt_s - CONNECTION_SHARE * (began_s - self._at_s))
        self._debt_s, self._at_s = owed_s + now_s - began_s + READ_S, now_s
        if (self._kept or self._debt_s > BURST_S) and self._transport is not None:
            self._transport.pause_reading()
            wait_s = max(0.0, self._debt_s - BURST_S) / CONNECTION_SHARE
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._kept:
            self._hand_on(self._kept)
        if self._timer is None and not self._full:
            self._transport.resume_reading()

    @property
    def _full(self) -> bool:
        """Whether the server has paused reading because its buffer is full. It resumes by itself."""
        return any(getattr(self._inner, name, False) for name in ("_reading_paused", "_buffer_paused"))
