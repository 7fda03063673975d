"""Makes a drafter from a target: corpus, vocabulary, student, training and evaluation.

Every stage leaves files that the next run finds, so a run that was stopped continues where it was.
"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multispin.data import load_prompts
from multispin.distillation.corpus import Shard, Writer, write_corpus
from multispin.distillation.evaluation import RuleAcceptance, compare_distributions, held_out_texts
from multispin.distillation.training import Recipe, Trainer
from multispin.errors import InputError
from multispin.models.distilled import (
    carve,
    check_layers,
    fingerprint,
    load_for_drafting,
    load_student,
    save_drafter,
)
from multispin.models.drafter_card import STORAGES, DrafterCard, read_card
from multispin.models.loading import load_model
from multispin.models.packable import PackedModel
from multispin.models.prepacked import quick_dtype
from multispin.models.tokenizer import load_tokenizer
from multispin.speculation import DistributionFormat

CHECKPOINT_FILE = "checkpoint.pt"
CORPUS_FOLDER = "corpus"
HELD_OUT_PROMPT_TOKENS = 320


@dataclass(frozen=True)
class DistilOrder:
    """The drafter to make.

    Attributes:
        target: reference of the target.
        layers: indices of the target's layers to begin with, ascending, or their number.
        out: folder of the drafter.
        recipe: how the student is taught.
        frozen: number of those layers, the first ones, that stay the target's own and are not stored; default 0.
        corpus: folder of the corpus, which several students may share; None for the folder corpus in `out`.
        tokens: tokens of the corpus; default 500,000.
        answer_tokens: longest answer in the corpus [tokens]; default 160.
        vocabulary: number of token ids that can be drafted, the most frequent of the corpus; 0 for all; default 12288.
        storage: "int8" (default) or "bfloat16".
        begin: folder of a drafter to continue from; None to begin with the target's layers.
        prompts: user messages to have answered; None for those of the bundled templates.
        texts: plain texts to learn from besides; default none.
        evaluation_tokens: longest answer to a held-out prompt [tokens]; default 96.
        device: where to compute: "cpu" (default), or a GPU such as "cuda:0".

    """

    target: str
    layers: int | tuple[int, ...]
    out: Path
    recipe: Recipe
    frozen: int = 0
    corpus: Path | None = None
    tokens: int = 500_000
    answer_tokens: int = 160
    vocabulary: int = 12_288
    storage: str = "int8"
    begin: Path | None = None
    prompts: tuple[str, ...] | None = None
    texts: tuple[str, ...] = ()
    evaluation_tokens: int = 96
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise InputError(f"storage = {self.storage!r} is none of {', '.join(STORAGES)}")


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is: `done` of `total`, and a sentence for people."""

    stage: str
    done: int
    total: int
    text: str


def spread_layers(count: int, total: int) -> tuple[int, ...]:
    """Indices of the target's layers with which a student of `count` layers begins: the first ones and the last.

    The first layers turn tokens into features, and the last one turns features into the next token. The layers between
    only refine features, so the student can best do without them.
    """
    if not 1 <= count <= total:
        raise InputError(f"{count} layers cannot be taken from a target that has {total}: name a number in 1 … {total}")
    return (*range(count - 1), total - 1)


def distil(order: DistilOrder, made: dict[str, Any], report: Callable[[StageProgress], None]) -> DrafterCard:
    """Make a drafter, or continue to make it.

    Args:
        order: the drafter to make.
        made: further facts about its making for the card, such as the command and the hardware.
        report: function that is called often with the progress of each stage.

    Returns:
        The card, which is stored in `order.out` with the weights.

    """
    report(StageProgress("loading", 0, 1, "the target"))
    model = load_model(order.target, "float32", order.device)
    report(StageProgress("loading", 1, 1, "the target"))
    layers, frozen = _layers(order, model)
    before = None if order.begin is None else _continued(order.begin, model)
    written = _write(order, model, report)
    head = model.get_output_embeddings().weight.detach()
    if before is None:
        ids = frequent_ids(written.shards, order.vocabulary, len(head), load_tokenizer(order.target).stop_ids)
        student = carve(model, layers, ids, frozen)
    else:
        student, ids = before
    trainer = _train(order, student, head, ids, frozen, written.shards, report)
    card = DrafterCard(
        target=order.target,
        fingerprint=fingerprint(model),
        layers=layers,
        vocabulary=len(ids),
        storage=order.storage,
        frozen=frozen,
        made={
            **made,
            "corpus_tokens": sum(Shard.load(path).generated for path in written.shards),
            "training_s": round(trainer.spent_s, 1),
            "recipe": dataclasses.asdict(order.recipe),
            "begun_from": "layers of the target" if order.begin is None else "a drafter made before",
        },
    )
    save_drafter(student, card, order.out)
    prompts = load_prompts()

    def compared(done: int) -> None:
        report(StageProgress("evaluation", done, len(prompts), "held-out prompts, on which distributions are compared"))

    compared(0)
    stored = load_for_drafting(order.out, model)  # what is measured is what will draft
    form = DistributionFormat(len(head), min(1024, len(head)), 16)
    results = compare_distributions(stored, head, prompts, written.greedy, written.sampled, form, compared)
    card = dataclasses.replace(card, results={found.task: _numbers(found) for found in results})
    save_drafter(student, card, order.out)
    (order.out / CHECKPOINT_FILE).unlink(missing_ok=True)
    if order.corpus is None:
        shutil.rmtree(order.out / CORPUS_FOLDER)
    return card


def _layers(order: DistilOrder, model: Any) -> tuple[tuple[int, ...], int]:
    """The target's layers in the student, and how many of them stay frozen."""
    if order.begin is not None:
        card = read_card(order.begin)
        return card.layers, card.frozen
    total = int(model.config.get_text_config().num_hidden_layers)
    layers = spread_layers(order.layers, total) if isinstance(order.layers, int) else order.layers
    check_layers(model, layers, order.frozen)
    return layers, order.frozen


class _TargetTexts(NamedTuple):
    """The target's texts: the files of the corpus, and its answers to held-out prompts, greedy and sampled."""

    shards: list[Path]
    greedy: Shard
    sampled: Shard


def _write(order: DistilOrder, model: Any, report: Callable[[StageProgress], None]) -> _TargetTexts:
    """Let the target write. The copy of its weights that writes is gone afterwards."""
    tokenizer = load_tokenizer(order.target)
    if quick_dtype(order.device) == model.dtype:
        writing = PackedModel.of(model)
    else:
        writing = PackedModel.of(load_model(order.target, "bfloat16", order.device), own=True)
    before = 0

    def written(in_batch: int, doing: str = "") -> None:
        done = before + in_batch
        text = f"{done:,} tokens written by the target"
        report(StageProgress("corpus", min(done, order.tokens), order.tokens, doing or text))

    writer = Writer(writing, tokenizer, order.answer_tokens, order.prompts, tell=written)
    texts = [tokenizer.encode(text, special_tokens=False) for text in order.texts]
    folder, shards = order.corpus or order.out / CORPUS_FOLDER, []
    for path, total in write_corpus(writer, folder, order.recipe.seed, order.tokens, texts):
        shards.append(path)
        before = total
        written(0)
    prompts, held_out = load_prompts(), list[Shard]()
    most = order.evaluation_tokens * len(prompts)

    def answered(in_batch: int, doing: str) -> None:
        done = len(held_out) * most + in_batch
        report(StageProgress("held-out answers", done, 2 * most, doing or "written by the target, to measure with"))

    short = Writer(writing, tokenizer, order.evaluation_tokens, prompt_tokens=HELD_OUT_PROMPT_TOKENS, tell=answered)
    for temperature in (0.0, 1.0):
        held_out.append(held_out_texts(short, tokenizer, prompts, temperature, seed=1, folder=folder))
    return _TargetTexts(shards, *held_out)


def _train(
    order: DistilOrder,
    student: Any,
    head: torch.Tensor,
    ids: torch.Tensor,
    frozen: int,
    shards: Sequence[Path],
    report: Callable[[StageProgress], None],
) -> Trainer:
    """Teach the student, in place; the trainer knows how long that took."""

    def prepared(done: int, of: int) -> None:
        report(StageProgress("reading", done, of, "shards read by the frozen layers"))

    def taught(step: int, loss: float, step_s: float) -> None:
        name = "total variation" if order.recipe.by_variation(step - 1) else "loss"
        report(StageProgress("training", step, order.recipe.steps, f"{name} {loss:.3f}, {step_s:.2f} s per step"))

    trainer = Trainer(student, head, ids, order.recipe, shards, order.device, frozen, prepared)
    order.out.mkdir(parents=True, exist_ok=True)
    trainer.run(order.out / CHECKPOINT_FILE, taught)
    return trainer


def frequent_ids(paths: Sequence[Path], count: int, vocabulary_size: int, stop_ids: Sequence[int]) -> torch.Tensor:
    """[V'] ascending: the most frequent ids of a corpus, and the stop ids."""
    if not 0 < count < vocabulary_size:
        return torch.arange(vocabulary_size)
    seen = torch.zeros(vocabulary_size, dtype=torch.int64)
    for path in paths:
        shard = Shard.load(path)
        inside = torch.arange(shard.tokens.shape[1])[None] < shard.ends[:, None]
        seen += torch.bincount(shard.tokens[inside], minlength=vocabulary_size)
    seen[list(stop_ids)] = seen.max() + 1
    return seen.argsort(descending=True, stable=True)[:count].sort().values


def _continued(folder: Path, model: Any) -> tuple[Any, torch.Tensor]:
    student = load_student(folder, model)
    ids = getattr(student.lm_head, "ids", None)
    return student, torch.arange(int(model.config.get_text_config().vocab_size)) if ids is None else ids


def _numbers(found: RuleAcceptance) -> dict[str, dict[str, float]]:
    return {
        rule: {
            "acceptance_rate": round(found.rates[rule], 4),
            "standard_error": round(found.errors[rule], 4),
            "positions": found.positions[rule],
        }
        for rule in found.rates
    }
