"""The promise of the rejection rules: whatever is drafted, the text follows the target's distribution; and the same
test catches every rule that public code gets wrong. A first-order target and drafter over five tokens; many short
texts of three tokens, each with its own seed, generated in rounds of two drafted tokens; chi-square of the joint
counts and of each position against the exact distribution. A correct rule fails one test in 10,000 seeds, and the
seeds are fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from tests.five_tokens import DRAFTER, TARGET, TEXT, V, follow, joint_distribution

from multispin.speculation import (
    DistributionFormat,
    Offer,
    Outcome,
    SamplingParams,
    derive_seed,
    draft_token,
    resolve_down,
    resolve_up,
    target_distribution,
    truncate,
    verify_distributions,
    verify_floored,
    verify_scalars,
)
from multispin.speculation.rejection import Rejection

DRAFT, START, BASE = 2, 0, 7
PARAMS = SamplingParams(0.9, top_p=0.85)
FORM = DistributionFormat(V, retained=4, probability_bits=2)
P = target_distribution(TARGET, PARAMS).numpy()
P_WHOLE = target_distribution(TARGET, SamplingParams(0.9)).numpy()
Q_WHOLE = target_distribution(DRAFTER, SamplingParams(0.9)).numpy()
DISTRIBUTIONS = [truncate(row, PARAMS, FORM) for row in DRAFTER]
Q = np.stack([distribution.dense() for distribution in DISTRIBUTIONS])


def follows_the_distribution(texts: list[list[int]]) -> bool:
    return follow(texts, joint_distribution(START, P))


def generate(count: int, rounds: Callable[[int, int, int], list[int]]) -> list[list[int]]:
    """`count` texts; rounds(context, base, seed) gives the new tokens of one round."""
    texts = []
    for trial in range(count):
        text, seed = [START], derive_seed(2026, trial)
        while len(text) <= TEXT:
            text += rounds(text[-1], BASE + len(text), seed)
        texts.append(text[1 : TEXT + 1])
    return texts


def draft_round(context: int, base: int, seed: int, length: int = DRAFT) -> tuple[list[int], list[int]]:
    contexts = [context]
    for position in range(base, base + length):
        contexts.append(draft_token(DISTRIBUTIONS[contexts[-1]], seed, base, position))
    return contexts[1:], contexts


def distributions_up(context: int, base: int, seed: int, length: int = DRAFT) -> list[int]:
    drafted, contexts = draft_round(context, base, seed, length)
    params = SamplingParams(PARAMS.temperature, PARAMS.top_k, PARAMS.top_p, seed)
    outcome = verify_distributions(drafted, [DISTRIBUTIONS[c] for c in contexts[:-1]], TARGET[contexts], base, params)
    return [*drafted[: outcome.accepted], outcome.next_token]


def scalars_up(context: int, base: int, seed: int, length: int = DRAFT) -> list[int]:
    drafted, contexts = draft_round(context, base, seed, length)
    params = SamplingParams(PARAMS.temperature, PARAMS.top_k, PARAMS.top_p, seed)
    weights = [DISTRIBUTIONS[c].weight(x) for c, x in zip(contexts, drafted, strict=False)]
    found = verify_scalars(drafted, weights, FORM, TARGET[contexts], base, params)
    if isinstance(found, Rejection):
        found = resolve_up(found, DISTRIBUTIONS[contexts[found.accepted]])
    return [*drafted[: found.accepted], found.next_token]


def distribution_down(context: int, base: int, seed: int) -> list[int]:
    drafted, contexts = draft_round(context, base, seed)
    params = SamplingParams(PARAMS.temperature, PARAMS.top_k, PARAMS.top_p, seed)
    weights = [DISTRIBUTIONS[c].weight(x) for c, x in zip(contexts, drafted, strict=False)]
    found = verify_floored(drafted, weights, FORM, TARGET[contexts], base, params)
    if isinstance(found, Outcome):
        return [*drafted, found.next_token]
    return [*drafted[: found.accepted], resolve_down(found, DISTRIBUTIONS[contexts[found.accepted]], seed)]


@pytest.mark.long
@pytest.mark.parametrize("rounds", [distributions_up, scalars_up, distribution_down])
def test_the_text_follows_the_targets_distribution(rounds):
    assert follows_the_distribution(generate(2000, rounds))


@pytest.mark.long
def test_a_scalar_and_one_distribution_give_the_same_text_as_all_distributions_for_drafts_of_one_token():
    """For longer drafts the payload with all distributions is verified as a block, and the texts differ."""
    alone = partial(scalars_up, length=1), partial(distributions_up, length=1)
    assert generate(300, alone[0]) == generate(300, alone[1])
    assert generate(300, scalars_up) != generate(300, distributions_up)


@dataclass
class Plain:
    """The rule in plain words, with a hook for each known mistake. p, q are [V] distributions, x a drafted token."""

    rng: np.random.Generator

    def target(self, context: int) -> np.ndarray:
        return P[context]

    def drafted_from(self, context: int) -> np.ndarray:
        return Q[context]

    def sent(self, context: int) -> np.ndarray:
        return Q[context]

    def ratio(self, p: np.ndarray, q: np.ndarray, x: int, context: int) -> float:
        return p[x] / q[x] if q[x] > 0 else np.inf

    def residual(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.maximum(p - q, 0)

    def emit(self, weights: np.ndarray, coin: float | None, context: int) -> int:
        return self.invert(weights, self.rng.random())

    @staticmethod
    def invert(weights: np.ndarray, uniform: float) -> int:
        return int(np.searchsorted(np.cumsum(weights), uniform * weights.sum(), side="right"))

    def rounds(self, context: int, base: int, seed: int) -> list[int]:
        new = []
        for _ in range(DRAFT):
            x = self.invert(self.drafted_from(context), self.rng.random())
            p, q, coin = self.target(context), self.sent(context), self.rng.random()
            if coin >= self.ratio(p, q, x, context):
                residual = self.residual(p, q)
                return [*new, self.emit(residual if residual.sum() > 0 else p, coin, context)]
            new.append(x)
            context = x
        return [*new, self.emit(self.target(context), None, context)]


class AcceptsWithQOverP(Plain):
    def ratio(self, p, q, x, context):
        return q[x] / p[x] if p[x] > 0 else 0.0


class EmitsFromPAfterARejection(Plain):
    def residual(self, p, q):
        return p


class RatioOfLogits(Plain):
    def ratio(self, p, q, x, context):
        return float(TARGET[context, x] / DRAFTER[context, x]) if p[x] > 0 else 0.0


class ArgmaxDraftAgainstSoftmaxQ(Plain):
    def drafted_from(self, context):
        return np.eye(V)[Q[context].argmax()]


class TruncatesAfterSampling(Plain):
    """p as it is before top-p; a token that falls outside the nucleus is replaced by the most probable one."""

    def target(self, context):
        return P_WHOLE[context]

    def rounds(self, context, base, seed):
        new, last = [], context
        for token in super().rounds(context, base, seed):
            last = token if P[last, token] > 0 else int(P[last].argmax())
            new.append(last)
        return new


class SamplesFromTheWholeDistributionButSendsTheTruncatedOne(Plain):
    def drafted_from(self, context):
        return Q_WHOLE[context]


class ResidualDrawnWithTheAcceptanceCoin(Plain):
    def emit(self, weights, coin, context):
        return self.invert(weights, self.rng.random() if coin is None else coin)


class RoundsQAfterSampling(Plain):
    """Sends the quantised distribution, drafts from the one before quantisation (here: before the 2-bit rounding)."""

    def drafted_from(self, context):
        kept = np.where(Q[context] > 0, Q_WHOLE[context], 0)
        return kept / kept.sum()


class ResidualOfTheDistributionSentDownAlone(Plain):
    """The public form of "down": the device draws from max(0, p⁻ − q) and forgets what was cut off p."""

    def residual(self, p, q):
        return np.maximum(np.floor(p * FORM.total) / FORM.total - q, 0)


MUTANTS = [
    AcceptsWithQOverP,
    EmitsFromPAfterARejection,
    RatioOfLogits,
    ArgmaxDraftAgainstSoftmaxQ,
    TruncatesAfterSampling,
    SamplesFromTheWholeDistributionButSendsTheTruncatedOne,
    ResidualDrawnWithTheAcceptanceCoin,
    RoundsQAfterSampling,
    ResidualOfTheDistributionSentDownAlone,
]


def test_the_plain_rule_passes_the_same_test():
    assert follows_the_distribution(generate(2000, Plain(np.random.default_rng(1)).rounds))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_known_mistake_is_caught(mutant):
    assert not follows_the_distribution(generate(2000, mutant(np.random.default_rng(1)).rounds))


def test_acceptance_is_one_minus_total_variation_less_what_did_not_fit_down():
    # First drafted token only, 1,000 seeds: 4 standard errors, a false alarm of 6e-5 a side.
    count, context = 1000, 1
    overlap = np.minimum(P[context], Q[context]).sum()
    floored = np.minimum(np.floor(P[context] * FORM.total) / FORM.total, Q[context]).sum()
    up = down = 0
    for trial in range(count):
        params = SamplingParams(PARAMS.temperature, top_p=PARAMS.top_p, seed=trial)
        x = draft_token(DISTRIBUTIONS[context], trial, BASE, BASE)
        logits = TARGET[[context, x]]
        up += isinstance(verify_scalars([x], [DISTRIBUTIONS[context].weight(x)], FORM, logits, BASE, params), Outcome)
        down += not isinstance(
            verify_floored([x], [DISTRIBUTIONS[context].weight(x)], FORM, logits, BASE, params), Offer
        )
    error = 4 * (0.25 / count) ** 0.5
    assert up / count == pytest.approx(overlap, abs=error)
    assert down / count == pytest.approx(floored, abs=error)
    assert overlap == pytest.approx(1 - 0.5 * np.abs(P[context] - Q[context]).sum())
    assert floored >= overlap - (1 - np.floor(P[context] * FORM.total).sum() / FORM.total)
