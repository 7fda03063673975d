"""Everything that needs a GPU, in one run of at most eight minutes, and one report with the card's name.

Usage: python benchmarks/gpu.py [--out build/gpu] [--on cuda:0] [--steps table,distill,…] [--tiny] [--seconds 480]

Steps, in this order: table (`verify` in the shapes of a 7B and an 8B model, random weights: uniform, ragged, greedy,
coupled, top-k and top-p), tests (those that a CPU skips), commands (profile, serve and devices under every rule,
demo, distill), hybrid (a 27B model with recurrent layers), distill (how fast a target writes, an edge drafter drafts),
rules (a pass under each rejection rule), alone (are texts in bfloat16 those of the target alone?), vllm (where it is
installed). Each step is a process of its own, so that one failure loses nothing else.
Nothing is fetched. `--tiny --on cpu` tries the script itself; its times say nothing.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = {
    "table": 120,
    "tests": 110,
    "commands": 160,
    "hybrid": 110,
    "distill": 50,
    "rules": 60,
    "alone": 60,
    "vllm": 120,
}
"""Seconds that each step may take, in the order in which they run."""
SAMPLED = {
    "greedy": {},
    "coupled": {"temperature": 0.8, "seed": 5},
    "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 5},
    "top-p": {"temperature": 0.8, "top_p": 0.9, "seed": 5},
}
CONTEXT = 256


def say(**facts):
    print(json.dumps(facts), flush=True)


def shape(name, tiny):
    """A configuration in the shape of a known model."""
    from transformers import LlamaConfig, Qwen3_5TextConfig

    if name == "27B hybrid":
        sizes = {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64, "vocab_size": 248320}
        heads = {"num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "linear_num_key_heads": 16}
        heads |= {"linear_num_value_heads": 48, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
        if tiny:
            sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 300}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2}
            heads |= {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
        layers = [
            "full_attention" if index % 4 == 3 else "linear_attention" for index in range(sizes["num_hidden_layers"])
        ]
        return Qwen3_5TextConfig(**sizes, **heads, layer_types=layers, max_position_embeddings=4096)
    sizes = {
        "7B": {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000},
        "8B": {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256},
        "135M": {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "hidden_size": 576},
    }[name]
    if name == "135M":
        sizes |= {"num_hidden_layers": 30, "num_attention_heads": 9, "tie_word_embeddings": True}
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, **sizes}
    if tiny:
        sizes |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 96, "vocab_size": 300}
    return LlamaConfig(**sizes, max_position_embeddings=4096)


def random_model(config, options):
    """A model of this shape with random weights, made where it computes."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(options.on):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.to(options.on).eval()


def wait(options):
    import torch

    if options.on != "cpu":
        torch.cuda.synchronize()


def median_ms(options, function, repeats=12, warm=3):
    times = []
    for turn in range(repeats + warm):
        wait(options)
        began = time.perf_counter()
        function()
        wait(options)
        if turn >= warm:
            times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times), 3)


def a_verifier(config, slots, length, options, warm=True):
    from multispin.models import PackedModel, Verifier

    began = time.perf_counter()
    model = random_model(config, options)
    bytes_ = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    verifier = Verifier(PackedModel.of(model, own=True), slots, length, static=True)
    built = time.perf_counter() - began
    if warm:
        verifier.warm_up()
    say(
        what="built",
        gib=round(bytes_ / 2**30, 2),
        built_s=round(built, 1),
        warm_up_s=round(time.perf_counter() - began - built, 1),
    )
    return verifier


def floor_ms(options, bytes_):
    """The time of reading so many bytes once."""
    import torch

    part = torch.empty(bytes_ // 2, dtype=torch.bfloat16, device=options.on)
    return median_ms(options, part.amax)


def fed(verifier, count, context):
    from multispin.speculation import Feed

    slots = [verifier.open() for _ in range(count)]
    for slot in slots:
        verifier.verify([Feed(slot, 0, [(7 * slot + place) % 250 for place in range(context)], None)])
    return slots


def turn(verifier, slots, sizes, context, **params):
    from multispin.speculation import Feed, SamplingParams

    asked = SamplingParams(**params)
    feeds = [
        Feed(slot, context, [(11 * slot + place) % 250 for place in range(size)], asked)
        for slot, size in zip(slots, sizes, strict=False)
    ]
    return lambda: verifier.verify(feeds)


def table(options):
    import torch

    mixes = {
        "1 x 1": [1],
        "20 x 1": [1] * 20,
        "8 x 5": [5] * 8,
        "20 x 9": [9] * 20,
        "ragged 20 (1 ... 16)": [1 + (7 * index) % 16 for index in range(20)],
        "17, 1, 1, 1": [17, 1, 1, 1],
    }
    for name in ("7B", "8B"):
        config = shape(name, options.tiny)
        verifier = a_verifier(config, 20, 1024, options)
        slots = fed(verifier, 20, CONTEXT)
        weights = sum(parameter.numel() * 2 for parameter in verifier.packed.model.parameters())
        say(what="floor", model=name, reading_weights_ms=floor_ms(options, weights))
        for mix, sizes in mixes.items():
            ms = {
                kind: median_ms(options, turn(verifier, slots, sizes, CONTEXT, **params))
                for kind, params in SAMPLED.items()
            }
            say(
                what="verify",
                model=name,
                mix=mix,
                tokens=sum(sizes),
                **{f"{kind} [ms]": value for kind, value in ms.items()},
            )
        with_chunk = mixed_in(verifier, slots)
        say(
            what="verify",
            model=name,
            mix="19 x 5 and 64 of a prompt",
            tokens=159,
            **{"greedy [ms]": median_ms(options, with_chunk)},
        )
        if name == "7B" and options.on != "cpu":
            for kind in ("greedy", "top-k, top-p"):
                run = turn(verifier, slots, [9] * 20, CONTEXT, **SAMPLED[kind])
                traced(run, model=name, mix="20 x 9", kind=kind)
        say(
            what="memory",
            model=name,
            gib=round(torch.cuda.max_memory_allocated() / 2**30, 1) if options.on != "cpu" else 0,
        )
        verifier = slots = with_chunk = run = None
        if options.on != "cpu":
            import gc

            gc.collect()
            torch.cuda.empty_cache()


def rules(options):
    """A pass of 20 x 9 of the 7B shape under each rejection rule."""
    import numpy as np

    from multispin.speculation import DistributionFormat, Evidence, Feed, Rule, SamplingParams, TruncatedDistribution

    verifier = a_verifier(shape("7B", options.tiny), 20, 512, options, warm=False)
    slots = fed(verifier, 20, CONTEXT)
    form = DistributionFormat(verifier.vocabulary_size, min(1024, verifier.vocabulary_size), 16)
    weights = np.full(form.retained, form.total // form.retained)
    weights[0] += form.total - weights.sum()
    distribution = TruncatedDistribution(np.arange(form.retained), weights, form)
    for rule in (Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        given = {"distributions": (distribution,) * 8} if rule is Rule.REJECTION else {"weights": (60,) * 8}
        evidence = Evidence(rule, form, **given)
        feeds = [Feed(slot, CONTEXT, list(range(9)), SamplingParams(0.8, seed=slot), evidence) for slot in slots]
        ms = median_ms(options, lambda feeds=feeds: verifier.verify(feeds), 5)
        say(what="verify", model="7B", mix="20 x 9", rule=rule.value, ms=ms)
        if options.on != "cpu":
            traced(lambda feeds=feeds: verifier.verify(feeds), most=8, model="7B", mix="20 x 9", rule=rule.value)


def mixed_in(verifier, slots):
    from multispin.speculation import Feed, SamplingParams

    feeds = [Feed(slot, CONTEXT, [1, 2, 3, 4, 5], SamplingParams()) for slot in slots[1:]]
    feeds.append(Feed(slots[0], CONTEXT - 64, list(range(64)), None))
    return lambda: verifier.verify(feeds)


def traced(run, most=12, **facts):
    """Which kernels a pass spends its time in."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    events = [event for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: -event.self_device_time_total)
    busy_ms = sum(event.self_device_time_total for event in events) / 1e3
    say(what="profile", **facts, kernels=sum(event.count for event in events), busy_ms=round(busy_ms, 3))
    for event in events[:most]:
        ms = round(event.self_device_time_total / 1e3, 3)
        say(what="kernel", **facts, name=event.key[:90], count=event.count, ms=ms)


def alone(options):
    """Whether texts in bfloat16, written in shared passes with drafts of all lengths, are those written alone."""
    import random

    from multispin.speculation import Feed, SamplingParams

    config = shape("7B", options.tiny)
    config.num_hidden_layers = min(config.num_hidden_layers, 16)
    verifier = a_verifier(config, 8, 256, options)
    prompts = [[(13 * text + 3 * place) % 250 for place in range(20 + text)] for text in range(8)]
    count = 8 if options.tiny else 32

    def write(texts, params, drafts):
        """Write texts in shared passes; every text begins with the same prompt pass of its own."""
        rng, slots = random.Random(5), {text: verifier.open() for text in texts}
        done = {text: list(prompts[text]) for text in texts}
        for text, slot in slots.items():
            verifier.verify([Feed(slot, 0, prompts[text][:-1], None)])
        while going := [text for text in texts if len(done[text]) < len(prompts[text]) + count]:
            feeds = []
            for text in going:
                guess = [rng.randrange(250) for _ in range(rng.randint(0, 8) if drafts else 0)]
                feeds.append(Feed(slots[text], len(done[text]) - 1, [done[text][-1], *guess], params))
            for text, feed, found in zip(going, feeds, verifier.verify(feeds), strict=True):
                done[text] += [*feed.tokens[1 : found.accepted + 1], found.next_token]
                verifier.commit(slots[text], len(done[text]) - 1)
        for slot in slots.values():
            verifier.close(slot)
        return [done[text][len(prompts[text]) : len(prompts[text]) + count] for text in texts]

    sizes = verifier._static._tokens
    for name, tokens in (("sizes as needed", sizes), ("always 96 tokens", (96,))):
        verifier._static._tokens = tokens
        for kind in ("greedy", "coupled"):
            params = SamplingParams(**SAMPLED[kind])
            together = write(range(8), params, drafts=True)
            apart = [write([text], params, drafts=False)[0] for text in range(8)]
            equal = sum(a == b for a, b in zip(together, apart, strict=True))
            say(
                what="bfloat16 texts equal to the target alone", shapes=name, kind=kind, equal=equal, of=8, tokens=count
            )
    slots = fed(verifier, 8, 64)
    for tokens in (8, 96):
        verifier._static._tokens = (tokens,)
        say(
            what="cost of one size",
            shapes=f"{tokens} tokens",
            mix="1 x 1",
            layers=config.num_hidden_layers,
            ms=median_ms(options, turn(verifier, slots, [1], 64)),
        )


def hybrid(options):
    import torch

    from multispin.models import static_recurrent
    from multispin.profiling.latency import fit_latency, measure_latency

    config = shape("27B hybrid", options.tiny)
    if options.on != "cpu" and torch.cuda.mem_get_info()[0] < 66 * 2**30:
        config.num_hidden_layers, config.layer_types = 32, config.layer_types[:32]
        say(what="hybrid", note="half of the layers: the card has less than 66 GiB free")
    verifier = a_verifier(config, 8, 384, options)
    points = measure_latency(
        verifier,
        [(k, length) for k in (1, 4, 8) for length in (0, 4, 8)],
        128,
        5,
        time.perf_counter,
        lambda *_: None,
        before=lambda: wait(options),
    )
    for point in points:
        say(
            what="verify hybrid",
            devices=point.devices,
            draft_length=point.draft_length,
            ms=round(1e3 * point.seconds, 2),
        )
    fit = fit_latency(points)
    say(
        what="fit hybrid",
        fixed_ms=round(1e3 * fit.fixed_s, 2),
        per_device_ms=round(1e3 * fit.per_device_s, 3),
        per_token_ms=round(1e3 * fit.per_token_s, 3),
        rms=round(fit.relative_rms, 3),
    )
    slots = fed(verifier, 8, 128)
    sizes = [1 + (5 * index) % 9 for index in range(8)]
    for kind in ("greedy", "coupled"):
        say(
            what="ragged hybrid",
            tokens=sum(sizes),
            kind=kind,
            ms=median_ms(options, turn(verifier, slots, sizes, 128, **SAMPLED[kind]), 7),
        )
    if options.on == "cpu":
        return
    ours = median_ms(options, turn(verifier, slots, [9] * 8, 128), 7)
    traced(turn(verifier, slots, [9] * 8, 128), model="27B hybrid", mix="8 x 9", kind="greedy")
    static_recurrent.kernel = lambda _device: None
    verifier._static._passes.clear()
    verifier._static._pool = None  # it ends with the last of its graphs
    plain = median_ms(options, turn(verifier, slots, [9] * 8, 128), 7)
    say(what="recurrent layers, 8 x 9", in_two_kernels_ms=ours, in_steps_of_pytorch_ms=plain)


def distill(options):
    """How fast a target in the shape of the embedded one writes a corpus."""
    from multispin.distillation.corpus import Writer
    from multispin.models import PackedModel

    class Letters:
        """A tokenizer without a chat template and without an end."""

        stop_ids = ()

        def encode_chat(self, text):
            return [3 + byte for byte in text.encode()][:60]

        def chat_frame(self):
            return None

    model = PackedModel.of(random_model(shape("135M", options.tiny), options), own=True)
    edge_drafts(options, model)
    writer = Writer(
        model, Letters(), 16 if options.tiny else 160, prompts=[f"Tell me about boat {k}." for k in range(64)]
    )
    for number in range(1 if options.tiny else 3):
        wait(options)
        began = time.perf_counter()
        made = writer.shard(0, number)
        wait(options)
        spent = time.perf_counter() - began
        say(
            what="written",
            shard=number,
            sequences=writer.sequences,
            tokens=made.generated,
            s=round(spent, 2),
            tokens_per_s=round(made.generated / spent),
        )


def edge_drafts(options, model):
    """How long an edge drafter of this shape takes for a token of each of 20 texts."""
    from multispin.models import ModelBatchDrafter
    from multispin.speculation import DraftAsk, SamplingParams

    drafter = ModelBatchDrafter(model, 20, 512)
    drafter.warm_up()
    texts = [(drafter.open(), [(3 * place + text) % 250 for place in range(100)]) for text in range(20)]
    drafter.prepare(texts)
    for kind in ("greedy", "coupled", "top-k, top-p"):
        asks = [DraftAsk(slot, text, 8, SamplingParams(**SAMPLED[kind])) for slot, text in texts]
        ms = median_ms(options, lambda asks=asks: drafter.draft(asks), 5) / 8
        say(what="edge drafter, 20 texts", kind=kind, ms_per_token_of_each=round(ms, 3))


def tests(options):
    """The tests that need a GPU: those that a CPU skips."""
    import importlib.util

    names = (
        "models/test_gated_delta models/test_static models/test_batch_drawing models/test_packed models/test_lossless"
    )
    names += " models/test_drafter"
    names += " models/test_batch_drafter speculation/test_rejection_at_once speculation/test_noise"
    names += " speculation/test_gumbel_max speculation/test_rules"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "100"]
    command += ["-k", "size" if options.tiny else "cuda"]
    if importlib.util.find_spec("xdist") is not None and not options.tiny:
        command += ["-n", "4"]
    command += [f"tests/{name}.py" for name in names.split()]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        for line in run.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith(("FAILED", "ERROR", "E  ")) or re.search(r"\d+ (passed|failed|error)", line):
                say(what="tests", line=line.strip()[:300])
        run.wait()
    if run.returncode:
        say(what="tests", exit_code=run.returncode)


def commands(options):
    """`profile`, `plan`, `serve` with devices under every rule, `demo`, `distill`: a tiny model, as processes."""
    import tempfile

    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory() as folder:
        import importlib.util

        found = importlib.util.spec_from_file_location("_conftest", ROOT / "tests/conftest.py")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        target = module.save_tiny_model(f"{folder}/tiny")
        there = ["--target", target, "--on", options.on]

        def run(name, *arguments, seconds=60):
            command, began = [sys.executable, "-m", "multispin", *arguments], time.perf_counter()
            most_s = 900 if options.tiny else seconds  # the script itself is tried on small and busy machines
            try:
                done = subprocess.run(command, text=True, capture_output=True, timeout=most_s, check=False)
                code, text = done.returncode, done.stderr or done.stdout
            except subprocess.TimeoutExpired as error:
                said = error.stderr or error.stdout or b""  # bytes, although text was asked for
                code, text = 124, f"{said.decode(errors='replace')}\nstopped after {most_s} s"
            say(what="command", name=name, exit_code=code, s=round(time.perf_counter() - began, 1))
            if code:
                say(what="error", name=name, text=text[-700:])

        small = ["--prompts", "1", "--tokens", "8", "--batches", "1,2,4", "--lengths", "0,2,4", "--context", "32"]
        site, prompts = f"{folder}/site.toml", Path(folder) / "prompts.txt"
        prompts.write_text("Tell me about boats\n" * 40)
        writing = ["--layers", "1", "--steps", "30", "--tokens", "3000", "--answer-tokens", "40", "--vocabulary", "100"]
        writing += ["--prompts", str(prompts), "--out", f"{folder}/drafter"]
        own = ["--devices", "2", "--draft", "q8", "--max-tokens", "8", "--json"]
        with ThreadPoolExecutor(6) as together:
            tries = [
                together.submit(
                    *(run, "profile", "profile", *there, "--dtype", "bfloat16", "--draft", "q8", *small),
                    *("--repeats", "2", "--out", site),
                    seconds=120,
                ),
                together.submit(run, "distill", "distill", *there, *writing, seconds=120),
                together.submit(run, "demo", "demo", *there, *own, seconds=120),
                *(
                    together.submit(served, run, folder, there, *options)
                    for options in (["float32"], ["bfloat16"], ["bfloat16", "--batch-invariant"])
                ),
            ]
        for each in tries:
            each.result()
        run("plan", "plan", site)


def served(run, folder, there, dtype, *more):
    """An edge with plain, edge and device drafting, and a device under each rule."""
    kind = ", ".join((dtype, *more))
    log = Path(folder) / f"serve-{dtype}{len(more)}.log"
    command = ["serve", *there, "--dtype", dtype, "--port", "0", "--json", "--max-length", "300", "--mode", "rounds"]
    command += more
    with (
        log.open("w") as out,
        subprocess.Popen([sys.executable, "-m", "multispin", *command], stdout=out, stderr=out) as edge,
    ):
        try:
            port, until = None, time.monotonic() + 90
            while port is None and edge.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                port = re.search(r'"port": ?(\d+)', log.read_text())
            if port is None:
                say(what="error", name=f"serve, {kind}", text=log.read_text()[-700:])
                return
            with ThreadPoolExecutor(5) as devices:
                for rule in ("greedy", "coupled", "rejection", "rejection-up", "rejection-down"):
                    temperature = "0" if rule == "greedy" else "0.8"
                    device = ["device", f"ws://127.0.0.1:{port[1]}", "--target", there[1], "--draft", "q8"]
                    device += ["--rule", rule, "--temperature", temperature, "--seed", "5", "--prompt", "hello"]
                    devices.submit(run, f"device, {kind}, {rule}", *device, "--max-tokens", "16", "--json")
        finally:
            edge.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                edge.wait(20)
            edge.kill()
    say(what="serve", kind=kind, tracebacks=log.read_text().count("Traceback"))


def vllm(_options):
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        say(what="vllm", note="not installed here, so not tried")
        return
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/vllm"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    say(what="vllm", exit_code=done.returncode, tail=done.stdout.strip().splitlines()[-3:])


def machine(options):
    """What computes here, in words."""
    import torch
    import transformers

    card = torch.cuda.get_device_name(options.on) if options.on != "cpu" else "no GPU"
    return {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}


def report(found):
    """The report as Markdown: facts of each step, as tables where they have the same keys."""
    parts = [
        f"# GPU report: {found['machine']['card']}",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        str(found["machine"]),
    ]
    for name, step in found["steps"].items():
        parts += ["", f"## {name}: {step['state']}, {step['s']} s", ""]
        keys = None
        for fact in step["facts"]:
            if list(fact) != keys:
                keys = list(fact)
                parts += ["", "| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
            parts.append(
                "| " + " | ".join(str(value).replace("\n", " ").replace("|", "/") for value in fact.values()) + " |"
            )
        if step["errors"]:
            parts += ["", "```", step["errors"][-1500:], "```"]
    return "\n".join(parts) + "\n"


def run_step(command, folder, name, seconds):
    """Run one step as a process; whatever it has started ends with it, so that the card is free for the next step."""
    began, state = time.monotonic(), "out of time"
    with (
        (folder / f"{name}.log").open("w") as errors,
        (folder / f"{name}.jsonl").open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True) as step,
    ):
        try:
            code = step.wait(seconds)
            state = "done" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(step.pid, signal.SIGKILL)
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return {
        "state": state,
        "s": round(time.monotonic() - began, 1),
        "facts": [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")],
        "errors": "" if state == "done" else (folder / f"{name}.log").read_text()[-3000:],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the report")
    parser.add_argument("--on", default="cuda:0", help="device of torch's")
    parser.add_argument("--steps", default=",".join(STEPS), help="which, comma-separated")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all steps together")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: try the script")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(ROOT / "src"))
    if options.step:
        globals()[options.step](options)
        return 0
    steps = options.steps.split(",")
    if unknown := [name for name in steps if name not in STEPS]:
        parser.error(f"--steps: {unknown[0]} is none of {', '.join(STEPS)}")
    import torch

    if options.on != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --tiny --on cpu tries the script itself")
    options.out.mkdir(parents=True, exist_ok=True)
    found, until = {"machine": machine(options), "steps": {}}, time.monotonic() + options.seconds
    print(found["machine"], flush=True)
    for name in steps:
        left = 3600.0 if options.tiny else min(STEPS[name], until - time.monotonic())
        if left < 5:
            found["steps"][name] = {"state": "not run, no time left", "s": 0, "facts": [], "errors": ""}
            continue
        command = [sys.executable, __file__, "--step", name, "--on", options.on, *(["--tiny"] if options.tiny else [])]
        step = found["steps"][name] = run_step(command, options.out, name, left)
        print(f"== {name}: {step['state']}, {step['s']} s", flush=True)
        for fact in step["facts"]:
            print(json.dumps(fact), flush=True)
        if step["errors"]:
            print(step["errors"][-2000:], flush=True)
    (options.out / "report.json").write_text(json.dumps(found, indent=1))
    (options.out / "report.md").write_text(report(found), encoding="utf-8")
    print(options.out / "report.md")
    failed = any(
        step["state"] not in ("done",) or any(fact.get("exit_code") for fact in step["facts"])
        for step in found["steps"].values()
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
