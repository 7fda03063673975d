"""Engines and devices with published or measured times, for those who have not measured their own."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from multispin.errors import InputError


@dataclass(frozen=True)
class EnginePreset:
    """How long an edge's engine takes.

    Attributes:
        title: model and hardware.
        source: where the verification times come from.
        drafter_source: where the drafter's times come from.
        fixed_s: time of a verification, whatever is in it [s].
        per_device_s: additional time for each session in it [s].
        per_token_s: additional time for each token in it [s].
        drafter_fixed_s: time of one step of the edge's own drafter [s]; None if there is none.
        drafter_per_device_s: additional time of a step for each session [s].

    """

    title: str
    source: str
    fixed_s: float
    per_device_s: float
    per_token_s: float
    drafter_fixed_s: float | None = None
    drafter_per_device_s: float = 0.0
    drafter_source: str = ""


@dataclass(frozen=True)
class DevicePreset:
    """How fast a device drafts, and how often its tokens are accepted.

    Attributes:
        title: device and drafter.
        source: where both numbers come from.
        seconds_per_token: drafting time of a token, T^S [s].
        acceptance_rate: α, per token.

    """

    title: str
    source: str
    seconds_per_token: float
    acceptance_rate: float


def engine_presets() -> Mapping[str, EnginePreset]:
    """All engines by name."""
    return {name: EnginePreset(**table) for name, table in _tables()["engine"].items()}


def device_presets() -> Mapping[str, DevicePreset]:
    """All devices by name."""
    return {name: DevicePreset(**table) for name, table in _tables()["device"].items()}


def engine_preset(name: str) -> EnginePreset:
    """One engine; InputError names those that there are."""
    presets = engine_presets()
    _check("engine", name, presets)
    return presets[name]


def device_preset(name: str) -> DevicePreset:
    """One device; InputError names those that there are."""
    presets = device_presets()
    _check("device", name, presets)
    return presets[name]


def _check(kind: str, name: str, presets: Mapping[str, Any]) -> None:
    if name not in presets:
        raise InputError(f"{kind} {name!r} is no preset; it must be one of {', '.join(presets)}")


@cache
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    return tomllib.loads(resources.files("multispin.data").joinpath("presets.toml").read_text(encoding="utf-8"))
