"""The options of `serve` for pages: what cannot be is refused before any model is loaded."""

import pytest

from multispin.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--web-draft", "small"), "add --web"),
        (("--web", "--web-draft", "missing.gguf"), "there is no GGUF file missing.gguf"),
        (("--web", "--web-draft", "lookup"), "multispin convert --help"),
        (("--web", "--target", "some/model"), "name a .gguf file with --web-draft"),
    ],
)
def test_a_page_that_cannot_be_served_is_one_sentence(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr("multispin.web.files.wllama_folder", lambda: None)
    assert run(["serve", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_without_its_programs_the_page_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("multispin.web.files.find_spec", lambda name: None)
    assert run(["serve", "--web"]) == 2
    assert "`make web` in a clone" in capsys.readouterr().err
