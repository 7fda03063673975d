"""The paper's cell in streams: what is simulated, and what it is held against."""

from dataclasses import replace

import pytest

from multispin.paper import streaming
from multispin.paper.claims import STREAM_AIMS, Agreement, claims_of
from multispin.paper.experiments import Study
from multispin.report.bundle import draw_table
from multispin.report.running_figures import streams as figure

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def study():
    made = Study(seeds=(1,), realisations=2, blocks=1)
    made.run([setting for setting in streaming.planned_settings() if setting.pair == "llama"])
    return made


@pytest.fixture(scope="module")
def table(study):
    cases = [case for case in streaming.CASES if case.pair == "llama"]
    return streaming.run_streams(study, study.draws, 25, cases=cases)


def both_pairs(table):
    """The table as if the other pair had given the same."""
    return replace(table, rows=(*table.rows, *(("qwen", *row[1:]) for row in table.rows)))


def test_every_scheme_is_there_in_both_bands_with_its_ratios(table):
    found = {(row[1], row[2]): row for row in table.rows}
    assert set(found) == {
        (scheme, band)
        for scheme in (*streaming.SCHEMES_BESIDE_STREAMS, *streaming.STREAMS)
        for band in streaming.BANDS_HZ
    }
    at = {name: index for index, name in enumerate(table.columns)}
    for band in streaming.BANDS_HZ:
        hete, fixed = (found[scheme, band][at["goodput_tokens_per_s"]] for scheme in ("heterogeneous", "fixed"))
        for scheme in streaming.STREAMS:
            row = found[scheme, band]
            goodput = row[at["goodput_tokens_per_s"]]
            assert row[at["low"]] <= goodput <= row[at["high"]]
            assert row[at["over_hete"]] == pytest.approx(goodput / hete)
            assert row[at["over_fixed"]] == pytest.approx(goodput / fixed)


def test_ids_need_no_band_distributions_do_and_more_acceptance_is_better(table):
    found = {(row[1], row[2]): row[3] for row in table.rows}
    narrow, wide = streaming.BANDS_HZ
    assert found["streams-ids", narrow] == pytest.approx(found["streams-ids", wide], rel=0.03)
    assert found["streams-payload", narrow] < 0.95 * found["streams-payload", wide]
    assert found["streams-least", wide] < 0.9 * found["streams-ids", wide]
    assert found["streams-payload", wide] < found["streams-ids", wide]


def test_claims_say_whether_the_aim_was_reached(study, table):
    made = claims_of(study, {"streams": both_pairs(table)}, ["streams"])
    assert len(made) == 4 * len(STREAM_AIMS)
    assert {claim.verdict for claim in made} == {Agreement.BEYOND}
    for claim in made:
        aim = float(claim.why.split("our aim was ")[1].split(",")[0])
        assert ("reached" in claim.why) == (claim.ours >= aim)


def test_the_figure_has_a_bar_for_every_row(table):
    table = both_pairs(table)
    assert sum(len(panel.patches) for panel in figure(table).axes) == len(table.rows)
    png, svg = draw_table(table)
    assert png.startswith(b"\x89PNG")
    assert "p/N₀" in svg.decode()
