"""What commands refuse before they begin, in one sentence and with exit code 2; and their help.

Everything runs in this process: importing torch anew for each sentence would take minutes.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from multispin.cli.main import COMMANDS, run

CELL = str(Path(__file__).resolve().parents[2] / "examples" / "scenarios" / "paper-llama.toml")
BRIEF = ("--rounds", "2", "--seeds", "1", "--jobs", "1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "--out", "FILE/drafter"], "cannot write to the folder"),
        (["distill", "--out", "FOLDER/drafter", "--corpus", "FILE/corpus"], "cannot write to the folder"),
        (
            ["distill", "--out", "FOLDER/drafter", "--learning-rate", "nan"],
            "'--learning-rate': nan is not a finite number",
        ),
        (["distill", "--out", "FOLDER/drafter", "--device", "cuda:99"], "there is no device 'cuda:99'"),
        pytest.param(
            ["profile", "--target", "TINY", "--draft", "TINY", "--draft-on", "mps"],
            "there is no device 'mps' here: only Macs with Apple's chips have it",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is here"),
        ),
        (["profile", "--target", "TINY", "--temperature", "nan"], "'--temperature': nan is not a finite number"),
        (["profile", "--target", "TINY", "--plot", "FOLDER/x.xyz"], "must end in .png"),
        (["serve", "--target", "TINY", "--prefill-share", "nan"], "'--prefill-share': nan is not a finite number"),
        (["serve", "--target", "TINY", "--port", "0", "--host", ""], "--host is empty"),
        (["serve", "--target", "TINY", "--port", "0", "--model-name", "\udcff"], "--model-name is not UTF-8 text"),
        (["serve", "--target", "TINY", "--port", "0", "--credential", "\udcff"], "--credential is not UTF-8 text"),
        (["serve", "--engine", "vllm", "--edge-draft", "small"], "vLLM drafts only inside its own step"),
        (["demo", "--engine", "vllm", "--edge-draft", "small"], "vLLM drafts only inside its own step"),
        (["reproduce", "--out", "FILE/report"], "cannot write to the folder"),
        (["profile", "--target", "TINY", "--draft", "nonsense"], "there is no model 'nonsense'"),
        (["profile", "--target", "TINY", "--draft", "q4:nonsense"], "there is no model 'nonsense'"),
        (["profile", "--target", "TINY", "--draft", "FOLDER"], "has no config.json"),
        (["profile", "--target", "TINY", "--out", "FILE/site.toml"], "there is no folder"),
        (["profile", "--target", "TINY", "--out", "FOLDER/site.toml"], "--out: a scenario needs a drafter"),
        (
            ["profile", "--target", "TINY", "--batches", "1", "--lengths", "0"],
            "1 kinds of batches; the fit needs",
        ),
        (["profile", "--target", "TINY", "--draft", "lookup", "--tokens", "4000"], "leaves no room for a prompt"),
        (["distill", "--target", "TINY", "--out", "FOLDER/d", "--begin", "FOLDER"], "holds no drafter"),
        (["distill", "--target", "TINY", "--out", "FOLDER/d", "--layers", "9"], "9 layers cannot be taken"),
        (
            ["device", "--draft", "lookup", "--allowed-origin", "https://chat.example"],
            "--allowed-origin is for the API",
        ),
        (
            ["device", "--serve", "127.0.0.1:0", "--allowed-origin", "chat.example"],
            "--allowed-origin 'chat.example' is no origin",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["serve", "--port", "BUSY"], "--port"),
        (["serve", "--port", "0", "--metrics-at", "127.0.0.1:BUSY"], "--metrics-at"),
        (["device", "--draft", "lookup", "--serve", "127.0.0.1:BUSY"], "--serve"),
    ],
)
def test_a_port_that_is_in_use_is_refused_before_a_model_is_loaded(arguments, option, monkeypatch, capsys):
    for load in ("load_tokenizer", "load_draft_source"):
        monkeypatch.setattr(f"multispin.models.{load}", lambda *_, **more: pytest.fail("it began to load a model"))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        assert run([each.replace("BUSY", port) for each in arguments]) == 2
    assert f"{option}: port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nonsense", "", "/nowhere/x.gguf", "q8:nonsense"])
def test_a_drafter_that_is_not_there_is_refused_before_the_target_is_loaded(name, monkeypatch, capsys):
    for load in ("load_tokenizer", "load_verifier"):
        monkeypatch.setattr(f"multispin.models.{load}", lambda *_, **more: pytest.fail("it began to load a model"))
    assert run(["serve", "--port", "0", "--edge-draft", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("multispin: --edge-draft")
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "\x1b[31m\x9b2J\u202e", "ho\u2028st"])
def test_a_host_that_is_no_name_is_refused_in_one_sentence(host, capsys):
    assert run(["serve", "--host", host, "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "cannot listen on" in said
    assert said.count("\n") == 1
    assert not set(said) & set("\x1b\x9b\u202e\u2028")


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)], ids=str)
def test_no_socket_gets_the_number_of_a_standard_stream_that_was_closed(closed):
    code = "import socket, sys; from multispin.cli.main import keep_standard_numbers; keep_standard_numbers(); "
    code += "sys.exit(sys.stdout.isatty() or sys.stderr.isatty() or socket.socket().fileno() <= 2)"

    def close():
        for number in closed:
            os.close(number)

    assert subprocess.run([sys.executable, "-c", code], preexec_fn=close, capture_output=True).returncode == 0


def command(arguments, **streams):
    """A command as a process, with its standard streams as they are given: "full" or "gone"."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with open("/dev/full", "w") as full:  # noqa: PTH123
            places = {"full": full, "gone": writer, "read": subprocess.PIPE}
            return subprocess.run(
                [sys.executable, "-m", "multispin", *arguments],
                **{name: places[place] for name, place in streams.items()},
                check=False,
            )
    finally:
        os.close(writer)


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")  # noqa: PTH110


@FULL
@pytest.mark.parametrize("place", ["full", "gone"])
def test_remarks_that_nobody_can_read_end_no_command(place, tmp_path):
    tokens = str(tmp_path / "tokens.json")
    for arguments in (["plan", CELL, "--compare"], ["token", "add", "anna", "--tokens", tokens]):
        found = command(arguments, stdout="read", stderr=place)
        assert found.returncode == 0
        assert found.stdout


@FULL
@pytest.mark.parametrize("arguments", [[], ["--help"], ["plan", CELL]])
def test_output_that_nobody_takes_ends_a_command_without_a_traceback(arguments):
    found = command(arguments, stdout="full", stderr="read")
    assert found.returncode == 2
    assert found.stderr == b"multispin: a file or the output: No space left on device\n"
    found = command(arguments, stdout="gone", stderr="read")
    assert (found.returncode, found.stderr) == (1, b"")


@pytest.mark.parametrize("name", ["serve", "profile", "distill"])
def test_where_the_target_runs_is_told_by_on_and_its_old_name_still_works(name, capsys):
    from importlib import import_module

    command = import_module(f"multispin.cli.{name}").command
    given = ["--out", "d"] if name == "distill" else []
    for option in ("--on", "--device"):
        assert command.make_context(name, [option, "cuda:3", *given]).params["place"] == "cuda:3"
    assert run([name, "--help"]) == 0
    assert "--device" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--target", "/nowhere/model"], "there is no model"),
        (["demo", "--target", "nowhere.gguf"], "there is no GGUF file"),
        (["demo", "--devices", "0"], "--devices"),
        (["demo", "--temperature", "-1"], "temperature = -1"),
        (["demo", "--top-p", "0"], "top_p = 0"),
        (["demo", "--policy", "magic"], "--policy"),
        (["demo", "--rule", "rejection"], "needs a temperature above 0"),
        (["demo", "--rule", "greedy", "--temperature", "0.7"], "needs temperature 0"),
        (["demo", "--stop", ""], "stop string"),
        (["demo", "--logit-bias", "the=3"], "ID=BIAS"),
        (["demo", "--logit-bias", "3=101"], "outside −100 … 100"),
        (
            ["device", "--target", "TINY", "--draft", "TINY", "--on", "cuda:99", "--prompt", "x"],
            "no device 'cuda:99' here",
        ),
        (["device", "--draft", "lookup", "--on", "mps", "--prompt", "x"], "runs no model"),
        (["device", "--draft", "small", "--on", "cuda:0", "--gpu-layers", "9", "--prompt", "x"], "give one of them"),
        (["device", "--draft", "lookup", "--gpu-layers", "9", "--prompt", "x"], "leave it out"),
        (["profile", "--draft", "q5", "--draft-on", "cuda:0"], "--draft-on: the drafter 'q5' is rounded for a CPU"),
        (["device", "--prompt", "x", "--rule", "rejection-up"], "needs a temperature above 0"),
        (["demo", "--bandwidth-hz", "-5"], "--bandwidth-hz"),
        (["demo", "--bandwidth-hz", "nan"], "'--bandwidth-hz': nan is not a finite number"),
        (["demo", "--site", "nowhere"], "--site: there is no site 'nowhere'"),
        (["demo", "--target", "TINY", "--on", "cuda:99"], "there is no device 'cuda:99'"),
        (["plan", "nowhere"], "there is no scenario 'nowhere': name one of"),
        (["demo", "--site", "h100-7b", "--devices", "3"], "--devices is for a demo without a site"),
        (["demo", "--mode", "magic"], "--mode"),
        (["demo", "--slower", "0.5"], "--slower"),
        (["demo", "--target", "TINY", "--draft", "no-such-drafter"], "there is no model"),
        (["serve", "--port", "0", "--target", "TINY", "--max-length", "100000"], "max_length = 100000"),
        (["serve", "--port", "0", "--target", "TINY", "--device", "warp"], "warp"),
        (["serve", "--port", "0", "--target", "TINY", "--on", "cuda:99"], "there is no device 'cuda:99' here"),
        (
            ["serve", "--port", "0", "--target", __file__],
            "is neither a model folder nor a file whose name ends in .gguf",
        ),
        (
            ["device", "ws://127.0.0.1:9", "--retry-for=0.3", "--target", "TINY", "--draft", "none", "--prompt", "x"],
            "cannot reach the edge",
        ),
        (["device", "nonsense", "--target", "TINY", "--draft", "lookup", "--prompt", "x"], "nonsense"),
        *(
            (["device", option, value, "--prompt", "x"], f"'{option}': {value} is not a finite number")
            for option in ("--seconds-per-token", "--spectral-efficiency")
            for value in ("nan", "inf")
        ),
        (["device", "--delay-s", "nan", "--prompt", "x"], "'--delay-s': nan is not a finite number"),
        (["device", "--retry-for", "nan", "--prompt", "x"], "'--retry-for': nan is not a finite number"),
        (["serve", "--emulated-edge-draft-s", "0.1", "nan"], "'--emulated-edge-draft-s': nan is not a finite number"),
        (["plan", CELL, "--relative-gap", "nan"], "'--relative-gap': nan is not a finite number"),
        (["device", "--target", "", "--draft", "lookup", "--prompt", "x"], "the target's name is empty"),
        *(
            (arguments, "the name of a file or folder is empty")
            for arguments in (
                ["convert", "embedded", ""],
                ["distill", "--out", ""],
                ["distill", "--out", "d", "--corpus", ""],
                ["reproduce", "--out", ""],
                ["profile", "--out", ""],
                ["profile", "--trace", ""],
                ["simulate", CELL, "--csv", ""],
                ["advise", CELL, "--plot", ""],
                ["serve", "--config", ""],
                ["serve", "--tokens", ""],
                ["serve", "--tls-certificate", "x", "--tls-key", ""],
                ["token", "add", "x", "--tokens", ""],
                ["chat", "--ca-file", ""],
                ["device", "--credential-file", "", "--prompt", "x"],
            )
        ),
        *(
            ([command, "--credential", credential, *more], sentence)
            for command, *more in (["serve", "--target", "TINY"], ["device", "--draft", "lookup", "--prompt", "x"])
            for credential, sentence in (
                ("", "--credential is empty: name a secret, or leave it out"),
                (" \n", "--credential begins or ends with white space, which HTTP clients cannot send"),
                ("sesame\n", "--credential begins or ends with white space"),
                ("two\nlines", "--credential has a line break or another character that HTTP clients cannot send"),
                ("right\u202eleft", "--credential has a line break or another character that HTTP"),
                ("c" * 257, "--credential has 257 characters, over the limit of 256"),
            )
        ),
        (["demo", "--edge-draft", "nonsense"], "--edge-draft: there is no model 'nonsense'"),
        (["demo", "--mode", "rounds", "--edge-draft", "small"], "in --mode rounds the edge never drafts"),
        (["demo", "--devices", "2", "--edge-draft", "small"], "in --mode rounds the edge never drafts"),
        (
            ["demo", "--mode", "plain", "--mode", "rounds", "--edge-draft", "q4"],
            "in --mode plain and rounds the edge never",
        ),
        (["simulate", CELL, "--ray", "--jobs", "4"], "--jobs cannot go with --ray: the cluster says how many run"),
        (["simulate", CELL, "--live", "q4", "--jobs", "1"], "--jobs cannot go with --live: one process holds"),
        (["simulate", CELL, "--target", "TINY"], "--target is the model that verifies with --live: add --live"),
        (["demo", "--site", ""], "--site: there is no site ''"),
        (
            ["convert", "embedded", "out.gguf", "--target", "x.gguf"],
            "is a complete model: leave the target out",
        ),
        (["nonsense"], "No such command"),
        (["simulate", CELL, "--rounds", "many"], "'--rounds': 'many' is not a valid whole number. (see"),
        (["advise", CELL, "--delay-s", "long"], "'--delay-s': 'long' is not a valid number. (see"),
        (["plan", "x" * 100_000], "there is no scenario 'xxx"),
        (["plan", "x/" * 100_000], "cannot be read: File name too long"),
        (["demo", "--devices", "9" * 4000], "is not in the range 1<=x<=64"),
    ],
    ids=lambda value: "-".join(value[:3]).replace("/", "_") if isinstance(value, list) else "",
)
def test_bad_input_gets_one_sentence_and_exit_code_2(tiny_folder, arguments, sentence, capsys):
    assert run([tiny_folder if argument == "TINY" else argument for argument in arguments]) == 2
    check_refusal(*capsys.readouterr(), sentence)


@pytest.mark.embedded
def test_a_drafter_that_knows_fewer_ids_is_refused_before_it_reads_anything(tiny_folder, capsys):
    arguments = ["device", "ws://127.0.0.1:9", "--target", "embedded", "--draft", tiny_folder, "--prompt", "hello"]
    assert run(arguments) == 2
    check_refusal(*capsys.readouterr(), "draft with a model of its family")


def check_refusal(stdout, stderr, sentence):
    assert "Traceback" not in stderr
    said = [line for line in stderr.splitlines() if line.startswith("multispin") and "trying for" not in line]
    assert len(said) == 1
    assert sentence in said[0]
    assert len(said[0]) < 3000
    assert stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--target", "TINY"], ["device", "--draft", "lookup", "--prompt", "x"]],
    ids=lambda each: each[0],
)
def test_a_secret_that_is_not_there_does_not_open_an_edge(arguments, tiny_folder, monkeypatch, capsys):
    """As in MULTISPIN_CREDENTIAL="$SECRET" without a SECRET."""
    monkeypatch.setenv("MULTISPIN_CREDENTIAL", "")
    assert run([tiny_folder if argument == "TINY" else argument for argument in arguments]) == 2
    check_refusal(*capsys.readouterr(), "--credential is empty: name a secret, or leave it out (unset it)")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    assert run([name, "--help"]) == 0
    assert f"multispin {name}" in capsys.readouterr().out.split("Examples:")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["device", "--draft", "lookup", "--prompt", "x"],
        ["serve", "--target", "TINY", "--port", "0"],
        ["profile", "--target", "TINY"],
        ["distill", "--target", "TINY", "--out", "FOLDER"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_far_more_threads_than_cores_are_refused(arguments, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    places = {"TINY": tiny_folder, "FOLDER": str(tmp_path)}
    assert run([*(places.get(each, each) for each in arguments), "--threads", "33"]) == 2
    check_refusal(*capsys.readouterr(), "--threads 33 is over 32, 16 for each core of this machine")
