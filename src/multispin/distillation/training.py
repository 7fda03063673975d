"""Teaches a student the target's next-token distribution, on what the target wrote.

The loss is taken at some positions of each batch: KL(p ‖ q) over the student's vocabulary, and the distance to the
target's final hidden state. In the last part of the training it is the total variation TV(p, q) instead, because 1 − TV
is the acceptance rate itself (Leviathan et al., arXiv 2211.17192). All randomness depends on the seed and the step
only, so a resumed run equals an uninterrupted one.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from multispin.distillation.corpus import SEQUENCES_PER_SHARD, Shard
from multispin.errors import InputError
from multispin.models.distilled import learned_parameters
from multispin.models.prepacked import quick_dtype
from multispin.models.references import writing

Example = tuple[Shard, int, torch.Tensor | None]
"""A shard, a row of it, and that row's states after the frozen layers, [T, H], if there are any."""

POOL_SHARDS = 48
"""Shards of a CPU in memory at once, fewer of the larger ones of a GPU; batches are mixed within them."""
CHECKPOINT_PERIOD_S = 60.0


@dataclass(frozen=True)
class Recipe:
    """How a student is taught.

    Attributes:
        steps: optimiser steps.
        batch: sequences per step; default 12.
        positions: positions per step at which distributions are compared; default 512.
        learning_rate: highest learning rate of AdamW, after a linear rise and before a cosine fall; default 1.5e-3.
        warmup: share of the steps in which the learning rate rises; default 0.05.
        hidden_weight: weight of the distance to the target's hidden states; default 0.5.
        variation_share: share of the steps, the last ones, whose loss is the total variation; default 0.3.
        seed: seed of the order of sequences and positions; default 0.

    """

    steps: int
    batch: int = 12
    positions: int = 512
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    hidden_weight: float = 0.5
    variation_share: float = 0.3
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        rise = max(1.0, self.warmup * self.steps)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))
        return self.learning_rate * min(1.0, (step + 1) / rise) * max(fall, 0.01)

    def by_variation(self, step: int) -> bool:
        """Whether a step, counted from 0, reduces the total variation."""
        return step >= (1.0 - self.variation_share) * self.steps


class Batches:
    """Sequences of a corpus in a shuffled order, a pool of shards at a time.

    Args:
        shards: files of the corpus.
        size: sequences per batch.
        seed: seed of the order.
        prepare: computed once for each shard in memory, shape [N, T, …]; default nothing.
        report: function of (shards prepared, all shards): preparing takes minutes; default none.
        pool_shards: most shards in memory at once on a CPU; default `POOL_SHARDS`.

    """

    def __init__(
        self,
        shards: Sequence[Path],
        size: int,
        seed: int,
        prepare: Callable[[Shard], torch.Tensor] | None = None,
        report: Callable[[int, int], None] = lambda *_: None,
        pool_shards: int = POOL_SHARDS,
    ) -> None:
        self._size, self._seed, self._prepare, self._report = size, seed, prepare, report
        self._prepared: list[torch.Tensor] = []
        self._shards = list(shards)
        first = len(Shard.load(self._shards[0]).ends) if self._shards else 1
        self._pools = -(-len(self._shards) * max(1, first // SEQUENCES_PER_SHARD) // pool_shards)
        self._loaded = (-1, -1)
        self._pool: list[Shard] = []
        self._at = 0
        self._epoch, self._turn = 0, 0
        self._plan: list[list[tuple[int, int]]] = []

    def batch(self, step: int) -> list[Example]:
        """The sequences of a step; steps are asked for in ascending order."""
        while step >= self._at + len(self._plan):
            if self._plan or self._loaded != (-1, -1):
                self._at += len(self._plan)
                self._turn += 1
                if self._turn == self._pools:
                    self._epoch, self._turn = self._epoch + 1, 0
            self._load()
        return [
            (self._pool[shard], row, self._prepared[shard][row] if self._prepared else None)
            for shard, row in self._plan[step - self._at]
        ]

    def _load(self) -> None:
        order = np.random.default_rng([self._seed, 1, self._epoch if self._pools > 1 else 0]).permutation(
            len(self._shards)
        )
        chosen = np.array_split(order, self._pools)[self._turn]
        if self._pools > 1 or not self._pool:
            self._pool = [Shard.load(self._shards[k]) for k in chosen]
            self._prepared = []
            for shard in self._pool if self._prepare else ():
                assert self._prepare is not None
                self._prepared.append(self._prepare(shard))
                self._report(len(self._prepared), len(self._pool))
        self._loaded = (self._epoch, self._turn)
        sequences = [(k, row) for k, shard in enumerate(self._pool) for row in range(len(shard.ends))]
        mixed = np.random.default_rng([self._seed, 2, self._epoch, self._turn]).permutation(len(sequences))
        whole = max(1, len(sequences) // self._size)
        self._plan = [[sequences[k] for k in mixed[i * self._size : (i + 1) * self._size]] for i in range(whole)]


class Trainer:
    """One student in training.

    Attributes:
        student: the model that is taught.
        recipe: how it is taught.
        batches: the sequences of each step.
        step: number of steps done.
        spent_s: time of these steps [s].

    Args:
        student: model from `models.distilled.carve`, in float32.
        head: output embeddings of the target, shape [V, H].
        ids: token ids of the student's vocabulary, shape [V'].
        recipe: how it is taught.
        shards: files of the corpus.
        device: where it is taught: "cpu", or a GPU such as "cuda:0".
        frozen: number of first layers that stay the target's; their states are computed once. Default 0.
        prepared: function of (shards that the frozen layers have read, all shards); default none.
        dtype: number type of the products; default the quickest one on that device.

    """

    def __init__(
        self,
        student: Any,
        head: torch.Tensor,
        ids: torch.Tensor,
        recipe: Recipe,
        shards: Sequence[Path],
        device: str,
        frozen: int = 0,
        prepared: Callable[[int, int], None] = lambda *_: None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.student = student.to(device)
        self.recipe = recipe
        self.step = 0
        self.spent_s = 0.0
        self._device = torch.device(device)
        self._dtype = dtype or quick_dtype(device)
        self._rows = head.detach()[ids].to(self._device, self._dtype)
        self._parameters = list(learned_parameters(student, frozen).values())
        self._frozen = frozen
        self._upper = _upper(student.model, frozen) if frozen else student.model
        for parameter in student.parameters():
            parameter.requires_grad_(False)
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.batches = Batches(shards, recipe.batch, recipe.seed, self._trunk if frozen else None, prepared)

    def run(
        self,
        checkpoint: Path,
        report: Callable[[int, float, float], None],
        period_s: float = CHECKPOINT_PERIOD_S,
    ) -> None:
        """Teach until the recipe's last step, or go on from a checkpoint.

        Args:
            checkpoint: file that is rewritten now and then, and at the end.
            report: function that is called after each step with (steps done, loss, seconds of a step).
            period_s: time between two checkpoints [s]; default `CHECKPOINT_PERIOD_S`.

        """
        if checkpoint.exists():
            self._restore(checkpoint)
        saved = time.monotonic()
        self.student.train()
        while self.step < self.recipe.steps:
            began = time.monotonic()
            loss = self._learn(self.batches.batch(self.step))
            if not math.isfinite(loss):
                raise InputError(f"the loss at step {self.step} is not finite: try a lower learning rate")
            self.step += 1
            now = time.monotonic()
            self.spent_s += now - began
            report(self.step, loss, now - began)
            if now - saved >= period_s or self.step == self.recipe.steps:
                self._save(checkpoint)
                saved = now
        self.student.eval()

    def _learn(self, rows: list[Example]) -> float:
        recipe = self.recipe
        noise = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate(self.step)
        hidden, aim = self.states(rows, recipe.positions, noise)
        ours, theirs = self._logits(hidden), self._logits(aim)
        target = functional.softmax(theirs, -1)
        if recipe.by_variation(self.step):
            loss = 0.5 * (target - functional.softmax(ours, -1)).abs().sum(-1).mean()
        else:
            loss = functional.cross_entropy(ours, target)  # KL and a constant
            loss = loss + recipe.hidden_weight * functional.smooth_l1_loss(hidden.float(), aim.float())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def states(self, rows: list[Example], positions: int, noise: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Final hidden states of student and target at some positions of the answers.

        Args:
            rows: sequences of the corpus.
            positions: most positions P to take.
            noise: source of randomness; it picks the positions.

        Returns:
            The student's states [P, H], and the target's, as they stand in the corpus.

        """
        longest = max(int(shard.ends[row]) for shard, row, _ in rows)
        places = [
            (k, t)
            for k, (shard, row, _) in enumerate(rows)
            for t in range(int(shard.begins[row]) - 1, int(shard.ends[row]) - 1)
        ]
        chosen = torch.randperm(len(places), generator=noise)[:positions]
        picked = torch.tensor(places)[chosen]
        aim = torch.stack([rows[k][0].states[rows[k][1], t] for k, t in picked.tolist()]).to(self._device)
        if self._frozen:
            begun = torch.zeros(len(rows), longest, aim.shape[1], dtype=torch.bfloat16)
            for k, (shard, row, trunk) in enumerate(rows):
                assert trunk is not None
                begun[k, : shard.ends[row]] = trunk[: shard.ends[row]]
            inputs = {"inputs_embeds": begun.to(self._device, self._dtype)}
        else:
            tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
            for k, (shard, row, _) in enumerate(rows):
                tokens[k, : shard.ends[row]] = shard.tokens[row, : shard.ends[row]]
            inputs = {"input_ids": tokens.to(self._device)}
        with self._computing():
            hidden = self._upper(**inputs, use_cache=False).last_hidden_state
        return hidden[picked[:, 0], picked[:, 1]], aim

    @torch.no_grad()
    def _trunk(self, shard: Shard) -> torch.Tensor:
        """States after the frozen layers: [N, T, H] bfloat16."""
        kept: list[torch.Tensor] = []
        hook = self.student.model.layers[self._frozen].register_forward_pre_hook(
            lambda _module, inputs: kept.append(inputs[0].to(torch.bfloat16).cpu())
        )
        config = self.student.model.config
        layers, config.num_hidden_layers = config.num_hidden_layers, self._frozen + 1  # the models stop there
        try:
            with self._computing():
                for tokens in torch.split(shard.tokens, self.recipe.batch):
                    self.student.model(input_ids=tokens.to(self._device), use_cache=False)
        finally:
            config.num_hidden_layers = layers
            hook.remove()
        return torch.cat(kept)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return (states.to(self._dtype) @ self._rows.T).float()

    def _computing(self) -> torch.autocast:
        """Products are computed in the place's quickest numbers while the block runs; sums that need it in float32."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    def _save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        kept = {
            "recipe": repr(self.recipe),
            "step": self.step,
            "spent_s": self.spent_s,
            "parameters": [parameter.detach().cpu() for parameter in self._parameters],
            "optimiser": self._optimiser.state_dict(),
        }
        with writing(path):
            torch.save(kept, part)
            part.rename(path)

    def _restore(self, path: Path) -> None:
        try:
            kept = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch has many for a damaged file
            raise InputError(f"{path} is damaged: remove it, and training begins again") from error
        if kept["recipe"] != repr(self.recipe):
            raise InputError(
                f"{path} belongs to another recipe: {kept['recipe']}; delete it or make this drafter in another folder"
            )
        self.step, self.spent_s = kept["step"], kept["spent_s"]
        with torch.no_grad():
            for parameter, value in zip(self._parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        self._optimiser.load_state_dict(kept["optimiser"])


def _upper(body: Any, frozen: int) -> Any:
    """The model above its frozen layers, sharing their weights; it takes states where the whole takes embeddings."""
    layers, body.layers = body.layers, nn.ModuleList()
    try:
        upper = copy.deepcopy(body, {id(parameter): parameter for parameter in body.parameters()})
    finally:
        body.layers = layers
    upper.layers = layers[frozen:]
    upper.config.num_hidden_layers = len(layers) - frozen
    if getattr(upper.config, "layer_types", None) is not None:
        upper.config.layer_types = upper.config.layer_types[frozen:]
    return upper
