"""Passes without drafts of the edge, by which an edge whose passes were all alike learns what a token costs."""

from itertools import pairwise

import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification, decide
from multispin.passes.bare_passes import FIRST_BARE_AFTER, LAST_BARE_AFTER, BarePasses
from multispin.simulation.setup import Behaviour, Setup
from multispin.simulation.site import Site


def test_a_bare_pass_comes_after_ever_more_passes_that_were_alike():
    bare = BarePasses()
    due = [number for number in range(2000) if bare.due(16)]
    gaps = [later - sooner for sooner, later in pairwise(due)]
    assert due[0] == FIRST_BARE_AFTER
    assert gaps[:3] == [2 * FIRST_BARE_AFTER + 1, 4 * FIRST_BARE_AFTER + 1, 8 * FIRST_BARE_AFTER + 1]
    assert set(gaps[4:]) == {LAST_BARE_AFTER + 1}


def test_passes_that_differ_or_have_no_drafts_need_none():
    assert not any(BarePasses().due(0) for _ in range(100))
    bare = BarePasses()
    assert not any(bare.due((16, 24)[number % 2]) for number in range(100))


@pytest.mark.parametrize("mode", ["edge", "mixture"])
def test_an_edge_that_drafts_alike_for_all_learns_that_a_token_costs_it_little(mode):
    """Its first guess is that tokens are dear. It drafted one token for each for ever then, where four are best."""
    devices = tuple(Device(f"d{k}", 0.4, 3.0, 0.3) for k in range(16))
    verifier, drafter = Verification(0.0113, 0.00567, 0.00002), EdgeDrafter(0.0007, 0.000007, 0.41)
    site = Site(
        Setup(Scenario(Cell(2e5, 16, 8, 0), verifier, devices, drafter), Behaviour(frame_bits=176)),
        *("heterogeneous", 4),
        mode=mode,
    )
    site.run(80)
    beliefs = site.passes.controller.beliefs
    assert beliefs.verifier().verify_s([0] * 16) == pytest.approx(verifier.verify_s([0] * 16), rel=0.03)
    assert beliefs.verifier().verify_s([4] * 16) == pytest.approx(verifier.verify_s([4] * 16), rel=0.03)


def test_an_edge_whose_drafter_is_as_quick_as_believed_drafts_as_long_as_is_best_all_the_same():
    """Before it was timed it drafts two tokens. Nothing that is believed changes then, but the room does."""
    devices = tuple(Device(f"d{k}", 0.4, 3.0, 0.3, max_draft_length=0) for k in range(4))
    verifier, drafter = Verification(0.075, 0.02), EdgeDrafter(0.008, 0.0, 0.8)
    scenario = Scenario(Cell(2e5, 16, 12, 0), verifier, devices, drafter)
    site = Site(Setup(scenario, Behaviour()), "heterogeneous", 1, True, mode="edge")
    site.run(20)
    best = [choice.draft_length for choice in decide(scenario, mode="edge").sessions]
    decision = site.passes.controller.chooser.decision
    assert min(best) > 4
    assert [choice.draft_length for choice in decision.sessions] == best
