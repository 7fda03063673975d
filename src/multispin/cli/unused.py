"""Finds options without effect beside the others, so that the command can warn about them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

PLANNED = ("rounds", "mixture")
"""Modes whose rounds a policy plans."""
STREAMED = ("streams", "auto")
"""Modes in which only the policy `fair` has an effect."""
OF_SERVING = ("sessions", "max_length", "model_name")
"""Options of `device` that only --serve uses."""
OF_ONE_TEXT = (
    *("system", "variables", "thinking", "raw", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "stops", "biases", "rule"),
    *("retained", "probability_bits"),
)
"""Options of `device` that are not used with --serve."""
OF_DEVICES = ("bandwidth_hz", "deadline_factor", "deadline_slack_s", "draft_timeout_s")
"""Options of `serve` that only devices' drafts use."""


def idle_policies(policies: Sequence[str], modes: Sequence[str]) -> str:
    """A sentence if none of these policies has an effect in any of these modes; else empty.

    Args:
        policies: policies that the user named.
        modes: modes in which the option is used.

    """
    acts = any(mode in PLANNED or (mode in STREAMED and "fair" in policies) for mode in modes)
    if acts or not policies:
        return ""
    return (
        f"--policy {policies[0]} has no effect in mode {modes[0]}: policies plan rounds (modes {_list(PLANNED)}), "
        f"and only 'fair' has an effect in the modes {_list(STREAMED)}"
    )


def idle_of_serve(command: click.Command, options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each changed option of `serve` that has no effect beside the others.

    Args:
        command: the command, which knows the defaults.
        options: its options' values by name.

    """
    changed = _changed(command, options)
    mode = options["mode"]
    if "policy" in changed and (sentence := idle_policies([options["policy"]], [mode])):
        yield sentence
    idle = [
        (OF_DEVICES, mode in ("plain", "edge"), f"in --mode {mode}, in which no device drafts"),
        (("max_draft_length",), mode == "plain", "in --mode plain, in which nobody drafts"),
        (("longest_wait_s",), mode not in STREAMED, f"in --mode {mode}: it is for streams (modes {_list(STREAMED)})"),
        (("emulated_edge_draft_s",), options["edge_draft"] is None, "without --edge-draft"),
        (("model_name", "finish_s"), not options["api"], "with --no-api: it is for HTTP clients"),
    ]
    yield from _sentences(command, changed, idle)


def idle_of_device(command: click.Command, options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each changed option of `device` that has no effect beside the others.

    Args:
        command: the command, which knows the defaults.
        options: its options' values by name.

    """
    serves = options["serve_at"] is not None
    idle = [
        (OF_SERVING, not serves, "without --serve"),
        (OF_ONE_TEXT, serves, "with --serve: each request has its own"),
    ]
    yield from _sentences(command, _changed(command, options), idle)


def _changed(command: click.Command, options: Mapping[str, Any]) -> set[str]:
    """Names of the options that differ from their defaults."""
    with command.make_context("", []) as context:
        return {name for name, value in context.params.items() if options.get(name) not in (None, value)}


def _sentences(
    command: click.Command, changed: set[str], idle: Sequence[tuple[Sequence[str], bool, str]]
) -> Iterator[str]:
    """A sentence for each changed option in a row of `idle`: option names, whether they have no effect, and why."""
    written = {each.name: each.opts[0] for each in command.params}
    for names, applies, why in idle:
        for name in names:
            if applies and name in changed:
                yield f"{written[name]} has no effect {why}"


def _list(names: Sequence[str]) -> str:
    return " and ".join(names)
