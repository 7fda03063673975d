"""`multispin profile`: measure here what the controller needs, and write it down as a scenario."""

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from multispin.cli.engine import check_engine_options, engine_options, load_engine
from multispin.cli.process import check_outputs, check_plot, flag, machine_name, place_option, prepare, threads_option
from multispin.cli.progress import Show, progress, stage
from multispin.control import RUNTIME_POLICIES, Cell, Device, Mode, Scenario, Verification, dump_scenario
from multispin.data import TASKS, load_prompts
from multispin.errors import InputError
from multispin.outside import in_markup, one_line

if TYPE_CHECKING:
    from multispin.profiling import BatchTiming, Following, LatencyFit, Rate
    from multispin.speculation import DistributionFormat

MAX_GRID = 16
UNKNOWN_POSITIONS = 2**20  # of a target that does not say how long a text it knows
FEWEST_POINTS = 3  # coefficients of the latency model
LONGEST_RUN = 12
"""Positions of a draft in the acceptance profile."""
DRAFT_LENGTH = 8
_PLACES = 4
_SUREST = 0.9999  # acceptance rate of a device in a scenario: 1 would promise drafts without end
_RETAINED, _PROBABILITY_BITS = 1024, 16  # distributions on the air, as in arXiv 2606.04581


@click.command("profile", short_help="Measure on this machine what the controller needs.")
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@click.option("--draft", "drafts", multiple=True,
              help="Drafter to measure; repeatable.  [default for embedded: large, "
              "medium, small and lookup]")  # fmt: skip
@engine_options
@click.option("--temperature", type=click.FloatRange(0.0, 10.0), default=0.0, show_default=True,
              help="Temperature at which acceptance is measured; 0 is greedy decoding.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sampling noise.")
@click.option("--prompts", "per_task", type=click.IntRange(1, 12), default=3, show_default=True,
              help="Number of bundled prompts of each task family.")  # fmt: skip
@click.option(
    "--tokens",
    type=click.IntRange(2, 4096),
    default=64,
    show_default=True,
    help="Most tokens of the text for a prompt.",
)
@click.option(
    "--batches", default="1,2,4,8", show_default=True, help="Numbers of devices per batch to time, separated by commas."
)
@click.option("--lengths", default="0,2,4,8", show_default=True, help="Draft lengths to time, separated by commas.")
@click.option("--context", type=click.IntRange(1, 10**6), default=128, show_default=True,
              help="Tokens in the cache of each session while timing.")  # fmt: skip
@click.option(
    "--repeats", type=click.IntRange(1, 1000), default=7, show_default=True, help="How often each batch is timed."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a scenario file.")
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path),
              help="Write which drafted tokens were right. With several drafters NAME.json becomes "
              "NAME-DRAFTER.json.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture (.png, .svg or .pdf).")
@click.option("--bandwidth-hz", type=click.FloatRange(0, min_open=True), default=20e3, show_default=True,
              help="For the scenario: the shared band [Hz].")  # fmt: skip
@click.option("--spectral-efficiency", type=click.FloatRange(0, 1000, min_open=True), default=4.0, show_default=True,
              help="For the scenario: bit/s/Hz of every device.")  # fmt: skip
@click.option("--advise", "with_advice", is_flag=True,
              help="Also say whether these drafters should draft for this engine.")  # fmt: skip
@click.option("--modes", is_flag=True,
              help="Let each device of the scenario choose its acceptance rule. Needs a "
              "temperature above 0.")  # fmt: skip
@place_option
@click.option("--draft-on", "draft_place", default="cpu", show_default=True,
              help="Where the drafters run: cpu, or a GPU such as cuda:0 or mps.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
def command(**options: Any) -> None:
    """Measure on this machine what the controller needs to know.

    It measures the drafting time per token of each drafter; the verification time by batch size and draft length, with
    a fitted model and its error; and the acceptance rates of each task family, with 95 % intervals.

    \b
    Examples:
      multispin profile --out site.toml --plot site.png
      multispin profile --draft small --advise
      multispin profile --draft small --temperature 1 --prompts 12 --trace small.json --json
      multispin profile --temperature 1 --modes --bandwidth-hz 1e6 --out site.toml && multispin plan site.toml
      multispin profile --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --on cuda:0 --dtype bfloat16 --out gpu.toml
    """
    grid, drafts, threads = _settled(options)
    with progress() as show:
        found = _measure_here(options, grid, drafts, show)
    found["machine"] = _machine(options, threads)
    # First what took minutes is shown, then it is written to places that may turn out to be full.
    if not options["as_json"]:
        _print(found)
    if options["with_advice"]:
        _advise(found, options)
    if options["as_json"]:
        click.echo(json.dumps(found, indent=2))
    _write(found, options)


def _settled(options: Mapping[str, Any]) -> tuple[list[tuple[int, int]], Sequence[str], int]:
    """Sizes of the batches to time, drafters to measure and processor threads; InputError before long work begins."""
    grid = [
        (k, length)
        for k in _numbers("--batches", options["batches"], 1)
        for length in _numbers("--lengths", options["lengths"], 0)
    ]
    if len(grid) < FEWEST_POINTS:
        raise InputError(
            f"--batches and --lengths make {len(grid)} kinds of batches; {FEWEST_POINTS} are needed for a fit"
        )
    for name in ("temperature", "bandwidth_hz", "spectral_efficiency"):
        if not math.isfinite(options[name]):
            raise InputError(f"--{name.replace('_', '-')} is not a number")
    drafts = options["drafts"] or (("large", "medium", "small", "lookup") if options["target"] == "embedded" else ())
    _check_results(options, drafts)
    threads = options["threads"] or os.cpu_count() or 1
    prepare(threads)
    check_engine_options(options)
    _check_drafters(drafts, options["draft_place"])
    return grid, drafts, threads


def _check_results(options: Mapping[str, Any], drafts: Sequence[str]) -> None:
    """InputError if these drafters cannot give what is to be written or said."""
    check_outputs(options["out"], options["trace"])
    check_plot(options["plot"])
    if options["out"] is not None and not drafts:
        raise InputError("--out: a scenario needs a drafter: name one with --draft")
    if options["with_advice"] and not drafts:
        raise InputError("--advise: there is nobody who could draft: name a drafter with --draft")
    if options["modes"] and (options["out"] is None or options["temperature"] == 0.0):
        raise InputError("--modes: needs --out FILE to write to and a --temperature above 0: at 0 there is one rule")
    if options["modes"] and all(draft in ("lookup", "none") for draft in drafts):
        raise InputError("--modes: none of these drafters has a distribution to send; name a model with --draft")


def _check_drafters(drafts: Sequence[str], place: str) -> None:
    """InputError if a drafter is unknown, named twice, or cannot run at `place`."""
    from multispin.models import DrafterName, check_drafter_name
    from multispin.models.draft_source import check_drafter_place

    if len(set(drafts)) < len(drafts):
        raise InputError("--draft names a drafter twice")
    for spec in drafts:
        check_drafter_name(spec)
        if place != "cpu":
            with flag("--draft-on"):
                check_drafter_place(DrafterName.parse(spec), place)


def _write(found: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write the scenario and the picture that were asked for."""
    if options["out"] is not None:
        options["out"].write_text(_scenario_text(found, options), encoding="utf-8")
        print(f"wrote {one_line(str(options['out']))}", file=sys.stderr)
    if options["plot"] is not None:
        from multispin.report.profile_figures import write_profile

        write_profile(options["plot"], found)
        print(f"wrote {one_line(str(options['plot']))}", file=sys.stderr)


def _numbers(flag: str, text: str, least: int) -> list[int]:
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < least or len(values) > MAX_GRID:
        raise InputError(f"{flag} {text!r} is not a list of at most {MAX_GRID} whole numbers from {least} on")
    if values[-1] > 256:
        raise InputError(f"{flag} {text!r} goes beyond 256")
    return values


def _measure_here(
    options: Mapping[str, Any], grid: Sequence[tuple[int, int]], drafts: Sequence[str], show: Show
) -> dict[str, Any]:
    """Time verification over `grid`, then measure every drafter: the JSON of the command, but for the machine."""
    from multispin.models import known_positions, load_tokenizer

    most_prompt = (known_positions(options["target"]) or UNKNOWN_POSITIONS) - options["tokens"] - DRAFT_LENGTH
    if drafts and most_prompt < 1:
        raise InputError(f"--tokens {options['tokens']} leaves no room for a prompt in {options['target']}")
    return {
        "target": options["target"],
        "engine": options["engine"],
        "temperature": options["temperature"],
        "vocabulary": load_tokenizer(options["target"]).size,
        "verification": _time_verification(options, grid, show),
        "drafters": _measure_drafters(options, drafts, most_prompt, show) if drafts else [],
    }


def _time_verification(options: Mapping[str, Any], grid: Sequence[tuple[int, int]], show: Show) -> dict[str, Any]:
    from multispin.profiling import fit_latency, measure_latency

    most, longest = max(k for k, _ in grid), max(length for _, length in grid)
    room = options["context"] + longest + 2
    with stage(show, f"loading {options['target']}"):
        engine = load_engine({**options, "slots": most, "max_length": room, "max_draft_length": max(1, longest)})
    try:
        points = measure_latency(engine, grid, options["context"], options["repeats"], time.perf_counter,
                                 partial(show, "timing verification"))  # fmt: skip
    finally:
        if options["engine"] == "vllm":
            engine.shutdown()  # its memory and its workers are not for the rest
    return _verification(points, fit_latency(points), options)


def _measure_drafters(
    options: Mapping[str, Any], drafts: Sequence[str], most_prompt: int, show: Show
) -> list[dict[str, Any]]:
    """Have the target write texts, and each drafter guess every token of them.

    Args:
        options: options of the command.
        drafts: names of the drafters.
        most_prompt: longest prompt [tokens]; of a longer one the end is taken.
        show: function that shows the progress.

    """
    from multispin.estimation.traces import save_traces
    from multispin.models import decode_together, load_drafter, load_tokenizer, load_verifier
    from multispin.profiling import drafting_times, follow
    from multispin.speculation import SamplingParams, derive_seed

    tokenizer = load_tokenizer(options["target"])
    prompts = [p for task in TASKS for p in [q for q in load_prompts() if q.task == task][: options["per_task"]]]
    encoded = [tokenizer.encode_chat(prompt.text)[-most_prompt:] for prompt in prompts]
    max_length = max(map(len, encoded)) + options["tokens"] + DRAFT_LENGTH
    target = load_verifier(options["target"], 4, max_length, place=options["place"])
    samplings = [
        SamplingParams(options["temperature"], seed=derive_seed(options["seed"], k)) for k in range(len(prompts))
    ]
    texts: list[list[int]] = []
    for at in range(0, len(prompts), target.slots):
        part = list(zip(encoded, samplings, strict=True))[at : at + target.slots]
        texts += decode_together(target, part, options["tokens"], tokenizer.stop_ids, time.perf_counter)[0]
        show("the target writes", min(at + target.slots, len(prompts)), len(prompts))
    found = []
    for spec in drafts:
        drafter, _ = load_drafter(spec, options["target"], max_length, options["draft_place"])
        followings, times = [], []
        for k, prompt in enumerate(prompts):
            times += drafting_times(drafter, encoded[k], samplings[k], DRAFT_LENGTH, 2, time.perf_counter)
            whole = encoded[k] + texts[k]
            followings.append(follow(drafter, target, whole, len(encoded[k]), samplings[k], prompt.name, prompt.task))
            show(f"following with {spec}", k + 1, len(prompts))
        found.append(_drafter(spec, statistics.median(times), followings))
        if options["trace"] is not None:
            path = _trace_path(options["trace"], spec, len(drafts))
            save_traces(path, options["target"], spec, options["temperature"], [f.trace for f in followings])
            print(f"wrote {one_line(str(path))}", file=sys.stderr)
    return found


def _trace_path(path: Path, spec: str, drafters: int) -> Path:
    safe = "".join(c if c.isalnum() else "-" for c in spec).strip("-")
    return path if drafters == 1 else path.with_name(f"{path.stem}-{safe}{path.suffix}")


def _verification(points: "Sequence[BatchTiming]", fit: "LatencyFit", options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "fixed_s": fit.fixed_s,
        "per_device_s": fit.per_device_s,
        "per_token_s": fit.per_token_s,
        "relative_rms_error": fit.relative_rms,
        "worst_relative_error": fit.worst_relative,
        "worst": dataclasses.asdict(fit.worst),
        "context_tokens": options["context"],
        "repeats": options["repeats"],
        "points": [
            {**dataclasses.asdict(point), "fitted_s": fit.predict(point.devices, point.tokens)} for point in points
        ],
    }


def _drafter(spec: str, seconds_per_token: float, followings: "Sequence[Following]") -> dict[str, Any]:
    from multispin.profiling import hazards, rate_of

    rows = {}
    for task in ("all", *TASKS):
        own = [f for f in followings if task in ("all", f.trace.task)]
        accepts = [f.trace.accepts for f in own]
        rate = rate_of([[float(c) for c in text] for text in accepts])
        overlap = rate_of([f.overlaps for f in own])
        rows[task] = {
            "acceptance_rate": _rate(rate),
            "rejection_acceptance_rate": _rate(overlap) if overlap.positions else None,
            "acceptance_profile": [round(value, _PLACES) for value in hazards(accepts, LONGEST_RUN)],
        }
    return {"drafter": spec, "seconds_per_token": seconds_per_token, "tasks": rows}


def _rate(rate: "Rate") -> dict[str, float | int | None]:
    values = {"mean": rate.mean, "low": rate.low, "high": rate.high}
    plain: dict[str, float | int | None] = {
        k: round(v, _PLACES) if math.isfinite(v) else None for k, v in values.items()
    }
    return {**plain, "positions": rate.positions}


def _machine(options: Mapping[str, Any], threads: int) -> str:
    import torch

    versions = f"torch {torch.__version__}"
    if options["engine"] == "vllm":
        from multispin.models.vllm_engine import vllm_version

        versions += f", vLLM {vllm_version()}"
    return f"{machine_name(options['place'], threads)}, {options['dtype']}, {versions}"


def _advise(found: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Say whether the measured drafters should draft for the measured engine, in print or in `found`."""
    from multispin.cli.advise import asked_advice, document, show_advice

    scenario, title = _scenario_of(found, options), f"{found['target']} as measured here"
    advice = asked_advice(scenario, title, RUNTIME_POLICIES, None)
    if options["as_json"]:
        found["advice"] = document(advice, title)
    else:
        show_advice(advice, scenario, title)


def _scenario_of(found: Mapping[str, Any], options: Mapping[str, Any]) -> Scenario:
    """The measurements as a scenario: one device for each drafter and task family."""
    verification = found["verification"]
    bits = math.ceil(math.log2(max(2, found["vocabulary"])))
    devices = []
    for drafter in found["drafters"]:
        for task in TASKS:
            found_here = drafter["tasks"][task]
            rate = found_here["acceptance_rate"]["mean"]
            if rate is None:
                continue
            device = Device(
                name=f"{drafter['drafter']}-{task}",
                seconds_per_token=drafter["seconds_per_token"],
                spectral_efficiency=options["spectral_efficiency"],
                acceptance_rate=min(rate, _SUREST),
            )
            overlap = found_here["rejection_acceptance_rate"]
            if options["modes"] and overlap is not None:
                modes = _modes(found["vocabulary"], rate, overlap["mean"])
                device = dataclasses.replace(device, acceptance_rate=None, modes=modes)
            devices.append(device)
    if not devices:
        raise InputError("a scenario needs a drafter: name one with --draft")
    return Scenario(
        Cell(options["bandwidth_hz"], bits, max_draft_length=16, min_draft_length=0),
        Verification(verification["fixed_s"], verification["per_device_s"], verification["per_token_s"]),
        tuple(devices),
    )


def _scenario_text(found: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The scenario file: what was measured, and comments that say where and when."""
    verification, scenario = found["verification"], _scenario_of(found, options)
    head = [
        f"Measured by multispin profile on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {found['machine']}.",
        f"Target {found['target']} on the {found['engine']} engine; verification fitted over "
        f"{len(verification['points'])} kinds of batches, relative error {verification['relative_rms_error']:.1%} "
        f"(root mean square), {verification['worst_relative_error']:+.1%} at worst.",
        f"Acceptance at temperature {found['temperature']:g} by the {'coupled' if found['temperature'] else 'greedy'} "
        f"rule, {options['per_task']} prompts per task family, up to {options['tokens']} tokens each.",
        "Band and spectral efficiency were not measured. One device per drafter and task family.",
    ]
    if options["modes"]:
        head.append(
            "Modes: the rejection rules accept min(1, p/q) of whole distributions; their bits are for those cut "
            f"to {_distribution_format(found['vocabulary']).retained} tokens, in {_PROBABILITY_BITS} bits each."
        )
    return "".join(f"# {line}\n" for line in head) + "\n" + dump_scenario(scenario)


def _distribution_format(vocabulary: int) -> "DistributionFormat":
    from multispin.speculation import DistributionFormat

    return DistributionFormat(vocabulary, min(_RETAINED, vocabulary), _PROBABILITY_BITS)


def _modes(vocabulary: int, coupled: float, rejection: float) -> tuple[Mode, ...]:
    """The rules of a device that has a distribution of its own, each with its acceptance and its bits.

    `rejection-down` is left out: what it costs goes down, and the planner knows no downlink.
    """
    from multispin.speculation import Rule, bits_per_token, uplink_bits_per_rejection

    form = _distribution_format(vocabulary)
    rates = {Rule.COUPLED: coupled, Rule.REJECTION: rejection, Rule.REJECTION_UP: rejection}
    return tuple(
        Mode(str(rule), min(rate, _SUREST), None, bits_per_token(rule, form), uplink_bits_per_rejection(rule, form))
        for rule, rate in rates.items()
    )


def _print(found: Mapping[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, fit = Console(highlight=False), found["verification"]
    worst = fit["worst"]
    console.print(in_markup(found["machine"]))
    console.print(
        f"verification by {in_markup(found['engine'])}: {1e3 * fit['fixed_s']:.2f} ms + "
        f"{1e3 * fit['per_device_s']:.2f} ms per device + {1e3 * fit['per_token_s']:.3f} ms per token; relative error "
        f"{fit['relative_rms_error']:.1%} rms, {fit['worst_relative_error']:+.1%} at worst "
        f"(K = {worst['devices']}, L = {worst['draft_length']})"
    )
    if not found["drafters"]:
        return
    title = f"acceptance rate per drafted token at temperature {found['temperature']:g}, 95 % intervals"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)  # fits 80 columns
    table.add_column("drafter")
    table.add_column("ms/token", justify="right")
    for task in ("all", *TASKS):
        table.add_column(task, justify="right")
    table.add_column("min(1,p/q)", justify="right")
    for drafter in found["drafters"]:
        cells = [_shown(drafter["tasks"][task]["acceptance_rate"]) for task in ("all", *TASKS)]
        overlap = drafter["tasks"]["all"]["rejection_acceptance_rate"]
        table.add_row(
            in_markup(drafter["drafter"]), f"{1e3 * drafter['seconds_per_token']:.1f}", *cells, _shown(overlap)
        )
    console.print(table)


def _shown(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate["mean"] is None:
        return "–"
    if rate["low"] is None:
        return f"{rate['mean']:.2f}"
    half = max(rate["high"] - rate["mean"], rate["mean"] - rate["low"])  # one of them may be cut at 0 or 1
    return f"{rate['mean']:.2f}±{half:.2f}"
