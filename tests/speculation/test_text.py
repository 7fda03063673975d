import pytest
from hypothesis import example, given, strategies

from multispin.errors import InputError
from multispin.models.tokenizer import byte_alphabet
from multispin.speculation import TextStream, text_of
from multispin.speculation.stopping import MAX_STOP_STRINGS

TEXTS = [
    "plain English, then a stop",
    "Grüße aus Köln — naïve façade",
    "你好，世界。これはペンです。안녕하세요",
    "हिन्दी में नमस्ते और தமிழ்",
    "مرحبا بالعالم שלום עולם",
    "🍕 and 🦄, 👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumb, 🇩🇪",
    "e\u0301 combining, \u200bzero width, \ufeff mark",
]


BYTES = {byte: character for character, byte in byte_alphabet().items()}
"""How byte-level tokenizers write each byte."""


def decode(ids):
    """A byte-level tokenizer: one token a byte; 256 is a special token."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def shown(parts, strings=(), min_tokens=0):
    """What leaves with each part, and at the end."""
    stream = TextStream(decode, strings, min_tokens)
    return [stream.push(part) for part in parts], stream.end()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_no_half_character_leaves_and_nothing_is_lost(text, size):
    ids = list(text.encode())
    pieces, last = shown([ids[first : first + size] for first in range(0, len(ids), size)])
    assert "".join(pieces) + last == text
    assert "\ufffd" not in "".join(pieces)
    assert last == ""


@pytest.mark.parametrize("text", TEXTS)
def test_a_complete_character_leaves_at_once(text):
    stream = TextStream(decode)
    for character in text:
        assert stream.push(list(character.encode())) == character


def test_a_character_that_is_never_completed_is_due_at_the_end():
    ids = list("a🍕".encode())[:-1]
    assert shown([ids]) == (["a"], "\ufffd")


def test_bytes_that_are_no_text_do_not_hold_up_what_follows():
    stream = TextStream(decode)
    assert stream.push([0xFF, 0xFE]) == ""
    assert stream.push([ord("a")]) == "\ufffd\ufffda"


def test_bytes_that_are_no_text_are_not_held_for_ever():
    stream = TextStream(decode)
    assert len("".join(stream.push([0xFF]) for _ in range(1000))) > 700
    assert len("".join(stream.push([0xFF]) for _ in range(1000)) + stream.end()) > 900


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("begin", range(0, 12, 3))
@pytest.mark.parametrize("length", [1, 2, 7])
def test_no_beginning_of_a_stop_string_leaves(text, begin, length):
    stop = text[begin : begin + length]
    expected = text[: text.find(stop)]
    for size in (1, 2, 3, 1000):
        ids = list(text.encode())
        pieces, last = shown([ids[first : first + size] for first in range(0, len(ids), size)], [stop])
        assert "".join(pieces) + last == expected


def test_what_only_looked_like_a_stop_string_leaves_when_it_is_decided():
    stream = TextStream(decode, ["STOP"])
    assert stream.push(list(b"a ST")) == "a "
    assert stream.push(list(b"ART ")) == "START "
    assert stream.push(list(b"STO")) == ""
    assert stream.end() == "STO"


def test_a_stop_string_hides_in_the_beginning_of_another():
    stream = TextStream(decode, ["aab"])
    assert "".join(stream.push([ord(each)]) for each in "aaab") + stream.end() == "a"


def test_nothing_is_taken_after_a_stop_string():
    stream = TextStream(decode, ["."])
    assert stream.push(list(b"one. two.")) == "one"
    assert (stream.stopped, stream.tokens) == (True, 4)
    assert stream.push(list(b"more")) + stream.end() == ""


def test_a_stop_string_before_min_tokens_does_not_count():
    assert text_of(list(b"a.b.c"), decode, ["."], min_tokens=3) == "a.b"
    assert text_of(list(b"a.b.c"), decode, ["."], min_tokens=2) == "a"


def test_a_long_text_is_the_same_as_a_short_one():
    text = "".join(TEXTS) * 60
    ids = list(text.encode())
    pieces, last = shown([[token] for token in ids], ["never"])
    assert "".join(pieces) + last == text


def test_a_tokenizer_that_drops_the_first_space_keeps_it_later():
    def pieces(ids):
        return "".join(f" w{token}" for token in ids).lstrip()

    stream = TextStream(pieces)
    ids = list(range(500))
    assert "".join(stream.push([token]) for token in ids) + stream.end() == pieces(ids)


def tokenizers_of_every_kind():
    """Real decoders: bytes, bytes that fall back from a vocabulary with a mark for spaces, and words in pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    level.decoder = decoders.ByteLevel()
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz.,é"]
    llama = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    llama.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    for each in (level, llama):
        each.add_special_tokens(["<|special|>"])
    return {"byte level": level, "byte fallback": llama}


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS) * 8, "你好" * 200, "a" + "🍕" * 100 + " b"])
def test_streams_of_real_tokenizers_write_what_the_whole_decodes_to(kind, text):
    tokenizer = tokenizers_of_every_kind()[kind]
    special = tokenizer.token_to_id("<|special|>")
    plain = text if kind == "byte level" else "▁" + text.replace(" ", "▁")
    ids = tokenizer.encode(plain).ids
    for mixed in (ids, [special, special, *ids, special]):
        stream = TextStream(tokenizer.decode)
        pieces = [stream.push([token]) for token in mixed]
        assert "".join(pieces) + stream.end() == tokenizer.decode(mixed) == text
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@pytest.mark.parametrize(
    "broken",
    [
        b"\n\xf0",
        b"\xf0\x9f\x8d\x95\xf0\x9f",
        b"\n\x80\n",
        b"\x80" * 5,
        b"\n" * 70 + b"\xe6\xbc",
        b"\xe6\xbc\xa2\n\xff\xe6",
    ],
)
def test_bytes_that_are_no_text_take_nothing_of_what_stands_around_them(kind, broken):
    """A decoder may take back whole characters before a broken one, as they are all written byte by byte."""
    tokenizer = tokenizers_of_every_kind()[kind]
    if kind == "byte level":
        space, by_byte = " ", [tokenizer.token_to_id(BYTES[byte]) for byte in broken]
    else:
        space, by_byte = "▁", [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in broken]
    words = tokenizer.encode(f"{space}abc").ids
    for count in (1, 40):
        stream = TextStream(tokenizer.decode)
        pieces = [stream.push([token]) for token in [*words, *by_byte, *words * count]]
        text = "".join(pieces) + stream.end()
        assert text.startswith("abc" if kind == "byte fallback" else " abc")
        assert text.endswith(" abc" * count)
        assert pieces[-1] == "c"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_tokens_without_text_do_not_eat_the_space_after_them(kind):
    tokenizer = tokenizers_of_every_kind()[kind]
    special = tokenizer.token_to_id("<|special|>")
    space = " " if kind == "byte level" else "▁"
    ids = tokenizer.encode(f"{space}abc").ids * 30 + [special] * 70 + tokenizer.encode(f"{space}abc").ids * 30
    stream = TextStream(tokenizer.decode)
    assert "".join(stream.push([token]) for token in ids) + stream.end() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_however_many_tokens_without_text_come_each_costs_the_same(kind):
    """A model that is told to ignore its end ids writes them to the end of the text."""
    tokenizer = tokenizers_of_every_kind()[kind]
    special, decoded = tokenizer.token_to_id("<|special|>"), []

    def decode(ids):
        decoded.append(len(ids))
        return tokenizer.decode(ids)

    stream = TextStream(decode)
    for _ in range(1000):
        assert stream.push([special]) == ""
    assert max(decoded) < 100
    assert stream.push(tokenizer.encode("abc").ids) + stream.end() == tokenizer.decode(tokenizer.encode("abc").ids)
    assert stream.tokens == 1000 + len(tokenizer.encode("abc").ids)


def test_too_many_stop_strings_are_refused():
    TextStream(decode, ["x"] * MAX_STOP_STRINGS)
    with pytest.raises(InputError):
        TextStream(decode, ["x"] * (MAX_STOP_STRINGS + 1))


def whole(ids, stops, min_tokens):
    """The text by its definition: of the fewest ids whose text holds a stop string, cut before it."""
    early = len(decode(ids[: min_tokens - 1]).rstrip("\ufffd")) if min_tokens > 1 else 0
    for count in range(max(1, min_tokens), len(ids) + 1):
        text = decode(ids[:count])
        places = [text.find(stop, max(0, early - len(stop) + 1)) for stop in stops]
        if found := [place for place in places if place >= 0]:
            return text[: min(found)]
    return decode(ids)


PIECES = ["a", "b", "ab", "é", "🍕", "你", " ", "."]


@given(
    strategies.lists(strategies.sampled_from([*PIECES, "aa", "ba."]), max_size=30),
    strategies.lists(strategies.sampled_from([*PIECES, "aab", "ab.", "é🍕"]), max_size=3, unique=True),
    strategies.integers(0, 6),
    strategies.lists(strategies.integers(1, 4), min_size=1, max_size=8),
)
@example(["a", "."], ["."], 2, [1])
@example(["🍕"], ["🍕"], 2, [1])
def test_the_text_is_the_one_that_the_whole_ids_have(parts, stops, min_tokens, sizes):
    ids = list("".join(parts).encode())
    chunks, first = [], 0
    while first < len(ids):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(ids[first : first + size])
        first += size
    pieces, last = shown(chunks, stops, min_tokens)
    assert "".join(pieces) + last == whole(ids, stops, min_tokens)
