"""The request for one text, as a frozen value that both ends hold.

A device makes it from its user's options; the edge reads it back from an `Open`. Both conversions stand here, so that a
new field has one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from multispin.errors import InputError
from multispin.protocol.limits import MAX_RETAINED, MAX_STOP_IDS
from multispin.protocol.messages import Open
from multispin.speculation import (
    DistributionFormat,
    Rule,
    SamplingParams,
    check_stop_strings,
    pack_ids,
    rule_for,
    unpack_ids,
)
from multispin.speculation.rule import MAX_PROBABILITY_BITS

MAX_REQUEST_TOKENS = 2**20
"""Most prompt tokens, and most tokens to generate, in a message."""


@dataclass(frozen=True)
class Request:
    """One prompt, and how its text is to be generated.

    Attributes:
        prompt: token ids, at least one.
        params: sampling parameters of the text.
        max_tokens: most tokens to generate, 1 … 2^20.
        min_tokens: neither a stop id nor a stop string ends the text before this many tokens; default 0.
        stop_ids: token ids that end the text and stay in it; default none.
        stop_strings: strings; the text ends before the first that occurs; default none. The device looks for them,
            since it has the tokenizer; they are not sent.
        rule: acceptance rule; default `greedy` at temperature 0 and `coupled` above. Never None after creation.
        seed_of_edge: whether the edge's default seed replaces the seed of `params`; default no.
        retained: V̂, most tokens of a distribution on the wire under the rejection rules; default 1024.
        probability_bits: Q_B, bits of a probability on the wire under the rejection rules; default 16.

    """

    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    rule: Rule | None = None
    seed_of_edge: bool = False
    retained: int = 1024
    probability_bits: int = 16

    def __post_init__(self) -> None:
        for name in ("prompt", "stop_ids", "stop_strings"):  # any sequence is accepted
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check("prompt tokens", len(self.prompt), 1, MAX_REQUEST_TOKENS)
        _check("max_tokens", self.max_tokens, 1, MAX_REQUEST_TOKENS)
        _check("min_tokens", self.min_tokens, 0, MAX_REQUEST_TOKENS)
        _check("stop ids", len(self.stop_ids), 0, MAX_STOP_IDS)
        _check("retained", self.retained, 1, MAX_RETAINED)
        _check("probability_bits", self.probability_bits, 2, MAX_PROBABILITY_BITS)
        if min(self.prompt) < 0 or min(self.stop_ids, default=0) < 0:
            raise InputError("the prompt or the stop ids have a negative token id")
        check_stop_strings(self.stop_strings)
        if self.params.grammar and (self.min_tokens or not self.stop_ids):
            raise InputError("a grammar ends the text by a stop id: give stop ids, and no min_tokens")
        object.__setattr__(self, "rule", rule_for(self.params, self.rule))

    @property
    def acceptance_rule(self) -> Rule:
        """The acceptance rule; never None."""
        assert self.rule is not None
        return self.rule

    @cached_property
    def effective_params(self) -> SamplingParams:
        """The sampling parameters with the stop ids withheld until `min_tokens`."""
        return self.params.with_min_tokens(self.stop_ids, len(self.prompt), self.min_tokens)

    def form(self, vocabulary_size: int) -> DistributionFormat:
        """Format of this request's distributions on the wire; the target's vocabulary bounds what they keep."""
        return DistributionFormat(vocabulary_size, min(self.retained, vocabulary_size), self.probability_bits)

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """InputError if an id of the prompt, a bias or a stop is outside 0 … vocabulary_size − 1."""
        largest = max(self.prompt)
        if largest >= vocabulary_size:
            raise InputError(f"token {largest} of the prompt is outside the target's 0 … {vocabulary_size - 1}")
        self.effective_params.check_vocabulary(vocabulary_size)

    def to_open(self, session: int, generated: Sequence[int], vocabulary_size: int) -> Open:
        """The message that opens this request at an edge, with the ids that another edge has generated already."""
        params, committed = self.params, [*self.prompt, *generated]
        return Open(
            session,
            pack_ids(committed, vocabulary_size),
            len(committed),
            self.max_tokens,
            params.temperature,
            params.top_k,
            params.top_p,
            params.seed,
            self.stop_ids,
            len(generated),
            self.rule,
            self.retained,
            self.probability_bits,
            self.min_tokens,
            params.logit_bias,
            params.min_p,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
            params.grammar,
            params.logprobs,
        )

    @staticmethod
    def from_open(message: Open, vocabulary_size: int) -> "tuple[Request, list[int]]":
        """The request of an Open, and the ids that were generated already; InputError if it is contradictory."""
        committed = unpack_ids(message.prompt, message.prompt_tokens, vocabulary_size)
        prompt_tokens = message.prompt_tokens - message.continued
        if prompt_tokens < 1 or message.continued > message.max_tokens:
            raise InputError(f"continued = {message.continued} leaves no prompt or no room for more tokens")
        params = SamplingParams(
            message.temperature,
            message.top_k,
            message.top_p,
            message.seed,
            message.logit_bias,
            min_p=message.min_p,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            repetition_penalty=message.repetition_penalty,
            grammar=message.grammar,
            logprobs=message.logprobs,
        )
        request = Request(
            tuple(committed[:prompt_tokens]),
            params,
            message.max_tokens,
            message.min_tokens,
            message.stop_ids,
            rule=message.rule,
            retained=message.retained,
            probability_bits=message.probability_bits,
        )
        request.effective_params.check_vocabulary(vocabulary_size)
        return request, committed[prompt_tokens:]


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} = {value} is outside {least} … {most}")
