"""A real edge with its pages, and a browser that opens them.

What a page drafts, and how well, is tested with the embedded target. All else that it does takes no real model:
these tests have a tiny target, which needs a tenth of the processor.
"""

import asyncio
import json
import os
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from string import ascii_letters

from tests.web.chromium import Chromium
from tests.written_gguf import write_gguf

from multispin.control import Verification
from multispin.edge import Access, EdgeServer, listening, place_of
from multispin.edge.paced import PacedEngine
from multispin.gateway import guard
from multispin.models import PackedModel, Verifier, decode_alone, load_model, load_tokenizer
from multispin.models.gguf_copy import gguf_copy
from multispin.models.references import EMBEDDED
from multispin.models.token_table import token_table
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import SESSION_PATH
from multispin.protocol.events import Connected
from multispin.speculation import SamplingParams, bits_per_id
from multispin.web import DevicePage, PageDrafter

SECRET = "open sesame"

PASS_S = 1.0
"""A pass of an edge that streams takes at least so long [s]: a page on a busy machine drafts some tokens meanwhile."""
TINY_PASS_S = 0.1
"""A pass over the tiny target takes at least so long [s]: a text is still being written when a test looks at it."""


class Target:
    """A target and its page drafter, loaded once.

    Args:
        browsers: the browsers that open its pages.
        reference: the target, as `load_model` takes it.
        drafter: what the page drafts with.
        pass_s: time that a pass takes at least, by mode [s]; none where it is not named.

    """

    def __init__(self, browsers, reference, drafter, pass_s):
        self.browsers, self.run = browsers, browsers.run
        self.model, self.tokenizer = load_model(reference), load_tokenizer(reference)
        self.packed, self.table = PackedModel.of(self.model), token_table(self.tokenizer)
        self.drafter, self._pass_s = drafter, pass_s

    @classmethod
    def embedded(cls, browsers):
        """The embedded target and the shipped drafter."""
        # In streams the engine takes its time, so that the page's drafts are in time on any machine, however busy.
        return cls(browsers, EMBEDDED, PageDrafter("small", gguf_copy("small")), {"streams": PASS_S})

    @classmethod
    def tiny(cls, browsers, folder):
        """A target that writes random letters for ever, and a drafter that knows all of them."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder)
        letters = load_tokenizer(folder).encode(ascii_letters)
        others = [index for index in range(model.config.vocab_size) if index not in letters]
        with torch.no_grad():
            model.lm_head.weight[others] = 0  # the likeliest of many random letters is likelier than they are
        model.save_pretrained(folder)
        drafter = PageDrafter("tiny", Path(write_gguf(folder, Path(folder) / "drafter.gguf", "llama")))
        return cls(browsers, folder, drafter, dict.fromkeys(("rounds", "streams"), TINY_PASS_S))

    async def is_written_by(self, command, question, mode, folder=None):
        """Run a program that is the device `copies` of an edge: it drafts, and prints what the target alone writes."""
        async with self.edge(mode=mode) as edge:
            pipe, environment = asyncio.subprocess.PIPE, {**os.environ, "MULTISPIN_CREDENTIAL": SECRET}
            ran = await asyncio.create_subprocess_exec(
                *command, edge.address, question, cwd=folder, env=environment, stdout=pipe, stderr=pipe
            )
            said, errors = await asyncio.wait_for(ran.communicate(), 120)
            assert ran.returncode == 0, errors.decode()
            assert said.decode().strip() == self.tokenizer.decode(own_text(self, question, 64)).strip()
            assert [event.drafter for event in edge.events if isinstance(event, Connected)] == ["copies"]
            devices = [device for event in edge.events for device in getattr(event, "devices", ())]
            assert sum(device.drafted for device in devices) > 0

    @asynccontextmanager
    async def edge(self, slots=4, longest=4, mode="rounds", port=0, secret=SECRET, name="embedded", host="127.0.0.1"):
        """A real edge whose page drafts, for the length of a block."""
        verifier = Verifier(self.packed, slots, 512)
        settings = ControllerSettings("fixed", 1e6, bits_per_id(verifier.vocabulary_size), longest, mode=mode)
        limits = Limits(resume_grace_s=5.0)
        pass_s = self._pass_s.get(mode)
        engine = verifier if pass_s is None else PacedEngine(verifier, Verification(pass_s, 0.0, 0.0))
        controller = Controller(settings)
        controller.beliefs.leaves_out = False  # in rounds pages draft, whatever this machine finds worth waiting for
        passes = Passes(engine, controller, self.tokenizer.fingerprint, limits, seed=3)
        events = []
        access = Access(secret)
        application = EdgeServer(passes, events.append, access, come_back_s=0.5).application()
        page = DevicePage(name, self.tokenizer, self.table, verifier.max_length, self.drafter)
        page.add_routes(application, guard(access))
        async with listening(application, host, port) as port:
            yield Edge(host, port, passes, events, self.browsers)


@cache
def own_text(target, question, tokens, temperature=0.0):
    """The ids that the target writes alone, with the edge's first seed."""
    prompt = target.tokenizer.encode_chat(question)
    return decode_alone(target.model, prompt, SamplingParams(temperature), tokens, target.tokenizer.stop_ids)


class Edge:
    """An edge under test."""

    def __init__(self, host, port, passes, events, browsers):
        self.port, self.passes, self.events, self._browsers = port, passes, events, browsers
        self.address = f"http://{place_of(host, port)}"
        self.url = f"ws://{place_of(host, port)}{SESSION_PATH}"

    @asynccontextmanager
    async def browser(self, kind=Chromium):
        async with self._browsers.started(kind) as browser:
            yield Phones(browser, self)


class Phones:
    """Tabs of one browser that have joined an edge."""

    def __init__(self, browser, edge):
        self._browser, self._edge = browser, edge

    async def join(self, cores=2):
        """A tab whose drafter is ready, on a phone with so many processor cores."""
        page = await self.open(cores=cores)
        await ready(page)
        return page

    async def open(self, script="", cores=2):
        """A tab that has just joined; the script runs before the page's own."""
        page = await self._browser.page()
        await page.cores(cores)
        if script:
            await page.before(script)
        await page.open(f"{self._edge.address}/device#token={SECRET.replace(' ', '%20')}")
        return page


async def ready(page):
    """Wait until the page's drafter is loaded, and collect its answers from then on."""
    await page.until("/^(ready|this device cannot draft)/.test(document.getElementById('drafter-state').textContent)")
    state = await page.run("document.getElementById('drafter-state').textContent")
    assert state.startswith("ready"), state


async def ask(page, question, most=40, temperature=0.0, helping=True):
    """Send a message as a user does; the answer comes with `answered`."""
    await page.run(
        f"""
        window.answers ??= (document.addEventListener('answered', (event) => answers.push(event.detail)), []);
        document.getElementById('most').value = {most};
        document.getElementById('temperature').value = {temperature};
        document.getElementById('helping').checked = {json.dumps(helping)};
        document.getElementById('question').value = {json.dumps(question)};
        document.getElementById('ask').requestSubmit();
        """
    )


async def answered(page, number=1):
    """The page's newest answer, once there are so many."""
    await page.until(f"window.answers?.length >= {number}")
    return await page.run(f"answers[{number - 1}]")
