"""Log probabilities in OpenAI's documents: of a chat, of a completion, and of `/v1/responses`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from multispin.speculation import Score


class Scored(NamedTuple):
    """A generated token with its log probabilities.

    Attributes:
        token: id of the token.
        score: its log probability, and those of the likeliest tokens at its position.

    """

    token: int
    score: Score


def chat_logprobs(tokens: Sequence[Scored], bytes_of: Callable[[int], bytes]) -> dict[str, Any]:
    """The document under `logprobs` of a chat's choice."""
    return {"content": response_logprobs(tokens, bytes_of), "refusal": None}


def response_logprobs(tokens: Sequence[Scored], bytes_of: Callable[[int], bytes]) -> list[dict[str, Any]]:
    """A list with one entry per token."""
    return [
        {
            **_entry(each.token, each.score.logprob, bytes_of),
            "top_logprobs": [_entry(token, logprob, bytes_of) for token, logprob in each.score.top],
        }
        for each in tokens
    ]


def completion_logprobs(
    tokens: Sequence[Scored], bytes_of: Callable[[int], bytes], offset: int, most: int
) -> dict[str, Any]:
    """The document under `logprobs` of a completion's choice.

    Args:
        tokens: generated tokens with their scores.
        bytes_of: function that gives the bytes of a token's text.
        offset: number of characters of the text before the tokens.
        most: number of alternatives that were asked for; the token itself is always among them.
    """
    texts = [bytes_of(each.token).decode(errors="replace") for each in tokens]
    offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    tops = [
        {bytes_of(token).decode(errors="replace"): logprob for token, logprob in [own(each), *each.score.top[::-1]]}
        for each in tokens
    ]  # tokens with the same text, such as parts of characters, share an entry; the likeliest is shown
    return {
        "text_offset": offsets,
        "token_logprobs": [each.score.logprob for each in tokens],
        "tokens": texts,
        "top_logprobs": tops if most else None,
    }


def own(scored: Scored) -> tuple[int, float]:
    """A token's id and its log probability."""
    return scored.token, scored.score.logprob


def _entry(token: int, logprob: float, bytes_of: Callable[[int], bytes]) -> dict[str, Any]:
    raw = bytes_of(token)
    return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
