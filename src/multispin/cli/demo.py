"""`multispin demo`: one edge and several devices on this machine, then the proof that nothing was lost."""

import asyncio
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from multispin.cli.engine import USUAL_MAX_LENGTH, check_engine, engine_arguments, engine_options
from multispin.cli.process import prepare
from multispin.cli.sampling import ID_RULES, sampling_arguments, sampling_law, sampling_options
from multispin.control import RUNTIME_POLICIES
from multispin.data import TASKS, load_prompts
from multispin.demo.run import DemoState, DeviceSpec, DeviceState, run_demo
from multispin.demo.view import live_view, print_summary, progress_line
from multispin.errors import InputError

MAX_DEVICES = 64
PROGRESS_PERIOD_S = 2.0
ROOM_FOR_PROMPT = 512

CLASSES = (
    ("laptop", "large", "q8", 0.03, 6.0),
    ("tablet", "medium", "q6", 0.05, 4.0),
    ("phone", "small", "q5", 0.08, 2.0),
    ("watch", "lookup", "lookup", 0.10, 1.0),
)
"""Name, drafter of the embedded target, drafter of any other one, seconds per drafted token and bit/s/Hz of the demo's
devices, in turn: fast to slow, good to bad."""


@click.command("demo")
@click.option("--devices", type=click.IntRange(1, MAX_DEVICES), default=4, show_default=True)
@click.option("--policy", type=click.Choice(RUNTIME_POLICIES), default="heterogeneous", show_default=True)
@click.option("--bandwidth-hz", type=click.FloatRange(0, min_open=True), default=20e3, show_default=True)
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@engine_options
@click.option("--draft", "drafts", multiple=True, help="Drafter, one per device in turn; repeatable.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt, one per device in turn; repeatable.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
def command(**options: Any) -> int:
    """Start one edge server and several devices here, and let them write together.

    The texts are then written once more by the target alone, and compared token by token; under the rejection rules
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
    prepare(os.cpu_count() or 1)
    from multispin.models import check_drafter, load_tokenizer

    seed = options["seed"] or 0
    rule = sampling_law(options, seed)[1].value
    check_engine(options)
    for spec in options["drafts"]:
        check_drafter(spec)
    load_tokenizer(options["target"])  # a model that cannot be had is refused here; a GGUF file is converted once
    state = DemoState({spec.name: DeviceState(spec) for spec in _crew(options, seed)})
    asyncio.run(_watched(state, options))
    result = _result(state, options, rule)
    if not any(device.done for device in state.devices.values()):
        raise InputError("every device was lost: " + "; ".join(d.lost for d in state.devices.values()))
    if rule in ID_RULES:
        _compare(state, options, result)
    result["target_alone_tokens_per_s"] = _alone_goodput(state, options)
    lost = [f"{name} was lost: {device.lost}" for name, device in state.devices.items() if device.lost]
    if options["as_json"]:
        print(json.dumps(result))
        for sentence in lost:
            click.echo(sentence, err=True)
    else:
        from rich.console import Console

        print_summary(Console(), result, lost)
    return 1 if any(device["identical_to_target"] is False for device in result["devices"]) else 0


def _crew(options: Mapping[str, Any], seed: int) -> list[DeviceSpec]:
    """The devices: classes in turn, prompts of all task families in turn, or what the user named."""
    from multispin.speculation import derive_seed

    prompts: list[tuple[str, str]] = [("yours", text) for text in options["prompts"]]
    if not prompts:
        bundled = load_prompts()
        families = [[prompt.text for prompt in bundled if prompt.task == task] for task in TASKS]
        for k in range(options["devices"]):
            family = families[k % len(families)]
            prompts.append((TASKS[k % len(TASKS)], family[(seed + k // len(families)) % len(family)]))
    crew = []
    for k in range(options["devices"]):
        kind, distilled, rounded, seconds_per_token, efficiency = CLASSES[k % len(CLASSES)]
        drafter = distilled if options["target"] == "embedded" else rounded
        if options["drafts"]:
            drafter = options["drafts"][k % len(options["drafts"])]
        task, prompt = prompts[k % len(prompts)]
        crew.append(
            DeviceSpec(
                f"{kind}-{k + 1}",
                drafter,
                seconds_per_token,
                efficiency,
                task,
                prompt,
                derive_seed(seed, k),
            )
        )
    return crew


async def _watched(state: DemoState, options: Mapping[str, Any]) -> None:
    """Run the demo with something to look at: a live table on a terminal, lines elsewhere."""
    from rich.console import Console
    from rich.live import Live

    serve = [
        *("--target", options["target"], "--policy", options["policy"]),
        *("--bandwidth-hz", str(options["bandwidth_hz"]), "--slots", str(options["devices"])),
        *engine_arguments(options),
    ]
    if options["max_tokens"] > USUAL_MAX_LENGTH - ROOM_FOR_PROMPT:
        serve += ["--max-length", str(options["max_tokens"] + ROOM_FOR_PROMPT)]
    device = [
        *("--target", options["target"]),
        *sampling_arguments(options),
    ]
    console = Console(stderr=True)
    live = Live(get_renderable=lambda: live_view(state), console=console, transient=True, auto_refresh=True)
    running = asyncio.create_task(run_demo(state, serve, device, _started))
    try:
        with live if console.is_terminal else contextlib.nullcontext():
            while not running.done():
                await asyncio.wait([running], timeout=PROGRESS_PERIOD_S)
                if not console.is_terminal and not running.done():
                    print(progress_line(state), file=sys.stderr)
        running.result()
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait([running])


def _started(name: str, pid: int) -> None:
    print(f"{name} is process {pid}", file=sys.stderr)


def _result(state: DemoState, options: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """The object that --json prints, without the comparison."""
    why = f"under {rule} a text follows the target's law, but which text it is depends on the drafts"
    return {
        "policy": options["policy"],
        "target": options["target"],
        "rule": rule,
        "not_compared": None if rule in ID_RULES else why,
        "goodput_tokens_per_s": state.goodput_tokens_per_s,
        "predicted_goodput_tokens_per_s": state.predicted_goodput_tokens_per_s,
        "rounds": state.rounds,
        "wall_s": state.ended_s - state.began_s,
        "devices": [_device_result(device) for device in state.devices.values()],
        "round_log": state.log,
    }


def _device_result(device: DeviceState) -> dict[str, Any]:
    done = device.done or {}
    return {
        "name": device.spec.name,
        "drafter": device.spec.drafter,
        "task": device.spec.task,
        "prompt": device.spec.prompt,
        "text": device.text,
        "tokens": device.tokens,
        "drafted": device.drafted,
        "accepted": device.accepted,
        "acceptance_rate": device.acceptance_rate,
        "mean_draft_length": device.drafted / done["rounds"] if done.get("rounds") else 0.0,
        "uplink_bytes": done.get("uplink_bytes", 0),
        "uplink_bytes_per_drafted_token": done["draft_bytes"] / device.drafted if done and device.drafted else None,
        "lost": device.lost or None,
        "identical_to_target": None,
    }


def _alone_goodput(state: DemoState, options: Mapping[str, Any]) -> float | None:
    """Tokens per second of the target alone, writing the same texts in one batch on all of this machine's cores."""
    if options["engine"] != "embedded":
        return None  # vLLM has benchmarks of its own, and would have to be started once more
    from multispin.models import Verifier, decode_together, load_model, load_tokenizer

    print("timing the target alone, all texts in one batch", file=sys.stderr)
    tokenizer = load_tokenizer(options["target"])
    requests = _requests(options, [device for device in state.devices.values() if device.done], tokenizer)
    longest = max(len(prompt) for prompt, _ in requests) + options["max_tokens"]
    engine = Verifier(load_model(options["target"], options["dtype"]), len(requests), longest)
    texts, spent_s = decode_together(engine, requests, options["max_tokens"], tokenizer.stop_ids, time.perf_counter)
    return sum(map(len, texts)) / spent_s


def _requests(
    options: Mapping[str, Any], devices: Sequence[DeviceState], tokenizer: Any
) -> list[tuple[list[int], Any]]:
    """Prompt and sampling law of each device."""
    requests = []
    for device in devices:
        prompt = tokenizer.encode_chat(device.spec.prompt)
        params, _ = sampling_law(options, device.spec.seed)
        requests.append((prompt, params.with_min_tokens(tokenizer.stop_ids, len(prompt), options["min_tokens"])))
    return requests


def _compare(state: DemoState, options: Mapping[str, Any], result: dict[str, Any]) -> None:
    """Have every text written once more by the target alone, in the same engine, and compare token by token."""
    from multispin.models import load_tokenizer
    from multispin.speculation import StopStrings

    finished = [(d, row) for d, row in zip(state.devices.values(), result["devices"], strict=True) if d.done]
    tokenizer = load_tokenizer(options["target"])
    stops = StopStrings(options["stops"], tokenizer.decode, options["min_tokens"])
    requests = _requests(options, [device for device, _ in finished], tokenizer)
    texts = _alone(options, requests, tokenizer.stop_ids)
    for index, (device, row) in enumerate(finished, start=1):
        print(f"comparing {index}/{len(finished)}: {device.spec.name}", file=sys.stderr)
        assert device.done is not None
        alone = next(texts)
        row["identical_to_target"] = device.done["ids"] == alone[: stops.end(alone)]


def _alone(options: Mapping[str, Any], requests: Sequence[tuple[list[int], Any]], stop_ids: Any) -> Iterator[list[int]]:
    """The target's own text of each (prompt, sampling law), without any draft, one after the other."""
    if options["engine"] == "vllm":
        from multispin.models.vllm_engine import decode_by_vllm, parse_options

        chosen = parse_options(options["engine_options"])
        yield from decode_by_vllm(
            options["target"], requests, options["max_tokens"], stop_ids, options["dtype"], chosen
        )
        return
    from multispin.models import decode_alone, load_model

    model = load_model(options["target"], options["dtype"])
    for prompt, params in requests:
        yield decode_alone(model, prompt, params, options["max_tokens"], stop_ids, options["min_tokens"])
