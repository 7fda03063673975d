import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from multispin.errors import InputError
from multispin.speculation import SamplingParams, draw, largest, shaped, truncated_logits
from multispin.speculation.sampling import MIN_TEMPERATURE

LOGITS = torch.tensor([2.0, 1.5, 0.0, -1.0, 1.5, -3.0, 0.5, 0.7])


def distribution(params: SamplingParams) -> np.ndarray:
    return truncated_logits(LOGITS[None], params).softmax(-1)[0].double().numpy()


@pytest.mark.long
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0),
        SamplingParams(0.5),
        SamplingParams(1.7, top_k=4),
        SamplingParams(1.0, top_p=0.8),
        SamplingParams(0.8, top_k=5, top_p=0.7),
    ],
)
def test_draws_follow_the_distribution_over_positions(params):
    # chi-square over 8,000 positions; false alarm 1e-4 for a random seed, and the seed is fixed.
    count = 8_000
    positions = list(range(count))
    params = SamplingParams(params.temperature, params.top_k, params.top_p, seed=2024)
    tokens = draw(LOGITS.expand(count, -1), positions, params)
    expected = distribution(params)
    seen = np.bincount(tokens, minlength=len(expected))
    assert not seen[expected == 0].any()
    kept = expected > 0
    assert stats.chisquare(seen[kept], expected[kept] / expected[kept].sum() * count).pvalue > 1e-4


def test_greedy_is_the_argmax_whatever_the_seed():
    assert draw(LOGITS[None], [3], SamplingParams(0.0, seed=1)) == draw(LOGITS[None], [9], SamplingParams(0.0)) == [0]


def test_top_k_keeps_the_k_largest_and_all_ties_at_the_edge():
    kept = truncated_logits(LOGITS[None], SamplingParams(1.0, top_k=2)) > -torch.inf
    assert kept[0].tolist() == [True, True, False, False, True, False, False, False]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    expected = distribution(SamplingParams(1.0))
    order = np.argsort(-expected, kind="stable")
    for top_p in (0.05, 0.3, 0.5, 0.9, 0.99):
        kept = distribution(SamplingParams(1.0, top_p=top_p)) > 0
        size = int(np.searchsorted(np.cumsum(expected[order]), top_p) + 1)
        assert set(np.flatnonzero(kept)) == set(order[:size])


def test_temperature_comes_before_truncation():
    hot = distribution(SamplingParams(5.0, top_p=0.5)) > 0
    cold = distribution(SamplingParams(0.2, top_p=0.5)) > 0
    assert hot.sum() > cold.sum()


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 30))
def test_a_draw_depends_on_its_own_row_and_position_alone(seed, rows, pick):
    pick %= rows
    logits = torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(0.9, top_p=0.95, seed=seed)
    positions = list(range(100, 100 + rows))
    assert draw(logits, positions, params)[pick] == draw(logits[pick : pick + 1], [positions[pick]], params)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": 1e-40},
        {"temperature": 9.9e-7},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, 100.5),)},
        {"logit_bias": ((1, 2.0), (1, 3.0))},
        {"logit_bias": tuple((i, 1.0) for i in range(301))},
    ],
)
def test_impossible_parameters_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        SamplingParams(**values)


def test_bias_is_added_and_ids_are_withheld_before_their_position_and_no_longer():
    params = SamplingParams(1.0, logit_bias=((2, 1.5), (5, -2.0)), withheld=(0, 3), withheld_until=11)
    before = LOGITS.clone()
    early, late = shaped(LOGITS.expand(2, -1), [10, 11], params)
    assert torch.equal(LOGITS, before)
    assert late.tolist() == pytest.approx([2.0, 1.5, 1.5, -1.0, 1.5, -5.0, 0.5, 0.7])
    assert early[[0, 3]].tolist() == [-torch.inf, -torch.inf]
    assert torch.equal(early[[1, 2, 4, 5, 6, 7]], late[[1, 2, 4, 5, 6, 7]])


def test_nothing_is_copied_where_nothing_is_asked():
    assert shaped(LOGITS[None], [3], SamplingParams(1.0)) is not None
    rows = LOGITS[None]
    assert shaped(rows, [12], SamplingParams(1.0, withheld=(1,), withheld_until=12)) is rows


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_withheld_id_is_never_drawn_early(temperature):
    params = SamplingParams(temperature, seed=4, withheld=(0, 1, 4), withheld_until=300)
    early = draw(LOGITS.expand(300, -1), list(range(300)), params)
    assert not {0, 1, 4} & set(early)
    assert {0, 1, 4} & set(draw(LOGITS.expand(300, -1), list(range(300, 600)), params))


def test_ids_outside_the_vocabulary_and_an_empty_distribution_are_refused():
    SamplingParams(withheld=(6,), logit_bias=((7, 1.0),)).check_vocabulary(8)
    for params in (SamplingParams(withheld=(8,)), SamplingParams(logit_bias=((8, 1.0),))):
        with pytest.raises(InputError, match="outside 0 … 7"):
            params.check_vocabulary(8)
    with pytest.raises(InputError, match="whole vocabulary"):
        SamplingParams(withheld=(0, 1)).check_vocabulary(2)


@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_largest_logit_is_torchs_argmax_and_the_first_of_equals(seed, dtype):
    logits = torch.randint(-3, 3, (6, 40), generator=torch.Generator().manual_seed(seed)).to(dtype)
    first = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert largest(logits) == first == draw(logits, list(range(6)), SamplingParams())


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e12, 1e30])
@pytest.mark.parametrize("shape", [{}, {"top_k": 5}, {"top_p": 0.9}, {"top_k": 40, "top_p": 1e-9}])
def test_the_smallest_temperature_draws_the_largest_logit_whatever_its_size(scale, shape):
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)) * scale
    params = SamplingParams(MIN_TEMPERATURE, seed=3, **shape)
    assert draw(logits, [5, 6, 7, 8], params) == largest(logits)
