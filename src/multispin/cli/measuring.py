"""The measurements of `multispin profile`, as the command's JSON object."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multispin.cli.engine import load_engine
from multispin.cli.process import machine_name
from multispin.cli.progress import Show, stage
from multispin.data import TASKS, load_prompts
from multispin.errors import InputError
from multispin.outside import one_line

if TYPE_CHECKING:
    from multispin.profiling import BatchTiming, Following, LatencyFit, Rate

UNKNOWN_POSITIONS = 2**20
"""Context length assumed for a target that does not state its own [tokens]."""
LONGEST_RUN = 12
"""Number of a draft's positions in the acceptance profile."""
DRAFT_LENGTH = 8
LONGEST_TIMING_S = 120.0
"""Time after which no further turn over all batches is timed [s], once there were `LEAST_REPEATS`."""
_PLACES = 4


def measure_here(
    options: Mapping[str, Any], grid: Sequence[tuple[int, int]], drafts: Sequence[str], show: Show
) -> dict[str, Any]:
    """Time verification over `grid`, then measure every drafter. Returns the command's JSON without the machine."""
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
    turns = 0

    def report(done: int, total: int) -> None:
        nonlocal turns
        turns = done
        show("timing verification", done, total)

    try:
        points = measure_latency(engine, grid, options["context"], options["repeats"], time.perf_counter, report,
                                 longest_s=LONGEST_TIMING_S)  # fmt: skip
    finally:
        if options["engine"] == "vllm":
            engine.shutdown()  # free its memory and workers for the rest
    return _verification(points, fit_latency(points), options["context"], turns - 1)  # the first turn warms up


def _measure_drafters(
    options: Mapping[str, Any], drafts: Sequence[str], most_prompt: int, show: Show
) -> list[dict[str, Any]]:
    """Let the target write texts, and let each drafter predict every token of them.

    Args:
        options: options of the command.
        drafts: names of the drafters.
        most_prompt: longest prompt [tokens]; a longer one is cut at its beginning.
        show: progress display.

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


def _verification(points: "Sequence[BatchTiming]", fit: "LatencyFit", context: int, repeats: int) -> dict[str, Any]:
    return {
        "fixed_s": fit.fixed_s,
        "per_device_s": fit.per_device_s,
        "per_token_s": fit.per_token_s,
        "relative_rms_error": fit.relative_rms,
        "worst_relative_error": fit.worst_relative,
        "worst": dataclasses.asdict(fit.worst),
        "context_tokens": context,
        "repeats": repeats,
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


def described(options: Mapping[str, Any], threads: int) -> str:
    """The machine, the number type and the library versions, as text."""
    import torch

    versions = f"torch {torch.__version__}"
    if options["engine"] == "vllm":
        from multispin.models.vllm_engine import vllm_version

        versions += f", vLLM {vllm_version()}"
    return f"{machine_name(options['place'], threads)}, {options['dtype']}, {versions}"
