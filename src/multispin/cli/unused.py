"""Options that have no effect beside others: a person is told, so that nobody waits for what cannot come."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

PLANNED = ("rounds", "mixture")
"""Modes whose rounds a policy plans."""
STREAMED = ("streams", "auto")
"""Modes that ask of a policy only whether it is `fair`."""
OF_DEVICES = ("bandwidth_hz", "deadline_factor", "deadline_slack_s", "draft_timeout_s")
"""Options of `serve` for the drafts of devices."""


def idle_policies(policies: Sequence[str], modes: Sequence[str]) -> str:
    """A sentence if none of these policies has an effect in any of these modes; else empty.

    Args:
        policies: that a person named.
        modes: that are used.

    """
    acts = any(mode in PLANNED or (mode in STREAMED and "fair" in policies) for mode in modes)
    if acts or not policies:
        return ""
    return (
        f"--policy {policies[0]} has no effect in mode {modes[0]}: policies plan rounds (modes {_list(PLANNED)}), "
        f"and only 'fair' acts in the modes {_list(STREAMED)}"
    )


def idle_of_serve(command: click.Command, options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each option of `serve` that differs from its default and has no effect beside the others.

    Args:
        command: the command, which knows the defaults.
        options: its options' values by name.

    """
    defaults = {each.name: each.default for each in command.params}
    given = {name: value for name, value in options.items() if name in defaults and value is not None}
    changed = {name for name, value in given.items() if value != defaults[name]}
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
    for names, applies, why in idle:
        for name in names:
            if applies and name in changed:
                yield f"--{name.replace('_', '-')} has no effect {why}"


def _list(names: Sequence[str]) -> str:
    return " and ".join(names)
