"""The text of one request on the device: the prompt, the tokens after it, and the part that is final as words."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from multispin.errors import InputError
from multispin.protocol.progress import Progress
from multispin.protocol.request import Request
from multispin.speculation import Rule, SamplingParams, Score, TextStream


class DeviceText:
    """Prompt, committed ids and words of the present request.

    Attributes:
        request: the present request; None before the first.
        committed: prompt and generated ids.
        words: the final text so far; empty without a tokenizer. An incomplete character or a possible beginning of a
            stop string is added only when it is decided.
        params: the sampling parameters in effect.
        prompt_tokens: length of the present request's prompt.
        rule: acceptance rule of the present request.

    Args:
        decode: function that turns token ids into text with the target's tokenizer; needed for words and stop strings.

    """

    def __init__(self, decode: Callable[[Sequence[int]], str] | None) -> None:
        self.request: Request | None = None
        self.committed: list[int] = []
        self.words = ""
        self.params = SamplingParams()
        self.prompt_tokens = 0
        self.rule = Rule.GREEDY
        self._decode = decode
        self._stream: TextStream | None = None

    @property
    def requested(self) -> Request:
        """The present request; ValueError before the first."""
        if self.request is None:
            raise ValueError("no request has been begun")
        return self.request

    @property
    def generated(self) -> list[int]:
        """The ids that follow the prompt."""
        return self.committed[self.prompt_tokens :]

    @property
    def left(self) -> int:
        """Number of tokens that the text may still get."""
        return self.requested.max_tokens - (len(self.committed) - self.prompt_tokens)

    def begin(self, request: Request) -> None:
        """Begin the text of a request; InputError if it has stop strings and there is no tokenizer."""
        if request.stop_strings and self._decode is None:
            raise InputError("stop strings need a tokenizer on the device: load one, or leave the stop strings out")
        self.request = request
        self.committed, self.params = list(request.prompt), request.effective_params
        self.prompt_tokens, self.rule = len(request.prompt), request.acceptance_rule
        self.words, self._stream = "", None
        if self._decode is not None:
            self._stream = TextStream(self._decode, request.stop_strings, request.min_tokens)

    def take_seed(self, seed: int) -> None:
        """Give a request without a seed the edge's; it keeps this seed at any other edge."""
        request = self.requested
        if request.seed_of_edge:
            request = replace(request, params=replace(request.params, seed=seed), seed_of_edge=False)
            self.request, self.params = request, request.effective_params

    def is_ended_by(self, token: int) -> bool:
        """Whether the text ends with this token, its newest."""
        return self.request is not None and (token in self.request.stop_ids or self.left <= 0)

    def grow(
        self,
        tokens: Sequence[int],
        accepted: int,
        drafted: int,
        finish: str,
        scores: Sequence[Score],
        vocabulary_size: int,
    ) -> Progress:
        """Commit tokens that the edge has sent.

        Args:
            tokens: ids of the tokens.
            accepted: number of first tokens that had been drafted.
            drafted: number of drafted tokens that were verified.
            finish: why the text ends with them, from the edge; empty while it goes on. A stop string may end it sooner.
            scores: their log probabilities, if requested.
            vocabulary_size: number of the target's token ids.

        Raises:
            InputError: the tokens contradict the request or the vocabulary.

        """
        request = self.requested
        known = len(self.committed) - self.prompt_tokens
        if known + len(tokens) > request.max_tokens:
            raise InputError(f"the edge sent more than the {request.max_tokens} tokens that were asked for")
        if tokens and max(tokens) >= vocabulary_size:
            raise InputError(f"the edge sent token {max(tokens)}, which is outside its vocabulary of {vocabulary_size}")
        if finish not in ("", "stop", "length"):
            raise InputError(f"the edge ended the text for the unknown reason {finish!r}")
        if len(scores) != (len(tokens) if request.params.logprobs is not None else 0):
            raise InputError(f"the edge sent {len(scores)} log probabilities for {len(tokens)} tokens")
        self.committed += tokens
        new = ""
        if (stream := self._stream) is not None:
            new = stream.push(tokens)
            if stream.stopped:
                finish, tokens = "stop", tokens[: stream.tokens - known]
                del self.committed[self.prompt_tokens + stream.tokens :]
            new += stream.end() if finish else ""
            self.words += new
        kept = len(tokens)
        return Progress(tuple(tokens), min(accepted, kept), drafted, finish, new, scores=tuple(scores[:kept]))
