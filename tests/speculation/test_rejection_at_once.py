"""A device's distributions along a draft, computed at once, decide as those computed one by one."""

import random

import numpy as np
import pytest
import torch

from multispin.speculation import (
    DistributionFormat,
    Offer,
    Outcome,
    SamplingParams,
    draft_token,
    rejection,
    truncate,
    verify_distributions,
    verify_floored,
    verify_scalars,
)

V = 60


def outcome(found):
    """What can be compared of any finding."""
    if isinstance(found, Outcome):
        return found
    if isinstance(found, Offer):
        return found.accepted, found.rest_token, found.floor.ids.tolist(), found.floor.weights.tolist()
    return found.accepted, found.token, found.weight, found.distribution.tolist()


@pytest.mark.parametrize("retained", [3, 20, V])
def test_all_rules_find_the_same(monkeypatch, retained, processor):
    rng, form, kinds = random.Random(retained), DistributionFormat(V, retained, 12), set()
    torch.manual_seed(retained)
    for turn in range(60):
        length, base = rng.randint(1, 6), rng.randrange(50)
        params = SamplingParams(rng.choice([0.6, 1.0]), rng.choice([0, 12]), rng.choice([1.0, 0.9]), turn)
        logits = 2.0 * torch.randn(length + 1, V)
        near = logits + 0.7 * torch.randn(length + 1, V)
        distributions = [truncate(near[index], params, form) for index in range(length)]
        drafted = [
            draft_token(distribution, params.seed, base, base + index)
            for index, distribution in enumerate(distributions)
        ]
        weights = [distribution.weight(token) for distribution, token in zip(distributions, drafted, strict=True)]

        def all_rules(there):
            return [
                verify_distributions(drafted, distributions, there, base, params),  # noqa: B023
                verify_scalars(drafted, weights, form, there, base, params),  # noqa: B023
                verify_floored(drafted, weights, form, there, base, params),  # noqa: B023
            ]

        expected = all_rules(logits)
        with monkeypatch.context() as patch:
            patch.setattr(rejection, "_waits", lambda logits: True)
            found = all_rules(logits.to(processor))
        kinds |= {type(each) for each in expected}
        for mine, other in zip(found, expected, strict=True):
            assert type(mine) is type(other)
            np.testing.assert_equal(outcome(mine)[:2], outcome(other)[:2])
            if processor == "cpu":
                assert outcome(mine) == outcome(other)
    assert len(kinds) == 3
