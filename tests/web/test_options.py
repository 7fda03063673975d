"""The options of `serve` for pages: what cannot be is refused before any model is loaded."""

import pytest

from multispin.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--web-draft", "small"), "add --web"),
        (("--web", "--web-draft", "missing.gguf"), "there is no GGUF file missing.gguf"),
        (("--web", "--web-draft", "lookup"), "multispin convert --help"),
        (("--web", "--target", "some/model"), "give a .gguf file with --web-draft"),
    ],
)
def test_a_page_that_cannot_be_served_is_one_sentence(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr("multispin.web.files.wllama_folder", lambda: None)
    assert run(["serve", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html>not found</html>", "page.gguf is not a GGUF file"),
        (b"GGUF\x07\0\0\0" + bytes(16), "of version 7"),
        (b"GGUF\x03\0\0\0" + bytes(1000), "has 1008 bytes, but its tensors end at byte 32"),
    ],
)
def test_what_is_no_drafter_is_not_handed_to_pages(tmp_path, monkeypatch, capsys, data, said):
    monkeypatch.setattr("multispin.web.files.wllama_folder", lambda: None)
    file = tmp_path / "page.gguf"
    file.write_bytes(data)
    assert run(["serve", "--web", "--web-draft", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_without_its_programs_the_page_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("multispin.web.files.find_spec", lambda name: None)
    assert run(["serve", "--web"]) == 2
    assert "`make web` in a clone" in capsys.readouterr().err
