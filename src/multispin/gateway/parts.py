"""One text on its way to a client: its final parts, with tool calls and log probabilities."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from multispin.gateway.logprobs import Scored
from multispin.gateway.source import Piece as SourcePiece
from multispin.gateway.source import TextSource, Words
from multispin.gateway.tools import Call, CallReader
from multispin.protocol import Request
from multispin.speculation.text import TextStream


class Part(NamedTuple):
    """A part of a text that became final.

    Attributes:
        text: plain text.
        calls: parts of tool calls.
        tokens: tokens with their log probabilities, if requested; tokens that end the text are left out.
        finish: "stop", "length" or "tool_calls" with the last part, else empty.
        drafted: drafter of the text's tokens, "device" or "edge", if they were accepted drafts; else empty.

    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    tokens: tuple[Scored, ...] = ()
    finish: str = ""
    drafted: str = ""


async def parts_of(
    source: TextSource,
    words: Words,
    request: Request,
    count: Callable[[SourcePiece], None],
    with_tools: bool = False,
    split: bool = False,
) -> AsyncGenerator[Part, None]:
    """Write one text, and yield it as it becomes final. Closing the iterator ends the session.

    Args:
        source: source of the text.
        words: turns token ids into text.
        request: request of the client.
        count: function that is called with each pass's piece.
        with_tools: whether to read tool calls from the text; default no.
        split: whether text of accepted drafts comes in parts of its own; default no.
    """
    stream = TextStream(words.decode, request.stop_strings, request.min_tokens)
    reader = CallReader() if with_tools else None
    async with aclosing(source.write(request)) as pieces:
        async for piece in pieces:
            count(piece)
            scored = _scored(piece, request)
            if split and piece.accepted:
                drafted = stream.push(piece.tokens[: piece.accepted])
                yield _part(reader, drafted, scored[: piece.accepted], drafted=piece.drafter)
                new, scored = stream.push(piece.tokens[piece.accepted :]), scored[piece.accepted :]
            else:
                new = stream.push(piece.tokens)
            if piece.finish:
                new += stream.end()
            yield _part(reader, new, scored, piece.finish)


def _scored(piece: SourcePiece, request: Request) -> tuple[Scored, ...]:
    """The tokens of a piece with their scores; an id that ends the text has no text and is left out."""
    tokens = tuple(map(Scored, piece.tokens, piece.scores))
    ends = piece.finish == "stop" and tokens and tokens[-1].token in request.stop_ids
    return tokens[:-1] if ends else tokens


def _part(
    reader: CallReader | None, text: str, tokens: tuple[Scored, ...], finish: str = "", drafted: str = ""
) -> Part:
    if reader is None:
        return Part(text, (), tokens, finish, drafted)
    plain, calls = reader.push(text)
    if finish:
        plain += reader.end()
        finish = "tool_calls" if reader.calls and not reader.cut and finish == "stop" else finish
    return Part(plain, tuple(calls), tokens, finish, drafted)
