"""Scenario files: TOML in and out. Every refusal names the file, the line where it can, and the key."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from multispin.control.placement import PLACE_KEYS, Radio
from multispin.control.scenario import Cell, Device, EdgeDrafter, Mode, Scenario, Verification, field_names
from multispin.errors import InputError

_TABLES: dict[str, type[Cell] | type[Verification]] = {"cell": Cell, "verifier": Verification}
SIMULATION_TABLE = "simulation"
EDGE_DRAFTER_TABLE = "edge_drafter"
RADIO_TABLE = "radio"
SIMULATION_KEYS = ("acceptance_trace", "efficiency_trace", "arrives_s", "leaves_s", "lost_s")
"""Keys of a [[device]] that only a simulation reads, as it does the table [simulation]: a plan is for one round."""
_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?")


def load_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario file.

    Raises:
        InputError: one sentence with the file, the line or table, and the key that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    return parse_scenario(text, str(path))


def parse_scenario(text: str, source: str = "scenario") -> Scenario:
    """A scenario from TOML text; `source` names it in refusals."""
    return scenario_from(parse_document(text, source), text, source)


def parse_document(text: str, source: str) -> dict[str, Any]:
    """The tables of TOML text, unchecked; `source` names it in refusals."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: is not valid TOML: {error}") from error


def scenario_from(document: dict[str, Any], text: str, source: str) -> Scenario:
    """A scenario from parsed tables, whose values may have been changed since; `text` tells where keys stand."""
    lines = _Lines(text, source)
    for key in document:
        if key not in (*_TABLES, EDGE_DRAFTER_TABLE, "device", RADIO_TABLE, SIMULATION_TABLE):
            raise InputError(
                f"{lines.at(key, 0, None)}: unknown table or key {key!r}; known are cell, verifier, edge_drafter, "
                "device, radio, simulation"
            )
    cell = _build(Cell, document.get("cell"), "cell", 0, lines)
    verifier = _build(Verification, document.get("verifier"), "verifier", 0, lines)
    drafter = None
    if EDGE_DRAFTER_TABLE in document:
        drafter = _build(EdgeDrafter, document[EDGE_DRAFTER_TABLE], EDGE_DRAFTER_TABLE, 0, lines)
    radio = _build(Radio, document.get(RADIO_TABLE, {}), RADIO_TABLE, 0, lines)
    tables = document.get("device", [])
    if not isinstance(tables, list):
        raise InputError(f"{lines.at('device', 0, None)}: devices are written [[device]], with two brackets")
    devices, modes = [], 0
    for index, table in enumerate(tables):
        if isinstance(table, dict) and isinstance(table.get("mode"), list):
            own = [_build(Mode, each, "device.mode", modes + i, lines) for i, each in enumerate(table["mode"])]
            modes += len(own)
            table = {key: value for key, value in table.items() if key != "mode"} | {"modes": tuple(own)}
        elif isinstance(table, dict) and {"mode", "modes"} & set(table):
            key = "mode" if "mode" in table else "modes"
            raise InputError(f"{lines.at('device', index, key)}: modes are written [[device.mode]], with two brackets")
        if isinstance(table, dict):
            try:
                table = radio.placed(table)
            except InputError as error:
                mentioned = [key for key in PLACE_KEYS if key in table and key in _complaint(str(error), table)]
                raise InputError(
                    f"{lines.at('device', index, mentioned[0] if mentioned else None)}: {error}"
                ) from error
        devices.append(_build(Device, table, "device", index, lines))
    seen: dict[str, int] = {}
    for index, device in enumerate(devices):
        if device.name in seen:
            raise InputError(
                f"{lines.at('device', index, 'name')}: device {device.name!r}: "
                "the name is used twice; names must be unique"
            )
        seen[device.name] = index
    try:
        return Scenario(cell, verifier, tuple(devices), drafter)
    except InputError as error:
        culprit = next((i for name, i in seen.items() if f"device {name!r}" in str(error)), None)
        where = source if culprit is None else lines.at("device", culprit, "min_draft_length")
        raise InputError(f"{where}: {error}") from error


def dump_scenario(scenario: Scenario) -> str:
    """TOML text that `load_scenario` reads back as an equal scenario. Values that are the default are left out."""
    parts = [_table("[cell]", scenario.cell), _table("[verifier]", scenario.verifier)]
    if scenario.edge_drafter is not None:
        parts.append(_table(f"[{EDGE_DRAFTER_TABLE}]", scenario.edge_drafter))
    for device in scenario.devices:
        parts.append(_table("[[device]]", device))
        parts.extend(_table("[[device.mode]]", mode) for mode in device.modes)
    return "\n".join(parts)


def _table(header: str, value: Cell | Verification | EdgeDrafter | Device | Mode) -> str:
    lines = [header]
    for item in fields(value):
        content = getattr(value, item.name)
        if item.name != "modes" and (item.default is MISSING or content != item.default):
            lines.append(f"{item.name} = {_toml(content)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escaped(character) for character in value) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # float() because a numpy number writes itself with its type.
    return repr(value) if isinstance(value, int) else repr(float(value))  # type: ignore[arg-type]


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\u{ord(character):04X}" if ord(character) < 0x20 or ord(character) == 0x7F else character


def _build(kind: Callable[..., Any], table: object, name: str, index: int, lines: "_Lines") -> Any:
    """One dataclass from one table, with refusals that say where the table is."""
    if table is None:
        raise InputError(f"{lines.source}: table [{name}] is missing")
    header = f"[[{name}]]" if name.startswith("device") else f"[{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{lines.at(name, index, None)}: {name} must be a table, written {header}")
    known = field_names(kind)  # type: ignore[arg-type]
    if name == "device":
        known += PLACE_KEYS
        if "acceptance_trace" in table and not {"acceptance_rate", "acceptance_profile"} & set(table):
            raise InputError(
                f"{lines.at(name, index, 'acceptance_trace')}: acceptance_trace is for `multispin simulate` alone; "
                "a plan needs acceptance_rate or acceptance_profile beside it"
            )
        table = {key: value for key, value in table.items() if key not in SIMULATION_KEYS}
    for key in table:
        if key not in known:
            raise InputError(
                f"{lines.at(name, index, key)}: unknown key {key!r} in {header}; known are {', '.join(known)}"
            )
    for item in fields(kind):  # type: ignore[arg-type]
        if item.default is MISSING and item.name not in table:
            raise InputError(f"{lines.at(name, index, None)}: key {item.name!r} is missing in {header}")
    try:
        return kind(**table)
    except InputError as error:
        mentioned = sorted((key for key in table if re.search(rf"\b{key}\b", _complaint(str(error), table))), key=len)
        raise InputError(f"{lines.at(name, index, mentioned[-1] if mentioned else None)}: {error}") from error


def _complaint(message: str, table: dict[str, object]) -> str:
    """The message without the device's name, which may look like a key."""
    return message.replace(repr(table.get("name")), "") if "name is" not in message else message


class _Lines:
    """Where tables and keys stand in a TOML text, as far as a look at each line tells."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._found: dict[tuple[str, int, str | None], int] = {}
        counts: dict[str, int] = {}
        table, index = "", 0
        for number, line in enumerate(text.splitlines(), start=1):
            header = _HEADER.match(line)
            if header:
                table = header.group(2)
                index = counts.get(table, 0)
                counts[table] = index + 1
                self._found.setdefault((table, index, None), number)
            elif key := re.match(r"^\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=", line):
                self._found.setdefault((table, index, key.group(1)) if table else (key.group(1), 0, None), number)

    def at(self, table: str, index: int, key: str | None) -> str:
        """`file:line` of a key, or of its table, or the file alone."""
        number = self._found.get((table, index, key)) or self._found.get((table, index, None))
        return self.source if number is None else f"{self.source}, line {number}"
