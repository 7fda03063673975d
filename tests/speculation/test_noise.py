import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from multispin.errors import InputError
from multispin.speculation import SamplingParams, derive_seed, gumbel_numpy, gumbel_torch, uniform_numpy, uniform_torch
from multispin.speculation.noise import MAX_SEED, uniform_word

seeds = st.integers(0, 2**63 - 1)
positions = st.integers(0, 2**31)


@given(seeds, st.lists(positions, min_size=1, max_size=3), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50))
def test_numpy_and_torch_give_the_same_bits_on_every_processor(processor, seed, several, ids):
    ours = np.stack([uniform_numpy(seed, position, np.array(ids)) for position in several])
    tokens = torch.tensor(ids, device=processor)
    assert np.array_equal(ours, uniform_torch(seed, several, tokens).cpu().numpy())
    gumbels = np.stack([gumbel_numpy(seed, position, np.array(ids)) for position in several])
    assert np.allclose(gumbels, gumbel_torch(seed, several, tokens).cpu(), rtol=1e-12)


@given(seeds, positions, st.permutations(range(20)))
def test_noise_of_a_token_does_not_depend_on_the_order_of_the_others(seed, position, order):
    straight = uniform_numpy(seed, position, np.arange(20))
    assert np.array_equal(uniform_numpy(seed, position, np.array(order)), straight[list(order)])


@pytest.mark.parametrize("along", ["seed", "position", "token"])
def test_noise_is_uniform_along_each_of_its_three_arguments(along):
    # Kolmogorov-Smirnov over 20,000 values: a fair generator fails once in 10,000 seeds, and the seeds are fixed.
    count = 20_000
    if along == "token":
        values = uniform_numpy(11, 5, np.arange(count))
    elif along == "position":
        values = np.array([uniform_numpy(11, position, np.array([42]))[0] for position in range(count)])
    else:
        values = np.array([uniform_numpy(seed, 5, np.array([42]))[0] for seed in range(count)])
    assert stats.kstest(values, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(count)


def test_noise_of_neighbouring_seeds_and_positions_is_uncorrelated():
    ids = np.arange(50_000)
    here = uniform_numpy(7, 100, ids)
    for other in (uniform_numpy(8, 100, ids), uniform_numpy(7, 101, ids), uniform_numpy(7, 100, ids + 1)):
        assert abs(np.corrcoef(here, other)[0, 1]) < 4.5 / np.sqrt(len(ids))


def test_uniforms_never_reach_0_or_1_where_the_gumbel_would_be_infinite():
    values = uniform_numpy(3, 3, np.arange(1_000_000))
    assert values.min() > 0
    assert values.max() < 1
    assert np.isfinite(gumbel_numpy(3, 3, np.arange(1_000_000))).all()


def test_derived_seeds_are_valid_and_distinct():
    derived = {derive_seed(5, k) for k in range(1000)}
    assert len(derived) == 1000
    assert all(0 <= seed < 2**63 for seed in derived)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused_with_its_value(seed):
    with pytest.raises(InputError, match=str(seed)):
        SamplingParams(seed=seed)


def test_the_word_of_one_token_is_that_of_the_array():
    tokens = np.array([0, 1, 49151, 2**31 - 1])
    for seed in (0, 7, MAX_SEED):
        for position in (0, 5, 2**31):
            words = (uniform_numpy(seed, position, tokens) * 2.0**52).astype(np.int64)
            assert [uniform_word(seed, position, int(token)) for token in tokens] == words.tolist()
