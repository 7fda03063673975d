"""The twin: what the simulator says of the demo before it runs, beside what the demo then does.

    python benchmarks/bench_twin.py [--policies heterogeneous,homogeneous,fixed]

1. Runs `multispin demo --json` under each policy, and measures the target's verification latency before and after.
2. Measures, as `multispin profile` does, the speed of every device's drafter and its acceptance trace along the
   target's own text of the very prompt that the demo gives it.
3. Lets the simulator play the same four devices: speed and link as in the demo, frames with their fixed bits, one text
   each, a controller that learns from nothing.
4. Prints both side by side, in Markdown, and by cause how much longer real rounds took than the simulator believes.

The simulator plays each policy twice: with the verification latency that was profiled, and with that of the very run,
which a profile taken a minute before or after need not be. What neither drafts, uploads nor verifies (planning, the
event loop, the downlink) is in neither.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRAME_BYTES = 22
"""Of a draft beside its ids: WebSocket header and mask, MessagePack array and counters (docs/protocol.md)."""
BATCHES, LENGTHS = (1, 2, 3, 4), (0, 1, 2, 4)


def demo(policy, tokens):
    """One run of the demo, as it prints itself."""
    command = [sys.executable, "-m", "multispin", "demo", "--json", "--policy", policy, "--max-tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


class Here:
    """What is measured on this machine, with the target loaded once."""

    def __init__(self, threads):
        from multispin.cli.process import prepare

        prepare(threads)  # threads wait as those of `multispin serve` do
        from multispin.models import Verifier, load_model

        self.target = Verifier(load_model("embedded"), 4, 1024)

    def latencies(self):
        """Median time of each kind of batch, now."""
        from multispin.profiling import measure_latency

        grid = [(k, length) for k in BATCHES for length in LENGTHS]
        return measure_latency(self.target, grid, 150, 5, time.perf_counter, lambda *_: None)


def drafting(target, devices, tokens):
    """By device: trace, and seconds per drafted token on one thread; and the prompts' lengths."""
    import torch

    from multispin.models import decode_together, load_drafter, load_tokenizer
    from multispin.profiling import drafting_times, follow
    from multispin.speculation import SamplingParams

    tokenizer = load_tokenizer("embedded")
    prompts = [tokenizer.encode_chat(device["prompt"]) for device in devices]
    requests = [(prompt, SamplingParams()) for prompt in prompts]
    texts, _ = decode_together(target, requests, tokens, tokenizer.stop_ids, time.perf_counter)
    traces, seconds = [], []
    threads = torch.get_num_threads()
    for device, prompt, text in zip(devices, prompts, texts, strict=True):
        drafter, _ = load_drafter(device["drafter"], "embedded", 1024)
        found = follow(drafter, target, prompt + text, len(prompt), SamplingParams(), device["name"], device["task"])
        traces.append(found.accepts)
        torch.set_num_threads(1)  # as in a device's process
        times = drafting_times(drafter, prompt, SamplingParams(), 4, 5, time.perf_counter)
        torch.set_num_threads(threads)
        seconds.append(statistics.median(times))
    return traces, seconds, [len(prompt) for prompt in prompts]


def as_in(run):
    """Verification latency as that run's edge met it, fitted by plain least squares, so that its mean is right."""
    from scipy.optimize import nnls

    from multispin.control import Verification

    alone = [entry for entry in run["round_log"] if entry["drafted"] and not entry["prompt_tokens"]]
    design = [[1.0, len(e["drafted"]), sum(e["drafted"].values()) + len(e["drafted"])] for e in alone]
    found, _ = nnls(design, [entry["verify_s"] for entry in alone])
    return Verification(*map(float, found))


def apart(run, fit):
    """Where the time of a real round goes that the simulator does not know of: seconds per round, by cause.

    Verification is held against the fit. What is left of a round (drafts, uplink, planning, processes waiting for each
    other) is held against what the controller planned for it; a device's first round and the others are told apart.
    """
    causes = dict.fromkeys(("verification", "of it with prompts", "first drafts", "other drafts"), 0.0)
    seen, before, count = set(), None, 0
    for entry in run["round_log"]:
        drafted, planned_s = entry["drafted"], entry["planned_round_s"]
        if drafted and before is not None and planned_s is not None:
            count += 1
            tokens = sum(drafted.values()) + len(drafted) + entry["prompt_tokens"]
            longer_s = entry["verify_s"] - fit.predict(len(drafted), tokens)
            causes["verification"] += longer_s
            if entry["prompt_tokens"]:
                causes["of it with prompts"] += longer_s
            own_s = fit.predict(len(drafted), sum(drafted.values()) + len(drafted))
            rest_s = entry["time_s"] - before - entry["verify_s"] - (planned_s - own_s)
            causes["first drafts" if set(drafted) - seen else "other drafts"] += rest_s
        seen |= set(drafted)
        before = entry["time_s"]
    return {cause: seconds / max(1, count) for cause, seconds in causes.items()}


def setup(folder, devices, fit, traces, drafting_s, prompt_tokens):
    """The scenario file that the simulator reads, as a user would write it.

    A device of the demo takes as long for a token as its kind is meant to, or as its drafter really needs if that is
    more.
    """
    from multispin.cli.demo import CLASSES
    from multispin.simulation.setup import ScenarioFile

    speeds = {kind: (seconds, efficiency) for kind, *_, seconds, efficiency in CLASSES}
    lines = [
        "[cell]\nbandwidth_hz = 20e3\nbits_per_token = 16\nmax_draft_length = 16\nmin_draft_length = 0",
        f"[verifier]\nfixed_s = {fit.fixed_s}\nper_device_s = {fit.per_device_s}\nper_token_s = {fit.per_token_s}",
        f"[simulation]\nframe_bits = {8 * FRAME_BYTES}\ntexts = 1\n"
        f"prompt_tokens = {round(statistics.mean(prompt_tokens))}",
    ]
    for device, accepts, real_s in zip(devices, traces, drafting_s, strict=True):
        name = device["name"]
        document = {
            "format": "multispin-trace-1",
            "target": "embedded",
            "drafter": device["drafter"],
            "temperature": 0.0,
            "traces": [{"prompt": name, "task": device["task"], "accepts": accepts}],
        }
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        seconds, efficiency = speeds[name.rsplit("-", 1)[0]]
        lines.append(
            f'[[device]]\nname = "{name}"\nseconds_per_token = {max(seconds, real_s)}\n'
            f'spectral_efficiency = {efficiency}\nacceptance_trace = "{name}.json"'
        )
    path = folder / "twin.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ScenarioFile(path).setup({})


def predicted(what, policy):
    """Goodput between the first grants and the last verdicts, accepted fraction, rounds and mean round [s]."""
    from multispin.simulation.site import Site

    site = Site(what, policy, 1)
    site.run(10_000)
    records = [device.record for device in site.devices]
    first_s = min(record.times_s[0] - record.gaps_s[0] for record in records)
    began_s = min(record.times_s[0] for record in records)
    last_s = max(record.times_s[-1] for record in records)
    return {
        "goodput": sum(record.tokens for record in records) / (last_s - first_s),
        "fraction": sum(r.accepted for r in records) / max(1, sum(r.accepted + r.rejected for r in records)),
        "rounds": site.rounds,
        "round_s": (last_s - began_s) / max(1, site.rounds - 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default="heterogeneous,homogeneous,fixed")
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    policies = options.policies.split(",")
    here = Here(os.cpu_count() or 1)
    from multispin.profiling import fit_latency  # not earlier: it loads torch, before which threads are set

    runs, fits = {}, {}
    for policy in policies:
        # The speed of a shared machine drifts by half within minutes: it is measured before and after each demo.
        points = here.latencies()
        runs[policy] = demo(policy, options.tokens)
        fits[policy] = fit_latency(points + here.latencies())
    devices = runs[policies[0]]["devices"]
    traces, drafting_s, prompt_tokens = drafting(here.target, devices, options.tokens)
    print("drafting alone, one thread [ms/token]: ", end="")
    print(", ".join(f"{d['name']} {1e3 * s:.0f}" for d, s in zip(devices, drafting_s, strict=True)) + "\n")
    causes = {}
    print("| policy | | goodput [tokens/s] | error | accepted of drafted | rounds | mean round [ms] |")
    print("|---|---|---|---|---|---|---|")
    for policy in policies:
        run, fit = runs[policy], fits[policy]
        tokens, accepted, drafted = (sum(d[key] for d in run["devices"]) for key in ("tokens", "accepted", "drafted"))
        goodput = run["goodput_tokens_per_s"]
        round_s = tokens / goodput / run["rounds"]
        print(
            f"| {policy} | measured | {goodput:.1f} | | {accepted / max(1, drafted):.2f} | {run['rounds']} | "
            f"{1e3 * round_s:.0f} |"
        )
        for label, model in (("profile", fit), ("run", as_in(run))):
            with tempfile.TemporaryDirectory() as folder:
                twin = predicted(setup(Path(folder), devices, model, traces, drafting_s, prompt_tokens), policy)
            print(
                f"| | simulated, verification as in the {label} | {twin['goodput']:.1f} | "
                f"{twin['goodput'] / goodput - 1:+.1%} | {twin['fraction']:.2f} | {twin['rounds']} | "
                f"{1e3 * twin['round_s']:.0f} |",
                flush=True,
            )
        causes[policy] = apart(run, fit)
    print("\nmilliseconds per round that the simulator does not know of:\n")
    print(f"| policy | {' | '.join(next(iter(causes.values())))} |\n|{'---|' * 5}")
    for policy, found in causes.items():
        print(f"| {policy} | {' | '.join(f'{1e3 * seconds:+.0f}' for seconds in found.values())} |")


if __name__ == "__main__":
    main()
