"""The twin: what the simulator says of the demo before it runs, beside what the demo then does.

    python benchmarks/bench_twin.py [--policies heterogeneous,homogeneous,fixed] [--repeats 3]

1. Runs `multispin demo --json` under each policy; before and after each it profiles the machine in the rhythm of
   rounds: every drafter in a process of its own, all drafting at once, then the target, then the drafters again.
2. Follows, as `multispin profile` does, the target's own text of the very prompt that the demo gives each device.
3. Times rounds in which models and links take no time: real edge, real sockets, planning, four clients.
4. Lets the simulator play the same four devices: speed and link as in the demo, frames with their fixed bits, one text
   each, a controller that learns from nothing, rounds longer by what 3. found.
5. Prints both side by side, in Markdown, with the spread of repeated runs, and by cause how much longer real rounds
   took than the simulator believes. Both clocks begin with the first grants and end with the last verdict.

The simulator plays each policy twice: with what was profiled, and with the speeds of the very run, which a profile
taken a minute before or after need not be.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FRAME_BYTES = 22
"""Of a draft beside its ids: WebSocket header and mask, MessagePack array and counters (docs/protocol.md)."""
BATCHES, LENGTHS = (1, 2, 3, 4), (0, 1, 2, 4)
DRAFTED = 2
"""Tokens of a draft while profiling, about as many as the demo's plans grant."""


def demo(policy, tokens):
    """One run of the demo, as it prints itself."""
    command = [sys.executable, "-m", "multispin", "demo", "--json", "--devices", "4", "--policy", policy]
    command += ["--max-tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def rehearse_device(spec, prompt, started, ended):
    """A device's process: drafts `DRAFTED` tokens whenever all are told to, and says how long a token took."""
    from multispin.cli.process import prepare

    prepare(1)  # as in a device's process
    from multispin.models import load_drafter
    from multispin.speculation import SamplingParams

    drafter, _ = load_drafter(spec, "embedded", 1024)
    drafter.draft(prompt, DRAFTED, SamplingParams())
    ended.send(0.0)
    while started.recv():
        began = time.perf_counter()
        drafted = drafter.draft(prompt, DRAFTED, SamplingParams())
        ended.send((time.perf_counter() - began) / max(1, len(drafted)))


class Machine:
    """What is measured on this machine in the rhythm of rounds, with target and drafters loaded once.

    Args:
        devices: of the demo, as it printed them.

    """

    def __init__(self, devices, threads):
        from multispin.cli.process import prepare

        prepare(threads)  # threads wait as those of `multispin serve` do
        from multispin.models import Verifier, load_model, load_tokenizer

        self.tokenizer = load_tokenizer("embedded")
        self.prompts = [self.tokenizer.encode_chat(device["prompt"]) for device in devices]
        self.target = Verifier(load_model("embedded"), 4, 1024)
        self._thread = ThreadPoolExecutor(1)  # the edge verifies on a thread of its own, too
        self._crew = []
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that start now
        context = multiprocessing.get_context("spawn")
        for device, prompt in zip(devices, self.prompts, strict=True):
            (far_start, start), (end, far_end) = context.Pipe(duplex=False), context.Pipe(duplex=False)
            process = context.Process(
                target=rehearse_device, args=(device["drafter"], prompt, far_start, far_end), daemon=True
            )
            process.start()
            self._crew.append((start, end))
        for _, end in self._crew:
            end.recv()

    def profile(self):
        """Points of the latency grid, and seconds per drafted token by device: medians over all rounds."""
        from multispin.profiling import measure_latency

        times = []

        def draft():
            for start, _ in self._crew:
                start.send(True)
            times.append([end.recv() for _, end in self._crew])

        grid = [(k, length) for k in BATCHES for length in LENGTHS]
        work = self._thread.submit(
            measure_latency, self.target, grid, 150, 5, time.perf_counter, lambda *_: None, before=draft
        )
        return work.result(), [statistics.median(of_device) for of_device in zip(*times, strict=True)]

    def leave(self):
        """End the devices' processes."""
        for start, _ in self._crew:
            start.send(False)

    def traces(self, devices, tokens):
        """By device: which tokens of the target's own text its drafter gets right."""
        from multispin.models import decode_together, load_drafter
        from multispin.profiling import follow
        from multispin.speculation import SamplingParams

        requests = [(prompt, SamplingParams()) for prompt in self.prompts]
        texts, _ = decode_together(self.target, requests, tokens, self.tokenizer.stop_ids, time.perf_counter)
        found = []
        for device, prompt, text in zip(devices, self.prompts, texts, strict=True):
            drafter, _ = load_drafter(device["drafter"], "embedded", 1024)
            whole = prompt + text
            found.append(
                follow(
                    *(drafter, self.target, whole, len(prompt), SamplingParams()), device["name"], device["task"]
                ).trace.accepts
            )
        return found


def overhead_s(devices, policy):
    """Median time of a round whose models and links take none: planning, messages, the event loop [s]."""
    import asyncio

    from aiohttp import web

    from multispin.device import DeviceClient, Emulation
    from multispin.edge import EdgeServer
    from multispin.passes import Controller, ControllerSettings, Passes
    from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
    from multispin.protocol.events import Round
    from multispin.simulation.device import FINGERPRINT
    from multispin.simulation.engine import SimulatedEngine
    from multispin.speculation import SamplingParams

    class Guesser:
        def prepare(self, committed):
            pass

        def draft(self, committed, length, params):
            return [len(committed) % 2] * length

    times = []

    async def rounds():
        settings = ControllerSettings(policy, 1e9, 16, frame_bits=8 * FRAME_BYTES)
        passes = Passes(SimulatedEngine(devices), Controller(settings), FINGERPRINT)
        server = EdgeServer(passes, lambda event: times.append(event.time_s) if isinstance(event, Round) else None)
        runner = web.AppRunner(server.application(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}{SESSION_PATH}"
        clients = [
            DeviceClient(
                url, Hello(PROTOCOL_VERSION, FINGERPRINT, f"d{k}", "g", True, Profile(0.01, 4.0)), Guesser(),
                Emulation(0.0, 4.0),
            )
            for k in range(devices)
        ]  # fmt: skip
        await asyncio.gather(*(client.generate(Request((0, 0), SamplingParams(), 200)) for client in clients))
        await runner.cleanup()

    asyncio.run(rounds())
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def as_in(run):
    """Verification as that run's edge met it, fitted by plain least squares so that its mean is right; and the seconds
    per drafted token that its devices reported, by name, as the controller last believed them."""
    from scipy.optimize import nnls

    from multispin.control import Verification

    alone = [entry for entry in run["round_log"] if entry["drafted"] and not entry["prompt_tokens"]]
    design = [[1.0, len(e["drafted"]), sum(e["drafted"].values()) + len(e["drafted"])] for e in alone]
    found, _ = nnls(design, [entry["verify_s"] for entry in alone])
    speeds = {}
    for entry in run["round_log"]:
        for name, seconds in entry["seconds_per_token"].items():
            speeds.setdefault(name, []).append(seconds)
    return Verification(*map(float, found)), {name: statistics.median(found) for name, found in speeds.items()}


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


def setup(folder, devices, fit, traces, drafting_s, prompt_tokens, extra_s):
    """The scenario file that the simulator reads, as a user would write it.

    A device of the demo takes as long for a token as its kind is meant to, or as its drafter really needs if that is
    more.
    """
    from multispin.demo.crew import CLASSES
    from multispin.estimation.traces import Trace, save_traces
    from multispin.simulation.setup import ScenarioFile

    speeds = {kind: (seconds, efficiency) for kind, *_, seconds, efficiency in CLASSES}
    lines = [
        "[cell]\nbandwidth_hz = 20e3\nbits_per_token = 16\nmax_draft_length = 16\nmin_draft_length = 0",
        f"[verifier]\nfixed_s = {fit.fixed_s}\nper_device_s = {fit.per_device_s}\nper_token_s = {fit.per_token_s}",
        f"[simulation]\nframe_bits = {8 * FRAME_BYTES}\ntexts = 1\nround_overhead_s = {extra_s}\n"
        f"prompt_tokens = {round(statistics.mean(prompt_tokens))}",
    ]
    for device, accepts, real_s in zip(devices, traces, drafting_s, strict=True):
        name = device["name"]
        texts = [Trace(name, device["task"], accepts)]
        save_traces(folder / f"{name}.json", "embedded", device["drafter"], 0.0, texts)
        seconds, efficiency = speeds[name.rsplit("-", 1)[0]]
        lines.append(
            f'[[device]]\nname = "{name}"\nseconds_per_token = {max(seconds, real_s)}\n'
            f'spectral_efficiency = {efficiency}\nacceptance_trace = "{name}.json"'
        )
    path = folder / "twin.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ScenarioFile(path).setup({})


def predicted(what, policy):
    """What the simulator says, by the demo's own clock: it begins with the first grants, at the edge, and ends with the
    last verdict. Goodput [tokens/s], accepted fraction, rounds and mean round [s]."""
    from multispin.simulation.site import Site

    site = Site(what, policy, 1)
    while not any(device.record.drafted for device in site.devices) and site.queue.step():
        pass
    first_s, before = site.queue.now_s, site.rounds
    site.run(10_000)
    records = [device.record for device in site.devices]
    tokens, last_s = sum(record.tokens for record in records), max(record.times_s[-1] for record in records)
    return {
        "goodput": tokens / (last_s - first_s),
        "fraction": sum(r.accepted for r in records) / max(1, sum(r.accepted + r.rejected for r in records)),
        "rounds": site.rounds - before,
        "round_s": (last_s - first_s) / (site.rounds - before),
    }


def measured(run):
    """The same of a run of the demo."""
    tokens, accepted, drafted = (sum(d[key] for d in run["devices"]) for key in ("tokens", "accepted", "drafted"))
    goodput = run["goodput_tokens_per_s"]
    return {
        "goodput": goodput,
        "fraction": accepted / max(1, drafted),
        "rounds": run["rounds"],
        "round_s": tokens / goodput / run["rounds"],
    }


def spread(values, form):
    """Mean of repeated values, with the least and the greatest."""
    low, mean, high = min(values), statistics.mean(values), max(values)
    return format(mean, form) if len(values) == 1 else f"{mean:{form}} ({low:{form}} … {high:{form}})"


def row(policy, label, found, real):
    """A line of the table: repeated runs, each with its error against the demo's run beside it."""
    errors = [twin["goodput"] / run["goodput"] - 1 for twin, run in zip(found, real, strict=True)]
    columns = (
        spread([each["goodput"] for each in found], ".1f"),
        "" if found is real else spread(errors, "+.1%"),
        spread([each["fraction"] for each in found], ".2f"),
        spread([each["rounds"] for each in found], ".0f"),
        spread([1e3 * each["round_s"] for each in found], ".0f"),
    )
    print(f"| {policy} | {label} | {' | '.join(columns)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", default="heterogeneous,homogeneous,fixed")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3, help="runs of the demo under each policy")
    options = parser.parse_args()
    policies = options.policies.split(",")
    # A first demo, of a few tokens, tells who the devices are, and converts the target if that was never done.
    devices = demo(policies[0], 2)["devices"]
    here = Machine(devices, os.cpu_count() or 1)
    from multispin.profiling import fit_latency  # not earlier: it loads torch, before which threads are set

    runs = {policy: [] for policy in policies}
    for _ in range(options.repeats):
        for policy in policies:  # in turn, so that what drifts hits all of them
            # The speed of a shared machine drifts by half within minutes: it is measured before and after each demo.
            points, before = here.profile()
            run = demo(policy, options.tokens)
            more, after = here.profile()
            runs[policy].append(
                (run, fit_latency(points + more), [(a + b) / 2 for a, b in zip(before, after, strict=True)])
            )
    here.leave()
    traces, prompt_tokens = here.traces(devices, options.tokens), [len(prompt) for prompt in here.prompts]
    extra_s = {policy: overhead_s(len(devices), policy) for policy in policies}
    print("a round without models and links [ms]:", {p: round(1e3 * s, 1) for p, s in extra_s.items()}, "\n")

    def twin(policy, model, drafting_s):
        with tempfile.TemporaryDirectory() as folder:
            what = setup(Path(folder), devices, model, traces, drafting_s, prompt_tokens, extra_s[policy])
            return predicted(what, policy)

    print(f"{options.repeats} runs under each policy: mean (least … greatest)\n")
    print("| policy | | goodput [tokens/s] | error | accepted of drafted¹ | rounds | mean round [ms] |")
    print("|---|---|---|---|---|---|---|")
    for policy in policies:
        real = [measured(run) for run, _, _ in runs[policy]]
        row(policy, "measured", real, real)
        row(
            "", "simulated, speeds of the profile", [twin(policy, fit, speeds) for _, fit, speeds in runs[policy]], real
        )
        own = []
        for run, _, _ in runs[policy]:
            seen, reported = as_in(run)
            own.append(twin(policy, seen, [reported[device["name"]] for device in devices]))
        row("", "simulated, speeds of the run", own, real)
    print("\n¹ no evidence: the simulator replays which of the very text's tokens each drafter gets right")
    print("\nmilliseconds per round that the simulator does not know of:\n")
    causes = {policy: [apart(run, fit) for run, fit, _ in found] for policy, found in runs.items()}
    print(f"| policy | {' | '.join(causes[policies[0]][0])} |\n|{'---|' * 5}")
    for policy, found in causes.items():
        columns = (spread([1e3 * each[cause] for each in found], "+.0f") for cause in found[0])
        print(f"| {policy} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
