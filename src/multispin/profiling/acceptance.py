"""How often a drafter's tokens are accepted: along the target's own text, position by position.

A drafted token is verified only if all tokens before it were accepted, which means that they are the target's own. So
it is enough to ask the drafter at every position of the target's text, given the text before it. Each answer is one
trial of the acceptance rate α (eq. 4 of arXiv 2606.04581), and runs of right answers give the probability that the i-th
token of a draft is accepted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from multispin.estimation.intervals import ratio_of_means
from multispin.estimation.traces import Trace
from multispin.models import CachedModel, ModelDrafter
from multispin.speculation import Drafter, Feed, SamplingParams, draw, shaped_after, target_distribution


@dataclass(frozen=True)
class Following:
    """A drafter along one text of the target.

    Attributes:
        trace: positions at which the drafter's token is the target's.
        overlaps: Σ min(p, q) at the same positions, the acceptance rate of `rejection`; empty at temperature 0 and for
            drafters without a distribution.

    """

    trace: Trace
    overlaps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rate:
    """A mean over positions with its 95 % interval, which takes texts as independent, not positions."""

    mean: float
    low: float
    high: float
    positions: int


def follow(
    drafter: Drafter,
    target: CachedModel,
    text: Sequence[int],
    begin: int,
    params: SamplingParams,
    prompt: str,
    task: str,
) -> Following:
    """Ask a drafter for every token of the target's text.

    Args:
        drafter: the drafter, with room for the text.
        target: the target, with a free slot and room for the text; used for its distributions only.
        text: token ids of the prompt and of what the target wrote.
        begin: position at which the target's part begins.
        params: sampling parameters by which it was written.
        prompt: name of the prompt, for the record.
        task: task family of the prompt, for the record.

    """
    positions = list(range(begin, len(text)))
    if not isinstance(drafter, ModelDrafter):
        guesses = [drafter.draft(text[:position], 1, params)[:1] for position in positions]
        accepts = "".join(str(int(guess == [text[p]])) for guess, p in zip(guesses, positions, strict=True))
        return Following(Trace(prompt, task, accepts))
    ours = drafter.logits_along(text, begin, params)
    shaped_ours, rest = shaped_after(ours, text[:begin], text[begin:-1], params)
    drawn = draw(shaped_ours, positions, rest)
    accepts = "".join(str(int(token == text[p])) for token, p in zip(drawn, positions, strict=True))
    if params.greedy:
        return Following(Trace(prompt, task, accepts))
    slot = target.open()
    if begin > 1:
        target.forward([Feed(slot, 0, text[: begin - 1], None)])
    (theirs,) = target.forward([Feed(slot, begin - 1, text[begin - 1 : -1], params)])
    target.close(slot)
    shaped_theirs, _ = shaped_after(theirs, text[:begin], text[begin:-1], params)
    p, q = (target_distribution(logits, rest) for logits in (shaped_theirs, shaped_ours))
    return Following(Trace(prompt, task, accepts), tuple(float(value) for value in torch.minimum(p, q).sum(-1)))


def rate_of(samples: Sequence[Sequence[float]]) -> Rate:
    """Mean of all values of some texts; the interval by Student's t over texts, weighted by their lengths."""
    sizes = np.array([len(text) for text in samples], dtype=np.float64)
    sums = np.array([float(sum(text)) for text in samples])
    if not sizes.sum():
        return Rate(float("nan"), float("nan"), float("nan"), 0)
    found = ratio_of_means(sums, sizes)
    # A single text has no interval: NaN stays NaN.
    low, high = (end if math.isnan(end) else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return Rate(found.mean, low, high, int(sizes.sum()))


def hazards(accepts: Iterable[str], longest: int) -> list[float]:
    """The acceptance profile: chance that token i of a draft is accepted given all before it were, i = 1 … longest.

    Over drafts that begin at every position of the texts. Ends where no draft got that far.
    """
    tried, right = np.zeros(longest), np.zeros(longest)
    for text in accepts:
        for start in range(len(text)):
            for i, found in enumerate(text[start : start + longest]):
                tried[i] += 1
                if found == "0":
                    break
                right[i] += 1
    return [float(right[i] / tried[i]) for i in range(longest) if tried[i]]
