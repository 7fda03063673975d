"""The twin: what the simulator makes of the demo's site, beside what the demo itself measured.

    python benchmarks/bench_twin.py [--site a100-7b] [--mode rounds --mode streams] [--repeats 3] [--tokens 96]
    python benchmarks/bench_twin.py --run demo.json            # a run of `multispin demo --json` that was kept

1. Plays a site with `multispin demo --json`: real models, sockets and decisions; the times are the site's.
2. Follows, as `multispin profile` does, the target's own text of each device's prompt: which tokens its drafter gets
   right, and which share of them the edge's own drafter does.
3. Lets the simulator play the same site as many times slower as the demo played it: these recordings, one text for
   each device, a controller that learns from nothing (so what it assumes at first is as far off as it was there), and
   frames with their fixed bits.
4. Prints both in Markdown. Tokens per second are counted as the demo counts them: for each user from when all prompts
   have been read to its last token, then added up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

FRAME_BITS = 176
"""Of a draft beside its ids: WebSocket header and mask, MessagePack array and counters (docs/protocol.md)."""
MODES = ("plain", "edge", "rounds", "streams")


def demo(site, modes, tokens):
    """One run of the demo, as it prints itself."""
    command = [sys.executable, "-m", "multispin", "demo", "--json", "--site", site, "--policy", "heterogeneous"]
    command += ["--max-tokens", str(tokens), *(part for mode in modes for part in ("--mode", mode))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def recordings(run, edge_drafter):
    """By device: which tokens of the target's own text its drafter gets right; and the length of its prompt [tokens]
    and the share of the text that the edge's drafter gets right."""
    from multispin.models import decode_together, load_drafter, load_tokenizer, load_verifier
    from multispin.profiling import follow
    from multispin.speculation import SamplingParams

    tokenizer = load_tokenizer(run["target"])
    target, drafters, found = load_verifier(run["target"], 1, 1024), {}, {}
    for device in run["devices"]:
        prompt = tokenizer.encode_chat(device["prompt"])
        asked = [(prompt, SamplingParams())]
        (text,), _ = decode_together(target, asked, device["tokens"], tokenizer.stop_ids, time.perf_counter)
        accepts = []
        for name in (device["drafter"], edge_drafter):
            if name not in drafters:
                drafters[name] = load_drafter(name, run["target"], 1024)[0]
            about = (device["name"], device["task"])
            accepts.append(follow(drafters[name], target, prompt + text, len(prompt), SamplingParams(), *about).trace)
        rate = accepts[1].accepts.count("1") / max(1, len(accepts[1].accepts))
        found[device["name"]] = accepts[0], len(prompt), rate
    return found


def played(scenario, slower):
    """The site as many times slower as it was played."""
    engine, drafter, cell = scenario.verifier, scenario.edge_drafter, scenario.cell
    if drafter is not None:
        drafter = replace(drafter, fixed_s=slower * drafter.fixed_s, per_device_s=slower * drafter.per_device_s)
    return replace(
        scenario,
        cell=replace(cell, bandwidth_hz=cell.bandwidth_hz / slower),
        verifier=replace(
            engine,
            fixed_s=slower * engine.fixed_s,
            per_device_s=slower * engine.per_device_s,
            per_token_s=slower * engine.per_token_s,
        ),
        edge_drafter=drafter,
        devices=tuple(
            replace(each, seconds_per_token=slower * each.seconds_per_token, delay_s=slower * each.delay_s)
            for each in scenario.devices
        ),
    )


def setup(site, run, recorded):
    """The site with these recordings, as it was played."""
    from multispin.demo.site import PROMPT_TOKENS, read_site
    from multispin.estimation.traces import Traces
    from multispin.passes import Limits
    from multispin.simulation.setup import Behaviour, DeviceLife, Setup

    scenario = played(read_site(site), run["slower"])
    devices, lives = [], []
    for device in scenario.devices:
        trace, _, rate = recorded[device.name]
        edge_rate = min(0.999, max(0.001, rate))
        devices.append(replace(device, edge_acceptance_rate=edge_rate))
        drafter = next(each["drafter"] for each in run["devices"] if each["name"] == device.name)
        lives.append(DeviceLife(traces=Traces(run["target"], drafter, 0.0, (trace,))))
    prompt = round(statistics.mean(length for _, length, _ in recorded.values()))
    behaviour = Behaviour(  # a played site reads all prompts together
        prompt_tokens=prompt,
        texts=1,
        frame_bits=FRAME_BITS,
        prefill_tokens_per_round=PROMPT_TOKENS,
        prefill_share=100.0,
        deadline_slack_s=run["slower"] * Limits.deadline_slack_s,
    )
    return Setup(replace(scenario, devices=tuple(devices)), behaviour, tuple(lives))


def simulated(what, mode, seed):
    """Tokens per second, by the demo's count, of the site as it was played."""
    from multispin.simulation.site import Site

    site = Site(what, "heterogeneous", seed, mode=mode)
    granted_s = {}
    while site.queue.step():
        if mode == "rounds":
            for device in site.devices:
                if device.record.drafted and device.truth.name not in granted_s:
                    granted_s[device.truth.name] = site.queue.now_s
    records = [(granted_s.get(d.truth.name, d.record.times_s[0]), d.record) for d in site.devices]
    together_s = max(start_s for start_s, _ in records)  # all prompts have been read
    total = 0.0
    for start_s, record in records:
        since_s = together_s if record.times_s[-1] > together_s else start_s
        verdicts = zip(record.times_s, record.counts, strict=True)
        total += sum(count for at_s, count in verdicts if at_s > since_s) / (record.times_s[-1] - since_s)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", default="a100-7b")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: all")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3, help="runs of the demo")
    parser.add_argument("--seeds", type=int, default=8, help="simulations of each mode; the edge's drafter is drawn")
    parser.add_argument("--run", action="append", help="take this run of the demo, do not make one")
    options = parser.parse_args()
    runs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in options.run or []]
    runs = runs or [demo(options.site, options.mode or MODES, options.tokens) for _ in range(options.repeats)]
    from multispin.cli.demo import EDGE_DRAFTER

    what = setup(options.site, runs[0], recordings(runs[0], EDGE_DRAFTER))
    measured = {}
    for run in runs:
        for play in run["comparison"]:
            if play["mode"] in MODES and play["policy"] in (None, "heterogeneous"):
                measured.setdefault(play["mode"], []).append((play["goodput_tokens_per_s"], play["late_passes"]))
    slower = ", ".join(f"{run['slower']:g}" for run in runs)
    print(f"{options.site}, {len(runs)} run(s), played {slower} times slower\n")
    print("| who drafts | measured [tokens/s] | simulated [tokens/s] | error | late passes |\n|---|---|---|---|---|")
    means = {}
    for mode, found in measured.items():
        real = [goodput for goodput, _ in found]
        twin = [runs[0]["slower"] * simulated(what, mode, seed) for seed in range(options.seeds)]
        means[mode] = statistics.mean(real), statistics.mean(twin)
        error = means[mode][1] / means[mode][0] - 1.0
        shown = f"{means[mode][0]:.1f}" + (f" ({min(real):.1f} … {max(real):.1f})" if len(real) > 1 else "")
        late = statistics.mean(late for _, late in found)
        print(f"| {mode} | {shown} | {means[mode][1]:.1f} | {error:+.1%} | {late:.0%} |", flush=True)
    if {"rounds", "streams"} <= set(means):
        real, twin = (means["streams"][k] / means["rounds"][k] for k in (0, 1))
        print(f"\nstreams over rounds: {real:.2f} measured, {twin:.2f} simulated")


if __name__ == "__main__":
    main()
