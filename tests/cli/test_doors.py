"""What long commands refuse before the long part, in one sentence and with exit code 2."""

from pathlib import Path

import pytest

from multispin.cli.main import run

CELL = str(Path(__file__).resolve().parents[2] / "examples" / "scenarios" / "paper-llama.toml")
BRIEF = ("--rounds", "2", "--seeds", "1", "--jobs", "1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "--out", "FILE/drafter"], "cannot write to the folder"),
        (["distill", "--out", "FOLDER/drafter", "--corpus", "FILE/corpus"], "cannot write to the folder"),
        (["distill", "--out", "FOLDER/drafter", "--learning-rate", "nan"], "--learning-rate is not a number"),
        (["distill", "--out", "FOLDER/drafter", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        (["profile", "--target", "TINY", "--temperature", "nan"], "--temperature is not a number"),
        (["profile", "--target", "TINY", "--plot", "FOLDER/x.xyz"], "must end in .png"),
        (["serve", "--target", "TINY", "--prefill-share", "nan"], "--prefill-share is not a number"),
        (["reproduce", "--out", "FILE/report"], "cannot write to the folder"),
        (["profile", "--target", "TINY", "--draft", "nonsense"], "there is no model 'nonsense'"),
        (["profile", "--target", "TINY", "--draft", "q4:nonsense"], "there is no model 'nonsense'"),
        (["profile", "--target", "TINY", "--draft", "FOLDER"], "holds no config.json"),
        (["profile", "--target", "TINY", "--out", "FILE/site.toml"], "there is no folder"),
        (["profile", "--target", "TINY", "--out", "FOLDER/site.toml"], "--out: a scenario needs a drafter"),
        (["profile", "--target", "TINY", "--batches", "1", "--lengths", "0"], "1 kinds of batches; 3 are needed"),
        (["profile", "--target", "TINY", "--draft", "lookup", "--tokens", "4000"], "leaves no room for a prompt"),
        (["distill", "--target", "TINY", "--out", "FOLDER/d", "--begin", "FOLDER"], "holds no drafter"),
        (["distill", "--target", "TINY", "--out", "FOLDER/d", "--layers", "9"], "9 layers cannot be taken"),
        (["simulate", CELL, *BRIEF, "--csv", "FOLDER"], "FOLDER"),
        (["simulate", CELL, *BRIEF, "--csv", "/dev/full"], "No space left"),
    ],
    ids=lambda value: "-".join(value[::2]).replace("/", "_") if isinstance(value, list) else "",
)
def test_it_is_refused_at_once(arguments, sentence, tiny_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    places = {"TINY": tiny_folder, "FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path)}

    def filled(text):
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    monkeypatch.setattr("multispin.models.Verifier.forward", lambda *_: pytest.fail("it began to compute"))
    assert run([filled(argument) for argument in arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("multispin")]
    assert len(said) == 1
    assert filled(sentence) in said[0]


@pytest.mark.parametrize("name", ["serve", "profile", "distill"])
def test_where_the_target_runs_is_told_by_on_and_its_old_name_still_works(name, capsys):
    from importlib import import_module

    command = import_module(f"multispin.cli.{name}").command
    given = ["--out", "d"] if name == "distill" else []
    for option in ("--on", "--device"):
        assert command.make_context(name, [option, "cuda:3", *given]).params["place"] == "cuda:3"
    assert run([name, "--help"]) == 0
    assert "--device" not in capsys.readouterr().out
