"""The fast draw is the plain one: same token, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import (
    SamplingParams,
    draw,
    gumbel_argmax,
    gumbel_argmax_rows,
    gumbel_torch,
    truncated_logits,
    uniform_numpy,
)
from multispin.speculation.gumbel_max import argmax_rows, gumbel_argmax_row
from multispin.speculation.noise import high_words, tokens_of_high_words
from multispin.speculation.sampling import nuclei


def plain(row: torch.Tensor, seed: int, position: int) -> int:
    """The definition: every Gumbel of the support, the best score."""
    support = torch.nonzero(row > -torch.inf).squeeze(-1)
    return int(support[(row[support].double() + gumbel_torch(seed, [position], support)[0]).argmax()])


def plain_nucleus(row: torch.Tensor, top_p: float) -> list[bool]:
    weights = (row - row.max()).exp()
    order = row.argsort(descending=True, stable=True)
    sizes = weights[order].double()
    before = sizes.cumsum(-1) - sizes
    kept = torch.zeros(len(row), dtype=torch.bool)
    kept[order[before < top_p * weights.sum(dtype=torch.float64)]] = True
    return kept.tolist()


def rows(kind: str, count: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    noise = torch.randn(count, vocabulary, generator=generator)
    if kind == "flat":
        return torch.zeros(count, vocabulary)
    if kind == "peaked":
        return noise * 2 + 25 * torch.nn.functional.one_hot(torch.arange(count) % vocabulary, vocabulary)
    if kind == "ties":
        return (noise * 2).round()
    if kind == "holes":
        return noise.masked_fill(torch.rand(noise.shape, generator=generator) < 0.7, -torch.inf).index_fill(
            1, torch.tensor([0]), 0.0
        )
    if kind == "steep":
        return noise * 200
    if kind == "far":  # offsets at which float32 itself is coarse
        return noise.round() + 9e5
    if kind == "huge":  # beyond what the bound covers: float64 scores lose the noise, the first of equals wins
        return noise.sign() * 1e30
    return noise * 3


KINDS = ["normal", "flat", "peaked", "ties", "holes", "steep", "far", "huge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocabulary", "count"), [(1, 5), (2, 300), (65, 400), (1000, 300), (49_152, 8)])
def test_the_fast_draw_gives_the_plain_draws_token(kind, vocabulary, count):
    for position, row in enumerate(rows(kind, count, vocabulary)):
        assert gumbel_argmax(row, 99, position) == plain(row, 99, position)
        if position % 5 == 0:
            assert gumbel_argmax(row.double(), 99, position) == plain(row, 99, position)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_drafters_draw_is_the_plain_one_of_the_tokens_that_are_near_the_largest_logit(kind):
    for position, row in enumerate(rows(kind, 100, 1000)):
        near = row.masked_fill(row <= row.max() - 14.0, -torch.inf)
        assert gumbel_argmax_row(row.numpy(), 99, position, far=False) == plain(near, 99, position)


def test_a_drafter_leaves_out_a_far_token_with_great_luck():
    for position in range(3000):
        best = tokens_of_high_words(7, position, np.arange(2**32 - 100, 2**32, dtype=np.uint32))
        for lucky in best[best < 200_000]:
            row = np.full(200_000, -40.0, np.float32)
            row[lucky], row[(int(lucky) + 1) % 200_000] = -15.0, 0.0
            assert gumbel_argmax_row(row, 7, position, far=False) == (int(lucky) + 1) % 200_000


def test_a_row_whose_most_probable_token_has_the_worst_luck_is_drawn_right():
    # Put the peak where the noise is lowest, so that the first guess is poor.
    for position in range(200):
        row = torch.zeros(300)
        worst = int(uniform_numpy(5, position, np.arange(300)).argmin())
        row[worst] = 1.0 + position / 20
        assert gumbel_argmax(row, 5, position) == plain(row, 5, position)


def test_a_far_token_with_great_luck_wins():
    # Its noise is above 17 and the near token's mostly below 2, so that it wins from 15 nats below.
    size, won = 200_000, 0
    for position in range(3000):
        best = tokens_of_high_words(7, position, np.arange(2**32 - 100, 2**32, dtype=np.uint32))
        for lucky in best[best < size]:
            row = torch.full((size,), -40.0)
            row[lucky], row[(int(lucky) + 1) % size] = -15.0, 0.0
            token = gumbel_argmax(row, 7, position)
            assert token == plain(row, 7, position)
            won += token == int(lucky)
    assert won > 3


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_tokens_are_found_again_from_their_high_words(seed, position):
    ids = np.array([0, 1, 49_151, 2**31, 2**32 - 1], dtype=np.uint32)
    assert tokens_of_high_words(seed, position, high_words(seed, position, ids)).tolist() == ids.tolist()


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_the_high_words_enclose_the_uniform_variates(seed, position):
    ids = np.arange(500)
    uniform, high = uniform_numpy(seed, position, ids), high_words(seed, position, ids).astype(np.float64)
    assert (uniform * 2.0**32 > high).all()
    assert (uniform * 2.0**32 < high + 1).all()


@pytest.mark.parametrize("kind", ["normal", "flat", "peaked", "ties", "steep"])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.9, 0.999, 1 - 1e-9])
def test_the_nucleus_found_without_a_full_sort_is_the_plain_one(kind, top_p):
    for vocabulary in (1, 7, 2000):
        logits = rows(kind, 20, vocabulary)
        kept = truncated_logits(logits, SamplingParams(1.0, top_p=top_p)) > -torch.inf
        assert kept.tolist() == [plain_nucleus(row, top_p) for row in logits]


def test_draw_scores_what_the_truncation_has_left(processor):
    params = SamplingParams(0.7, top_k=50, top_p=0.9, seed=4)
    logits = rows("normal", 200, 3000)
    distribution = truncated_logits(logits, params)
    expected = [plain(row, 4, position) for position, row in enumerate(distribution)]
    assert draw(logits.to(processor), list(range(200)), params) == expected


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_a_row_without_a_single_logit_is_refused(processor, value):
    with pytest.raises(InputError, match="no token to draw"):
        draw(torch.full((1, 100), value, device=processor), [0], SamplingParams(1.0, top_p=0.9))


# What an accelerator computes for all rows at once, computed here, so that its logic is tested without one.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocabulary", "count"), [(1, 5), (65, 150), (1000, 70)])
def test_all_rows_at_once_give_each_rows_own_token(kind, vocabulary, count):
    logits, positions = rows(kind, count, vocabulary), list(range(7, 7 + count))
    expected = [plain(row, 99, position) for position, row in zip(positions, logits, strict=True)]
    assert argmax_rows(logits, 99, positions) == expected
    assert gumbel_argmax_rows(logits, 99, positions) == expected


@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_one_row_without_a_logit_among_others_is_refused(value):
    logits = torch.zeros(3, 100).index_fill(0, torch.tensor([1]), value)
    with pytest.raises(InputError, match="no token to draw"):
        argmax_rows(logits, 0, [0, 1, 2])


@pytest.mark.parametrize("kind", ["normal", "flat", "peaked", "ties", "steep"])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.9, 0.999, 1 - 1e-9])
def test_the_nuclei_of_all_rows_at_once_are_each_rows_own(kind, top_p):
    for vocabulary in (1, 7, 2000):
        logits = rows(kind, 20, vocabulary)
        assert (nuclei(logits, top_p) > -torch.inf).tolist() == [plain_nucleus(row, top_p) for row in logits]
