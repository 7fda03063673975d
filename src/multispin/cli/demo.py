"""`multispin demo`: one edge and several devices on this machine, then the proof that nothing was lost."""

import json
import math
import os
from typing import Any

import click

from multispin.cli.engine import USUAL_MAX_LENGTH, check_engine, engine_arguments, engine_options
from multispin.cli.process import prepare
from multispin.cli.sampling import sampling_arguments, sampling_law, sampling_options
from multispin.control import RUNTIME_POLICIES
from multispin.errors import InputError
from multispin.outside import one_line

MAX_DEVICES = 64
ROOM_FOR_PROMPT = 512


@click.command("demo")
@click.option("--devices", type=click.IntRange(1, MAX_DEVICES), default=4, show_default=True, help="How many devices.")
@click.option("--policy", type=click.Choice(RUNTIME_POLICIES), default="heterogeneous", show_default=True,
              help="How the edge plans rounds.")  # fmt: skip
@click.option("--bandwidth-hz", type=click.FloatRange(0, min_open=True), default=20e3, show_default=True,
              help="Uplink band that all devices share.")  # fmt: skip
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@engine_options
@click.option("--draft", "drafts", multiple=True, help="Drafter, one per device in turn; repeatable.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt, one per device in turn; repeatable.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
def command(**options: Any) -> int:
    """Start one edge server and several devices here, and let them write together.

    Afterwards the target writes every text once more, alone, and the tokens are compared. Under the rejection rules
    there is no text to compare with.

    \b
    Examples:
      multispin demo
      multispin demo --devices 6 --temperature 0.8 --seed 7
      multispin demo --dtype int8
      multispin demo --draft q8 --draft lookup --prompt "Write a haiku about rain." --json
    """
    if not math.isfinite(options["bandwidth_hz"]):
        raise InputError("--bandwidth-hz is not a number")
    prepare(os.cpu_count() or 1)  # before torch is imported
    from multispin.demo.crew import assemble
    from multispin.demo.order import DemoOrder
    from multispin.demo.program import run
    from multispin.demo.view import lost_devices, print_summary

    seed = options["seed"] or 0
    params, rule = sampling_law(options, seed)
    check_engine(options)
    embedded = options["target"] == "embedded"
    result = run(
        DemoOrder(
            crew=assemble(options["devices"], embedded, options["drafts"], options["prompts"], seed),
            policy=options["policy"],
            target=options["target"],
            engine=options["engine"],
            dtype=options["dtype"],
            engine_options=options["engine_options"],
            sampling=params,
            rule=rule,
            max_tokens=options["max_tokens"],
            min_tokens=options["min_tokens"],
            stops=options["stops"],
            serve=_serve_arguments(options),
            device=("--target", options["target"], *sampling_arguments(options)),
        )
    )
    if options["as_json"]:
        click.echo(json.dumps(result.document()))
        for sentence in lost_devices(result):
            click.echo(one_line(sentence), err=True)
    else:
        from rich.console import Console

        print_summary(Console(), result)
    return 1 if any(device.identical_to_target is False for device in result.devices) else 0


def _serve_arguments(options: dict[str, Any]) -> tuple[str, ...]:
    arguments = [
        *("--target", options["target"], "--policy", options["policy"]),
        *("--bandwidth-hz", str(options["bandwidth_hz"]), "--slots", str(options["devices"])),
        *engine_arguments(options),
    ]
    if options["max_tokens"] > USUAL_MAX_LENGTH - ROOM_FOR_PROMPT:
        arguments += ["--max-length", str(options["max_tokens"] + ROOM_FOR_PROMPT)]
    return tuple(arguments)
