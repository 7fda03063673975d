"""The bundled prompts, enough of every family and within their limits, and the bundled scenarios."""

from collections import Counter
from pathlib import Path

import pytest

from multispin.data import MAX_PROMPT_CHARACTERS, TASKS, Prompt, load_prompts, parse_prompts, scenario_path
from multispin.errors import InputError


def test_there_are_at_least_forty_and_ten_of_every_family():
    counts = Counter(prompt.task for prompt in load_prompts())
    assert counts.total() >= 40
    assert set(counts) == set(TASKS) == {"code", "arithmetic", "dialogue", "reading"}
    assert min(counts.values()) >= 10


def test_names_and_texts_are_unique_filled_and_short():
    prompts = load_prompts()
    assert len({prompt.name for prompt in prompts}) == len({prompt.text for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert 0 < len(prompt.name) <= 20
        assert prompt.text == prompt.text.strip()
        assert 20 < len(prompt.text) <= MAX_PROMPT_CHARACTERS


def test_any_four_in_a_row_from_the_start_are_of_four_families():
    prompts = load_prompts()
    assert {prompt.task for prompt in prompts[:4]} == set(TASKS)
    assert {prompt.task for prompt in prompts[4:8]} == set(TASKS)


def test_a_reading_prompt_is_a_passage_of_60_to_120_words_and_a_question():
    for prompt in load_prompts():
        if prompt.task == "reading":
            _, passage, question = prompt.text.split("\n\n")
            assert 60 <= len(passage.split()) <= 120, prompt.name
            assert question.startswith("Question: "), prompt.name
            assert "?" in question, prompt.name


def test_a_prompt_of_an_unknown_family_is_refused_by_name():
    with pytest.raises(InputError, match="'poetry'"):
        Prompt("ode", "poetry", "Sing of the sea.")


@pytest.mark.parametrize("text", ["", "  \n", "x" * (MAX_PROMPT_CHARACTERS + 1)])
def test_an_empty_or_endless_text_is_refused(text):
    with pytest.raises(InputError, match="'a'"):
        Prompt("a", "code", text)


def _table(name: str, text: str) -> str:
    return f'[[prompt]]\nname = "{name}"\ntask = "code"\ntext = "{text}"\n'


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (_table("a", "one") + _table("a", "two"), "name = 'a'"),
        (_table("a", "one") + _table("b", " one "), "text = 'one'"),
        (_table("a", "one") + "colour = 'red'\n", "colour"),
        (_table("a", "one") + "[[prompt]]\nname = 'b'\n", "task"),
        (_table("", "one"), "empty"),
        ("prompt = 3", r"\[\[prompt\]\]"),
        ("nothing = 1", "prompt"),
        ("not toml", r"\[\[prompt\]\]"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(source, named):
    with pytest.raises(InputError, match=named):
        parse_prompts(source)


def test_a_bundled_scenario_is_found_by_its_name_and_a_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = scenario_path("recorded")
    assert path.is_file()
    assert (path.parent / "../traces/embedded-q4.json").is_file()
    assert scenario_path("nothing-of-the-kind.toml") == Path("nothing-of-the-kind.toml")
    with pytest.raises(InputError, match=r"no scenario 'nothing-of-the-kind': name one of .*recorded"):
        scenario_path("nothing-of-the-kind")
    Path("recorded").touch()
    assert scenario_path("recorded") == Path("recorded")
