"""`rejection-down` in whole numbers: all noise enumerated on a grid that divides every weight, masses as fractions.

What comes out of one position must be exactly p⁻ plus the rest of p on the token drawn from it.
"""

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from multispin.speculation import DistributionFormat, Outcome, SamplingParams, distributions, rejection
from multispin.speculation.distributions import Purpose, floor_distribution, target_distribution, truncate

PARAMS = SamplingParams(1.0, top_p=0.97)
REST = -1


@pytest.mark.parametrize(("bits", "cells", "pairs"), [(2, 6, 40), (3, 420, 2)])
def test_every_path_through_a_position_adds_up_to_the_targets_distribution(monkeypatch, bits, cells, pairs):
    word: dict[Purpose, int] = {}
    monkeypatch.setattr(distributions, "stream_word", lambda seed, stream, base, position: word[stream])
    monkeypatch.setattr(rejection, "stream_word", lambda seed, stream, base, position: word[stream])
    form = DistributionFormat(6, retained=4, probability_bits=bits)
    grid = [(2 * cell + 1) * 2**52 // (2 * cells) for cell in range(cells)]
    generator = torch.Generator().manual_seed(bits)
    refusals = 0
    for _ in range(pairs):
        target, drafter = torch.randn(2, 6, generator=generator) * 1.5
        draft_distribution = truncate(drafter, PARAMS, form)
        floor = floor_distribution(target_distribution(target[None], PARAMS)[0], form)
        mass: defaultdict[int, Fraction] = defaultdict(Fraction)
        for cell in range(form.total):
            word[Purpose.DRAFT] = (2 * cell + 1) * 2**52 // (2 * form.total)
            x = distributions.draft_token(draft_distribution, 0, 0, 0)
            for word[Purpose.ACCEPT] in grid:
                found = rejection.verify_floored(
                    [x], [draft_distribution.weight(x)], form, target.expand(2, -1), 0, PARAMS
                )
                if isinstance(found, Outcome):
                    mass[x] += Fraction(1, form.total * cells)
                    continue
                # Coins only refuse from here on, and the offer does not depend on which one did.
                refused = cells - grid.index(word[Purpose.ACCEPT])
                for word[Purpose.RESOLVE] in grid:
                    token = rejection.resolve_down(replace(found, rest_token=REST), draft_distribution, 0)
                    mass[token] += Fraction(refused, form.total * cells * cells)
                refusals += 1
                break
        expected = {int(t): Fraction(int(w), form.total) for t, w in zip(floor.ids, floor.weights, strict=True)}
        if floor.rest:
            expected[REST] = Fraction(floor.rest, form.total)
        assert dict(mass) == expected
    assert refusals > pairs / 2


def test_the_floor_and_its_rest_are_the_target_whole():
    whole = target_distribution(torch.randn(1, 50, generator=torch.Generator().manual_seed(1)), PARAMS)[0].numpy()
    form = DistributionFormat(50, retained=20, probability_bits=8)
    floor = floor_distribution(torch.from_numpy(whole), form)
    rest = whole.copy()
    rest[floor.ids] -= floor.weights / form.total
    assert rest.min() > -1e-15
    assert rest.sum() == pytest.approx(floor.rest / form.total, abs=1e-12)
    assert np.count_nonzero(rest > 1e-12) > 20
