"""Tables of figures: on a terminal of any width no figure is cut."""

import io
import re

import pytest
from rich.console import Console

from multispin.cli.main import run
from multispin.cli.tables import BAR, figures_table, print_table

FIGURES = [("a device", "1", "████", "12.5 ms", "1,234"), ("b", "20", "██", "3 s", "5")]


def written(width, rows=FIGURES):
    table = figures_table("who", "n", BAR, "time", "tokens")
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width)
    print_table(console, table)
    return console.file.getvalue().splitlines()


def test_there_are_bars_where_there_is_room():
    lines = written(80)
    assert [re.split(r"  +", line.strip()) for line in lines[1:]] == [list(row) for row in FIGURES]


@pytest.mark.parametrize("width", [1, 20, 27])
def test_a_narrow_terminal_costs_the_bars_and_no_figure(width):
    lines = written(width)
    assert re.split(r"  +", lines[0].strip()) == ["who", "n", "time", "tokens"]
    for line, row in zip(lines[1:], FIGURES, strict=True):
        assert re.split(r"  +", line.strip()) == [*row[:2], *row[3:]]


@pytest.mark.parametrize("command", ["plan paper-llama", "plan paper-llama --compare"])
def test_a_plan_is_whole_at_forty_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    assert run(command.split()) == 0
    assert "…" not in capsys.readouterr().out


def test_one_is_no_plural(tmp_path, capsys):
    one = tmp_path / "one.toml"
    one.write_text(
        "[cell]\nbandwidth_hz = 1e4\nbits_per_token = 16\n[verifier]\nfixed_s = 0.1\nper_device_s = 0.0\n"
        '[[device]]\nname = "a"\nseconds_per_token = 0.01\nspectral_efficiency = 4\nacceptance_rate = 0.7\n'
    )
    for command in ("plan", "plan --compare", "simulate --rounds 1 --seeds 1 --jobs 1", "advise --policy fixed"):
        assert run([*command.split(), str(one)]) == 0
    assert not re.search(r"\b1 (devices|users|rounds|seeds|tokens)\b(?!/s)", capsys.readouterr().out)
