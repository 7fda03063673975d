"""The paper's cell while it runs: what learning and late drafts cost."""

import pytest

from multispin.paper import running
from multispin.paper.cell import CALIBRATED, PAIRS, realise, scenario_of_means
from multispin.report.running_figures import lateness
from multispin.simulation.study import simulate

FEW = [
    running.Case("llama", "heterogeneous", "all", share, wait)
    for wait in ("chosen", "tight", "patient")
    for share in (0.0, 0.2)
]


def goodput(policy, knows, rounds=40, **options):
    case = running.Case("llama", policy, knows, **options)
    return simulate(running.run_of(case, CALIBRATED, 1, 0, rounds)).goodput_tokens_per_s


def test_acceptance_is_learned_for_next_to_nothing_and_an_unknown_channel_is_dear():
    known = goodput("heterogeneous", "all")
    assert goodput("heterogeneous", "all but acceptance") > 0.93 * known
    assert goodput("heterogeneous", "nothing") < 0.88 * known  # 0.853


@pytest.mark.long
def test_a_deadline_pays_where_drafts_are_late_and_is_free_where_none_is():
    table = running.run_cases("lateness", FEW, CALIBRATED, [(1, 0), (1, 1)], rounds=25)
    found = {(row[1], row[2]): row[3] for row in table.rows}
    assert found["tight", 0.0] == pytest.approx(found["patient", 0.0], rel=0.02)
    assert found["chosen", 0.0] == pytest.approx(found["patient", 0.0], rel=0.02)
    assert found["tight", 0.2] > 1.3 * found["patient", 0.2]
    assert found["chosen", 0.2] > 1.3 * found["patient", 0.2]
    # Where nobody drafts, nobody is late.
    assert found["plain", 0.0] == found["plain", 0.2] == pytest.approx(20 / PAIRS["llama"].verification_s(20))
    assert len(lateness(table).axes) >= 2


def test_the_simulated_cell_has_the_drawn_means():
    drawn = realise(3, 2, 1)
    at_means = scenario_of_means(PAIRS["qwen"], CALIBRATED["qwen"], drawn)
    assert len(at_means.devices) == 20
    best, worst = drawn.mean_gain[:20].argmax(), drawn.mean_gain[:20].argmin()
    efficiencies = [device.spectral_efficiency for device in at_means.devices]
    assert max(efficiencies) == efficiencies[best]
    assert min(efficiencies) == efficiencies[worst]


def test_runs_depend_on_their_seed_alone():
    first, second = (running.run_cases("lateness", FEW, CALIBRATED, [(5, 0)], rounds=6) for _ in range(2))
    assert first.csv() == second.csv()
