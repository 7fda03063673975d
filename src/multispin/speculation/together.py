"""The rejection rules for many drafts at once: what goes over a whole vocabulary is one step for all of them.

A rule (see `rejection`) decides with a few numbers per draft. On a GPU each number that is read alone costs a wait, and
each step for one draft a launch. So here all drafts' distributions are computed together, and the numbers of all
drafts are read in one copy: those that each rule begins with, then the floors that some ask for, then the drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multispin.errors import InputError
from multispin.speculation.distributions import (
    DistributionFormat,
    FlooredDistribution,
    Purpose,
    TruncatedDistribution,
    floor_of,
    stream_seed,
    target_distribution,
)
from multispin.speculation.gumbel_max import gumbel_argmax_each
from multispin.speculation.rejection import (
    Deciding,
    Draw,
    Floor,
    Offer,
    Rejection,
    check_distributions,
    check_draft,
    decide_distributions,
    decide_floored,
    decide_scalars,
)
from multispin.speculation.rule import Rule
from multispin.speculation.rules import Outcome
from multispin.speculation.sampling import SamplingParams, shaped

if TYPE_CHECKING:
    import torch

NUMBERS_AT_ONCE = 2**26
"""Most probabilities in memory at once, 8 bytes each and briefly a few times that; further drafts wait."""


class RejectionDraft(NamedTuple):
    """A draft under a rejection rule, and what the target says to it.

    Attributes:
        drafted: L token ids for the absolute positions base … base+L−1.
        rule: `rejection`, `rejection-up` or `rejection-down`.
        form: V, V̂ and Q_B.
        distributions: L draft distributions, under `rejection`.
        weights: L weights of the drafted tokens, under the other two.
        logits: [L + 1, V] of the target, row i for the token at position base + i.
        base: number of tokens committed (prompt included) when the draft began.
        params: the request's sampling parameters and seed; temperature > 0.
    """

    drafted: Sequence[int]
    rule: Rule
    form: DistributionFormat
    distributions: Sequence[TruncatedDistribution]
    weights: Sequence[int]
    logits: torch.Tensor
    base: int
    params: SamplingParams

    def check(self) -> None:
        """InputError if its parts do not belong together."""
        if self.params.greedy:
            raise InputError("at temperature = 0 there is no distribution to compare drafts with: use the rule greedy")
        if self.rule is Rule.REJECTION:
            check_distributions(self.drafted, self.distributions, self.logits)
        else:
            check_draft(self.drafted, self.weights, self.form, self.logits)

    def deciding(self, targets: _Numbers) -> Deciding:
        """Its rule at work, given the target's distributions along it."""
        where = targets, self.base, self.params.seed
        if self.rule is Rule.REJECTION:
            return decide_distributions(self.drafted, self.distributions, *where)
        decide = decide_scalars if self.rule is Rule.REJECTION_UP else decide_floored
        return decide(self.drafted, self.weights, self.form, *where)


class _Numbers:
    """The target's distributions along one draft, and the numbers of them that were read.

    Args:
        rows: [L + 1, V] float64.
        read: [L + 1, 1 + n]: of each row, p of the drafted token, then of the ids of the draft's own distribution.
        sizes: number of these ids for each drafted token.

    """

    def __init__(self, rows: torch.Tensor, read: NDArray[np.float64], sizes: Sequence[int]) -> None:
        self.rows, self._read, self._sizes = rows, read, sizes

    def distribution(self, index: int) -> torch.Tensor:
        """The target's p after the first `index` drafted tokens, [V] float64."""
        return self.rows[index]

    def chance(self, index: int) -> float:
        """What p gives to drafted token `index` at its place."""
        return float(self._read[index, 0])

    @property
    def shares(self) -> Callable[[int], NDArray[np.float64]] | None:
        """Computes what p gives to the ids of the draft's distribution `index`, [n]."""
        return lambda index: self._read[index, 1 : 1 + self._sizes[index]]


def decide_together(
    drafts: Sequence[RejectionDraft], at_once: int = NUMBERS_AT_ONCE
) -> list[Outcome | Rejection | Offer | InputError]:
    """The decision of each draft's rule, as `verify_distributions`, `verify_scalars` or `verify_floored`.

    Args:
        drafts: drafts over one vocabulary, their logits on one device.
        at_once: most probabilities in memory at once; further drafts wait for their turn; default `NUMBERS_AT_ONCE`.

    Returns:
        A finding for each, or the InputError that its own values lead to; the others are not touched by it.

    """
    found: dict[int, Outcome | Rejection | Offer | InputError] = {}
    sound: list[int] = []
    for index, draft in enumerate(drafts):
        try:
            draft.check()
        except InputError as error:
            found[index] = error
        else:
            sound.append(index)
    for part in _parts(sound, drafts, at_once):
        found.update(zip(part, _decided([drafts[index] for index in part]), strict=True))
    return [found[index] for index in range(len(drafts))]


def _parts(indices: Sequence[int], drafts: Sequence[RejectionDraft], at_once: int) -> Iterator[list[int]]:
    """Drafts in groups whose distributions fit the memory, at least one each."""
    part: list[int] = []
    numbers = 0
    for index in indices:
        own = drafts[index].logits.numel()
        if part and numbers + own > at_once:
            yield part
            part, numbers = [], 0
        part.append(index)
        numbers += own
    if part:
        yield part


def _decided(drafts: Sequence[RejectionDraft]) -> list[Outcome | Rejection | Offer | InputError]:
    """Let all rules work until each has asked for something, answer all questions of a kind at once, and go on."""
    numbers = _numbers(drafts)
    rules = [draft.deciding(each) for draft, each in zip(drafts, numbers, strict=True)]
    found: list[Any] = [None] * len(drafts)
    asked: dict[int, Draw | Floor] = {}

    def go_on(index: int, answer: Any) -> None:
        try:
            question = rules[index].throw(answer) if isinstance(answer, InputError) else rules[index].send(answer)
        except StopIteration as decided:
            found[index] = decided.value
        except InputError as error:
            found[index] = error
        else:
            asked[index] = question

    for index in range(len(drafts)):
        go_on(index, None)
    while asked:
        floors = {index: each.accepted for index, each in asked.items() if isinstance(each, Floor)}
        draws = {index: each for index, each in asked.items() if isinstance(each, Draw)}
        answers: Sequence[Any]
        if floors:  # draws wait for all floors, because a rule that asked for a floor may draw next
            answers = _floors([(drafts[index].form, numbers[index].rows[row]) for index, row in floors.items()])
        else:
            answers = _draws([(drafts[index], each) for index, each in draws.items()])
        for index, answer in zip(floors or draws, answers, strict=True):
            del asked[index]
            go_on(index, answer)
    return found


def _numbers(drafts: Sequence[RejectionDraft]) -> list[_Numbers]:
    """The distributions of all drafts, requests with the same parameters in one step; and one copy of numbers back."""
    import torch

    groups: dict[tuple[float, ...], list[int]] = {}
    for index, draft in enumerate(drafts):
        params = draft.params
        groups.setdefault((params.temperature, params.top_k, params.top_p, params.min_p), []).append(index)
    width = 1 + max((len(each.ids) for draft in drafts for each in draft.distributions), default=0)
    rows: dict[int, torch.Tensor] = {}
    read: list[torch.Tensor] = []
    for members in groups.values():
        logits, ids = [], np.zeros((sum(len(drafts[index].logits) for index in members), width), dtype=np.int64)
        first = 0
        for index in members:
            draft = drafts[index]
            count = len(draft.drafted)
            logits.append(shaped(draft.logits, range(draft.base, draft.base + count + 1), draft.params).float())
            ids[first : first + count, 0] = draft.drafted
            for step, each in enumerate(draft.distributions):
                ids[first + step, 1 : 1 + len(each.ids)] = each.ids
            first += count + 1
        whole = target_distribution(torch.cat(logits), drafts[members[0]].params)
        read.append(whole.gather(1, torch.from_numpy(ids).to(whole.device)))
        parts = torch.split(whole, [len(part) for part in logits])
        rows.update(zip(members, parts, strict=True))
    numbers, first = torch.cat(read).cpu().numpy(), 0
    found: dict[int, _Numbers] = {}
    for index in (index for members in groups.values() for index in members):
        draft = drafts[index]
        last = first + len(draft.drafted) + 1
        found[index] = _Numbers(rows[index], numbers[first:last], [len(each.ids) for each in draft.distributions])
        first = last
    return [found[index] for index in range(len(drafts))]


def _floors(asked: Sequence[tuple[DistributionFormat, torch.Tensor]]) -> list[FlooredDistribution]:
    """The part of each distribution that fits on the air, in its own format."""
    import torch

    rows = torch.stack([row for _, row in asked])
    most = rows.topk(min(max(form.retained for form, _ in asked), rows.shape[-1]), dim=-1)
    values, ids = most.values.cpu().numpy(), most.indices.cpu().numpy()
    found = []
    for (form, _), value, own in zip(asked, values, ids, strict=True):
        kept = own[: form.retained]
        order = np.argsort(kept)
        found.append(floor_of(kept[order], value[: form.retained][order], form))
    return found


def _draws(asked: Sequence[tuple[RejectionDraft, Draw]]) -> list[int | InputError]:
    """A token for each, in proportion to its weights."""
    import torch

    weights = torch.stack([draw.weights() for _, draw in asked])
    seeds = [stream_seed(draft.params.seed, Purpose.EMIT, draft.base) for draft, _ in asked]
    drawn = gumbel_argmax_each(weights.log(), seeds, [draw.position for _, draw in asked])
    none = InputError("a row of logits has no token to draw: all are −inf or not numbers")
    return [none if token is None else token for token in drawn]
