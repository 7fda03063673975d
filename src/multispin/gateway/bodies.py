"""The bodies of the OpenAI-compatible requests, checked field by field.

A field is one of three kinds. A supported field has its place in a structure below. A field that would change the text
but is not built (`REFUSED`) is refused by name, unless it has the value that changes nothing. Any other field is
ignored, as the large servers do, so that a client's bookkeeping fields do no harm.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from multispin.errors import InputError
from multispin.gateway.formats import schema_of_format
from multispin.gateway.tools import ToolUse, read_tools
from multispin.protocol.limits import MAX_STOP_IDS
from multispin.speculation import MAX_LOGPROBS, SamplingParams
from multispin.speculation.sampling import MAX_BIASES, MIN_TEMPERATURE
from multispin.speculation.stopping import check_stop_strings

MAX_BODY_BYTES = 2 * 2**20
"""Largest request body."""
MAX_CHOICES = 16
"""Most texts that one request may ask for (`n`)."""
MAX_MESSAGES = 1024
"""Most messages of one chat."""
RANDOM_SEED = -1
"""The seed that means "any", for clients that always name one; vLLM reads it so."""
SEED_COUNT = 2**63
"""A negative seed is as good as any other: it counts modulo this."""
_ID = re.compile(r"[0-9]{1,10}")  # `int` would take "1_0" and " ٥" too
DEFAULT_COMPLETION_TOKENS = 16
"""Tokens that `/v1/completions` generates if the client names no number, as in OpenAI's API."""

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
"""Fields that change what is generated or answered and are not built here, with the values that change nothing."""


class BadRequestError(InputError):
    """A request that cannot be served as asked.

    Args:
        sentence: reason of the refusal, for people.
        param: field of the body that is at fault; default None.

    """

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


NOT_OF_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
}
"""Fields of chats that `/v1/completions` refuses."""


class TextPart(Struct, frozen=True):
    """One part of a message's content; only text is understood, a refusal's too."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def plain(self) -> str:
        """Its text; BadRequestError if it is anything else."""
        found = self.refusal if self.type == "refusal" else self.text
        if self.type not in ("text", "input_text", "output_text", "refusal") or found is None:
            raise BadRequestError(
                f"a message part of type {self.type!r} is not supported: this server takes text only", "messages"
            )
        return found


class CalledFunction(Struct, frozen=True):
    """The function of a call, with its arguments as JSON."""

    name: str
    arguments: str = "{}"


class CalledTool(Struct, frozen=True):
    """A call in a message of the assistant."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"

    def plain(self) -> dict[str, Any]:
        """The call as chat templates take it, its arguments as an object where they are one."""
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            arguments = self.function.arguments
        return {"name": self.function.name, "arguments": arguments}


class Message(Struct, frozen=True):
    """One message of a chat."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """The message as chat templates take it; BadRequestError if it holds anything but text and calls."""
        content, role = self.content, plain_role(self.role)
        if isinstance(content, list):
            content = "".join(part.plain() for part in content)
        if self.tool_calls:
            calls = [{"type": "function", "id": each.id, "function": each.plain()} for each in self.tool_calls]
            return {"role": role, "content": content or "", "tool_calls": calls}
        if content is None and role == "assistant":  # an answer that had neither text nor calls
            content = ""
        if content is None:
            raise BadRequestError(f"a message of role {self.role!r} has no content", "messages")
        # Some templates name who speaks, and refuse a result that does not say which call it answers.
        said = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": role, "content": content, **{key: value for key, value in said.items() if value}}


def plain_role(role: str) -> str:
    """The role as chat templates know it: OpenAI's "developer" is what they call "system"."""
    return "system" if role == "developer" else role


class StreamOptions(Struct, frozen=True):
    """Parts of a streamed answer beside its text.

    Attributes:
        include_usage: whether the usage follows in an event of its own, after the text.
        continuous_usage_stats: with `include_usage`, whether every event says what was used so far.

    """

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Sampling(Struct, frozen=True, kw_only=True):
    """The fields that chats and completions share.

    Attributes:
        model: name of the model; must be the one that is served.
        temperature: default 1; 0, and what is as good as 0, is greedy decoding.
        top_p, top_k: truncation of the distribution; top_k 0 or −1 keeps all tokens.
        min_p: only tokens with at least this share of the likeliest token's probability are kept.
        presence_penalty, frequency_penalty: lower the logits of generated tokens, once and per time.
        repetition_penalty: divides the logits of tokens of prompt and text.
        seed: seed of the text's noise, −2^63 … 2^63 − 1; drawn at random if it is left out or −1.
        max_tokens: most tokens to generate.
        min_tokens: no stop ends the text before so many tokens.
        stop: one or several texts that end the text before them.
        stop_token_ids: further token ids that end the text.
        ignore_eos: whether the model's own end tokens do not end the text.
        logit_bias: what is added to the logit of a token id.
        n: number of texts to write.
        stream: whether the text is sent while it is written.
        response_format: form of the text: text, a JSON object, or JSON that fits a schema.
        mark_drafted: whether a stream says which text is of accepted drafts: `drafted` of a chunk's choice.
        add_special_tokens: whether the tokenizer puts its tokens, such as the one that begins a text, around the
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
        """The field that bounds the tokens to generate."""
        return "max_tokens"

    @property
    def reports_usage(self) -> bool:
        """Whether a stream ends with its usage; BadRequestError for options of a stream where none is asked for."""
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
        """Ids that end the text: the model's own, unless they are to be ignored, and those of the request."""
        ids = tuple(dict.fromkeys((*(() if self.ignore_eos else of_model), *(self.stop_token_ids or ()))))
        if len(ids) > MAX_STOP_IDS:
            raise BadRequestError(f"{len(ids)} stop ids are over the limit of {MAX_STOP_IDS}", "stop_token_ids")
        return ids

    @property
    def reported(self) -> int | None:
        """Alternatives per token whose log probabilities are reported; None where nothing is."""
        return None

    def form_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the text must fit; None for any text."""
        return named(lambda: schema_of_format(self.response_format), self.form_field)

    def params(self, seed: int, grammar: str = "") -> SamplingParams:
        """The sampling parameters; BadRequestError names what is out of range.

        Args:
            seed: drawn at random for a request that names none.
            grammar: form of the text; default any.
        """
        if grammar and self.min_tokens:
            raise BadRequestError("min_tokens cannot be combined with a form that decides when it ends", "min_tokens")
        if grammar and self.ignore_eos:
            raise BadRequestError("ignore_eos cannot be combined with a form that decides when it ends", "ignore_eos")
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
            raise BadRequestError(f"logit_bias names {len(given)} ids, over the limit of {MAX_BIASES}", "logit_bias")
        for token in given:
            if not _ID.fullmatch(token):
                raise BadRequestError(f"a key of logit_bias is not a token id: {_short(token)}", "logit_bias")
        return tuple((int(token), bias) for token, bias in given.items())


def template_variables(given: Mapping[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """Variables for the chat template: the request's own, and the effort under vLLM's name."""
    return ({} if effort is None else {"reasoning_effort": effort}) | dict(given or {})


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
        """`top_logprobs`, where `logprobs` is true."""
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
        """The newer name, where the client used it."""
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
                f"prompt must be a text, token ids, or 1 … {MAX_CHOICES} of either, not both mixed", "prompt"
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


def plain_conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them; BadRequestError if they are too few or too many."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise BadRequestError(f"{len(messages)} messages are outside 1 … {MAX_MESSAGES}", "messages")
    return [message.plain() for message in messages]


Body = TypeVar("Body", bound=Struct)
Made = TypeVar("Made")


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Decode and check a request body.

    Args:
        raw: the body, at most `MAX_BODY_BYTES` of JSON.
        kind: the structure that it must fit.

    Raises:
        BadRequestError: it is no JSON, a field has the wrong type, or a field that is not built has a value that
            would change the text.
    """
    try:
        given = msgspec.json.decode(raw.removeprefix(BOM_UTF8))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
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
    """A number such as 4.0 as a whole one, which JSON does not tell apart; also in lists as deep as prompts have."""
    if isinstance(value, list) and depth:
        return [_whole(each, depth - 1) if isinstance(each, float | list) else each for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < SEED_COUNT else value


def _field_of(sentence: str) -> str | None:
    """The field of the body that a sentence of msgspec speaks of; None if it speaks of none."""
    found = re.search(r"at `\$\.(\w+)", sentence) or re.search(r"required field `(\w+)`", sentence)
    return found[1] if found else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def named(make: Callable[[], Made], field: str | None = None, *others: str) -> Made:
    """Result of `make`; an InputError becomes that of the field, or of its first word by default and if in `others`."""
    try:
        return make()
    except BadRequestError:
        raise
    except InputError as error:
        first = str(error).split(" ", 1)[0]
        raise BadRequestError(str(error), first if field is None or first in others else field) from None
