"""What a draft brings beside its ids, and the one door through which every rule judges it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from multispin.errors import InputError
from multispin.speculation.laws import LawFormat, TruncatedLaw
from multispin.speculation.payload import Rule
from multispin.speculation.rejection import Offer, Rejection, verify_floored, verify_laws, verify_scalars
from multispin.speculation.rules import Outcome, verify_draft
from multispin.speculation.sampling import SamplingParams

ID_RULES = frozenset({Rule.GREEDY, Rule.COUPLED})
"""Rules whose drafts are ids and nothing else."""

Finding = Outcome | Rejection | Offer
"""What a verification says of a draft: decided, or a refusal that the device's law or the device itself finishes."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a draft under a rejection rule brings beside its ids.

    Attributes:
        rule: `rejection`, `rejection-up` or `rejection-down`.
        form: how its laws are written.
        laws: under `rejection`, the law of each drafted token.
        weights: under the others, the weight of each drafted token in its law.

    """

    rule: Rule
    form: LawFormat
    laws: tuple[TruncatedLaw, ...] = ()
    weights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rule in ID_RULES:
            raise InputError(f"the rule {self.rule} takes ids and no evidence")
        if self.weights if self.rule is Rule.REJECTION else self.laws:
            raise InputError(f"a draft under {self.rule} brought the evidence of another rule")


def judge(
    drafted: Sequence[int], evidence: Evidence | None, logits: torch.Tensor, base: int, params: SamplingParams
) -> Finding:
    """Apply the rule that the evidence names to one draft; without evidence it is `greedy` or `coupled`.

    Args:
        drafted: L token ids for the absolute positions base … base+L−1.
        evidence: what came with them.
        logits: [L + 1, V] of the target, row i for the token at position base + i.
        base: number of tokens committed (prompt included) when the draft began.
        params: the request's sampling law and seed.

    Returns:
        An Outcome; under `rejection-up` perhaps a Rejection, for `resolve_up`; under `rejection-down` perhaps an
        Offer, for `resolve_down`.

    """
    if evidence is None:
        return verify_draft(drafted, logits, base, params)
    if evidence.rule is Rule.REJECTION:
        return verify_laws(drafted, evidence.laws, logits, base, params)
    verify = verify_scalars if evidence.rule is Rule.REJECTION_UP else verify_floored
    return verify(drafted, evidence.weights, evidence.form, logits, base, params)
