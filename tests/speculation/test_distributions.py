import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    FlooredDistribution,
    Offer,
    Outcome,
    SamplingParams,
    TruncatedDistribution,
    draft_token,
    possible_after,
    resolve_down,
    resolve_up,
    target_distribution,
    truncate,
    verify_distributions,
    verify_floored,
    verify_scalars,
)
from multispin.speculation.distributions import Purpose, floor_distribution, quantise, scaled_word, stream_word
from multispin.speculation.rejection import Rejection

FORM = DistributionFormat(10, retained=4, probability_bits=8)
PARAMS = SamplingParams(1.0, seed=5)


def distribution(ids, weights, form=FORM):
    return TruncatedDistribution(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.int64), form)


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=200), st.integers(2, 32))
def test_quantised_weights_sum_to_the_total_and_are_off_by_less_than_one(values, bits):
    probabilities = np.array(values) / np.sum(values)
    total = 2**bits - 1
    weights = quantise(probabilities, total)
    assert weights.sum() == total
    assert weights.min() >= 0
    assert np.abs(weights - probabilities * total).max() < 1 + 1e-6
    assert 0.5 * np.abs(weights / total - probabilities).sum() <= len(values) / (4 * total) + 1e-9


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(2, 16))
def test_a_truncated_distribution_keeps_the_most_probable_tokens_of_the_requests_distribution(seed, retained, bits):
    logits = torch.randn(60, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(0.8, top_p=0.9)
    whole = target_distribution(logits[None], params)[0].numpy()
    sent = truncate(logits, params, DistributionFormat(60, retained, bits))
    assert len(sent.ids) <= retained
    assert whole[sent.ids].min() > 0
    left_out = np.delete(whole, sent.ids)
    assert len(left_out) == 0 or left_out.max() <= whole[sent.ids].min() + 1e-12 or len(sent.ids) < retained
    assert sent.dense().sum() == pytest.approx(1.0)


def test_the_device_draws_from_exactly_the_distribution_that_it_sends():
    # chi-square over 8,000 positions, false alarm 1e-4 for a random seed; the seed is fixed.
    sent = distribution([1, 3, 4, 9], [1, 100, 50, 104])
    tokens = [draft_token(sent, 3, 0, position) for position in range(8_000)]
    seen = np.bincount(tokens, minlength=10)
    assert set(np.flatnonzero(seen)) <= set(sent.ids)
    assert stats.chisquare(seen[sent.ids], sent.weights / 255 * 8_000).pvalue > 1e-4


@given(st.integers(0, 2**52 - 1), st.integers(1, 2**32))
def test_a_scaled_word_never_leaves_its_range(word, total):
    assert 0 <= scaled_word(word, total) < total


def test_no_two_decisions_rounds_or_positions_share_a_word():
    words = {
        stream_word(7, stream, base, position) for stream in Purpose for base in range(5) for position in range(base, 9)
    }
    assert len(words) == len(Purpose) * sum(9 - base for base in range(5))


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([], [], "sum to 0"),
        ([1], [254], "sum to 254, not to 255"),
        ([1, 1], [200, 55], "ascending and distinct"),
        ([3, 1], [200, 55], "ascending"),
        ([-1, 1], [200, 55], "ascending"),
        ([1, 10], [200, 55], "within 0 … 9"),
        ([1, 2], [255, 0], "outside 1 … 255"),
        ([1, 2], [256, -1], "outside 1 … 255"),
        ([1, 2, 3, 4, 5], [51] * 5, "more than the 4 retained"),
        ([1, 2], [255], "as many weights"),
    ],
)
def test_distributions_that_are_none_are_refused(ids, weights, message):
    with pytest.raises(InputError, match=message):
        distribution(ids, weights)


def test_a_floored_distribution_may_sum_to_less_but_not_to_more():
    floor = FlooredDistribution(np.array([1, 2]), np.array([100, 100]), FORM)
    assert (floor.rest, floor.weight(2), floor.weight(3)) == (55, 100, 0)
    assert FlooredDistribution(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), FORM).rest == 255
    with pytest.raises(InputError, match="more than 255"):
        FlooredDistribution(np.array([1, 2]), np.array([200, 100]), FORM)


@given(st.integers(0, 2**32))
def test_the_floor_lies_below_the_distribution_everywhere(seed):
    whole = target_distribution(
        torch.randn(1, 10, generator=torch.Generator().manual_seed(seed)) * 3, SamplingParams(1.0)
    )[0]
    floor = floor_distribution(whole, FORM)
    assert (floor.weights <= whole[floor.ids].numpy() * 255 * (1 + 1e-12)).all()
    assert floor.rest >= 0


@pytest.mark.parametrize("values", [{"vocabulary_size": 1}, {"retained": 0}, {"retained": 11}, {"probability_bits": 1}])
def test_impossible_formats_are_refused_by_name(values):
    with pytest.raises(InputError, match=next(iter(values))):
        DistributionFormat(**{"vocabulary_size": 10, "retained": 4, **values})


LOGITS = torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verify_distributions([1], [], LOGITS, 3, PARAMS), "0 distributions"),
        (lambda: verify_distributions([2], [distribution([1], [255])], LOGITS, 3, PARAMS), "weight 0"),
        (lambda: verify_scalars([1], [], FORM, LOGITS, 3, PARAMS), "0 probabilities"),
        (lambda: verify_scalars([1], [256], FORM, LOGITS, 3, PARAMS), "weight 256"),
        (lambda: verify_scalars([10], [1], FORM, LOGITS, 3, PARAMS), "token id 10"),
        (lambda: verify_scalars([1, 2], [1, 1], FORM, LOGITS, 3, PARAMS), "do not fit logits"),
        (lambda: verify_scalars([1], [1], FORM, LOGITS, 3, SamplingParams()), "greedy"),
        (lambda: truncate(LOGITS[0, :5], PARAMS, FORM), "5 logits"),
    ],
)
def test_drafts_that_do_not_fit_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_distribution_that_contradicts_the_draft_is_refused():
    refused = Rejection(0, 1, 200, FORM, 3, 5, torch.full((10,), 0.1, dtype=torch.float64))
    with pytest.raises(InputError, match=r"weight 155, the draft said 200"):
        resolve_up(refused, distribution([1, 2], [155, 100]))
    with pytest.raises(InputError, match="the draft as"):
        resolve_up(refused, distribution([1, 2], [10, 5], DistributionFormat(10, 4, 4)))
    with pytest.raises(InputError, match="different formats"):
        verify_distributions(
            [1, 1],
            [distribution([1], [255]), distribution([1], [15], DistributionFormat(10, 4, 4))],
            torch.zeros(3, 10),
            3,
            PARAMS,
        )


def test_a_residual_that_rounding_has_emptied_falls_back_to_the_targets_distribution():
    sent = distribution([1], [255])
    target = torch.zeros(10, dtype=torch.float64)
    target[1] = 1.0
    assert resolve_up(Rejection(0, 1, 255, FORM, 3, 5, target), sent) == Outcome(0, 1)


def test_a_drafter_that_equals_the_target_is_never_refused():
    logits = torch.full((1, 10), -torch.inf)
    logits[0, 4] = 0.0
    sent = truncate(logits[0], PARAMS, FORM)
    for base in range(50):
        assert verify_distributions([4], [sent], logits.expand(2, -1), base, PARAMS) == Outcome(1, 4)
        assert verify_floored([4], [255], FORM, logits.expand(2, -1), base, PARAMS) == Outcome(1, 4)


def test_an_empty_draft_is_plain_sampling_from_the_target():
    empty = verify_distributions([], [], LOGITS[:1], 3, PARAMS)
    assert (
        empty
        == verify_scalars([], [], FORM, LOGITS[:1], 3, PARAMS)
        == verify_floored([], [], FORM, LOGITS[:1], 3, PARAMS)
    )


def test_a_retry_of_a_round_gets_the_same_answer_and_token_by_token_a_shorter_draft_the_same_beginning():
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(2))
    sent = truncate(logits[0] * 0.5, PARAMS, FORM)
    for base in range(100):
        drafted = [draft_token(sent, 5, base, base + i) for i in range(4)]
        block = verify_distributions(drafted, [sent] * 4, logits, base, PARAMS)
        assert verify_distributions(drafted, [sent] * 4, logits, base, PARAMS) == block
        weights = [sent.weight(token) for token in drafted]
        first, shorter = (verify_scalars(drafted[:n], weights[:n], FORM, logits[: n + 1], base, PARAMS) for n in (4, 3))
        if isinstance(first, Rejection) and first.accepted < 3:
            assert resolve_up(shorter, sent) == resolve_up(first, sent)


def test_what_the_device_resolves_is_what_the_server_can_check():
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(3)) * 2
    sent = truncate(logits[0].flip(0), PARAMS, FORM)
    offers = 0
    for base in range(200):
        x = draft_token(sent, 5, base, base)
        found = verify_floored([x], [sent.weight(x)], FORM, logits, base, PARAMS)
        if isinstance(found, Offer):
            offers += 1
            token = resolve_down(found, sent, 5)
            assert possible_after(found, token)
            assert token == resolve_down(found, sent, 5)
    assert offers > 20


def test_a_target_that_fits_whole_leaves_nothing_to_the_rest_token():
    logits = torch.full((2, 10), -torch.inf)
    logits[:, 4] = 0.0
    found = verify_floored([1], [255], FORM, logits, 3, PARAMS)
    assert isinstance(found, Offer)
    assert found.floor.rest == 0
    assert resolve_down(found, distribution([1], [255]), 5) == 4
    assert [token for token in range(10) if possible_after(found, token)] == [4]


def test_an_offer_that_cannot_follow_a_refusal_is_refused():
    offer = Offer(0, 3, FlooredDistribution(np.array([1]), np.array([255]), FORM), 1)
    with pytest.raises(InputError, match="nothing can have been refused"):
        resolve_down(offer, distribution([1], [255]), 5)
    with pytest.raises(InputError, match="written as"):
        resolve_down(offer, distribution([1], [15], DistributionFormat(10, 4, 4)), 5)
