"""`multispin distill`: make a small drafter for a target."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multispin.cli.options import Command, Number, PathOption
from multispin.cli.process import machine_name, make_folder, place_option, prepare, threads_option
from multispin.cli.progress import progress
from multispin.errors import InputError
from multispin.outside import in_markup, read_file

if TYPE_CHECKING:
    from multispin.distillation import DistilOrder
    from multispin.models.drafter_card import DrafterCard

GGUF_FILE = "drafter.gguf"
MAX_CORPUS_BYTES = 64 * 2**20


@click.command("distill", cls=Command, short_help="Make a small drafter for a target.")
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@click.option(
    "--layers",
    default="3",
    show_default=True,
    help="Number of layers to take from the target, or their indices, such as 0,1,2,29.",
)
@click.option("--frozen", type=click.IntRange(0), default=0, show_default=True,
              help="Number of first layers that stay the target's own: they are "
              "neither trained nor stored.")  # fmt: skip
@click.option("--out", type=PathOption(file_okay=False, path_type=Path), required=True, help="Folder of the drafter.")
@click.option("--steps", type=click.IntRange(1, 10**7), default=1500, show_default=True, help="Optimiser steps.")
@click.option("--tokens", type=click.IntRange(1, 10**10), default=500_000, show_default=True,
              help="Number of tokens that the target writes as training text.")  # fmt: skip
@click.option("--corpus", type=PathOption(file_okay=False, path_type=Path),
              help="Folder for that text, which several drafters can share.  [default: OUT/corpus, removed at "
              "the end]")  # fmt: skip
@click.option(
    "--answer-tokens",
    type=click.IntRange(2, 4096),
    default=160,
    show_default=True,
    help="Most tokens of an answer. Answers for the measurement have at most 96.",
)
@click.option("--prompts", type=PathOption(exists=True, dir_okay=False, path_type=Path),
              help="File of user messages that the target answers, one per line, instead "
              "of the bundled ones.")  # fmt: skip
@click.option("--text", "texts", type=PathOption(exists=True, dir_okay=False, path_type=Path), multiple=True,
              help="File of plain text to train on as well, one document per paragraph; repeatable.")  # fmt: skip
@click.option("--vocabulary", type=click.IntRange(0), default=12_288, show_default=True,
              help="Number of token ids that can be drafted, the most frequent ones; 0 for all.")  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=12, show_default=True, help="Sequences per training step."
)
@click.option("--positions", type=click.IntRange(1, 10**6), default=512, show_default=True,
              help="Positions per training step at which distributions are compared.")  # fmt: skip
@click.option("--learning-rate", type=Number(0.0, 1.0, min_open=True), default=1.5e-3, show_default=True,
              help="Highest learning rate of AdamW.")  # fmt: skip
@click.option("--variation-share", type=Number(0.0, 1.0), default=0.3, show_default=True,
              help="Share of the steps, at the end, that reduce the total variation distance instead of the "
              "KL divergence.")  # fmt: skip
@click.option("--storage", type=click.Choice(["int8", "bfloat16"]), default="int8", show_default=True,
              help="Number type in which the drafter is stored.")  # fmt: skip
@click.option("--gguf", is_flag=True,
              help="Also write OUT/drafter.gguf, for llama.cpp and browsers. --target "
              "must be a GGUF file.")  # fmt: skip
@click.option("--begin", type=PathOption(exists=True, file_okay=False, path_type=Path),
              help="Begin with this drafter instead of the target's layers.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
              help="Seed of the text and of the training.")  # fmt: skip
@place_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print the drafter's card and nothing else on standard output.")
def command(layers: str, threads: int | None, as_json: bool, gguf: bool, **options: Any) -> None:
    """Make a small drafter for a target: a few of its layers, trained on what the target itself writes.

    The command copies layers of the target, lets the target answer prompts, trains the copy on the target's next-token
    distributions, and measures acceptance on held-out prompts. To go on with a stopped run, start it again.
    docs/distill.md says how long it takes and what to expect.

    \b
    Examples:
      multispin distill --out my-drafter
      multispin distill --layers 7 --steps 4000 --tokens 1000000 --corpus corpus --out laptop
      multispin distill --target Qwen/Qwen3-8B --on cuda:0 --layers 4 --vocabulary 32768 --out qwen3-8b-phone
    """
    wanted = _layers(layers)
    for folder in (options["out"], options["corpus"]):
        if folder is not None:
            make_folder(folder)
    if gguf:
        from multispin.models.gguf_drafter import GgufOrder, gguf_of, write_gguf

        gguf_of(options["target"])  # refuse now, not after hours
    threads = threads or os.cpu_count() or 1
    prepare(threads)
    import torch

    from multispin.distillation import distil

    order = _order(options, wanted)
    made = {
        "command": shlex.join(["multispin", *sys.argv[1:]]),
        "hardware": machine_name(options["place"], threads),
        "torch": str(torch.__version__),
    }
    with progress() as show:
        card = distil(order, made, lambda now: show(now.stage, now.done, now.total, now.text))
        if gguf:
            file = GgufOrder(str(order.out), order.out / GGUF_FILE, order.target)
            write_gguf(file, lambda done, total: show("gguf", done, total))
    if as_json:
        click.echo(json.dumps(_plain(card), indent=2))
    else:
        _print_card(card, order.out)


def _order(options: Mapping[str, Any], layers: int | tuple[int, ...]) -> "DistilOrder":
    """The drafter that the options ask for."""
    from multispin.distillation import DistilOrder, Recipe

    return DistilOrder(
        target=options["target"],
        layers=layers,
        out=options["out"],
        recipe=Recipe(
            steps=options["steps"],
            batch=options["batch"],
            positions=options["positions"],
            learning_rate=options["learning_rate"],
            variation_share=options["variation_share"],
            seed=options["seed"],
        ),
        frozen=options["frozen"],
        corpus=options["corpus"],
        tokens=options["tokens"],
        answer_tokens=options["answer_tokens"],
        evaluation_tokens=min(options["answer_tokens"], DistilOrder.evaluation_tokens),
        vocabulary=options["vocabulary"],
        storage=options["storage"],
        begin=options["begin"],
        prompts=_lines(options["prompts"]),
        texts=tuple(part for path in options["texts"] for part in _paragraphs(path)),
        device=options["place"],
    )


def _layers(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--layers {text!r} is neither a number nor a list like 0,1,29") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _lines(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    lines = tuple(line.strip() for line in read_file(path, MAX_CORPUS_BYTES).splitlines() if line.strip())
    if not lines:
        raise InputError(f"{path} has no prompts: write one per line")
    return lines


def _paragraphs(path: Path) -> list[str]:
    return [part for part in read_file(path, MAX_CORPUS_BYTES).split("\n\n") if part.strip()]


def _plain(card: "DrafterCard") -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(card)


def _print_card(card: "DrafterCard", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from multispin.distillation.evaluation import RULES  # loads torch, which is loaded already

    table = Table(title=f"{out}: layers {', '.join(map(str, card.layers))} of {card.target}, {card.vocabulary:,} ids")
    table.add_column("prompts")
    for rule in RULES:
        table.add_column(rule, justify="right", no_wrap=True)
    for task, found in card.results.items():
        cells = [f"{found[rule]['acceptance_rate']:.3f} ± {found[rule]['standard_error']:.3f}" for rule in RULES]
        table.add_row(task, *cells)
    Console().print(table)
    Console(highlight=False).print(
        "Acceptance rates on held-out prompts: greedy at temperature 0, the others at 1; "
        "rejection-up accepts what rejection does. "
        f"Try it: multispin demo --target {in_markup(card.target)} --draft {in_markup(str(out))}",
        soft_wrap=True,
    )
