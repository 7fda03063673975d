"""The target's tokenizer: text to ids and back, and what two tokenizers must share, without torch and transformers.

A device that drafts nothing, or by prompt lookup, needs this of its target and nothing else: `tokenizer.json`,
`tokenizer_config.json` and the end-of-text ids of `config.json` and `generation_config.json`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multispin.errors import InputError
from multispin.models.hub import folder_of
from multispin.models.references import check_sizes, converted_folder, is_whole, locate
from multispin.models.template import render
from multispin.outside import json_value, read_file, whole

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
RESERVED = frozenset({"messages", "add_generation_prompt", "tools", "documents"})
"""Variables of a chat template that have a meaning of their own."""
_FINGERPRINT_DIGITS = 16
_NAMED = re.compile(r"<.*>|\[.*\]", re.DOTALL)  # what special tokens look like where a file does not say so
_PADDING = re.compile(r"\[PAD(\d+)\]")
_MARK = "\ue000"  # a private character, in no template
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, and a fingerprint by which both ends know that they mean the same ids.

    Attributes:
        backend: the tokenizer of the library `tokenizers`, or one with the same methods (`models.llama_cpp`).
        stop_ids: ids that end a text.
        template: chat template in Jinja; "" for a model that has none.
        special_tokens: texts that the template may name, such as "eos_token".

    """

    backend: Any
    stop_ids: tuple[int, ...] = ()
    template: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def size(self) -> int:
        """Number of ids: one more than the largest that has a token. Padding (`[PAD151666]`) is no token."""
        vocabulary: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return 1 + max(index for token, index in vocabulary.items() if not _is_padding(token, index))

    @cached_property
    def tokens(self) -> Mapping[int, bytes]:
        """The bytes of every token that is text, by id, and the name of the one that ends texts.

        Other special tokens leave no text, so they may have other names, or be missing, on the other side.
        """
        added = self.backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special}
        end = self.special_tokens.get("eos_token")
        return {
            index: bytes_of(token)
            for token, index in self.backend.get_vocab(with_added_tokens=True).items()
            if token == end or not (index in special or _NAMED.fullmatch(token))
        }

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of `tokens`, by which both ends know that they mean the same ids; 16 hex digits."""
        written = b"".join(b"%d %d %b" % (index, len(token), token) for index, token in sorted(self.tokens.items()))
        return hashlib.sha256(written).hexdigest()[:_FINGERPRINT_DIGITS]

    def difference(self, other: "Tokenizer") -> str | None:
        """The first id that both have and that means another text there, in words; None if there is none."""
        for index, token in sorted(self.tokens.items()):
            if other.tokens.get(index, token) != token:
                return f"id {index} is {_shown(token)} here and {_shown(other.tokens[index])} there"
        return None if self.tokens.keys() & other.tokens.keys() else "they have no id in common"

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """Ids of a plain text.

        Args:
            text: the text; special tokens that it names are taken as such.
            special_tokens: whether to put the tokens around it that the tokenizer puts around a text; default yes.

        Raises:
            InputError: the text holds halves of characters, which a chat template can write.

        """
        whole(text, "the text to be tokenised")
        return list(self.backend.encode(text, add_special_tokens=special_tokens).ids)

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a chat in the model's template, up to where the answer begins.

        Args:
            messages: each with a `role` and its `content`.
            variables: further values for the template, such as `enable_thinking`; default none.
            tools: functions that the model may call, as OpenAI's API describes them; default none.

        Raises:
            InputError: the model has no template, a variable has a name of its own meaning, or the template refuses.

        """
        if not self.template:
            raise InputError("this model has no chat template: send it a plain prompt instead of messages")
        given = dict(variables or {})
        if reserved := given.keys() & (RESERVED | self.special_tokens.keys()):
            raise InputError(f"a template variable cannot be called {min(reserved)!r}: it has a meaning of its own")
        return self.encode(self._render(messages, given, tools), special_tokens=False)

    def encode_chat(self, text: str) -> list[int]:
        """Ids of one user message in the model's chat template, or of the plain text if the model has none."""
        return self.encode_messages(_message(text)) if self.template else self.encode(text)

    def chat_frame(self) -> tuple[list[int], list[int]] | None:
        """Ids that stand before and after a user message in the chat template; None without a template."""
        if not self.template:
            return None
        before, _, after = self._render(_message(_MARK), {}).partition(_MARK)
        return self.encode(before, special_tokens=False), self.encode(after, special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template writes tools, calls and their results."""
        return "tools" in self.template

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token's text; its name for a special token, nothing for an id without a token."""
        known = self.tokens.get(token)
        if known is not None:
            return known.replace("▁".encode(), b" ")
        return str(self.backend.decode([token], skip_special_tokens=False)).encode()

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        fixed = dict.fromkeys(RESERVED) | {"add_generation_prompt": True, "tools": list(tools) if tools else None}
        return render(self.template, {**self.special_tokens, **variables, **fixed, "messages": [*map(dict, messages)]})


def _message(text: str) -> list[dict[str, str]]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a model; InputError says why it cannot be had.

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
        return Tokenizer(backend, _end_ids(reference, folder, backend, special), text, special)
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise InputError(f"the {TOKENIZER_FILE} of {reference} is damaged: {_first_line(error)}") from error
    settings = _json(reference, folder / "tokenizer_config.json")
    try:
        special = {name: _text(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)}
        named = _named(settings.get("chat_template"))
    except (KeyError, TypeError) as error:
        raise InputError(f"the tokenizer_config.json of {reference} is damaged: {_first_line(error)}") from error
    template = folder / TEMPLATE_FILE
    text = read_file(template) if template.is_file() else named
    return Tokenizer(backend, _end_ids(reference, folder, backend, special), text, special)


def _end_ids(
    reference: str, folder: Path, backend: "tokenizers.Tokenizer", special: Mapping[str, str]
) -> tuple[int, ...]:
    """Ids that end a text: the tokenizer's own, the model's, and those that only its generation settings name."""
    model, generation = (_json(reference, folder / name) for name in ("config.json", "generation_config.json"))
    stops = [backend.token_to_id(special["eos_token"])] if "eos_token" in special else []
    text = model.get("text_config")
    for settings in (model, text if isinstance(text, dict) else {}, generation):
        named = settings.get("eos_token_id")
        stops += named if isinstance(named, list) else [named]
    ids = dict.fromkeys(stop for stop in stops if stop is not None)
    if any(isinstance(stop, bool) or not isinstance(stop, int) or stop < 0 for stop in ids):
        raise InputError(f"the eos_token_id of {reference} is not a token id or a list of them")
    if not ids:
        log.warning("%s names no token that ends a text: texts end at their limit or at a stop string", reference)
    known = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    return tuple(stop for stop in ids if stop <= known)  # no text ends with an id that it cannot have


def _json(reference: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not path.is_file():
        return {}
    found = json_value(read_file(path), f"the {path.name} of {reference}")
    if not isinstance(found, dict):
        raise InputError(f"the {path.name} of {reference} is damaged: it holds no JSON object")
    return found


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


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")[:300]


def _is_padding(token: str, index: int) -> bool:
    """Whether a token only fills up the vocabulary, as converters of GGUF files name those."""
    found = _PADDING.fullmatch(token)
    return found is not None and int(found[1]) == index


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes: printable ones as they are, others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return {**alphabet, **{chr(256 + place): byte for place, byte in enumerate(others)}}


_ALPHABET = _byte_alphabet()


def bytes_of(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for; its name where it is not written in the byte alphabet."""
    try:
        return bytes(map(_ALPHABET.__getitem__, token))
    except KeyError:
        return token.encode("utf-8", "surrogatepass")


def _shown(token: bytes) -> str:
    return repr(token.decode(errors="backslashreplace"))[:60]
