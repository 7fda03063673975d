"""The data that a draft carries beside its ids, and the one function that applies every rule to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.codec import pack_ids, unpack_ids
from multispin.speculation.distributions import DistributionFormat, TruncatedDistribution, draft_token
from multispin.speculation.grammar import masked
from multispin.speculation.payload import pack_distributions, pack_scalars, unpack_distributions, unpack_scalars
from multispin.speculation.penalties import shaped_after
from multispin.speculation.rejection import Offer, Rejection, verify_distributions, verify_floored, verify_scalars
from multispin.speculation.rule import Rule
from multispin.speculation.rules import Outcome, verify_draft
from multispin.speculation.sampling import SamplingParams
from multispin.speculation.scoring import scores
from multispin.speculation.together import NUMBERS_AT_ONCE, RejectionDraft, decide_together

if TYPE_CHECKING:
    import torch

ID_RULES = frozenset({Rule.GREEDY, Rule.COUPLED})
"""Rules whose drafts are ids and nothing else."""

Finding = Outcome | Rejection | Offer
"""The result of a verification: decided, or a refusal that the device must help to finish."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The data that a draft under a rejection rule carries beside its ids.

    Attributes:
        rule: `rejection`, `rejection-up` or `rejection-down`.
        form: how its distributions are written.
        distributions: under `rejection`, the distribution of each drafted token; by default none.
        weights: under the other two, the weight of each drafted token in its distribution; by default none.

    """

    rule: Rule
    form: DistributionFormat
    distributions: tuple[TruncatedDistribution, ...] = ()
    weights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rule in ID_RULES:
            raise InputError(f"the rule {self.rule} takes ids and no evidence")
        if self.weights if self.rule is Rule.REJECTION else self.distributions:
            raise InputError(f"a draft under {self.rule} brought the evidence of another rule")


def judge(
    drafted: Sequence[int],
    evidence: Evidence | None,
    logits: torch.Tensor,
    base: int,
    params: SamplingParams,
    text: Sequence[int] = (),
    masks: NDArray[np.uint8] | None = None,
) -> Finding:
    """Apply the rule that the evidence names to one draft. Without evidence the rule is `greedy` or `coupled`.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        evidence: evidence that came with the ids, or None.
        logits: [L + 1, V] of the target, row i for the token at position base + i.
        base: number of tokens committed (prompt included) when the draft began.
        params: the request's sampling parameters and seed.
        text: the `base` committed ids; only needed where the parameters have penalties (`SamplingParams.remembers`); by
            default none.

        masks: [L + 1, ⌈V/8⌉], which ids may stand at each position, where the parameters have a grammar; default
            None.

    Returns:
        An Outcome. Under `rejection-up` it may be a Rejection, to be finished by `resolve_up`; under `rejection-down`
        an Offer, to be finished by `resolve_down`.

    """
    [finding] = judge_together([Judged(drafted, evidence, logits, base, params, text, masks)])
    if isinstance(finding, InputError):
        raise finding
    return finding


class Judged(NamedTuple):
    """A draft to be judged: the arguments of `judge`."""

    drafted: Sequence[int]
    evidence: Evidence | None
    logits: torch.Tensor
    base: int
    params: SamplingParams
    text: Sequence[int] = ()
    masks: NDArray[np.uint8] | None = None


def judge_together(drafts: Sequence[Judged], at_once: int = NUMBERS_AT_ONCE) -> list[Finding | InputError]:
    """`judge` for each of some drafts over one vocabulary; those under the rejection rules are decided at once.

    Args:
        drafts: what `judge` takes, for each.
        at_once: most probabilities in memory at once; further drafts wait for their turn; default `NUMBERS_AT_ONCE`.

    Returns:
        A finding for each, or the InputError that `judge` would raise.

    """
    found: dict[int, Finding | InputError] = {}
    rejecting: dict[int, RejectionDraft] = {}
    for index, draft in enumerate(drafts):
        try:
            logits, params = _shaped(draft)
            if draft.evidence is None:
                found[index] = verify_draft(draft.drafted, logits, draft.base, params)
            elif logits.device.type == "cpu" and len(drafts) == 1:
                found[index] = _decide(draft, draft.evidence, logits, params)
            else:
                evidence = draft.evidence
                rejecting[index] = RejectionDraft(
                    *(draft.drafted, evidence.rule, evidence.form, evidence.distributions, evidence.weights),
                    *(logits, draft.base, params),
                )
        except InputError as error:
            found[index] = error
    found.update(zip(rejecting, decide_together(list(rejecting.values()), at_once), strict=True))
    return [_scored(draft, found[index]) for index, draft in enumerate(drafts)]


def _shaped(draft: Judged) -> tuple[torch.Tensor, SamplingParams]:
    """Logits after the grammar and the penalties, and the parameters that are still to be applied."""
    logits, params = draft.logits, draft.params
    if params.grammar:
        if draft.masks is None or len(draft.masks) != len(logits):
            raise InputError("a grammar needs the masks of every position, and they are not at hand")
        logits = masked(logits, draft.masks)
    if params.remembers:
        if len(draft.text) != draft.base:
            raise InputError(
                f"penalties need the {draft.base} tokens before a draft, but {len(draft.text)} are at hand"
            )
        logits, params = shaped_after(logits, draft.text, draft.drafted, params)
    return logits, params


def _decide(draft: Judged, evidence: Evidence, logits: torch.Tensor, params: SamplingParams) -> Finding:
    """A rejection rule for one draft: it computes only the rows that it comes to."""
    if evidence.rule is Rule.REJECTION:
        return verify_distributions(draft.drafted, evidence.distributions, logits, draft.base, params)
    verify = verify_scalars if evidence.rule is Rule.REJECTION_UP else verify_floored
    return verify(draft.drafted, evidence.weights, evidence.form, logits, draft.base, params)


def _scored(draft: Judged, finding: Finding | InputError) -> Finding | InputError:
    """A finding with the log probabilities that its request asks for."""
    if draft.params.logprobs is None or not isinstance(finding, Outcome):
        return finding
    tokens = [*draft.drafted[: finding.accepted], finding.next_token]
    return finding._replace(scores=scores(draft.logits, tokens, draft.params.logprobs))


def rule_for(params: SamplingParams, rule: Rule | None = None) -> Rule:
    """The rule of a request: the one that it names, or else `greedy` at temperature 0 and `coupled` above.

    Args:
        params: the request's sampling parameters.
        rule: rule that the request names; default None.

    Raises:
        InputError: the rule does not fit the temperature, or cannot report the log probabilities that are asked for.

    """
    if params.logprobs is not None and rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        raise InputError(f"logprobs cannot be reported under {rule}, where the device has a part in the decision")
    if rule is None:
        return Rule.GREEDY if params.greedy else Rule.COUPLED
    if params.greedy != (rule is Rule.GREEDY):
        needs = "temperature 0" if rule is Rule.GREEDY else "a temperature above 0"
        raise InputError(f"the rule {rule} needs {needs}, not {params.temperature}")
    return rule


def pack_draft(
    drafted: Sequence[int], distributions: Sequence[TruncatedDistribution], rule: Rule, form: DistributionFormat
) -> bytes:
    """The payload of a draft under a rule.

    Args:
        drafted: the L drafted token ids.
        distributions: L distributions, one for each token; none under `greedy` and `coupled`.
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.

    Returns:
        Packed ids; or packed distributions, from which the edge draws the same ids itself; or packed ids with weights.

    """
    if rule in ID_RULES:
        return pack_ids(drafted, form.vocabulary_size)
    if len(distributions) != len(drafted):
        raise InputError(f"{len(drafted)} drafted tokens came with {len(distributions)} distributions")
    if rule is Rule.REJECTION:
        return pack_distributions(distributions, form)
    return pack_scalars(
        drafted, [distribution.weight(token) for distribution, token in zip(distributions, drafted, strict=True)], form
    )


def unpack_draft(
    packed: bytes, count: int, rule: Rule, form: DistributionFormat, seed: int, base: int
) -> tuple[list[int], Evidence | None]:
    """The inverse of `pack_draft` for a known number of tokens: drafted ids, and the evidence that came with them.

    Under `rejection` the ids are drawn here, from the distributions and the noise of (seed, base). So a device cannot
    choose ids beyond the distributions that it sends.

    Args:
        packed: payload of the draft.
        count: number of drafted tokens.
        rule: the request's acceptance rule.
        form: V, V̂ and Q_B.
        seed: seed of the request; used under `rejection` only, like `base`.
        base: number of tokens committed (prompt included) when the draft began.

    Raises:
        InputError: `pack_draft` cannot have made the payload.

    """
    if rule in ID_RULES:
        return unpack_ids(packed, count, form.vocabulary_size), None
    if rule is Rule.REJECTION:
        distributions = tuple(unpack_distributions(packed, count, form))
        drafted = [
            draft_token(distribution, seed, base, base + index) for index, distribution in enumerate(distributions)
        ]
        return drafted, Evidence(rule, form, distributions=distributions)
    drafted, weights = unpack_scalars(packed, count, form)
    return drafted, Evidence(rule, form, weights=tuple(weights))
