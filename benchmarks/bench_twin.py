"""The twin: what the simulator says of the demo before it runs, beside what the demo then does.

    python benchmarks/bench_twin.py [--policies heterogeneous,homogeneous,fixed]

1. Runs `multispin demo --json` under each policy; before and after each it profiles the machine in the rhythm of
   rounds: every drafter in a process of its own, all drafting at once, then the target, then the drafters again.
2. Follows, as `multispin profile` does, the target's own text of the very prompt that the demo gives each device.
3. Times rounds in which models and links take no time: real edge, real sockets, planning, four clients.
4. Lets the simulator play the same four devices: speed and link as in the demo, frames with their fixed bits, one text
   each, a controller that learns from nothing, rounds longer by what 3. found.
5. Prints both side by side, in Markdown, and by cause how much longer real rounds took than the simulator believes.

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
    command = [sys.executable, "-m", "multispin", "demo", "--json", "--policy", policy, "--max-tokens", str(tokens)]
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
    # A first demo, of a few tokens, tells who the devices are, and converts the target if that was never done.
    devices = demo(policies[0], 2)["devices"]
    here = Machine(devices, os.cpu_count() or 1)
    from multispin.profiling import fit_latency  # not earlier: it loads torch, before which threads are set

    runs, fits, speeds = {}, {}, {}
    for policy in policies:
        # The speed of a shared machine drifts by half within minutes: it is measured before and after each demo.
        points, before = here.profile()
        runs[policy] = demo(policy, options.tokens)
        more, after = here.profile()
        fits[policy] = fit_latency(points + more)
        speeds[policy] = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    here.leave()
    traces, prompt_tokens = here.traces(devices, options.tokens), [len(prompt) for prompt in here.prompts]
    extra_s = {policy: overhead_s(len(devices), policy) for policy in policies}
    print("a round without models and links [ms]:", {p: round(1e3 * s, 1) for p, s in extra_s.items()}, "\n")
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
        seen, reported = as_in(run)
        found = [reported[device["name"]] for device in devices]
        for label, model, drafting_s in (("profile", fit, speeds[policy]), ("run", seen, found)):
            with tempfile.TemporaryDirectory() as folder:
                what = setup(Path(folder), devices, model, traces, drafting_s, prompt_tokens, extra_s[policy])
                twin = predicted(what, policy)
            print(
                f"| | simulated, speeds of the {label} | {twin['goodput']:.1f} | "
                f"{twin['goodput'] / goodput - 1:+.1%} | {twin['fraction']:.2f} | {twin['rounds']} | "
                f"{1e3 * twin['round_s']:.0f} |",
                flush=True,
            )
        causes[policy] = apart(run, fit)
        for label, drafting_s in (("profile", speeds[policy]), ("run", found)):
            print(f"drafting [ms/token], {policy}, {label}: ", end="", file=sys.stderr)
            print([round(1e3 * seconds) for seconds in drafting_s], file=sys.stderr)
    print("\nmilliseconds per round that the simulator does not know of:\n")
    print(f"| policy | {' | '.join(next(iter(causes.values())))} |\n|{'---|' * 5}")
    for policy, found in causes.items():
        print(f"| {policy} | {' | '.join(f'{1e3 * seconds:+.0f}' for seconds in found.values())} |")


if __name__ == "__main__":
    main()
