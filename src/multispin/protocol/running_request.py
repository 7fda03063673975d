"""A request at the edge: the immutable request, and the text that grows under it."""

from collections.abc import Collection, Sequence

from multispin.errors import InputError
from multispin.protocol.messages import Open, longest_draft
from multispin.protocol.request import Request
from multispin.speculation import ID_RULES, Grammars, Matcher, Rule, Score


class ProtocolError(InputError):
    """A device broke the protocol or a limit. `code` is for programs, the message for people.

    `retry_after_s` is the time after which a new try makes sense [s]; 0: unknown.
    """

    def __init__(self, code: str, sentence: str, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after_s = retry_after_s


class RunningRequest:
    """A request whose text is being written.

    Attributes:
        request: request of the device.
        committed: prompt and generated ids; this list alone decides what the text is.
        prompt_tokens: number of ids that the user gave.
        finish: empty while the text goes on, else "stop" or "length".
        rule: acceptance rule of its drafts.
        ids_only: whether the rule is one of `ID_RULES`, under which drafts consist of ids only.
        form: format of distributions under the rejection rules.
        longest_draft: longest draft that fits a frame under its rule [tokens].
        params: sampling parameters, with the stop ids withheld until `min_tokens`.
        stop_ids: ids that end the text.
        matcher: the grammar's matcher after the generated text; None without a grammar.

    Args:
        request: request of the device.
        generated: ids that another edge has generated already.
        vocabulary_size: number of the target's token ids.
        matcher: the grammar's matcher at the beginning of the text; default None: no grammar.

    """

    def __init__(
        self, request: Request, generated: Sequence[int], vocabulary_size: int, matcher: Matcher | None = None
    ) -> None:
        self.request = request
        self.committed = [*request.prompt, *generated]
        self.prompt_tokens = len(request.prompt)
        self._longest = len(request.prompt) + request.max_tokens
        self.stop_ids = frozenset(request.stop_ids)
        self.params = request.effective_params
        self.rule = request.acceptance_rule
        self.ids_only = self.rule in ID_RULES
        self.form = request.form(vocabulary_size)
        self.longest_draft = longest_draft(self.rule, self.form)
        self.finish = ""
        self.matcher = matcher
        if matcher is not None:
            matcher.advance(generated)
        self._scores: list[Score] = []  # of the tokens committed at this edge
        self._scored_from = len(self.committed)
        if generated and generated[-1] in self.stop_ids:
            self.finish = "stop"
        elif len(generated) >= request.max_tokens:
            self.finish = "length"

    @property
    def generated(self) -> int:
        """Number of tokens generated so far."""
        return len(self.committed) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be generated."""
        return self._longest - len(self.committed)

    def scores(self, base: int, end: int) -> tuple[Score, ...]:
        """Log probabilities of the committed tokens from `base` to `end`; empty if not requested."""
        first = max(0, base - self._scored_from)
        return tuple(self._scores[first : max(first, end - self._scored_from)])

    def commit(self, tokens: Sequence[int], scores: Sequence[Score] = ()) -> int:
        """Append tokens, cut after the first stop id or at the token limit; returns how many were kept."""
        left = self.remaining
        kept = list(tokens[:left])
        for index, token in enumerate(kept):
            if token in self.stop_ids:
                kept, self.finish = kept[: index + 1], "stop"
                break
        self.committed += kept
        self._scores += scores[: len(kept)]
        if self.matcher is not None:
            self.matcher.advance(kept)
        if not self.finish and len(kept) == left:
            self.finish = "length"
        return len(kept)


def admit(
    message: Open,
    vocabulary_size: int,
    max_length: int,
    rules: Collection[Rule] = frozenset(Rule),
    lacks: Collection[str] = frozenset(),
    grammars: Grammars | None = None,
) -> RunningRequest:
    """Check a new request; ProtocolError or InputError if this edge cannot serve it.

    Args:
        message: the Open that begins the request.
        vocabulary_size: number of the target's token ids.
        max_length: most prompt and generated tokens of a text at this edge.
        rules: acceptance rules that the engine can apply; default all.
        lacks: `SamplingParams.features` that the engine cannot apply; default none.
        grammars: compiles the grammars of requests; by default, requests with a grammar are refused.

    """
    prompt_tokens = message.prompt_tokens - message.continued
    if message.continued >= min(message.prompt_tokens, message.max_tokens + 1):
        raise ProtocolError("bad-request", f"continued = {message.continued} leaves no prompt or no room")
    if (needed := prompt_tokens + message.max_tokens) > max_length:
        raise ProtocolError(
            "too-long",
            f"{prompt_tokens} prompt tokens and {message.max_tokens} to generate make {needed}, over this edge's "
            f"limit of {max_length}: shorten the prompt or ask for fewer tokens",
        )
    request, generated = Request.from_open(message, vocabulary_size)
    if request.rule not in rules:
        raise ProtocolError(
            "rule",
            f"this edge cannot apply the rule {request.rule}: use {' or '.join(sorted(rules))}",
        )
    if unable := request.params.features & frozenset(lacks):
        raise ProtocolError(
            "unsupported", f"this edge's engine cannot apply {' and '.join(sorted(unable))}: leave it out"
        )
    matcher = None
    if request.params.grammar:
        if grammars is None:
            raise ProtocolError("unsupported", "this edge has no library for grammars: leave the grammar out")
        matcher = grammars.matcher(request.params.grammar)
    return RunningRequest(request, generated, vocabulary_size, matcher)
