"""What a device pays for each drafter, in each library that can run it, and what it gets.

    OMP_NUM_THREADS=1 python benchmarks/bench_runtimes.py [--threads 1] [--prompts 12] [--turns 12] [--keep FILE]

One process holds all drafters and lets them draft in turns, so that other work on the machine hits all alike. Printed
are medians of processor time: ms per drafted token at temperature 0, how many times that of the library's own loop of
decode and argmax it is, and what the draw of `coupled` at temperature 1 adds. Each row's other numbers come from a
process of its own: acceptance along the target's own texts (the share of tokens that it would have drafted), resident
memory, processor time from the start of the process to its first draft, and the size of all that the device has
installed, compiled bytecode included and Python left out.

A name such as `small.f16` is a drafter that `multispin convert` has stored in other numbers; without such an ending a
distilled drafter is stored as q8_0.

The page drafts in a tab of headless Chromium, which has fetched its files before. Its memory is that of the tab's
process, its start begins where the page is opened, and what it has installed is what the browser has fetched.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests know how to drive a browser

ROWS = [(name, "torch") for name in ("small", "medium", "large", "q8", "embedded")]
ROWS += [(name, "llama.cpp") for name in ("small", "small.f16", "small.q4_0", "medium", "large", "q8", "embedded")]
ROWS += [("lookup", "numpy"), ("small", "page")]
EXTRAS = {"torch": "models", "llama.cpp": "llama", "numpy": "device"}
HEAD = (
    "| drafter | library | ms/token | of its own loop | coupled adds | accepted T=0 | T=1 | memory MB | start s | "
    "installed MB |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
FOLDER = "BENCH_RUNTIMES_FOLDER"
"""The variable of the environment that names the folder of these files."""
LENGTH, TEXT_TOKENS, MAX_LENGTH = 16, 48, 512
QUESTION = "Why is the sky blue?"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="JSON file: what was measured is kept there, and not measured again")
    parser.add_argument("--no-page", action="store_true", help="leave out the page, which needs Chromium")
    parser.add_argument("--row", nargs=3, metavar=("DRAFTER", "LIBRARY", "TEXTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(*options.row, options.threads)))
        return
    rows = [row for row in ROWS if row[1] != "page" or not options.no_page]
    from multispin.models.gguf_drafter import GgufOrder, write_gguf

    kept = Kept(options.keep)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for name, library in rows:
            if library == "llama.cpp" and (path := file_of(name)) != name:
                write_gguf(GgufOrder(name.partition(".")[0], Path(path), storage=name.partition(".")[2]))
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps(kept.once("texts", lambda: write_texts(options.prompts))))
        print(f"{options.threads} threads, {options.prompts} prompts\n\n" + "\n".join(HEAD), flush=True)
        times = kept.once("times", lambda: measure_times(rows, options.threads, options.turns))
        for name, library in rows:
            row = [sys.executable, __file__, "--threads", str(options.threads), "--row", name, library, str(texts)]
            found = kept.once(f"{name} {library}", lambda row=row: in_process(row))
            cells = times_cells(times[f"{name} {library}"])
            cells += [f"{rate:.3f}" for rate in found["accepted"]]
            installed = found["fetched"] if library == "page" else installed_mb(EXTRAS[library])
            cells += [f"{found['memory']:.0f}", f"{found['start']:.1f}", f"{installed:.0f}"]
            print(f"| {name} | {library} | {' | '.join(cells)} |", flush=True)


class Kept:
    """What has been measured, so that a run that was stopped goes on.

    Args:
        path: JSON file; None to keep nothing.

    """

    def __init__(self, path):
        self._path = path
        self._found = json.loads(path.read_text()) if path and path.is_file() else {}

    def once(self, name, measure):
        """The result of this name; measured if it is not there."""
        if name not in self._found:
            self._found[name] = measure()
            if self._path:
                self._path.write_text(json.dumps(self._found))
        return self._found[name]


def in_process(row):
    """A row's numbers, measured by a process of its own."""
    if row[-2] == "llama.cpp":  # its file is made and tried before, once
        subprocess.run([*row[:-1], ""], check=True, capture_output=True)
    return json.loads(subprocess.run(row, check=True, capture_output=True, text=True).stdout)


def times_cells(turns):
    """Milliseconds per token, times the own loop, and what the draw adds: medians over turns."""
    median = statistics.median
    own = [turn["greedy"] / turn["own"] for turn in turns if "own" in turn]
    adds = [turn["coupled"] / turn["greedy"] - 1.0 for turn in turns if turn["greedy"] > 1e-4]
    return [
        f"{1e3 * median(turn['greedy'] for turn in turns):.2f}",
        f"{median(own):.2f}" if own else "",
        f"{100 * median(adds):+.0f} %" if adds else "",
    ]


def write_texts(count):
    """(temperature, seed, prompt, the target's own text) of a few bundled prompts."""
    import torch

    from multispin.data import load_prompts
    from multispin.models import Verifier, decode_together, load_model, load_tokenizer
    from multispin.speculation import SamplingParams

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = load_tokenizer("embedded")
    prompts = [ids for each in load_prompts() if len(ids := tokenizer.encode_chat(each.text)) < 200]
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    asked = [(temperature, seed, ids) for temperature in (0.0, 1.0) for seed, ids in enumerate(chosen)]
    engine = Verifier(load_model("embedded"), len(asked), MAX_LENGTH)
    requests = [(ids, SamplingParams(temperature, seed=seed)) for temperature, seed, ids in asked]
    texts, _ = decode_together(engine, requests, TEXT_TOKENS, (), time.monotonic)
    return [(*each, text) for each, text in zip(asked, texts, strict=True)]


def file_of(name):
    """The file of a drafter that is stored in numbers of its own; of any other its name."""
    return str(Path(os.environ[FOLDER]) / f"{name}.gguf") if "." in name else name


def load(name, library, threads):
    """A drafter, and the ids of a prompt."""
    from multispin.models import load_draft_source, load_tokenizer

    name = file_of(name)
    if library == "page":
        return InChromium(name, threads), load_tokenizer("embedded").encode_chat(QUESTION)
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
    source = load_draft_source(name, "embedded", threads=threads, batched=library == "torch")
    return source.drafter(MAX_LENGTH), source.tokenizer.encode_chat(QUESTION)


def measure_times(rows, threads, turns):
    """For each row its turns: seconds per token, drafter by drafter."""
    from multispin.speculation import SamplingParams

    with contextlib.ExitStack() as stack:
        drafters = {row: load(*row, threads) for row in rows}
        for drafter, _ in drafters.values():
            if isinstance(drafter, InChromium):
                stack.callback(drafter.close)
        times = {row: [] for row in rows}
        for turn in range(turns + 1):
            for row, (drafter, prompt) in drafters.items():
                found = {}
                for kind, params in (("greedy", SamplingParams()), ("coupled", SamplingParams(1.0, seed=turn))):
                    drafter.prepare(prompt)
                    began = busy_s(drafter)
                    drafted = max(1, len(drafter.draft(prompt, LENGTH, params)))
                    found[kind] = (busy_s(drafter) - began) / drafted
                if row[1] == "page":
                    found["own"] = drafter.own_loop(prompt)
                elif row[1] == "llama.cpp":
                    found["own"] = own_loop(drafter, prompt)
                if turn:  # the first one is not counted
                    times[row].append(found)
    return {" ".join(row): turns for row, turns in times.items()}


def busy_s(drafter):
    """Processor time that has gone into a drafter so far, and into all else that its processes did [s]."""
    return drafter.busy_s() if isinstance(drafter, InChromium) else time.process_time()


def measure(name, library, texts, threads):
    """What takes a process of its own."""
    from multispin.speculation import SamplingParams

    drafter, prompt = load(name, library, threads)
    found, before = {}, 0.0
    if library == "page":  # it has fetched its files now, as it would have been opened once before
        found, before = {"fetched": drafter.fetched_mb()}, busy_s(drafter)
        drafter.open()
    drafter.draft(prompt, 1, SamplingParams())
    found["start"] = busy_s(drafter) - before
    if not texts:
        return found
    accepted = {0.0: [], 1.0: []}
    for temperature, seed, ids, text in json.loads(Path(texts).read_text()):
        guesses = drafted_along(drafter, ids, text, SamplingParams(temperature, seed=seed))
        accepted[temperature] += [guess == token for guess, token in zip(guesses, text, strict=True)]
    found["accepted"] = [statistics.mean(values) for values in accepted.values()]
    found["memory"] = drafter.memory_mb() if library == "page" else resident_mb("self")
    if library == "page":
        drafter.close()
    return found


def drafted_along(drafter, prompt, text, params):
    """What a drafter would draft after each beginning of a text: a token, or None."""
    from multispin.speculation import draw, shaped_after

    if hasattr(drafter, "logits_along"):  # all positions in one pass
        logits = drafter.logits_along([*prompt, *text], len(prompt), params)
        shaped, rest = shaped_after(logits, prompt, text[:-1], params)
        return [int(token) for token in draw(shaped, range(len(prompt), len(prompt) + len(text)), rest)]
    drafts = [drafter.draft([*prompt, *text[:place]], 1, params) for place in range(len(text))]
    return [draft[0] if draft else None for draft in drafts]


def resident_mb(process):
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+)", status)
    return int(resident[1]) / 1024 if resident else 0.0


class InChromium:
    """The drafter of the page in a tab of headless Chromium: a `Drafter` whose calls are calls in the browser.

    Args:
        name: of the shipped drafter.
        threads: of its WebAssembly; the page takes half of the processor's cores.

    """

    def __init__(self, name, threads):
        from tests.web.chromium import Chromium

        self._name, self._threads, self._kind = name, threads, Chromium
        self._runner, self._stack = asyncio.Runner(), contextlib.AsyncExitStack()
        self._page, self._fetched_bytes = None, 0
        self.open()

    def open(self):
        """Open the page, or open it anew, and load its drafter."""
        self._runner.run(self._open())

    async def _open(self):
        from aiohttp import web

        from multispin.edge import Access, listening
        from multispin.gateway import guard
        from multispin.models import load_tokenizer
        from multispin.models.gguf_copy import gguf_copy
        from multispin.models.token_table import token_table
        from multispin.web import DevicePage, PageDrafter

        if self._page is None:
            app, tokenizer = web.Application(), load_tokenizer("embedded")

            async def count(_, answer):
                self._fetched_bytes += answer.content_length or 0

            app.on_response_prepare.append(count)
            drafter = PageDrafter(self._name, gguf_copy(self._name))
            DevicePage("embedded", tokenizer, token_table(tokenizer), MAX_LENGTH, drafter).add_routes(
                app, guard(Access())
            )
            port = await self._stack.enter_async_context(listening(app, port=0))
            self._browser = await self._stack.enter_async_context(self._kind())
            # The page itself would load its drafter too: here is a document of the same edge with nothing in it.
            self._address = f"http://127.0.0.1:{port}/device/static/icon.svg"
            self._page = await self._browser.page()
            await self._page.cores(2 * self._threads)
        await self._page.open(self._address)
        await self._page.run(
            """(async () => {
              const client = await import("/device/client/index.js");
              const { Edge } = await import("/device/static/edge.js");
              const { WllamaDrafter } = await import("/device/static/drafter.js");
              const edge = new Edge("");
              const about = await edge.about();
              const table = client.TokenTable.unpack(await edge.tokens());
              const file = await edge.drafter(about.drafter, () => {});
              window.theDrafter = await WllamaDrafter.load(file, about.max_length, table);
            })()"""
        )

    def prepare(self, committed):
        self._call(f"theDrafter.prepare({list(committed)})")

    def draft(self, committed, length, params):
        given = {"temperature": params.temperature, "topK": params.top_k, "topP": params.top_p, "seed": params.seed}
        return self._call(f"theDrafter.draft({list(committed)}, {length}, {given}, new AbortController().signal)")

    def own_loop(self, prompt):
        """Seconds of processor per token of the library's own decode, one token each, and its most probable token."""
        self._call(
            f"""(async () => {{
              await theDrafter.rewind([-1]);
              await theDrafter.wllama.decode({list(prompt[:-1])}, {{ skipLogits: true }});
            }})()"""
        )
        began = self.busy_s()
        self._call(
            f"""(async () => {{
              const {{ wllama }} = theDrafter;
              let token = {prompt[-1]};
              for (let step = 0; step < {LENGTH}; step++) {{
                await wllama.decode([token], {{}});
                [{{ token }}] = await wllama.getLogits(1);
              }}
            }})()"""
        )
        busy = self.busy_s() - began
        self._call("theDrafter.wllama.kvClear()")
        return busy / LENGTH

    def busy_s(self):
        """Processor time of all threads of the browser so far [s]."""
        return 1e-9 * sum(
            int(task.read_text().split()[0])
            for process in self._family()
            for task in Path(f"/proc/{process}/task").glob("*/schedstat")
        )

    def fetched_mb(self):
        """What the page has fetched in all, its drafter included."""
        return self._fetched_bytes / 1e6

    def memory_mb(self):
        """Resident memory of the browser's largest process but its first: the one of the tab."""
        return max(resident_mb(each) for each in self._family() if each != str(self._browser._process.pid))

    def _family(self):
        """Numbers of the browser's processes."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                parents[status.parent.name] = re.search(r"PPid:\s+(\d+)", status.read_text())[1]
        family, grown = set(), {str(self._browser._process.pid)}
        while grown:
            family |= grown
            grown = {each for each, parent in parents.items() if parent in family} - family
        return family

    def close(self):
        """End the browser."""
        self._runner.run(self._stack.aclose())
        self._runner.close()

    def _call(self, script):
        return self._runner.run(self._page.run(script))


def own_loop(drafter, prompt):
    """Seconds of processor per token of the library's own decode, one token each, and the argmax in numpy."""
    context = drafter._context
    context.decode(0, prompt[:-1])
    token, place = prompt[-1], len(prompt) - 1
    native, batch = context._library, context._batch
    began = time.process_time()
    for _ in range(LENGTH):
        batch.n_tokens, batch.token[0], batch.pos[0], batch.logits[0] = 1, token, place, 1
        native.llama_decode(context._context, batch)
        row = native.llama_get_logits_ith(context._context, 0)
        token, place = max_of(row, context.vocabulary_size), place + 1
    context.cached[0].clear()
    return (time.process_time() - began) / LENGTH


def max_of(row, size):
    import numpy as np

    return int(np.ctypeslib.as_array(row, (size,)).argmax())


def installed_mb(extra):
    """Size of this package with an extra and all that they require, as installed here."""
    from packaging.requirements import Requirement

    own = Path(importlib.import_module("multispin").__file__).parent  # is not in the records of an editable install
    size = sum(file.stat().st_size for file in own.rglob("*") if file.is_file())
    seen, waiting = set(), [("multispin", extra), ("multispin", "")]
    while waiting:
        name, wanted = waiting.pop()
        if (name.lower(), wanted) in seen:
            continue
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name.lower() not in {each for each, _ in seen}:
            size += sum(file.locate().stat().st_size for file in found.files or () if file.locate().is_file())
        seen.add((name.lower(), wanted))
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                waiting += [(needed.name, each) for each in (needed.extras or {""})]
    return size / 1e6


if __name__ == "__main__":
    main()
