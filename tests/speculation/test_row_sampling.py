import numpy as np
import pytest
import torch

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    SamplingParams,
    draw_after,
    shaped_after,
    truncate,
    truncated_logits,
)
from multispin.speculation.row_sampling import draw_row, shaped_row_after, truncate_row, truncated_row

V = 400
PARAMS = [
    SamplingParams(),
    SamplingParams(0.8, seed=5),
    SamplingParams(1.3, top_k=20, seed=6),
    SamplingParams(0.7, top_p=0.9, seed=7),
    SamplingParams(1.0, top_k=50, top_p=0.5, seed=8),
    SamplingParams(1.0, seed=9, logit_bias=((3, 5.0), (17, -100.0))),
    SamplingParams(0.0, withheld=(1, 2), withheld_until=40),
    SamplingParams(0.9, min_p=0.05, seed=10),
    SamplingParams(0.0, presence_penalty=1.5, prompt_tokens=2),
    SamplingParams(1.0, frequency_penalty=-1.0, repetition_penalty=1.7, prompt_tokens=3, seed=11),
    SamplingParams(0.8, top_k=30, top_p=0.9, min_p=0.01, presence_penalty=-2.0, logit_bias=((3, 5.0),), seed=12),
]
# An id that the drafter does not know has no logit to change.
TEXT = [3, 3, 17, 200, 3, 399, V + 5, 17, *range(80)]


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(0.0, 3.0, (count, V)).astype(np.float32)


@pytest.mark.parametrize("params", PARAMS)
def test_a_row_draws_the_token_that_tensors_draw(params):
    for position, row in enumerate(rows(80), start=1):
        assert draw_row(row, TEXT[:position], params) == draw_after(
            torch.from_numpy(row)[None], TEXT[:position], (), params
        )


@pytest.mark.parametrize("params", [each for each in PARAMS if not each.greedy])
def test_the_support_is_the_same(params):
    for position, row in enumerate(rows(20, seed=1), start=1):
        ours = truncated_row(shaped_row_after(row, TEXT[:position], params), params)
        theirs = truncated_logits(*shaped_after(torch.from_numpy(row)[None], TEXT[:position], (), params))[0].numpy()
        assert (np.isfinite(ours) == np.isfinite(theirs)).all()
        assert np.allclose(ours[np.isfinite(ours)], theirs[np.isfinite(theirs)], rtol=1e-6)


@pytest.mark.parametrize("retained", [8, V])
@pytest.mark.parametrize("params", [each for each in PARAMS if not each.greedy])
def test_the_truncated_distribution_is_the_same(params, retained):
    form = DistributionFormat(V, retained)
    for position, row in enumerate(rows(20, seed=2), start=1):
        ours = truncate_row(row, TEXT[:position], params, form)
        ((logits,), rest) = shaped_after(torch.from_numpy(row)[None], TEXT[:position], (), params)
        theirs = truncate(logits, rest, form)
        assert ours.ids.tolist() == theirs.ids.tolist()
        # float32 against float64 sums: a remainder may fall to a neighbour.
        assert np.abs(ours.weights - theirs.weights).max() <= 1


def test_a_row_is_left_as_it_was():
    row = rows(1)[0]
    before = row.copy()
    for params in PARAMS:
        draw_row(row, TEXT, params)
    assert (row == before).all()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="no token to draw"):
        draw_row(np.full(V, -np.inf, dtype=np.float32), [1], SamplingParams(1.0))
    with pytest.raises(InputError, match="no token to draw"):
        draw_row(np.full(V, np.nan, dtype=np.float32), [1], SamplingParams(1.0))
    with pytest.raises(InputError, match="temperature = 0"):
        truncate_row(rows(1)[0], [1], SamplingParams(), DistributionFormat(V, 8))
    with pytest.raises(InputError, match="do not fit a vocabulary"):
        truncate_row(rows(1)[0], [1], SamplingParams(1.0), DistributionFormat(V + 1, 8))
