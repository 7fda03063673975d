"""What is believed of the edge's own drafts for one text, beside those for all."""

import pytest

from multispin.passes.beliefs import LearnedBeliefs


def rate(beliefs: LearnedBeliefs, session: int) -> float | None:
    return beliefs.device(session, 8, 1, 8).edge_acceptance_rate


def test_a_text_that_was_unlucky_and_gets_no_drafts_is_soon_believed_to_be_like_the_others() -> None:
    beliefs = LearnedBeliefs(16, 8)
    for session in range(1, 5):
        beliefs.join(session, 0.01, 3.0)
    assert rate(beliefs, 1) is None
    for _ in range(40):
        beliefs.observe_edge_outcome(1, 1, 0)
        for session in (2, 3, 4):
            beliefs.observe_edge_outcome(session, 2, 1)
    unlucky, others = rate(beliefs, 1), rate(beliefs, 2)
    assert unlucky is not None
    assert others is not None
    assert unlucky < 0.2 < 0.3 < others
    for _ in range(300):
        for session in (2, 3, 4):
            beliefs.observe_edge_outcome(session, 2, 1)
    assert rate(beliefs, 1) == pytest.approx(beliefs.edge_drafter().acceptance_rate, abs=0.1)
    for _ in range(20):
        beliefs.observe_edge_outcome(1, 1, 0)
    assert (rate(beliefs, 1) or 1.0) < 0.2  # it is a hard text, and is known again
