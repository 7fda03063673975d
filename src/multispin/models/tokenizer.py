"""The target's tokenizer: text to ids and back, and a fingerprint to compare, without torch and transformers.

A device that drafts nothing, or by prompt lookup, needs only these files of its target: `tokenizer.json`,
`tokenizer_config.json`, and for the end-of-text ids `config.json` and `generation_config.json`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multispin.errors import InputError
from multispin.models.hub import folder_of
from multispin.models.references import check_sizes, converted_folder, is_whole, locate, settings_in
from multispin.models.template import SHARED, TemplateProcess, render
from multispin.outside import first_line, read_file, whole_characters

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
"""Names of a chat template's variables that requests may not set."""
MAX_IDS = 2**21
"""Most ids of a vocabulary; the largest published ones have a quarter of a million."""
MAX_END_IDS = 16
"""Most ids that end a text: a request can name no more, and published models have up to three."""
LONG_CHARACTERS = 4096
"""Length from which on a text or a list of ids is passed as a batch of one. Only then does the library let Python's
other threads run, and two million characters take it seconds."""
_FINGERPRINT_DIGITS = 16
_NAMED = re.compile(r"<.*>|\[.*\]", re.DOTALL)  # what special tokens look like where a file does not say so
_PADDING = re.compile(r"\[PAD(\d+)\]")
_MARK = "\ue000"  # a private character, in no template
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OF_REQUESTS: Mapping[str, Any] = {
    **dict.fromkeys(["stop_strings", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"]),
    **dict.fromkeys(
        ["forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "penalty_alpha"]
    ),
    **dict.fromkeys(["no_repeat_ngram_size", "min_length", "min_new_tokens"], 0),
    **dict.fromkeys(["repetition_penalty", "num_beams", "guidance_scale"], 1),
}
"""Settings of generation that change transformers' greedy texts, and the value of each that does not."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into ids and back, and has a fingerprint by which both ends check that their ids mean the same.

    Attributes:
        backend: the tokenizer of the library `tokenizers`, or one with the same methods (`models.llama_cpp`).
        stop_ids: ids that end a text.
        template: chat template in Jinja; "" for a model that has none.
        special_tokens: special tokens by the name that the template uses, such as "eos_token".
        known_ids: number of ids that the model has; greater ids can be neither read nor written. None: it has all.
        templates: the process that runs the template; default: one for all tokenizers.

    """

    backend: Any
    stop_ids: tuple[int, ...] = ()
    template: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    known_ids: int | None = None
    templates: TemplateProcess = field(default=SHARED, compare=False, repr=False)

    @cached_property
    def size(self) -> int:
        """Number of ids: one more than the largest that has a token. Padding (`[PAD151666]`) is no token."""
        return 1 + max(index for token, index in self._vocabulary.items() if not _is_padding(token, index))

    @cached_property
    def tokens(self) -> Mapping[int, bytes]:
        """The bytes of every token that is text, by id, and the name of the one that ends texts.

        Other special tokens leave no text, so they may have other names on the other side, or be missing.
        """
        added = self.backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        end = self.special_tokens.get("eos_token")
        return {
            index: bytes_of(token)
            for token, index in self._vocabulary.items()
            if token == end or not (index in special or _NAMED.fullmatch(token))
        }

    @property
    def has_tokens(self) -> bool:
        """Whether there is any token but padding."""
        return any(not _is_padding(token, index) for token, index in self._vocabulary.items())

    @property
    def _vocabulary(self) -> dict[str, int]:
        """Ids by token, of those that the model has."""
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        most = self.known_ids
        return found if most is None else {token: index for token, index in found.items() if index < most}

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of `tokens`, by which both ends check that their ids mean the same; 16 hex digits."""
        written = b"".join(b"%d %d %b" % (index, len(token), token) for index, token in sorted(self.tokens.items()))
        return hashlib.sha256(written).hexdigest()[:_FINGERPRINT_DIGITS]

    def difference(self, other: "Tokenizer") -> str | None:
        """A sentence about the first shared id with different texts; None if there is none."""
        for index, token in sorted(self.tokens.items()):
            if other.tokens.get(index, token) != token:
                return f"id {index} is {_shown(token)} here and {_shown(other.tokens[index])} there"
        return None if self.tokens.keys() & other.tokens.keys() else "they have no id in common"

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of a plain text.

        Args:
            text: the text; special tokens that it names are taken as such.
            special_tokens: whether to add the tokenizer's special tokens around the text; default True.

        Raises:
            InputError: the text holds halves of characters, which a chat template can write, or the tokenizer gives up.

        """
        whole_characters(text, "the text to be tokenised")
        try:
            if len(text) > LONG_CHARACTERS and hasattr(self.backend, "encode_batch_fast"):
                (found,) = self.backend.encode_batch_fast([text], add_special_tokens=special_tokens)
            else:
                found = self.backend.encode(text, add_special_tokens=special_tokens)
            return list(found.ids)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the library, whose expressions may give up on a text
                raise
            raise InputError(f"the model's tokenizer cannot split this text: {first_line(error)}") from None

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        answered: bool = True,
        special_tokens: bool = False,
    ) -> list[int]:
        """Ids of a chat in the model's template, up to where the answer begins.

        Args:
            messages: each with a `role` and its `content`.
            variables: further values for the template, such as `enable_thinking`; default none.
            tools: functions that the model may call, as OpenAI's API describes them; default none.
            answered: whether the template writes the beginning of an answer after the last message; default True.
            special_tokens: whether to add the tokenizer's special tokens around the template's text; default False.

        Raises:
            InputError: the model has no template, a variable has a reserved name, or the template refuses.

        """
        if not self.template:
            raise InputError("this model has no chat template: send a plain prompt instead of messages")
        given = dict(variables or {})
        if reserved := given.keys() & (RESERVED | self.special_tokens.keys()):
            raise InputError(f"a template variable cannot have the reserved name {min(reserved)!r}: choose another")
        return self.encode(self._render(messages, given, tools, answered), special_tokens)

    def encode_chat(self, text: str) -> list[int]:
        """Ids of one user message in the model's chat template, or of the plain text if the model has none."""
        return self.encode_messages(_message(text)) if self.template else self.encode(text)

    def chat_frame(self) -> tuple[list[int], list[int]] | None:
        """Ids that stand before and after a user message in the chat template; None without a template."""
        if not self.template:
            return None
        before, _, after = self._render(_message(_MARK), {}).partition(_MARK)
        return self.encode(before, special_tokens=False), self.encode(after, special_tokens=False)

    def decode(self, ids: Sequence[int], special_tokens: bool = False) -> str:
        """Text of `ids`, with or (default) without the names of special tokens."""
        skip = not special_tokens
        if len(ids) > LONG_CHARACTERS and hasattr(self.backend, "decode_batch"):
            return str(self.backend.decode_batch([list(ids)], skip_special_tokens=skip)[0])
        return str(self.backend.decode(list(ids), skip_special_tokens=skip))

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template writes tools, calls and their results."""
        return "tools" in self.template

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token's text; its name for a special token, nothing for an id without a token."""
        known = self.tokens.get(token)
        if known is not None:
            return known
        return str(self.backend.decode([token], skip_special_tokens=False)).encode()

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        answered: bool = True,
    ) -> str:
        fixed = dict.fromkeys(RESERVED) | {"add_generation_prompt": answered, "tools": list(tools) if tools else None}
        given = {**self.special_tokens, **variables, **fixed, "messages": [*map(dict, messages)]}
        return render(self.template, given, self.templates)


def _message(text: str) -> list[dict[str, str]]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model; InputError if it cannot be loaded.

    Args:
        reference: a model folder, a GGUF file, a Hub id or "embedded".

    """
    found = locate(reference)
    if isinstance(found, Path) and found.is_file():
        folder = converted_folder(reference, found)
        if not is_whole(folder):
            from multispin.models.loading import resolve  # converts the file, with torch and transformers

            folder = Path(resolve(reference))
    else:
        folder = found if isinstance(found, Path) else folder_of(found, weights=False)
        check_sizes(folder)
    return _load(reference, folder)


def _load(reference: str, folder: Path) -> Tokenizer:
    """Read the files of a model."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        from multispin.models.loading import older_tokenizer  # transformers knows older files too

        backend, text, special = older_tokenizer(reference)
        return _made(reference, folder, backend, text, special)
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"the {TOKENIZER_FILE} of {reference} is damaged: {first_line(error)}") from error
    settings = _json(reference, folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:  # older files name special and further tokens in files of their own
        older, added = (_json(reference, folder / name) for name in ("special_tokens_map.json", "added_tokens.json"))
        settings |= {name: older[name] for name in _SPECIAL_TOKENS if older.get(name)}
        settings["added_tokens_decoder"] = {index: {"content": token} for token, index in added.items()}
    try:
        special = {name: _text(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)}
        named = _named(settings.get("chat_template"))
        _as_transformers_does(backend, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the tokenizer_config.json of {reference} is damaged: {first_line(error)}") from error
    template = folder / TEMPLATE_FILE
    return _made(reference, folder, backend, read_file(template) if template.is_file() else named, special)


def _made(reference: str, folder: Path, backend: Any, template: str, special: Mapping[str, str]) -> Tokenizer:
    """The tokenizer of a model, with what the model's settings say of its ids."""
    config = _json(reference, folder / "config.json")
    text = config.get("text_config")
    known = (text if isinstance(text, dict) else config).get("vocab_size")
    most = known if isinstance(known, int) and not isinstance(known, bool) and known > 0 else None
    made = Tokenizer(backend, (), template, special, most)
    if not made.has_tokens:
        raise InputError(f"the {TOKENIZER_FILE} of {reference} has no token, or none that the model knows")
    if made.size > MAX_IDS:
        raise InputError(f"the {TOKENIZER_FILE} of {reference} has ids up to {made.size - 1}, over the limit {MAX_IDS}")
    return replace(made, stop_ids=_end_ids(reference, folder, made))


def _as_transformers_does(backend: "tokenizers.Tokenizer", settings: Mapping[str, Any]) -> None:
    """Change a tokenizer as transformers does: it reads whole texts, and tokens that only the settings name."""
    from tokenizers import AddedToken

    backend.no_truncation()  # a file may hold the limits of what it was trained with
    backend.no_padding()
    for _, token in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda pair: int(pair[0])):
        if backend.token_to_id(_text(token)) is None:
            flags = {name: bool(token[name]) for name in _TOKEN_FLAGS if name in token}
            backend.add_tokens([AddedToken(_text(token), **flags)])


def _end_ids(reference: str, folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a text: the tokenizer's own, the model's, and those that only its generation settings name."""
    model, generation = (_json(reference, folder / name) for name in ("config.json", "generation_config.json"))
    backend, special = tokenizer.backend, tokenizer.special_tokens
    stops = [backend.token_to_id(special["eos_token"])] if "eos_token" in special else []
    text = model.get("text_config")
    for settings in (model, text if isinstance(text, dict) else {}, generation):
        named = settings.get("eos_token_id")
        stops += named if isinstance(named, list) else [named]
    stops = [stop for stop in stops if stop is not None]
    if any(isinstance(stop, bool) or not isinstance(stop, int) or stop < 0 for stop in stops):
        raise InputError(f"the eos_token_id of {reference} is not a token id or a list of them")
    ids = dict.fromkeys(stops)
    if unused := [name for name, plain in _OF_REQUESTS.items() if generation.get(name) not in (None, [], {}, plain)]:
        log.warning(
            "%s sets %s in its generation_config.json, not used here: a request sets its own",
            *(reference, ", ".join(unused)),
        )
    if not ids:
        log.warning("%s names no token that ends a text: texts end at their limit or at a stop string", reference)
    possible = tuple(stop for stop in ids if stop < tokenizer.size)  # no text ends with an id that it cannot have
    if ids and not possible:
        log.warning(
            "%s ends texts with the id %d, which the model lacks: texts end at their limit or at a stop string",
            *(reference, min(ids)),
        )
    if len(possible) > MAX_END_IDS:
        raise InputError(f"{reference} names {len(possible)} tokens that end a text, over the limit of {MAX_END_IDS}")
    return possible


def _json(reference: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    return settings_in(path, reference) if path.is_file() else {}


def _text(token: str | Mapping[str, Any]) -> str:
    """A special token, which older files write as an object."""
    found = token if isinstance(token, str) else token["content"]
    if not isinstance(found, str):
        raise TypeError(f"a special token is written as {found!r}"[:100])
    return found


def _named(template: str | Sequence[Mapping[str, str]] | None) -> str:
    """The chat template, of several the one called "default"."""
    if template is None or isinstance(template, str):
        return template or ""
    return _text(next((each["template"] for each in template if each["name"] == "default"), ""))


def _is_padding(token: str, index: int) -> bool:
    """Whether a token only fills up the vocabulary, as converters of GGUF files name those."""
    found = _PADDING.fullmatch(token)
    return found is not None and int(found[1]) == index


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes: printable ones as they are, others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return {**alphabet, **{chr(256 + place): byte for place, byte in enumerate(others)}}


_ALPHABET = byte_alphabet()


def bytes_of(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    Where it is not written in the byte alphabet, its name with spaces for SentencePiece's ▁: files for llama.cpp write
    some tokens with spaces, too.
    """
    try:
        return bytes(map(_ALPHABET.__getitem__, token))
    except KeyError:
        return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _shown(token: bytes) -> str:
    return repr(token.decode(errors="backslashreplace"))[:60]
