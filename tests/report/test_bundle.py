"""What `multispin reproduce` writes: files, a page that needs nothing else, and the command itself."""

import base64
import csv
import json
import math
import re

import pytest

from multispin.cli.main import run
from multispin.paper.claims import Agreement, Claim
from multispin.report.page import Picture, page, readable_number

ARGUMENTS = [
    *("--figures", "3,5,6,payload,fairness,learning", "--realisations", "2", "--blocks", "1", "--processes", "1"),
    *("--rounds", "10", "--seeds", "1"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    assert run(["reproduce", *ARGUMENTS, "--out", str(folder)]) == 0
    return folder


def test_every_figure_comes_as_csv_png_and_svg(written):
    names = ("fig-3", "fig-5", "fig-6", "beyond-payload", "beyond-fairness", "beyond-learning")
    expected = {f"{name}.{ending}" for name in names for ending in ("csv", "png", "svg")}
    assert {file.name for file in written.iterdir()} == expected | {"summary.json", "report.html"}
    for name in names:
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        with (written / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(None not in row and None not in row.values() for row in rows)


def test_the_page_needs_nothing_beside_itself(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "://" not in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 6
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    for row in json.loads((written / "summary.json").read_text(encoding="utf-8")):
        assert row["claim"].split(",")[0] in text


def test_assumptions_are_printed_on_the_figures(written):
    for name in ("fig-3", "fig-6", "beyond-payload", "beyond-fairness", "beyond-learning"):
        text = (written / f"{name}.svg").read_text(encoding="utf-8")
        assert "p/N₀" in text
        assert "Tˢ" in text


def test_the_same_arguments_write_the_same_bytes_and_json_is_the_summary(written, tmp_path, capsys):
    arguments = ["--figures", "3,6", *ARGUMENTS[2:], "--out", str(tmp_path), "--json"]
    assert run(["reproduce", *arguments]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    for name in ("fig-3", "fig-6"):
        for ending in ("csv", "png", "svg"):
            file = f"{name}.{ending}"
            assert (written / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_one_realisation_has_no_interval_and_still_valid_json(tmp_path, capsys):
    arguments = ["--figures", "6", "--realisations", "1", "--seeds", "1", "--blocks", "1", "--out", str(tmp_path)]
    assert run(["reproduce", *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert rows[0]["low"] is None
    assert all(row["verdict"] != "reproduced" for row in rows)


@pytest.mark.parametrize("figures", ["9", "7,x", " , "])
def test_an_unknown_figure_is_refused_in_one_sentence(figures, tmp_path, capsys):
    assert run(["reproduce", "--figures", figures, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert "--figures" in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_the_page_escapes_what_it_is_given():
    claim = Claim("a < b & c", "> 1", 2.0, 1.0, math.nan, Agreement.CLOSE, "<b>")
    text = page("T & T", ["x < y"], [claim], [Picture('say "hi"', "<note>", b"png")])
    assert "a &lt; b &amp; c" in text
    assert "Close: &lt;b&gt;" in text
    assert 'alt="say &quot;hi&quot;. &lt;note&gt;"' in text
    assert 'class="close"' in text


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (math.nan, "–"), ("> 1", "> 1"), (145.4, "145"), (2.5, "2.5")]
)
def test_numbers_for_readers(value, shown):
    assert readable_number(value) == shown
