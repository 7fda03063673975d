"""What scripts rely on: options, plans, simulations, JSON keys, events, metrics and paths, as recorded in this folder.

Additions are allowed. A removal or a change of what is recorded is a failure. To record anew what was changed on
purpose, run `MULTISPIN_WRITE_CONTRACT=1 python -m pytest tests/contract` and review the difference of the JSON files.
"""

import asyncio
import importlib
import json
import os
import re
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.contract.recorded import HERE, check, check_keys, keys_of

from multispin.cli.main import COMMANDS, run
from multispin.cli.plan import plan_json
from multispin.control import POLICIES, load_scenario, plan
from multispin.edge.account import Counts
from multispin.edge.metrics import Metrics
from multispin.errors import InputError
from multispin.protocol.events import Event, Order, Round, RoundDevice, RoundGrant

SCENARIOS = HERE.parents[1] / "examples" / "scenarios"
ACCURACY = 1e-8
"""Largest relative difference of a number that still counts as the same: other processors and other versions of HiGHS
round differently."""


def assert_same(recorded, found, where=""):
    """Everything that was recorded is in `found` with its value; `found` may have more keys."""
    if isinstance(recorded, dict):
        assert isinstance(found, dict), where
        assert set(recorded) <= set(found), f"{where}: {sorted(set(recorded) - set(found))} is missing"
        for key, value in recorded.items():
            assert_same(value, found[key], f"{where}/{key}")
    elif isinstance(recorded, list):
        assert isinstance(found, list), where
        assert len(recorded) == len(found), where
        for index, (one, other) in enumerate(zip(recorded, found, strict=True)):
            assert_same(one, other, f"{where}/{index}")
    elif isinstance(recorded, float):
        assert found == pytest.approx(recorded, rel=ACCURACY, abs=0.0), where
    else:
        assert found == recorded, where


# Options ----------------------------------------------------------------------------------------------------------


def options_of(command):
    """Every option by each of its names, any of which may come first; arguments, which have none, by their place."""
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    named = {name: option_of(option) for option in options for name in option.opts}
    named |= {f"argument {place}": option_of(each) for place, each in enumerate(arguments, start=1)}
    for name, inner in getattr(command, "commands", {}).items():
        named |= {f"{name} {option}": described for option, described in options_of(inner).items()}
    return named


def option_of(parameter):
    kind = parameter.type
    described = {
        "names": [*parameter.opts, *parameter.secondary_opts],
        "type": kind.name,
        "default": plain_default(parameter),
        "required": parameter.required,
        "multiple": parameter.multiple,
        "nargs": parameter.nargs,
        "flag": bool(getattr(parameter, "is_flag", False)),
    }
    if isinstance(shown := getattr(parameter, "show_default", None), str):
        described["shown_default"] = shown
    if isinstance(kind, click.Choice):
        described["choices"] = list(kind.choices)
    for bound in ("min", "max", "min_open", "max_open"):
        if hasattr(kind, bound):
            described[bound] = getattr(kind, bound)
    return described


def plain_default(parameter):
    """The default as JSON can hold it; those that depend on the machine are left out."""
    if parameter.name in ("jobs", "processes"):
        return "by the number of cores"
    value = parameter.to_info_dict()["default"]  # click's own mark for "no default" differs between its versions
    return str(value) if isinstance(value, Path) else value if isinstance(value, bool | int | float | str) else None


def assert_options_kept(recorded, found):
    for command, options in recorded.items():
        assert command in found, f"the command {command} is gone"
        for name, described in options.items():
            assert name in found[command], f"{command}: the option {described['names']} is gone"
            now = found[command][name]
            where = f"{command} {name}"
            fixed = described.keys() - {"names", "choices", "shown_default"}
            if now["default"] is None and str(described["default"]) in now.get("shown_default", ""):
                fixed -= {"default"}  # decided later, and in some new case otherwise
            if "argument" in name:
                if now["nargs"] == -1:  # any number of them instead of one
                    fixed -= {"nargs", "default"}
            else:
                assert set(described["names"]) <= set(now["names"]), where
            assert set(described.get("choices", ())) <= set(now.get("choices", ())), where
            assert {key: now.get(key) for key in fixed} == {key: described[key] for key in fixed}, where


def test_no_option_is_gone_or_changed():
    commands = {name: importlib.import_module(f"multispin.cli.{name}").command for name in COMMANDS}
    check("options", {name: options_of(command) for name, command in commands.items()}, assert_options_kept)


# Plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_every_plan_of_the_examples_is_the_recorded_one():
    found = {}
    for file in sorted(SCENARIOS.glob("*.toml")):
        for policy in POLICIES:
            try:
                made = plan(load_scenario(file), policy, relative_gap=1e-6)
            except InputError:
                found[f"{file.stem} {policy}"] = "refused"
            else:
                found[f"{file.stem} {policy}"] = summed_up(json.loads(plan_json(made)))
    check("plans", found, assert_same)


def summed_up(document):
    """A plan with two sums for each key of the devices: of all values, and of all values by their place."""
    devices = document.pop("devices")
    columns = {key: [device.get(key) for device in devices] for key in sorted({key for d in devices for key in d})}
    return document | {"count": len(devices), "devices": {key: column(values) for key, values in columns.items()}}


def column(values):
    if all(isinstance(value, int | float) for value in values):
        return [sum(values), sum(place * value for place, value in enumerate(values, start=1))]
    return zlib.crc32(json.dumps(values).encode())


# Simulations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "more"),
    [("paper-llama", ("--policy", "fixed", "--sweep", "devices=3,5")), ("evening-cell", ()), ("recorded", ())],
)
def test_a_simulation_gives_the_recorded_numbers(file, more, capsys, monkeypatch, tmp_path):
    """Rounds wait by a fixed rule and `min_draft_length = 0` is ignored, as when these files were first written.

    They were written anew when estimates of a pass's time began to trust the first passes more, and still more.
    """
    site = shutil.copytree(SCENARIOS.resolve().parent, tmp_path / "data") / SCENARIOS.resolve().name
    text = (site / f"{file}.toml").read_text().replace("min_draft_length = 0\n", "")
    head, table, rest = text.partition("[simulation]\n")
    fixed = "[simulation]\nchoose_deadline = false\n"
    (site / f"{file}.toml").write_text(f"{head}{fixed}{rest}" if table else f"{text}\n{fixed}")
    monkeypatch.chdir(site)
    brief = ("--policy", "heterogeneous", "--rounds", "25", "--seeds", "2", "--seed", "3", "--jobs", "1", "--json")
    assert run(["simulate", f"{file}.toml", *brief, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    runs = {f"{r['policy']} {json.dumps(r['sweep'])}": r for r in document.pop("results")}
    check(f"simulate-{file}", document | runs, assert_same)


# Keys of JSON documents and events --------------------------------------------------------------------------------


def test_profile_prints_and_writes_the_recorded_keys(tiny_folder, tmp_path, capsys):
    trace = tmp_path / "trace.json"
    arguments = [
        *("profile", "--target", tiny_folder, "--draft", "q6", "--temperature", "0.9", "--prompts", "1"),
        *("--tokens", "12", "--batches", "1,3", "--lengths", "0,2", "--context", "16", "--repeats", "1"),
        *("--threads", "1", "--json", "--trace", str(trace)),
    ]
    assert run(arguments) == 0
    printed = keys_of(json.loads(capsys.readouterr().out))
    check_keys("keys-profile", {"printed": printed, "trace": keys_of(json.loads(trace.read_text()))})


def test_distill_prints_the_recorded_keys(tiny_folder, tmp_path, capsys):
    sizes = ("--layers", "1", "--steps", "2", "--tokens", "400", "--answer-tokens", "8", "--vocabulary", "64")
    arguments = ["distill", "--target", tiny_folder, "--out", str(tmp_path / "d"), *sizes, "--batch", "2"]
    assert run([*arguments, "--positions", "16", "--threads", "1", "--json"]) == 0
    check_keys("keys-distill", {"card": keys_of(json.loads(capsys.readouterr().out))})


def test_reproduce_prints_the_recorded_keys(tmp_path, capsys):
    few = ("--figures", "7", "--seeds", "1", "--realisations", "1", "--blocks", "1", "--processes", "1")
    assert run(["reproduce", "--out", str(tmp_path), *few, "--json"]) == 0
    check_keys("keys-reproduce", {"summary": keys_of(json.loads(capsys.readouterr().out))})


def test_advise_prints_the_recorded_keys(capsys):
    assert run(["advise", "paper-llama", "--json"]) == 0
    check_keys("keys-advise", {"printed": keys_of(json.loads(capsys.readouterr().out))})


def test_simulate_prints_the_recorded_keys_in_every_mode(capsys):
    modes = ("plain", "rounds", "streams", "auto")
    few = ("--rounds", "3", "--seeds", "1", "--jobs", "1", "--json")
    assert run(["simulate", "paper-llama", *few, *(word for mode in modes for word in ("--mode", mode))]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    check_keys("keys-simulate", {mode: keys_of(*(row for row in rows if row["mode"] == mode)) for mode in modes})


def test_token_prints_the_recorded_keys(tmp_path, capsys):
    file = ("--tokens", str(tmp_path / "tokens.json"), "--json")
    assert run(["token", "add", "anna", *file]) == 0
    added = json.loads(capsys.readouterr().out)
    assert run(["token", "list", *file]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert run(["token", "revoke", "anna", *file]) == 0
    revoked = json.loads(capsys.readouterr().out)
    documents = {"add": added, "list": listed, "revoke": revoked}
    check_keys("keys-token", {name: keys_of(each) for name, each in documents.items()})


def test_no_event_or_order_is_gone_or_lacks_a_field():
    lines = (*get_args(Event), *get_args(Order))
    found = {each.__struct_config__.tag: sorted(field.name for field in msgspec.structs.fields(each)) for each in lines}
    inner = {
        each.__name__: sorted(field.name for field in msgspec.structs.fields(each))
        for each in (RoundDevice, RoundGrant)
    }
    check_keys("fields-events", found | inner)


def test_no_metric_is_gone_or_changes_its_type_or_labels():
    """`fields-metrics.json` has, for each name of /metrics, its type and its labels."""
    metrics = Metrics("a model", lambda: Counts(0, 0, (1,), 0, 4, 0.0, 0, 0))
    row = RoundDevice("phone", 2, 1, 2, 0.5, 0.05, 1, "device")
    metrics.tell(Round(1, 1.0, 0.1, 0, 0.2, 10.0, (row,), (RoundGrant("phone", 2, 1e6, 1),)))
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        if family.name.endswith("_created") or family.name.startswith("process_"):
            continue  # `serve` switches the former off; the latter are there where /proc is
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name] = [family.type, *sorted(labels)]
    check("fields-metrics", found, assert_same)


def test_edge_and_device_tell_events_with_the_recorded_keys(tiny_folder, capsys, monkeypatch):
    """`serve` runs in a thread of this process, with a pipe as its standard input, whose end ends it."""
    reading, writing = os.pipe()
    lines = []
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as leash:
        monkeypatch.setattr("sys.stdin", stdin)
        small = (
            "--target",
            tiny_folder,
            "--mode",
            "rounds",
            "--port",
            "0",
            "--slots",
            "2",
            "--max-length",
            "100",
            "--threads",
            "1",
        )
        edge = threading.Thread(target=run, args=(["serve", *small, "--json", "--attended"],), daemon=True)
        edge.start()
        port = json.loads(wait_for("listening", lines, capsys))["port"]
        url = f"ws://127.0.0.1:{port}"
        request = ("--target", tiny_folder, "--draft", "lookup", "--prompt", "abababab", "--max-tokens", "6")
        assert run(["device", url, *request, "--threads", "1", "--json"]) == 0
        wait_for("closed", lines, capsys)
        health = asyncio.run(misbehave(url, tiny_folder))
        answers = asyncio.run(look_at_every_path(url))
        wait_for("lost", lines, capsys)
        wait_for("refused", lines, capsys)
        leash.close()
        edge.join(20)
    events = [json.loads(line) for line in lines]
    kinds = sorted({event["event"] for event in events})
    told = {kind: keys_of(*(event for event in events if event["event"] == kind)) for kind in kinds}
    check_keys("keys-events", told | {"/health": keys_of(health)})
    check("paths", answers, assert_same)


def wait_for(kind, lines, capsys):
    """The first line that tells an event of this kind; `lines` gets all lines that were printed so far."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        for line in lines:
            if f'"event": "{kind}"' in line:
                return line
        time.sleep(0.02)
    raise AssertionError(f"no event {kind!r} in {lines}")


async def misbehave(url, target):
    """Greet the edge and vanish, greet it and talk nonsense; returns what the edge says of its health."""
    import aiohttp

    from multispin.models import load_tokenizer
    from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, encode

    tokens = load_tokenizer(target).fingerprint
    hello = encode(Hello(PROTOCOL_VERSION, tokens, "rude", "lookup", True, Profile(0.05, 5.0), ""))
    async with aiohttp.ClientSession() as client:
        for last in (None, b"nonsense"):
            socket = await client.ws_connect(url + SESSION_PATH)
            await socket.send_bytes(hello)
            await socket.receive_bytes()
            if last is None:
                socket._response.connection.transport.abort()
            else:
                await socket.send_bytes(last)
                await socket.receive()
        async with client.get(re.sub("^ws", "http", url) + "/health") as answer:
            return await answer.json()


async def look_at_every_path(url):
    """The status of a request without a body at every path: what is there answers otherwise than with 404."""
    import aiohttp

    gets = ("/health", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/session")
    posts = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize")
    found = {}
    async with aiohttp.ClientSession(re.sub("^ws", "http", url)) as client:
        for method, paths_ in (("GET", gets), ("POST", posts)):
            for path in paths_:
                async with client.request(method, path) as answer:
                    found[f"{method} {path}"] = answer.status
    return found
