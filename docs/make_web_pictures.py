"""Draw the pictures of docs/web.md: a real edge with the embedded target, real devices, and headless Chromium.

python docs/make_web_pictures.py
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.web.chromium import Chromium
from tests.web.site import answered, ask, ready
from tests.web.tab import DESKTOP, PHONE

from multispin.control import EdgeDrafter, Verification
from multispin.device import DeviceClient
from multispin.edge import Access, EdgeServer, listening
from multispin.edge.paced import PacedBatchDrafter, PacedEngine
from multispin.gateway import guard
from multispin.models import Verifier, load_draft_source, load_model, load_tokenizer
from multispin.models.gguf_copy import gguf_copy
from multispin.models.references import EMBEDDED
from multispin.models.token_table import token_table
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.speculation import SamplingParams, bits_per_id
from multispin.web import Board, Dashboard, DevicePage, PageDrafter
from multispin.web.join import join_picture

NAME = "SmolLM2-135M-Instruct"
TOKENIZER = load_tokenizer(EMBEDDED)
IMAGES = Path(__file__).parent / "images"
SHOWN_ADDRESS = "192.168.1.20:8765"  # in the QR code of the pictures
DEVICES = (
    ("Ada's phone", "small"),
    ("reading room", "small"),
    ("lab laptop", "medium"),
    ("door display", "lookup"),
    ("kiosk", "none"),
)
QUESTIONS = (
    "What is a rainbow?",
    "Count to fifty.",
    "Tell me about whales.",
    "Write a poem.",
    "Explain what a river is.",
)


class Edge:
    """What both pictures' edges have in common.

    Args:
        times: of the engine that is played: as long as a larger model's on a larger machine.
        mode: who drafts.

    """

    def __init__(self, times: Verification, mode: str) -> None:
        verifier = Verifier(load_model(EMBEDDED), 8, 640)
        size = bits_per_id(verifier.vocabulary_size)
        edge_drafts = mode == "auto"
        settings = ControllerSettings("heterogeneous", 2e5, size, 8, mode=mode, edge_drafts=edge_drafts)
        drafter = load_draft_source("small", EMBEDDED, batched=True).edge_drafter(8, 640) if edge_drafts else None
        paced = PacedBatchDrafter(drafter, EdgeDrafter(0.08, 0.01, 0.0)) if drafter is not None else None
        engine = PacedEngine(verifier, times)
        passes = Passes(engine, Controller(settings), TOKENIZER.fingerprint, Limits(), edge_drafter=paced)
        server, board = EdgeServer(passes), Board(NAME)
        server.audience.add(board.tell)
        self.app, dashboard = server.application(), Dashboard(board, join_picture)
        dashboard.invite(SHOWN_ADDRESS)
        dashboard.add_routes(self.app, guard(Access()))
        page = DevicePage(NAME, TOKENIZER, token_table(TOKENIZER), 640, PageDrafter("small", gguf_copy("small")))
        page.add_routes(self.app, guard(Access()))


async def phone_pictures(browser: Chromium) -> None:
    """A conversation on a phone that drafts."""
    async with listening(Edge(Verification(0.1, 0.0, 0.0), "rounds").app, port=0) as port:
        phone = await browser.page()
        await phone.open(f"http://127.0.0.1:{port}/device", PHONE)
        await ready(phone)
        await ask(phone, "What is a rainbow? Answer in three sentences.", most=90, helping=False)
        await answered(phone, 1)
        await ask(phone, "And why is it round?", most=90)
        await answered(phone, 2)
        await phone.picture(IMAGES / "web-phone.png")
        await ask(phone, "Who was the first to explain it?", most=90)
        await phone.until("document.querySelectorAll('.assistant')[2]?.innerText.length > 120")
        await phone.picture(IMAGES / "web-phone-dark.png", dark=True)
        await phone.close()


async def dashboard_pictures(browser: Chromium) -> None:
    """Five devices, each helped by whatever pays."""
    async with listening(Edge(Verification(0.4, 0.02, 0.0), "auto").app, port=0) as port:

        async def text(name: str, draft: str, question: str) -> None:
            drafter = load_draft_source(draft, EMBEDDED).drafter(640)
            hello = Hello(PROTOCOL_VERSION, TOKENIZER.fingerprint, name, draft, draft != "none", Profile(0.02, 5.0))
            client = DeviceClient(f"ws://127.0.0.1:{port}{SESSION_PATH}", hello, drafter)
            prompt = tuple(TOKENIZER.encode_chat(question))
            await client.generate(Request(prompt, SamplingParams(0.7, seed=4), 560))

        rows = zip(DEVICES, QUESTIONS, strict=True)
        texts = [asyncio.create_task(text(*device, question)) for device, question in rows]
        large, small = await browser.page(), await browser.page()
        await large.open(f"http://127.0.0.1:{port}/dashboard", {**DESKTOP, "height": 1160})
        await small.open(f"http://127.0.0.1:{port}/dashboard", {**PHONE, "height": 1640})
        await asyncio.sleep(60)
        await large.picture(IMAGES / "web-dashboard.png")
        await small.picture(IMAGES / "web-dashboard-phone.png")
        await large.picture(IMAGES / "web-dashboard-dark.png", dark=True)
        for each in texts:
            each.cancel()
        await asyncio.gather(*texts, return_exceptions=True)


async def main() -> None:
    """Take all pictures."""
    async with Chromium() as browser:
        await phone_pictures(browser)
        await dashboard_pictures(browser)


asyncio.run(main())
