"""Block verification in full: every draft, every place where it may end and every next token, with its probability.

A toy target and drafter over three tokens, a distribution for each context, truncated differently everywhere, with
draft lengths that depend on what was drafted. The joint distribution of the text must be the target's: exactly, in
fractions, for the rule as the paper states it, and to 1e-12 for ours. Every easy mistake must miss it.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from multispin.speculation import (
    DistributionFormat,
    Outcome,
    SamplingParams,
    TruncatedDistribution,
    target_distribution,
    verify_distributions,
)
from multispin.speculation.block import block_stops
from multispin.speculation.distributions import Purpose, stream_word
from multispin.speculation.rejection import emit

V, TOTAL = 3, 15
FORM = DistributionFormat(V, retained=3, probability_bits=4)

Text = tuple[int, ...]
Distribution = tuple[Fraction, ...]


def some_distribution(rng: np.random.Generator) -> Distribution:
    """Whole multiples of 1/15 over one, two or three of the tokens."""
    support = rng.permutation(V)[: rng.choice([1, 2, 3, 3, 3])]
    cuts = np.sort(rng.choice(np.arange(1, TOTAL), len(support) - 1, replace=False))
    weights = np.zeros(V, dtype=np.int64)
    weights[support] = np.diff(np.concatenate([[0], cuts, [TOTAL]]))
    return tuple(Fraction(int(w), TOTAL) for w in weights)


@dataclass(frozen=True)
class Pair:
    """A target and a drafter: a distribution for each text of up to `longest` tokens, and where drafts end early."""

    target: dict[Text, Distribution]
    drafter: dict[Text, Distribution]
    ends: frozenset[Text]
    longest: int

    def drafts(self, text: Text = ()) -> list[tuple[Text, Fraction]]:
        """Every draft with its probability; a draft ends at the longest length or at a prefix that says so."""
        if len(text) == self.longest or text in self.ends:
            return [(text, Fraction(1))]
        return [
            (draft, chance * self.drafter[text][x])
            for x in range(V)
            if self.drafter[text][x]
            for draft, chance in self.drafts((*text, x))
        ]


def a_pair(seed: int, longest: int, ragged: bool) -> Pair:
    rng = np.random.default_rng(seed)
    contexts = [text for length in range(longest + 1) for text in itertools.product(range(V), repeat=length)]
    ends = frozenset(text for text in contexts if text and ragged and rng.random() < 0.4)
    return Pair(
        {c: some_distribution(rng) for c in contexts}, {c: some_distribution(rng) for c in contexts}, ends, longest
    )


def targets_joint(pair: Pair) -> dict[Text, Fraction]:
    """The target's distribution over all texts of `longest` + 1 tokens."""
    joint: dict[Text, Fraction] = {(): Fraction(1)}
    for _ in range(pair.longest + 1):
        joint = {(*t, x): m * pair.target[t][x] for t, m in joint.items() for x in range(V) if pair.target[t][x]}
    return joint


def written_joint(pair: Pair, stops) -> tuple[dict[Text, Fraction], Fraction]:
    """The distribution over the same texts when drafts are verified, and the mean number of accepted tokens.

    Args:
        pair: target and drafter.
        stops: (pair, draft) to the (accepted, chance, weights of the next token) of a rule, the longest prefix first.
    """
    joint: defaultdict[Text, Fraction] = defaultdict(Fraction)
    mean = Fraction(0)
    for draft, mass in pair.drafts():
        for accepted, chance, weights in stops(pair, draft):
            here, mass = mass * chance, mass * (1 - chance)
            mean += here * accepted
            if not here:
                continue
            for x in range(V):
                if weights[x]:
                    follow(pair, (*draft[:accepted], x), here * weights[x] / sum(weights), joint)
        assert abs(mass) < 1e-12
    return joint, mean


def follow(pair: Pair, text: Text, mass: Fraction, joint: dict[Text, Fraction]) -> None:
    """Let the target write on until the text is long enough, and book its probability."""
    if len(text) > pair.longest:
        joint[text] += mass
        return
    for x in range(V):
        if pair.target[text][x]:
            follow(pair, (*text, x), mass * pair.target[text][x], joint)


def ours(pair: Pair, draft: Text):
    """The product's stops."""
    distributions = []
    for i in range(len(draft)):
        weights = np.array([int(q * TOTAL) for q in pair.drafter[draft[:i]]])
        distributions.append(TruncatedDistribution(np.flatnonzero(weights), weights[weights > 0], FORM))
    rows = [[float(p) for p in pair.target[draft[:i]]] for i in range(len(draft) + 1)]
    targets = torch.tensor(rows, dtype=torch.float64)
    return [
        (s.accepted, s.chance, s.weights().tolist()) for s in block_stops(draft, distributions, targets.__getitem__)
    ]


class Stated:
    """The rule as the paper states it, in fractions, with a hook for each easy mistake."""

    def grow(self, weight: Fraction, p: Fraction, q: Fraction) -> Fraction:
        return min(Fraction(1), weight * p / q)

    def residual(self, weight: Fraction, p: Distribution, q: Distribution) -> list[Fraction]:
        return [max(Fraction(0), weight * p[x] - q[x]) for x in range(V)]

    def chance(self, weight: Fraction, left: Fraction) -> Fraction:
        return left / (left + 1 - weight) if weight < 1 else Fraction(1)

    def last_chance(self, weights: list[Fraction], left: Fraction) -> Fraction:
        return weights[-1]

    def next_weights(self, weights: list[Fraction], accepted: int, p: Distribution, q: Distribution) -> list[Fraction]:
        return self.residual(weights[accepted], p, q)

    def bonus(self, weight: Fraction, p: Distribution, q: Distribution) -> list[Fraction]:
        return list(p)

    def __call__(self, pair: Pair, draft: Text):
        weights = [Fraction(1)]
        for i, x in enumerate(draft):
            weights.append(self.grow(weights[-1], pair.target[draft[:i]][x], pair.drafter[draft[:i]][x]))
        p, q = pair.target[draft], pair.drafter[draft]
        stops = [
            (
                len(draft),
                self.last_chance(weights, sum(self.residual(weights[-1], p, q))),
                self.bonus(weights[-1], p, q),
            )
        ]
        for accepted in range(len(draft) - 1, -1, -1):
            p, q = pair.target[draft[:accepted]], pair.drafter[draft[:accepted]]
            left = sum(self.residual(weights[accepted], p, q))
            chance = self.chance(weights[accepted], left) if accepted else Fraction(1)
            following = self.next_weights(weights, accepted, p, q)
            stops.append((accepted, min(Fraction(1), chance), following if sum(following) else list(p)))
        return stops


class TokenByToken(Stated):
    """Not a mistake: the rule of Leviathan et al., which stops at the first token that a coin refuses."""

    def __call__(self, pair: Pair, draft: Text):
        stops, stands = [], Fraction(1)
        for i, x in enumerate(draft):
            p, q = pair.target[draft[:i]], pair.drafter[draft[:i]]
            kept = min(Fraction(1), p[x] / q[x])
            stops.append((i, stands * (1 - kept), self.residual(Fraction(1), p, q)))
            stands *= kept
        stops.append((len(draft), stands, list(pair.target[draft])))
        left, conditional = Fraction(1), []
        for accepted, mass, weights in reversed(stops):
            conditional.append(
                (accepted, mass / left if left else Fraction(1), weights if sum(weights) else [Fraction(1)] * V)
            )
            left -= mass
        return conditional


class WeightsAreNotCapped(Stated):
    def grow(self, weight, p, q):
        return weight * p / q

    def last_chance(self, weights, left):
        return min(Fraction(1), weights[-1])

    def chance(self, weight, left):
        return left / (left + max(Fraction(0), 1 - weight)) if left else Fraction(0)


class ResidualOfOneToken(Stated):
    """Draws what follows from max(0, p − q), as token-by-token rejection does."""

    def next_weights(self, weights, accepted, p, q):
        return self.residual(Fraction(1), p, q)


class ResidualOfTheNextWeight(Stated):
    def next_weights(self, weights, accepted, p, q):
        return self.residual(weights[min(accepted + 1, len(weights) - 1)], p, q)


class NextFromTheTarget(Stated):
    def next_weights(self, weights, accepted, p, q):
        return list(p)


class PrefixStandsWithItsWeight(Stated):
    def chance(self, weight, left):
        return weight


class ChanceWithoutWhatIsMissing(Stated):
    def chance(self, weight, left):
        return min(Fraction(1), left)


class LastPrefixLikeTheOthers(Stated):
    def last_chance(self, weights, left):
        return self.chance(weights[-1], left)


class BonusFromTheResidual(Stated):
    def bonus(self, weight, p, q):
        found = self.residual(weight, p, q)
        return found if sum(found) else list(p)


class RatioUpsideDown(Stated):
    def grow(self, weight, p, q):
        return min(Fraction(1), weight * q / p) if p else Fraction(0)


MUTANTS = [
    WeightsAreNotCapped,
    ResidualOfOneToken,
    ResidualOfTheNextWeight,
    NextFromTheTarget,
    PrefixStandsWithItsWeight,
    ChanceWithoutWhatIsMissing,
    LastPrefixLikeTheOthers,
    BonusFromTheResidual,
    RatioUpsideDown,
]
PAIRS = [(seed, longest, ragged) for longest in (1, 2, 3) for ragged in (False, True) for seed in range(6)]


@pytest.mark.parametrize(("seed", "longest", "ragged"), PAIRS)
def test_the_joint_distribution_of_the_text_is_the_targets(seed, longest, ragged):
    pair = a_pair(seed, longest, ragged)
    expected = targets_joint(pair)
    joint, accepted = written_joint(pair, ours)
    for text in expected.keys() | joint.keys():
        assert joint.get(text, 0) == pytest.approx(float(expected.get(text, 0)), abs=1e-12)
    stated_joint, stated_accepted = written_joint(pair, Stated())
    token_joint, token_accepted = written_joint(pair, TokenByToken())
    assert stated_joint == token_joint == expected
    assert accepted == pytest.approx(float(stated_accepted), abs=1e-12)
    assert stated_accepted >= token_accepted


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_easy_mistake_misses_the_targets_distribution(mutant):
    missed = 0
    for seed in range(12):
        pair = a_pair(seed, 3, ragged=False)
        expected = targets_joint(pair)
        joint, _ = written_joint(pair, mutant())
        missed += any(abs(joint.get(t, 0) - expected.get(t, 0)) > 1e-3 for t in expected.keys() | joint.keys())
    assert missed >= 3


def test_the_longest_prefix_whose_own_coin_says_yes_stands():
    """Each drafted token has a coin of its own; the last one that says yes decides, whatever the others say."""
    base, drafted = 7, [0, 2, 0]
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(2))
    distributions = [TruncatedDistribution(np.arange(V), np.array([9, 4, 2]), FORM)] * 3
    rows = target_distribution(logits, SamplingParams(1.0))
    stops = {stop.accepted: stop for stop in block_stops(drafted, distributions, rows.__getitem__)}
    assert stops[0].chance == 1.0
    met = set()
    for seed in range(400):
        words = [stream_word(seed, Purpose.ACCEPT, base, base + index) for index in range(3)]
        answers = tuple((word + 0.5) / 2**52 < stops[index + 1].chance for index, word in enumerate(words))
        standing = max((index + 1 for index, yes in enumerate(answers) if yes), default=0)
        token = emit(stops[standing].weights(), base, base + standing, seed)
        found = verify_distributions(drafted, distributions, logits, base, SamplingParams(1.0, seed=seed))
        assert found == Outcome(standing, token), (seed, answers)
        met.add(answers)
    assert len(met) == 2**3


def test_a_prefix_that_rounding_has_left_without_a_residual_is_followed_by_the_target():
    distribution = TruncatedDistribution(np.array([1]), np.array([TOTAL]), FORM)
    certain = torch.tensor([[0.0, 1.0, 0.0]] * 2, dtype=torch.float64)
    *_, empty = block_stops([1], [distribution], certain.__getitem__)
    assert (empty.accepted, empty.chance, empty.weights().tolist()) == (0, 1.0, [0.0, 1.0, 0.0])


def test_what_follows_a_token_that_the_target_never_says_is_not_looked_at():
    """Neither the target's distributions behind it, which cost most of a verification, nor its prefixes."""
    distribution = TruncatedDistribution(np.arange(V), np.array([5, 5, 5]), FORM)
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    stops = list(block_stops([0, 1, 2], [distribution] * 3, rows.__getitem__))
    assert [stop.accepted for stop in stops] == [1, 0]
