"""Whoever sets what has no effect is told so."""

import pytest

from multispin.cli import device
from multispin.cli.main import run
from multispin.cli.serve import command
from multispin.cli.unused import OF_ONE_TEXT, idle_of_device, idle_of_serve, idle_policies


def said(**changed):
    with command.make_context("serve", []) as context:
        return list(idle_of_serve(command, context.params | changed))


@pytest.mark.parametrize("mode", ["auto", "plain", "rounds", "mixture", "streams"])
def test_the_defaults_are_silent_in_every_mode(mode):
    assert said(mode=mode) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mode": "auto", "policy": "fixed"}, "--policy fixed has no effect in mode auto"),
        ({"mode": "plain", "policy": "fair"}, "--policy fair has no effect in mode plain"),
        ({"mode": "plain", "bandwidth_hz": 1e6}, "--bandwidth-hz has no effect in --mode plain"),
        ({"mode": "edge", "draft_timeout_s": 5.0}, "--draft-timeout-s has no effect in --mode edge"),
        ({"mode": "plain", "max_draft_length": 4}, "--max-draft-length has no effect in --mode plain"),
        ({"mode": "rounds", "longest_wait_s": 1.0}, "--longest-wait-s has no effect in --mode rounds"),
        ({"emulated_edge_draft_s": (0.1, 0.0)}, "--emulated-edge-draft-s has no effect without --edge-draft"),
        ({"api": False, "model_name": "x"}, "--model-name has no effect with --no-api"),
    ],
)
def test_an_option_without_effect_is_named(changed, sentence):
    (told,) = said(**changed)
    assert told.startswith(sentence)


def test_an_option_that_acts_is_not():
    assert said(mode="auto", policy="fair") == said(mode="rounds", policy="fixed") == said(bandwidth_hz=1e6) == []
    assert said(mode="edge", edge_draft="small", max_draft_length=4) == []
    assert idle_policies(["fixed", "fair"], ["auto", "plain"]) == idle_policies([], ["plain"]) == ""


def test_simulate_says_it_beside_its_result(capsys):
    arguments = ["a100-27b", "--mode", "plain", "--policy", "fixed", "--rounds", "2", "--seeds", "1", "--jobs", "1"]
    assert run(["simulate", *arguments, "--json"]) == 0
    assert "--policy fixed has no effect in mode plain" in capsys.readouterr().err


def said_of_a_device(*arguments):
    return list(idle_of_device(device.command, device.command.make_context("device", list(arguments)).params))


def test_a_device_that_serves_is_told_that_requests_name_their_own_sampling():
    arguments = ("--temperature", "0.7", "--stop", "x", "--thinking", "--max-length", "64", "--context", "32")
    assert said_of_a_device(*arguments, "--serve", "127.0.0.1:0") == [
        f"{name} has no effect with --serve: each request has its own"
        for name in ("--thinking", "--temperature", "--stop")
    ]
    assert said_of_a_device(*arguments) == ["--max-length has no effect without --serve"]
    assert said_of_a_device() == said_of_a_device("--serve", "127.0.0.1:0") == []


def test_every_option_of_one_text_is_one_of_the_device():
    assert set(OF_ONE_TEXT) <= {each.name for each in device.command.params}
