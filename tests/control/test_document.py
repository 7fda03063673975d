"""Scenario files that are no scenarios: every one is refused at once, in one sentence, with its place."""

import os
import threading

import pytest

from multispin.control import load_scenario, parse_scenario
from multispin.control.document import MAX_FILE_BYTES, Document, read_document
from multispin.errors import InputError

GOOD = """[cell]
bandwidth_hz = 10e6
bits_per_token = 100
[verifier]
fixed_s = 0.02
per_device_s = 0.01
[[device]]
name = "a"
seconds_per_token = 0.01
spectral_efficiency = 7.2
acceptance_rate = 0.8
"""
DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "x = " + "[" * 100_000 + "]" * 100_000, "nested too deep"),
        (GOOD + "x = " + "{a=" * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        (GOOD.replace("7.2", DIGITS), "a number is too long"),
        (GOOD.replace("7.2", "9" * 400), "line 10: device 'a': spectral_efficiency is 9{50,}…; it must be a finite"),
        (GOOD.replace("0.8", "1e999"), "line 11: device 'a': acceptance_rate is inf"),
        (GOOD + ".".join(["a"] * 100_000) + " = 1", "line 12: a key has more than 16 dots"),
        ("[" + ".".join(["a"] * 100_000) + "]\n" + GOOD, "line 1: a key has more than 16 dots"),
        (GOOD + "x = {" + " . ".join(['"a b"'] * 100_000) + " = 1}", "line 12: a key has more than 16 dots"),
        (GOOD.replace('name = "a"', f'name = "{"n" * 10**6}"\nweight = -1'), r"line 9: device 'n{50,}…: weight is -1"),
        (GOOD + "\0", "is not valid TOML"),
    ],
    ids=["lists", "tables", "digits", "integer", "infinity", "key", "header", "inline", "name", "null"],
)
def test_what_would_take_long_or_crash_is_refused_in_one_short_sentence(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_scenario(text, "file.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_long_lists_of_numbers_and_long_names_are_no_dotted_keys():
    numbers = ", ".join(["0.5"] * 1000)
    text = GOOD.replace("acceptance_rate = 0.8", f"acceptance_profile = [{numbers}]")
    assert len(parse_scenario(text).devices[0].acceptance_profile) == 1000
    spread = GOOD.replace("acceptance_rate = 0.8", "acceptance_profile = [\n" + ",\n".join(["0.5"] * 1000) + "\n]")
    assert len(parse_scenario(spread).devices[0].acceptance_profile) == 1000


@pytest.mark.parametrize("part", ["a", "a.", "'a' ", '"', "a . ", "-", "a,", "'a'.'"])
def test_looking_for_dotted_keys_takes_time_in_proportion(part):
    # In quadratic time this takes hours, and runs into the tests' time limit.
    with pytest.raises(InputError):
        Document(part * (2**20 // len(part)) + "\n=", "t")


def test_an_endless_file_is_read_no_further_than_the_limit(tmp_path):
    with pytest.raises(InputError, match=f"longer than {MAX_FILE_BYTES} bytes"):
        load_scenario("/dev/zero")
    with pytest.raises(InputError, match="cannot be read"):
        load_scenario(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_scenario("a\0b")


def test_a_byte_order_mark_is_skipped_and_other_encodings_are_named(tmp_path):
    path = tmp_path / "s.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_scenario(path) == parse_scenario(GOOD)
    path.write_bytes(GOOD.encode("utf-16"))
    assert load_scenario(path) == parse_scenario(GOOD)
    path.write_bytes(GOOD.replace('"a"', '"ä"').encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_scenario(path)


def test_places_are_found_for_nested_tables_and_survive_a_change():
    text = GOOD.replace("acceptance_rate = 0.8\n", "") + "".join(
        f'[[device.mode]]\nname = "m{k}"\nacceptance_rate = 0.5\n' for k in range(2)
    )
    both = text + text[text.index("[[device]]") :].replace('"a"', '"b"')
    document = Document(both, "f")
    assert document.at(("device", 1, "mode", 1, "acceptance_rate")) == f"f, line {both.count(chr(10))}"
    assert document.at(("device", 1, "weight")) == document.at(("device", 1))
    assert document.at(("nowhere",)) == "f"
    changed = document.copy()
    changed.tables["device"][0]["name"] = "other"
    assert document.tables["device"][0]["name"] == "a"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_comes_through_a_pipe_is_read_too(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text(GOOD))
    writer.start()
    assert read_document(path).tables["cell"]["bandwidth_hz"] == 10e6
    writer.join()
