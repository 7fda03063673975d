"""How long a round waits: the best wait of the formula against rounds that are drawn."""

import numpy as np
import pytest

from multispin.control.deadline import JITTER_MARGIN, SPARED, best_wait_s, sparing_wait_s


def drawn_goodput(lateness, awaited, planned_s, verify_s, *waits_s):
    """Drafts per second of drawn rounds that wait so long, and go on early once all drafts are there; for each wait."""
    took_s = planned_s * np.random.default_rng(1).choice(lateness, (1500, awaited))
    last_s = took_s.max(axis=1)
    return [(took_s <= wait).sum() / (np.minimum(last_s, wait) + verify_s).sum() for wait in waits_s]


@pytest.mark.parametrize("awaited", [1, 4, 20])
@pytest.mark.parametrize(
    "lateness",
    [
        np.random.default_rng(5).exponential(1.0, 256) + 0.2,
        np.random.default_rng(6).pareto(1.5, 256) + 1.0,
        np.concatenate([np.full(240, 1.0), np.full(16, 10.0)]),
        np.random.default_rng(7).uniform(0.9, 1.1, 64),
    ],
    ids=["fading", "heavy-tailed", "stragglers", "jitter"],
)
def test_no_other_wait_gives_more_in_drawn_rounds(lateness, awaited):
    chosen = best_wait_s(lateness, awaited, 0.2, 0.28)
    others = 0.2 * np.quantile(lateness, np.linspace(0.02, 1.0, 50)) + 1e-9
    got, *rest = drawn_goodput(lateness, awaited, 0.2, 0.28, chosen, *others)
    # The margin costs some of it, and 1,500 rounds are drawn.
    assert got > 0.97 * max(rest)


def test_few_very_late_drafts_are_not_awaited_and_a_lone_one_is():
    lateness = np.concatenate([np.full(95, 1.0), np.full(5, 10.0)])
    assert best_wait_s(lateness, 20, 0.2, 0.28) == pytest.approx(0.2 * (1.0 + JITTER_MARGIN))
    # A verification that takes long is worth waiting for everybody.
    assert best_wait_s(lateness, 2, 0.2, 100.0) == pytest.approx(0.2 * (10.0 + JITTER_MARGIN))
    waits = drawn_goodput(lateness, 20, 0.2, 0.28, 0.21, 2.1)
    assert waits[1] == pytest.approx(waits[0] / 3, rel=0.1)  # the docstring's third


def test_the_order_and_a_repetition_of_what_was_seen_do_not_matter():
    lateness = np.random.default_rng(2).exponential(1.0, 100)
    chosen = best_wait_s(lateness, 8, 0.1, 0.1)
    assert best_wait_s(lateness[::-1], 8, 0.1, 0.1) == chosen
    assert best_wait_s(np.repeat(lateness, 3), 8, 0.1, 0.1) == pytest.approx(chosen)


@pytest.mark.parametrize("ratio", [1.02, 1.2, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("verify_s", [0.05, 0.2, 2.0])
@pytest.mark.parametrize("awaited", [2, 5, 12])
def test_the_others_keep_their_goodput_beside_one_device_that_is_always_late(ratio, verify_s, awaited):
    """Rounds that are drawn: the others' drafts per second, against rounds that last as long as is best for them."""
    rng, planned_s = np.random.default_rng(3), 0.2
    others = rng.uniform(0.9, 1.1, 60)
    wait_s = sparing_wait_s([ratio] * 15, others, awaited, planned_s, verify_s)
    took_s = planned_s * rng.choice(others, (2000, awaited - 1))

    def of_the_others(wait_s):
        last_s = np.maximum(took_s.max(axis=1), planned_s * ratio)
        return (took_s <= wait_s).sum() / (np.minimum(last_s, wait_s) + verify_s).sum()

    waits_s = planned_s * np.linspace(0.9, ratio + 0.2, 60)
    assert of_the_others(wait_s) >= (SPARED - 0.03) * max(map(of_the_others, waits_s))


def test_a_long_verification_is_worth_waiting_for_the_one_that_is_late():
    assert sparing_wait_s([2.0] * 20, [1.0] * 80, 5, 0.2, 20.0) == pytest.approx(0.2 * (2.0 + JITTER_MARGIN))
    assert sparing_wait_s([2.0] * 20, [1.0] * 80, 5, 0.2, 0.2) == pytest.approx(0.2 * (1.0 + JITTER_MARGIN))


def test_a_round_in_which_no_device_drafts_waits_for_nobody():
    assert sparing_wait_s([2.0] * 20, [1.0] * 80, 4, 0.0, 0.07) == 0.0
