"""`multispin device` before and around its work: what it refuses, what it reads, what it shows."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from multispin.cli import device, drafting
from multispin.cli.main import run
from multispin.device import Silence, UntrustedError, Why
from multispin.protocol import RefusedError
from multispin.protocol.events import Away, Done, Written
from multispin.speculation import NoDrafter

NOWHERE = ("ws://127.0.0.1:9", "--draft", "none", "--retry-for", "0.2")


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def order_of(*arguments):
    """What the command line asks for."""
    return device.settled(device.command.make_context("device", list(arguments)).params)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://edge:1"], "http://edge:1 is not an address of an edge: write ws://HOST:PORT"),
        (["ws://a:1", "edge"], "edge is not an address"),
        (["--raw", "--system", "Be brief."], "--raw leaves out the chat template"),
        (["--raw", "--thinking"], "--raw leaves out the chat template"),
        (["--credential", "a", "--credential-file", "b"], "--credential-file cannot go with --credential"),
        (["--template-variable", "x"], "'x' is not of the form KEY=VALUE"),
        (["--template-variable", "a b=1"], "is not of the form KEY=VALUE"),
        (["--template-variable", "a=1", "--template-variable", "a=2"], "--template-variable gives a twice"),
        (["--template-variable", 'a={"b": 1, "b": 2}'], "--template-variable a: the key 'b' comes twice"),
        (["--prompt", "Gr\udcfc"], "--prompt is not UTF-8 text"),
        (["--stop", "\udcfc"], "--stop is not UTF-8 text"),
        (["--name", "n" * 81], "--name has 81 characters, over the limit of 80"),
        (["--credential", "c" * 257], "--credential has 257 characters, over the limit of 256"),
        (["--draft", "nonsense"], "there is no model 'nonsense'"),
        (["--draft", "q9"], "asks for 9 bits"),
        (["--draft", "lookup", "--context", "64"], "--context bounds what a model reads, and 'lookup' has no model"),
    ],
)
def test_it_refuses_before_anything_is_loaded(arguments, sentence, capsys):
    """There is no such target either, as loading it would say."""
    prompt = [] if "--prompt" in arguments else ["--prompt", "Hello"]
    assert run(["device", *prompt, "--target", "/no/such/target", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_file_without_a_credential_is_refused(tmp_path, capsys):
    (tmp_path / "empty").write_text(" \n")
    assert run(["device", *NOWHERE, "--prompt", "Hello", "--credential-file", str(tmp_path / "empty")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no credential: write one into it, or leave it out" in line


@pytest.mark.parametrize("data", ["Grüße".encode(), b"\xef\xbb\xbf" + "Grüße".encode(), "Grüße".encode("utf-16")])
def test_a_prompt_is_read_from_standard_input_whatever_its_byte_order_mark(data, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    assert order_of(*NOWHERE)["prompt"] == "Grüße"


def test_a_prompt_in_another_encoding_is_refused_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Stdin("Grüße".encode("latin-1")))
    assert run(["device", *NOWHERE]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "standard input is not UTF-8 text: byte 0xfc at position 2" in line


def test_a_standard_input_that_was_closed_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert run(["device", *NOWHERE]) == 2
    assert "standard input is closed" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [open("/dev/full", "w"), None], ids=["full", "closed"])  # noqa: PTH123, SIM115
def test_a_refusal_that_nobody_can_read_still_has_its_exit_code(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    assert run(["plan", "there is no such file"]) == 2
    assert run(["plan", "--no-such-option"]) == 2


class Chats:
    """A tokenizer that notes what it is asked for."""

    template = "a template"

    def encode(self, text):
        return text

    def encode_messages(self, messages, variables=None):
        return [(message["role"], message["content"]) for message in messages], variables


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ([("user", "Hello")], {})),
        (["--system", "Be brief."], ([("system", "Be brief."), ("user", "Hello")], {})),
        (["--no-thinking"], ([("user", "Hello")], {"enable_thinking": False})),
        (
            ["--template-variable", "depth=3", "--template-variable", "tone=dry", "--thinking"],
            ([("user", "Hello")], {"depth": 3, "tone": "dry", "enable_thinking": True}),
        ),
        (["--raw"], "Hello"),
    ],
)
def test_a_prompt_is_put_as_the_options_say(arguments, ids):
    order = order_of("--prompt", "Hello", "--draft", "none", *arguments)
    assert drafting.prompt_ids(Chats(), order) == ids


def test_a_model_without_a_template_reads_the_plain_prompt_and_refuses_messages():
    tokenizer = Chats()
    tokenizer.template = ""
    options = {"prompt": "Hello", "system": None, "variables": {}, "raw": False}
    assert drafting.prompt_ids(tokenizer, options) == "Hello"
    assert drafting.prompt_ids(tokenizer, {**options, "system": "x"})[0][0] == ("system", "x")


def done(text):
    return Done((), text, 3, "stop", "greedy", 1.0, 0, 0, 0, 0, 0, 0)


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a \\x1b[2J b 🍕\n"), (False, "a \x1b[2J b 🍕\n")])
def test_a_terminal_is_shown_nothing_that_it_would_obey_and_a_file_gets_the_text(terminal, shown, monkeypatch):
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    tell = drafting.Teller()
    for text in ("a", "a \x1b[2J b"):
        tell(Written(1, text, 0, 0))
    tell(done("a \x1b[2J b 🍕"))
    assert screen.getvalue() == shown


@pytest.mark.parametrize(
    "note", ["", "24 of 24 tokens were written without drafts of this device: the edge asked for none"]
)
def test_a_summary_says_why_nothing_was_drafted(note, capsys):
    drafting.Teller()(msgspec.structs.replace(done("a"), note=note))
    _, *more = capsys.readouterr().err.splitlines()
    assert more == [f"multispin: {note}"] * bool(note)


@pytest.mark.parametrize("why", list(Why))
def test_every_reason_is_a_sentence_with_what_to_change(why):
    silence = Silence(SimpleNamespace(max_length=32))
    silence.tokens[why] = 40
    client = SimpleNamespace(
        silence=silence, counters=SimpleNamespace(drafted=0), session=SimpleNamespace(generated=[1] * 50)
    )
    for context in (None, 32):
        note = drafting.note_of(client, {"draft": "small", "context": context})
        assert note.startswith("40 of 50 tokens were written without drafts of this device: ")
        assert ("--context" in note) == (why is Why.CONTEXT and context == 32)
        assert drafting.note_of(client, {"draft": "none", "context": context}) == ""


def test_an_outage_is_told_once_and_its_reason_cannot_forge_lines(capsys):
    tell = drafting.Teller()
    for _ in range(3):
        tell(Away("ws://edge", "gone\nmultispin: \x1b[31mall is well", 1.0, 300.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == r"multispin: no edge at ws://edge (gone\nmultispin: \x1b[31mall is well); trying for 300 s"


def measured(code):
    """Resident memory [MB] and what is loaded after running `code` in a fresh process."""
    source = Path(device.__file__).resolve().parents[2]
    code += "; import sys; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], *sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": source},
    ).stdout.split()
    return int(out[0]) / 1024, set(out[1:])


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say how much memory is used")
@pytest.mark.parametrize(
    "code",
    ["import multispin.device", "import multispin.protocol", "import multispin.cli.device, multispin.cli.process"],
)
def test_a_device_is_light_to_import(code):
    resident_mb, loaded = measured(code)
    assert resident_mb <= 130
    assert not loaded & {"torch", "transformers", "highspy", "matplotlib"}


def test_a_drafter_has_room_for_the_text_or_for_less_if_a_person_says_so(monkeypatch):
    rooms = []

    class Source:
        tokenizer = SimpleNamespace(template="", encode=lambda _: [1] * 40)

        def drafter(self, room):
            rooms.append(room)
            return NoDrafter()

    monkeypatch.setattr("multispin.models.load_draft_source", lambda *_, **more: Source())
    for context in ([], ["--context", "32"], ["--context", "4096"]):
        drafting.prepared_drafter(order_of("--prompt", "x", "--max-tokens", "10", "--draft", "small", *context))
    assert rooms == [50, 32, 50]


@pytest.mark.parametrize(
    ("refusal", "option"),
    [
        (UntrustedError("the certificate is not trusted"), "--ca-file"),
        (RefusedError("tokenizer-mismatch", "the tokenizer is another", 0.0), "--target"),
        (RefusedError("full", "this edge is full", 0.0), None),
    ],
)
def test_the_command_adds_the_option_that_helps(monkeypatch, capsys, refusal, option):
    async def refused(_):
        raise refusal

    monkeypatch.setattr(drafting, "write", refused)
    assert run(["device", "--draft", "none", "--prompt", "x"]) == 2
    said = capsys.readouterr().err
    assert said.rstrip().endswith(f"{refusal} ({option})" if option else str(refusal))
