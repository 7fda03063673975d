"""`multispin convert`: a drafter as a GGUF file."""

import json
from pathlib import Path

import click

from multispin.cli.options import Command, PathOption
from multispin.cli.progress import progress
from multispin.errors import require
from multispin.models.numbers import GGUF_STORAGES
from multispin.outside import one_line


@click.command("convert", cls=Command, short_help="Write a drafter as a GGUF file.")
@click.argument("drafter")
@click.argument("file", type=PathOption(dir_okay=False, path_type=Path))
@click.option("--target", show_default="the one that it names",
              help="GGUF file of the target that a distilled drafter was made from.")  # fmt: skip
@click.option(
    "--storage",
    type=click.Choice(GGUF_STORAGES),
    default="q8_0",
    show_default=True,
    help="Number type of the matrices.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
def command(drafter: str, file: Path, target: str | None, storage: str, as_json: bool) -> None:
    """Write DRAFTER as FILE, a GGUF file for llama.cpp and browsers. Needs no torch.

    DRAFTER is small, medium, large, a folder that `multispin distill` wrote, or a GGUF file (or 'embedded') to store
    in another number type. A distilled drafter becomes a model of its target's architecture, with the target's
    tokenizer and its whole output head.

    \b
    Examples:
      multispin convert small small.gguf
      multispin convert my-drafter my-drafter.gguf --target my-target.gguf
      multispin convert embedded smaller.gguf --storage q4_0
    """
    for module in ("gguf", "safetensors"):
        require(module)
    from multispin.models.gguf_drafter import GgufOrder, write_gguf

    with progress() as show:
        size = write_gguf(GgufOrder(drafter, file, target, storage), lambda done, total: show("tensors", done, total))
    if as_json:
        click.echo(json.dumps({"drafter": drafter, "file": str(file), "storage": storage, "bytes": size}))
    else:
        click.echo(f"{one_line(str(file))}: {size / 1e6:.1f} MB")
