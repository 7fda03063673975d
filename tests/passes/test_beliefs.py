"""What is believed of the verifier and of the edge's drafter is made once, and anew after each observation."""

import pytest

from multispin.passes.beliefs import LearnedBeliefs


def test_the_believed_verifier_follows_the_passes_that_were_seen():
    beliefs = LearnedBeliefs(bits_per_id=15.0, max_draft_length=8)
    assert beliefs.verifier() is beliefs.verifier()
    for seconds in (3.0, 0.05):
        for _ in range(100):
            beliefs.observe_verification(4, 20, seconds)
            beliefs.verifier()
        assert beliefs.verifier().verify_s([4] * 4) == pytest.approx(seconds, rel=0.1)


def test_the_believed_edge_drafter_follows_its_drafts_and_what_became_of_them():
    beliefs = LearnedBeliefs(bits_per_id=15.0, max_draft_length=8)
    beliefs.join(1, 0.01, 5.0)
    guessed = beliefs.edge_drafter()
    for _ in range(20):
        beliefs.observe_edge_draft([4, 4], 2.0)
    timed = beliefs.edge_drafter()
    assert timed.draft_s([4, 4]) == pytest.approx(2.0, rel=0.1)
    assert timed.acceptance_rate == guessed.acceptance_rate
    beliefs.observe_edge_outcome(1, 8, 0)
    assert beliefs.edge_drafter().acceptance_rate < timed.acceptance_rate
