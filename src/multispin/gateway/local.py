"""Sessions inside the edge, for HTTP clients without a drafter.

They use the same protocol as devices, over queues instead of sockets. So limits, fairness, resuming and the passes
treat them like everybody else.
"""

import asyncio
from collections.abc import Callable, Sequence

from multispin.device import DeviceClient, Patience
from multispin.device.link import LinkLostError, MemoryEnd, MemoryLink
from multispin.device.retry import MAX_PATIENCE_S
from multispin.edge import CALLER, EdgeServer
from multispin.edge.access import origin_of_caller
from multispin.gateway.clients import MAX_UNREAD_TOKENS, SessionPool
from multispin.gateway.draft_history import DraftHistory
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Progress
from multispin.speculation import NoDrafter

NAME = "http"
"""Name of every HTTP client's session."""
_PATIENCE = Patience(0.0, 0.0, silence_s=MAX_PATIENCE_S, greeting_s=MAX_PATIENCE_S)
"""The edge is this process: it cannot be away, and if it is silent, it is working."""
_PROFILE = Profile(seconds_per_token=1.0, spectral_efficiency=1.0)  # nobody drafts and nothing goes over the air


class _EndWire:
    """The edge's end of a connection inside this process, as the edge's `Wire`."""

    address = ""

    def __init__(self, end: MemoryEnd) -> None:
        self._end = end

    async def receive(self) -> bytes | None:
        try:
            return await self._end.receive()
        except LinkLostError:
            return None

    def send_now(self, frame: bytes) -> bool:
        try:
            return self._end.send_now(frame)
        except LinkLostError as error:
            raise ConnectionResetError(str(error)) from None

    async def send(self, frame: bytes) -> None:
        try:
            await self._end.send(frame)
        except LinkLostError as error:
            raise ConnectionResetError(str(error)) from None

    async def close(self, edge_stops: bool = False, floods: bool = False) -> None:
        await self._end.close()


def local_sessions(
    server: EdgeServer,
    fingerprint: str,
    decode: Callable[[Sequence[int]], str],
    size: int,
    max_length: int,
    max_unread_tokens: int = MAX_UNREAD_TOKENS,
    most_of_one: int | None = None,
) -> SessionPool:
    """A `TextSource` over sessions inside the edge's own process.

    A session belongs to the caller whose request asks for the text (`guard`).

    Args:
        server: server of the edge.
        fingerprint: fingerprint of the target's tokenizer.
        decode: function that turns token ids into text.
        size: most texts that are written at once; further requests wait for their turn.
        max_length: most tokens of a text, prompt included.
        max_unread_tokens: most tokens that wait for readers, of all texts together; default `MAX_UNREAD_TOKENS`.
        most_of_one: most texts of one token, or of one address, that are written at once; default all.
    """
    talks: set[asyncio.Task[None]] = set()

    def accept(_: str, end: MemoryEnd) -> None:
        talk = asyncio.create_task(server.converse(_EndWire(end), CALLER.get()))
        talks.add(talk)
        talk.add_done_callback(talks.discard)

    def make(on_progress: Callable[[Progress], None]) -> DeviceClient:
        hello = Hello(PROTOCOL_VERSION, fingerprint, NAME, "none", False, _PROFILE)
        return DeviceClient(
            "memory:", hello, NoDrafter(), on_progress=on_progress, decode=decode, link=MemoryLink(accept),
            patience=_PATIENCE,
        )  # fmt: skip

    drafts = DraftHistory(NAME)
    server.audience.add(drafts.tell)
    return SessionPool(make, size, max_length, drafts.pieces, max_unread_tokens, most_of_one, origin_of_caller)
