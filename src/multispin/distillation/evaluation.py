"""How often a student's drafts are accepted, on prompts that it was not taught with.

The target answers the bundled prompts, and the distributions of both are compared at every position of its text. Rates
are per token, given that all tokens before it were accepted: the controller's α.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multispin.data import TASKS, Prompt
from multispin.distillation.corpus import Shard, Writer, digest
from multispin.models.tokenizer import Tokenizer
from multispin.speculation import DistributionFormat, SamplingParams, draw
from multispin.speculation.distributions import floor_distribution, target_distribution, truncate

RULES = ("greedy", "coupled", "rejection", "rejection-down")
"""Rules that are measured; `rejection-up` accepts what `rejection` does, for the same draft distribution."""
EVERY = 3
"""One in this many positions of a sampled text is compared."""


@dataclass(frozen=True)
class RuleAcceptance:
    """Acceptance rates under each rule.

    Attributes:
        task: task family, or "all".
        rates: mean over positions, by rule.
        errors: standard error over prompts, by rule.
        positions: number of positions that were compared, by rule.

    """

    task: str
    rates: dict[str, float]
    errors: dict[str, float]
    positions: dict[str, int]


def held_out_texts(
    writer: Writer, tokenizer: Tokenizer, prompts: Sequence[Prompt], temperature: float, seed: int, folder: Path
) -> Shard:
    """The target's answers to prompts, kept in a file of the corpus' folder, where another run finds them."""
    ids = [tokenizer.encode_chat(prompt.text) for prompt in prompts[: writer.sequences]]
    path = folder / f"held-out-{digest([writer.identity, ids, temperature, seed])}.safetensors"
    if not path.exists():
        writer.write(ids, [temperature] * len(ids), writer.noise(seed)).save(path)
    return Shard.load(path)


def compare_distributions(
    student: Any,
    head: torch.Tensor,
    prompts: Sequence[Prompt],
    greedy: Shard,
    sampled: Shard,
    form: DistributionFormat,
    report: Callable[[int], None] = lambda _: None,
) -> list[RuleAcceptance]:
    """Compare the distributions of student and target.

    Args:
        student: drafter to evaluate.
        head: output embeddings of the target, shape [V, H].
        prompts: prompts in the order of the shards' sequences.
        greedy: the target's answers at temperature 0.
        sampled: the target's answers at temperature 1.
        form: format of the distributions that `rejection` uploads.
        report: function that is called after each prompt with the number of prompts compared; default none.

    Returns:
        The rates over all prompts, then those of each task family.

    """
    found: dict[str, list[list[float]]] = {rule: [[] for _ in prompts] for rule in RULES}
    for k in range(len(prompts)):
        theirs, ours = _logits(student, head, greedy, k)
        found["greedy"][k] = (theirs.argmax(-1) == ours.argmax(-1)).double().tolist()
        theirs, ours = (logits[::EVERY] for logits in _logits(student, head, sampled, k))
        positions = list(range(len(ours)))
        params = SamplingParams(1.0, seed=k)
        meet = zip(draw(theirs, positions, params), draw(ours, positions, params), strict=True)
        found["coupled"][k] = [float(a == b) for a, b in meet]
        distributions = target_distribution(theirs, params)
        for distribution, logits in zip(distributions, ours, strict=True):
            draft = truncate(logits, params, form)
            q = draft.weights / form.total
            found["rejection"][k].append(float(np.minimum(distribution[draft.ids].numpy(), q).sum()))
            floor = floor_distribution(distribution, form)
            _, a, b = np.intersect1d(floor.ids, draft.ids, assume_unique=True, return_indices=True)
            found["rejection-down"][k].append(float(np.minimum(floor.weights[a] / form.total, q[b]).sum()))
        report(k + 1)
    groups = [("all", list(range(len(prompts))))]
    groups += [(task, [k for k, prompt in enumerate(prompts) if prompt.task == task]) for task in TASKS]
    return [_summary(task, {rule: [found[rule][k] for k in rows] for rule in RULES}) for task, rows in groups if rows]


@torch.inference_mode()
def _logits(student: Any, head: torch.Tensor, shard: Shard, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of target and student for every token of an answer: [n, V] float32 each."""
    begin, end = int(shard.begins[row]), int(shard.ends[row])
    tokens = shard.tokens[row : row + 1, : end - 1].to(head.device)
    hidden = student.model(input_ids=tokens, use_cache=False).last_hidden_state[0, begin - 1 :]
    theirs = shard.states[row, begin - 1 : end - 1].to(head.device, head.dtype) @ head.T
    return theirs.float().cpu(), student.lm_head(hidden).float().cpu()


def _summary(task: str, found: dict[str, list[list[float]]]) -> RuleAcceptance:
    """Means over positions; errors take each prompt as one observation, weighted by its length."""
    rates, errors, positions = {}, {}, {}
    for rule, texts in found.items():
        sizes = np.array([len(text) for text in texts])
        sums = np.array([sum(text) for text in texts])
        rate = float(sums.sum() / max(1, sizes.sum()))
        spread = float(np.sqrt(((sums - rate * sizes) ** 2).sum()))
        rates[rule], errors[rule], positions[rule] = rate, spread / max(1, int(sizes.sum())), int(sizes.sum())
    return RuleAcceptance(task, rates, errors, positions)
