import io
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from multispin.errors import InputError
from multispin.outside import (
    check_keys,
    decode,
    first_line,
    in_markup,
    json_or_text,
    json_value,
    never_fails,
    one_line,
    printable,
    read,
    read_file,
    user_path,
    whole_characters,
)

TEXTS = ["plain", "Grüße", "你好，世界", "👩‍👩‍👧‍👦 🏳️‍🌈", "مرحبا שלום \u200f.", "हिन्दी", "a\tb\nc"]
HOSTILE = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "\x9b31m": r"\x9b31m",
    "x\u202etxt.exe": r"x\u202etxt.exe",
    "\ud800 half": r"\ud800 half",
    "\x00": r"\x00",
    "\x7f": r"\x7f",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_no_terminal_obeys_is_shown_as_it_is(text):
    assert printable(text) == text
    assert one_line(text.replace("\n", " ").replace("\t", " ")) == text.replace("\n", " ").replace("\t", " ")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_terminal_would_obey_is_escaped(text):
    assert printable(text) == one_line(text) == HOSTILE[text]


@given(st.text(st.sampled_from("[]/\\aé#@= \n"), max_size=12))
def test_markup_in_a_name_is_shown_and_not_obeyed(text):
    shown = Text.from_markup(in_markup(text))
    assert shown.spans == []
    assert shown.plain.replace("\\", "") == one_line(text).replace("\\", "")  # rich drops backslashes before brackets
    bold = Text.from_markup(f"[bold]{in_markup(text)}[/bold] and more")
    assert [span.style for span in bold.spans] in (["bold"], [])
    assert bold.plain.endswith(" and more")


@pytest.mark.parametrize("hidden", [*"\u200b\ufeff\u2060\u00ad\u3164\u17b4\u180b\U0001bca0\U0001d173\U000e0041"])
def test_a_name_cannot_hide_what_it_holds_and_a_text_may(hidden):
    assert one_line(f"ph{hidden}one") == "ph" + hidden.encode("unicode_escape").decode() + "one"
    assert printable(f"ph{hidden}one") == f"ph{hidden}one"


def test_a_name_cannot_forge_a_line():
    assert one_line("phone\n- other lost its connection\u2028x") == r"phone\n- other lost its connection\u2028x"


@given(st.text(st.characters()))
def test_whatever_is_shown_holds_no_control_character(text):
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in one_line(text))
    assert one_line(text).splitlines() in ([], [one_line(text)])
    one_line(text).encode()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_with_and_without_a_byte_order_mark(text, encoding):
    assert decode(text.encode(encoding), "the prompt") == text


def test_other_encodings_are_refused_with_the_place_and_the_remedy():
    with pytest.raises(InputError, match=r"standard input is not UTF-8 text: byte 0xfc at position 2; .*iconv"):
        decode("Grüße".encode("latin-1"), "standard input")
    with pytest.raises(InputError, match="--prompt is not UTF-8"):
        whole_characters("Gr\udcfc", "--prompt")
    assert whole_characters("Grüße", "--prompt") == "Grüße"


def test_reading_is_bounded():
    assert read(io.BytesIO(b"12345"), "it", 5) == "12345"
    with pytest.raises(InputError, match="it is longer than 5 bytes"):
        read(io.BytesIO(b"123456"), "it", 5)


def test_a_terminal_that_cannot_encode_shows_escapes():
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, "ascii")
    never_fails(terminal, io.StringIO())
    print("Grüße 🍕", file=terminal, flush=True)
    assert buffer.getvalue() == rb"Gr\xfc\xdfe \U0001f355" + b"\n"


def test_a_file_is_read_within_its_limit_and_its_problems_name_it(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe")
    assert read_file(path) == "Grüße"
    with pytest.raises(InputError, match=f"{path} is longer than 3 bytes"):
        read_file(path, 3)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: Is a directory"):
        read_file(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_file(tmp_path / "a\0b")
    with pytest.raises(InputError, match="/dev/zero is longer than 1000 bytes"):
        read_file(Path("/dev/zero"), 1000)


def test_a_pipe_is_read_if_somebody_writes_and_waits_for_nobody_for_ever(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=f"{pipe} is a pipe into which nobody has written"):
        read_file(pipe, pipe_wait_s=0.05)
    keeper = os.open(pipe, os.O_RDWR)
    os.write(keeper, b"Gr\xc3\xbc\xc3\x9fe")
    writer = threading.Timer(0.2, os.close, [keeper])  # what is read before the end is not taken for the whole
    writer.start()
    assert read_file(pipe) == "Grüße"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "1" * 100_000, '{"a": 1,}', "NaN", "[-Infinity]"])
def test_json_that_is_none_is_refused_in_one_sentence(text):
    with pytest.raises(InputError, match=r"^the file is (not JSON|nested too deeply)") as refusal:
        json_value(text, "the file")
    assert "\n" not in str(refusal.value)


MANY = "".join(f'"{key}": 0, ' for key in range(100_000))  # comparing each with all before it takes minutes


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "b": 2, "a": 1}', '[{"b": {"\\u0061": 1, "a": 2}}]', f'{{{MANY} "a": 0, "a": 0}}'],
    ids=["short", "escaped", "after many"],
)
def test_a_key_that_comes_twice_is_refused_by_its_name(text):
    for read_it in (json_value, json_or_text):
        with pytest.raises(InputError, match=r"^the file: the key 'a' comes twice in one object$"):
            read_it(text, "the file")
    for read_it in (check_keys, lambda text: check_keys(b"\xef\xbb\xbf" + text.encode())):
        with pytest.raises(InputError, match=r"^the key 'a' comes twice in one object$"):
            read_it(text)


def test_a_key_may_come_again_in_another_object_and_other_faults_are_for_the_reader():
    assert json_value('[{"a": {"a": 1}}, {"a": 2}]', "the file") == [{"a": {"a": 1}}, {"a": 2}]
    for text in ("", "{", "[" * 100_000, "1" * 100_000, b"\xff", '{"a": {"a": 1}}'):
        check_keys(text)
    assert json_or_text("{x", "it") == "{x"


def test_a_machine_without_a_home_folder_is_told_so(monkeypatch, tmp_path):
    from multispin.models.references import cache_folder, locate

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    for call in (cache_folder, lambda: locate("~/model"), lambda: user_path("~/x")):
        with pytest.raises(InputError, match="there is no home folder here; set HOME"):
            call()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "multispin"


def test_a_reason_that_announces_the_lines_after_it_is_quoted_with_them():
    assert first_line("It is none of: \n(1) a file,\n (2) a class.\n") == "It is none of: (1) a file, (2) a class"
    assert first_line("Damaged.\nTraceback: …") == "Damaged"
    assert len(first_line("one of:\n" + 1000 * "x")) == 300
