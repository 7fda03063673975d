"""The bodies of the OpenAI-compatible requests, checked field by field.

There are three kinds of fields. A supported field stands in a structure below. A field that would change the text but
is not supported (`REFUSED`) is refused by name, unless its value changes nothing. Any other field is ignored, as the
large servers do, so that clients' bookkeeping fields do no harm.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from multispin.errors import InputError
from multispin.gateway.formats import schema_of_format
from multispin.gateway.messages import Message, plain_conversation, template_variables
from multispin.gateway.refusals import BadRequestError, named
from multispin.gateway.tools import ToolUse, read_tools
from multispin.outside import check_keys
from multispin.protocol.limits import MAX_STOP_IDS
from multispin.speculation import MAX_LOGPROBS, SamplingParams
from multispin.speculation.sampling import MAX_BIASES, MIN_TEMPERATURE
from multispin.speculation.stopping import check_stop_strings

MAX_BODY_BYTES = 2 * 2**20
"""Largest request body [bytes]."""
MAX_CHOICES = 16
"""Most texts that one request may ask for (`n`)."""
RANDOM_SEED = -1
"""The seed that means "any", for clients that always send one, as in vLLM."""
SEED_COUNT = 2**63
"""Negative seeds are taken modulo this."""
_ID = re.compile(r"[0-9]{1,10}")  # `int` would take "1_0" and " ٥" too
_ENDS = "cannot be combined with a response format or tools, since these decide where the text ends"
DEFAULT_COMPLETION_TOKENS = 16
"""Tokens that `/v1/completions` generates if the client sends no limit, as in OpenAI's API."""

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "prompt_logprobs": (None,),
    "length_penalty": (None, 1, 1.0),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "use_beam_search": (None, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "prompt_embeds": (None,),
    "echo_prompt": (None, False),
    "continue_final_message": (None, False),
    "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "chat_template": (None,),
    "documents": (None, []),
    "logits_processors": (None, []),
    "thinking_token_budget": (None,),
    "web_search_options": (None,),
}
"""Unsupported fields that would change the text or the answer, with the values that change nothing."""


NOT_OF_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
}
"""Fields of chats that `/v1/completions` refuses."""


class StreamOptions(Struct, frozen=True):
    """Options of a streamed answer.

    Attributes:
        include_usage: whether an event with the usage follows the text.
        continuous_usage_stats: with `include_usage`, whether every event has the usage so far.

    """

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(Struct, frozen=True, kw_only=True):
    """The fields that chats and completions share.

    Attributes:
        model: name of the model; must be the one that is served.
        temperature: default 1; 0 and values near it mean greedy decoding.
        top_p, top_k: truncation of the distribution; top_k 0 or −1 keeps all tokens.
        min_p: only tokens with at least this share of the likeliest token's probability are kept.
        presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once or per occurrence.
        repetition_penalty: divides the logits of tokens of prompt and text.
        seed: seed of the text's noise, −2^63 … 2^63 − 1; if left out or −1, it is drawn at random.
        max_tokens: most tokens to generate.
        min_tokens: least tokens before a stop may end the text.
        stop: one or several strings; the text ends before the first that occurs.
        stop_token_ids: further token ids that end the text.
        ignore_eos: whether the text goes on after the model's own end tokens.
        logit_bias: number to add to the logit, by token id.
        n: number of texts to write.
        stream: whether the text is sent while it is written.
        response_format: form of the text: text, a JSON object, or JSON that fits a schema.
        mark_drafted: whether a stream marks the text of accepted drafts, in the field `drafted` of a chunk's choice.
        add_special_tokens: whether the tokenizer adds its special tokens, such as the one that begins a text, to the
            prompt; default yes for plain prompts, no for chats, whose template writes them.

    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    mark_drafted: bool | None = None
    add_special_tokens: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    prompt_field: ClassVar[str] = "messages"
    form_field: ClassVar[str] = "response_format"

    @property
    def limit_field(self) -> str:
        """Name of the field that limits the generated tokens."""
        return "max_tokens"

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with its usage; BadRequestError for stream options without a stream."""
        if self.stream_options is not None and not self.stream:
            raise BadRequestError("stream_options needs stream = true", "stream_options")
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def choices(self) -> int:
        """Number of texts; BadRequestError if it is out of range."""
        count = 1 if self.n is None else self.n
        if not 1 <= count <= MAX_CHOICES:
            raise BadRequestError(f"n = {count} is outside 1 … {MAX_CHOICES}", "n")
        return count

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings; BadRequestError if there are too many, or one is empty or too long."""
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        named(lambda: check_stop_strings(found), "stop")
        return found

    def stop_ids(self, of_model: Sequence[int]) -> tuple[int, ...]:
        """Ids that end the text: the request's, and the model's own unless they are ignored."""
        ids = tuple(dict.fromkeys((*(() if self.ignore_eos else of_model), *(self.stop_token_ids or ()))))
        if len(ids) > MAX_STOP_IDS:
            raise BadRequestError(f"{len(ids)} stop ids exceed the limit of {MAX_STOP_IDS}", "stop_token_ids")
        return ids

    @property
    def reported(self) -> int | None:
        """Number of alternatives per token with log probabilities; None: no log probabilities."""
        return None

    def form_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the text must fit; None for any text."""
        return named(lambda: schema_of_format(self.response_format), self.form_field)

    def params(self, seed: int, grammar: str = "") -> SamplingParams:
        """The sampling parameters; BadRequestError names the field that is out of range.

        Args:
            seed: seed for a request that has none, drawn at random.
            grammar: grammar of the text; default empty: any text.
        """
        if grammar and self.min_tokens:
            raise BadRequestError(f"min_tokens {_ENDS}", "min_tokens")
        if grammar and self.ignore_eos:
            raise BadRequestError(f"ignore_eos {_ENDS}", "ignore_eos")
        temperature = 1.0 if self.temperature is None else self.temperature
        return named(
            lambda: SamplingParams(
                temperature=0.0 if 0.0 < temperature < MIN_TEMPERATURE else temperature,
                top_k=0 if self.top_k in (None, -1) else self.top_k,
                top_p=1.0 if self.top_p is None else self.top_p,
                seed=self._seed(seed),
                logit_bias=self._biases(),
                min_p=self.min_p or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
                grammar=grammar,
                logprobs=self.reported,
            )
        )

    def _seed(self, drawn: int) -> int:
        given = drawn if self.seed is None or self.seed == RANDOM_SEED else self.seed
        if not -SEED_COUNT <= given < SEED_COUNT:
            raise BadRequestError(f"seed = {_short(given)} is outside −2^63 … 2^63 − 1", "seed")
        return given % SEED_COUNT

    def _biases(self) -> tuple[tuple[int, float], ...]:
        given = self.logit_bias or {}
        if len(given) > MAX_BIASES:
            raise BadRequestError(f"logit_bias has {len(given)} ids; the limit is {MAX_BIASES}", "logit_bias")
        for token in given:
            if not _ID.fullmatch(token):
                raise BadRequestError(f"logit_bias has the key {_short(token)}, which is not a token id", "logit_bias")
        return tuple((int(token), bias) for token, bias in given.items())


class ChatBody(Sampling, frozen=True, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @property
    def reported(self) -> int | None:
        """`top_logprobs` if `logprobs` is true."""
        if not self.logprobs:
            if self.top_logprobs:
                raise BadRequestError("top_logprobs needs logprobs = true", "top_logprobs")
            return None
        if not 0 <= (most := self.top_logprobs or 0) <= MAX_LOGPROBS:
            raise BadRequestError(f"top_logprobs = {most} is outside 0 … {MAX_LOGPROBS}", "top_logprobs")
        return most

    def tool_use(self) -> ToolUse | None:
        """The tools that may be called; None without any."""
        form = self.form_schema()
        return named(
            lambda: read_tools(self.tools, self.tool_choice, self.parallel_tool_calls, form=form),
            "tools",
            "tool_choice",
        )

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to generate; None if the client leaves it to the server."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def limit_field(self) -> str:
        """`max_completion_tokens` if the client used it, else `max_tokens`."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them."""
        return plain_conversation(self.messages)

    @property
    def variables(self) -> dict[str, Any]:
        """All variables of the chat template."""
        return template_variables(self.chat_template_kwargs, self.reasoning_effort)


class CompletionBody(Sampling, frozen=True, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = NOT_OF_COMPLETIONS
    prompt_field: ClassVar[str] = "prompt"

    @property
    def reported(self) -> int | None:
        """`logprobs`."""
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise BadRequestError(f"logprobs = {self.logprobs} is outside 0 … {MAX_LOGPROBS}", "logprobs")
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or as token ids; one list of numbers is one prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        if ids and len(ids) == len(self.prompt):
            return [ids]
        found = [each for each in self.prompt if not isinstance(each, int)]
        if ids or not 1 <= len(found) <= MAX_CHOICES:
            raise BadRequestError(
                f"prompt must be a text, a list of token ids, or 1 … {MAX_CHOICES} of one of these kinds", "prompt"
            )
        return found


class TokenizeBody(Struct, frozen=True, kw_only=True):
    """The body of `/tokenize`: a text, or a chat."""

    prompt: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"return_token_strs": (None, False)}

    def tool_use(self) -> ToolUse | None:
        """The tools of the chat; None without any."""
        return named(lambda: read_tools(self.tools, None, None), "tools")


class DetokenizeBody(Struct, frozen=True):
    """The body of `/detokenize`."""

    tokens: list[int]
    model: str | None = None


Body = TypeVar("Body", bound=Struct)


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Decode and check a request body.

    Args:
        raw: the body, at most `MAX_BODY_BYTES` of JSON.
        kind: the structure that it must fit.

    Raises:
        BadRequestError: the body is not JSON, a field has the wrong type, or an unsupported field has a value that
            would change the text.
    """
    if not raw.strip():
        raise BadRequestError("the body is empty: send a JSON object")
    try:
        check_keys(raw)
        given = msgspec.json.decode(raw.removeprefix(BOM_UTF8))
    except UnicodeDecodeError:  # its position is counted from the beginning of a string
        raise BadRequestError("the body is not valid JSON: it is not UTF-8 text") from None
    except (InputError, msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise BadRequestError("the body is not a JSON object")
    for name, harmless in {**REFUSED, **getattr(kind, "refused", {})}.items():
        value = given.get(name, UNSET)
        if not isinstance(value, UnsetType) and value not in harmless:
            raise BadRequestError(f"{name} = {_short(value)} is not supported by this server: leave it out", name)
    try:
        return msgspec.convert({name: _whole(value) for name, value in given.items()}, kind)
    except msgspec.ValidationError as error:
        raise BadRequestError(str(error), _field_of(str(error))) from None


def _whole(value: Any, depth: int = 2) -> Any:
    """Turn numbers such as 4.0 into integers, since JSON has only one kind, also inside the lists of a prompt."""
    if isinstance(value, list) and depth:
        return [_whole(each, depth - 1) if isinstance(each, float | list) else each for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < SEED_COUNT else value


def _field_of(sentence: str) -> str | None:
    """The field of the body that an error of msgspec names; None if it names none."""
    found = re.search(r"at `\$\.(\w+)", sentence) or re.search(r"required field `(\w+)`", sentence)
    return found[1] if found else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
