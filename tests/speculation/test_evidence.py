import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Offer,
    Rejection,
    Rule,
    SamplingParams,
    certain_distribution,
    draft_token,
    judge,
    pack_draft,
    resolve_down,
    resolve_up,
    rule_for,
    truncate,
    unpack_draft,
    verify_distributions,
    verify_draft,
    verify_scalars,
)

V, BASE = 40, 12
FORM = DistributionFormat(V, retained=8, probability_bits=10)
PARAMS = SamplingParams(0.9, top_p=0.95, seed=5)


def draft(length, seed=3):
    logits = torch.randn(length + 1, V, generator=torch.Generator().manual_seed(seed))
    distributions = [truncate(row, PARAMS, FORM) for row in 0.7 * logits[:length] + 0.2]
    return (
        [draft_token(distribution, PARAMS.seed, BASE, BASE + i) for i, distribution in enumerate(distributions)],
        distributions,
        logits,
    )


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("length", [0, 1, 5])
def test_what_a_draft_puts_on_the_air_comes_out_as_it_was(rule, length):
    ids, distributions, _ = draft(length)
    packed = pack_draft(ids, distributions, rule, FORM)
    found, evidence = unpack_draft(packed, length, rule, FORM, PARAMS.seed, BASE)
    assert found == ids
    if rule in (Rule.GREEDY, Rule.COUPLED):
        assert evidence is None
    elif rule is Rule.REJECTION:
        assert [distribution.ids.tolist() for distribution in evidence.distributions] == [
            distribution.ids.tolist() for distribution in distributions
        ]
    else:
        assert evidence.weights == tuple(
            distribution.weight(token) for distribution, token in zip(distributions, ids, strict=True)
        )


@given(st.sampled_from(list(Rule)), st.integers(0, 5), st.binary(max_size=60))
def test_noise_in_a_payload_is_refused_or_is_a_draft_that_can_be_verified(rule, length, packed):
    try:
        ids, evidence = unpack_draft(packed, length, rule, FORM, PARAMS.seed, BASE)
    except InputError:
        return
    params = SamplingParams() if rule is Rule.GREEDY else PARAMS
    found = judge(ids, evidence, torch.zeros(length + 1, V), BASE, params)  # the round loop must survive it
    assert found.accepted <= length


def test_every_rule_is_reached_through_the_same_door():
    ids, distributions, logits = draft(4)
    at_once = judge(ids, Evidence(Rule.REJECTION, FORM, distributions=tuple(distributions)), logits, BASE, PARAMS)
    assert at_once == verify_distributions(ids, distributions, logits, BASE, PARAMS)
    weights = tuple(distribution.weight(token) for distribution, token in zip(distributions, ids, strict=True))
    assert judge(ids, None, logits, BASE, PARAMS) == verify_draft(ids, logits, BASE, PARAMS)
    asked = judge(ids, Evidence(Rule.REJECTION_UP, FORM, weights=weights), logits, BASE, PARAMS)
    offered = judge(ids, Evidence(Rule.REJECTION_DOWN, FORM, weights=weights), logits, BASE, PARAMS)
    assert isinstance(asked, Rejection)
    assert asked.accepted == verify_scalars(ids, weights, FORM, logits, BASE, PARAMS).accepted
    assert isinstance(offered, Offer)
    assert offered.accepted <= asked.accepted  # what is sent down is the smaller part of the target's distribution


@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_bias_and_withheld_ids_are_part_of_the_distribution_that_is_verified_against(rule):
    """A token that the target may not emit at this position is never accepted nor drawn."""
    logits = torch.zeros(2, 3)
    form = DistributionFormat(3, 3, 8)
    seen = set()
    for seed in range(200):
        params = SamplingParams(1.0, seed=seed, withheld=(2,), withheld_until=BASE + 1, logit_bias=((1, -100.0),))
        distribution = certain_distribution(2, form)
        evidence = Evidence(
            rule, form, (distribution,) if rule is Rule.REJECTION else (), () if rule is Rule.REJECTION else (255,)
        )
        found = judge([2], evidence, logits, BASE, params)
        assert found.accepted == 0
        if isinstance(found, Rejection):
            found = resolve_up(found, distribution)
        seen.add(resolve_down(found, distribution, seed) if isinstance(found, Offer) else found.next_token)
        late = judge([2], evidence, logits, BASE + 1, params)  # from here on it is like any other
        seen.add(("later", late.accepted))
    assert seen <= {0, ("later", 0), ("later", 1)}
    assert ("later", 1) in seen


def test_a_rule_must_fit_the_temperature():
    assert rule_for(SamplingParams()) is Rule.GREEDY
    assert rule_for(PARAMS) is Rule.COUPLED
    assert rule_for(PARAMS, Rule.REJECTION_DOWN) is Rule.REJECTION_DOWN
    for params, rule in [(SamplingParams(), Rule.COUPLED), (SamplingParams(), Rule.REJECTION), (PARAMS, Rule.GREEDY)]:
        with pytest.raises(InputError, match=f"{rule} needs"):
            rule_for(params, rule)


def test_evidence_of_another_rule_is_refused():
    for values in [{"rule": Rule.COUPLED}, {"rule": Rule.REJECTION, "weights": (3,)},
                   {"rule": Rule.REJECTION_UP, "distributions": (certain_distribution(1, FORM),)}]:  # fmt: skip
        with pytest.raises(InputError):
            Evidence(form=FORM, **values)


def test_a_guess_is_certain_of_itself():
    distribution = certain_distribution(7, FORM)
    assert distribution.dense()[7] == 1.0
    assert all(draft_token(distribution, seed, BASE, BASE) == 7 for seed in range(20))
    assert np.array_equal(distribution.ids, [7])
