"""Scenario files: TOML in and out. Every refusal names the file, the line where it can, and the key."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from multispin.checks import shown
from multispin.control.document import Document, read_document
from multispin.control.placement import PLACE_KEYS, Radio
from multispin.control.scenario import Cell, Device, EdgeDrafter, Mode, Scenario, Verification
from multispin.errors import InputError
from multispin.outside import toml_value

SIMULATION_TABLE = "simulation"
EDGE_DRAFTER_TABLE = "edge_drafter"
RADIO_TABLE = "radio"
TABLES = ("cell", "verifier", EDGE_DRAFTER_TABLE, "device", RADIO_TABLE, SIMULATION_TABLE)
SIMULATION_KEYS = ("acceptance_trace", "efficiency_trace", "arrives_s", "leaves_s", "lost_s")
"""Keys of a [[device]] that only a simulation reads, as it does the table [simulation]: a plan is for one round."""


def load_scenario(path: str | Path) -> Scenario:
    """Read and check a scenario file.

    Raises:
        InputError: one sentence with the file, the line or table, and the key that is wrong.
    """
    return scenario_of(read_document(path))


def parse_scenario(text: str, source: str = "scenario") -> Scenario:
    """A scenario from TOML text.

    Args:
        text: contents of a scenario file.
        source: its name in refusals; default "scenario".

    Raises:
        InputError: as for `load_scenario`.
    """
    return scenario_of(Document(text, source))


def scenario_of(document: Document) -> Scenario:
    """The scenario that a document describes.

    Raises:
        InputError: as for `load_scenario`.
    """
    for key in document.tables:
        if key not in TABLES:
            raise document.refuse(
                InputError(f"unknown table or key {shown(key)}; known are {', '.join(TABLES)}", where=(key,))
            )
    cell = document.build(Cell, ("cell",), "[cell]")
    verifier = document.build(Verification, ("verifier",), "[verifier]")
    drafter = None
    if EDGE_DRAFTER_TABLE in document.tables:
        drafter = document.build(EdgeDrafter, (EDGE_DRAFTER_TABLE,), f"[{EDGE_DRAFTER_TABLE}]")
    radio = Radio()
    if RADIO_TABLE in document.tables:
        radio = document.build(Radio, (RADIO_TABLE,), f"[{RADIO_TABLE}]")
    devices = document.tables.get("device", [])
    if not isinstance(devices, list):
        raise document.refuse(InputError("devices are written [[device]], with two brackets", where=("device",)))
    built = tuple(_device(document, radio, index) for index in range(len(devices)))
    try:
        return Scenario(cell, verifier, built, drafter)
    except InputError as error:
        raise document.refuse(error) from error


def _device(document: Document, radio: Radio, index: int) -> Device:
    """One [[device]], its modes and its place included."""
    where, header = ("device", index), "[[device]]"
    table = document.table(where, header)
    given: dict[str, Any] = {key: value for key, value in table.items() if key not in SIMULATION_KEYS}
    if "acceptance_trace" in table and not {"acceptance_rate", "acceptance_profile"} & set(table):
        raise document.refuse(
            InputError(
                "acceptance_trace is for `multispin simulate` alone; a plan needs acceptance_rate or "
                "acceptance_profile beside it",
                where=("acceptance_trace",),
            ),
            where,
        )
    modes = given.pop("mode", None)
    if isinstance(modes, list):
        given["modes"] = tuple(
            document.build(Mode, (*where, "mode", number), "[[device.mode]]") for number in range(len(modes))
        )
    elif modes is not None or "modes" in given:
        key = "modes" if modes is None else "mode"
        raise document.refuse(InputError("modes are written [[device.mode]], with two brackets", where=(key,)), where)
    try:
        given = radio.placed(given)
    except InputError as error:
        raise document.refuse(error, where) from error
    return document.build(Device, where, header, given=given, known=PLACE_KEYS)


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
            lines.append(f"{item.name} = {toml_value(content)}")
    return "\n".join(lines) + "\n"
