"""The dashboard in headless browsers, at a real edge with a tiny target and devices over real sockets."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from tests.web.tab import DESKTOP

from multispin.control import Verification
from multispin.device import DeviceClient
from multispin.edge import Access, EdgeServer, listening
from multispin.edge.paced import PacedEngine
from multispin.gateway import guard
from multispin.models import Verifier, load_model, load_tokenizer
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.speculation import PromptLookupDrafter, SamplingParams, bits_per_id
from multispin.web import Board, Dashboard
from multispin.web.join import join_picture

pytestmark = pytest.mark.processes

SECRET = "open sesame"
EVIL = "<img src=x onerror=document.title='owned'>"
PROMPT = list(b"abcabcabc")


@asynccontextmanager
async def edge(folder):
    """An edge with a dashboard; gives its port and a function that has a text written."""
    tokenizer = load_tokenizer(folder)
    engine = PacedEngine(Verifier(load_model(folder), 8, 512), Verification(0.02, 0.0, 0.0))
    settings = ControllerSettings("heterogeneous", 1e5, bits_per_id(engine.vocabulary_size), 8, mode="rounds")
    passes = Passes(engine, Controller(settings), tokenizer.fingerprint, Limits())
    access = Access(SECRET)
    server = EdgeServer(passes, access=access)
    board = Board("tiny")
    server.audience.add(board.tell)
    dashboard = Dashboard(board, join_picture)
    app = server.application()
    dashboard.add_routes(app, guard(access))
    async with listening(app, port=0) as port:
        dashboard.invite(f"127.0.0.1:{port}")

        async def write(name, tokens=400):
            hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, name, "lookup", True, Profile(0.001, 5.0), SECRET)
            client = DeviceClient(f"ws://127.0.0.1:{port}{SESSION_PATH}", hello, PromptLookupDrafter())
            try:
                return await client.generate(Request(tuple(PROMPT), SamplingParams(), tokens))
            finally:
                client.close()

        yield port, write, dashboard


async def look(browser, port, screen=DESKTOP):
    page = await browser.page()
    await page.open(f"http://127.0.0.1:{port}/dashboard#token={SECRET.replace(' ', '%20')}", screen)
    return page


def test_it_shows_who_drafts_and_names_are_only_ever_text(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, write, dashboard), browsers.started(kind) as browser:
            page = await look(browser, port)
            await page.until("document.getElementById('state').textContent === 'live'")
            assert not await page.run("document.getElementById('none').hidden")
            texts = [asyncio.create_task(write(name)) for name in ("laptop", EVIL)]
            await page.until("document.querySelectorAll('#sessions li').length === 2")
            await page.until("document.querySelectorAll('#sessions .by.device').length === 2")
            names = await page.run("[...document.querySelectorAll('#sessions .name')].map((each) => each.textContent)")
            assert sorted(names) == sorted(["laptop", EVIL])
            assert await page.run("document.querySelectorAll('#sessions img').length") == 0
            widths = "[...document.querySelectorAll('#sessions .bar i')].map((each) => parseFloat(each.style.width))"
            await page.until(f"{widths}.some((width) => width > 0)")
            await page.until("parseFloat(document.getElementById('rate').textContent) > 0")
            await page.until("/passes in/.test(document.getElementById('line-text').textContent)")
            assert await page.run("document.querySelectorAll('.uplot canvas').length") == 2
            assert await page.run("document.getElementById('code').naturalWidth > 0")
            painted = (
                "(() => { const line = document.getElementById('line'); const data = line.getContext('2d')"
                ".getImageData(0, 0, line.width, line.height).data; return data.some((value) => value > 0); })()"
            )
            assert await page.run(painted)
            assert len(await asyncio.gather(*texts)) == 2
            await page.until("document.querySelectorAll('#sessions li').length === 0")
            foreign = [url for url in page.requests if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))]
            assert (foreign, page.errors) == ([], [])
            assert await page.run("document.title") == "multispin: who drafts for whom"
            await page.close()
            async with asyncio.timeout(20):
                while dashboard.viewers:
                    await asyncio.sleep(0.05)

    browsers.run(scenario())


LONE_SECOND = """(async () => {
  const { Curve } = await import("/dashboard/static/chart.js");
  const place = document.querySelector("main").appendChild(document.createElement("div"));
  const curve = new Curve(place, "accepted", 1);
  const picture = async (value) => {
    curve.show([[-30, null], [-20, value], [-10, null]]);
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    return place.querySelector("canvas").toDataURL();
  };
  return (await picture(null)) !== (await picture(0.5));
})()"""


def test_a_second_between_two_without_drafts_is_on_the_curve(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, _, _), browsers.started(kind) as browser:
            page = await look(browser, port)
            await page.until("document.getElementById('state').textContent === 'live'")
            assert await page.run(LONE_SECOND)

    browsers.run(scenario())


NARROW_PASSES = """(async () => {
  const { drawPasses } = await import("/dashboard/static/chart.js");
  const canvas = document.querySelector("main").appendChild(document.createElement("canvas"));
  canvas.style.width = "340px";
  const shares = {};
  for (const by of ["device", "edge", "nobody"]) {
    const texts = { device: 0, edge: 0, nobody: 0, [by]: 5 };
    const passes = [...Array(200).keys()].map((each) => ({ begin_s: each * 0.06, end_s: (each + 1) * 0.06, texts }));
    drawPasses(canvas, passes, 12, 12);
    const high = Math.floor(0.8 * canvas.height); // above the times of the axis
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, high);
    const painted = data.filter((_, at) => at % 4 === 3).reduce((sum, each) => sum + each / 255, 0);
    shares[by] = painted / (canvas.width * high);
  }
  return shares;
})()"""


def test_passes_of_two_pixels_still_tell_by_their_shapes_who_drafted(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, _, _), browsers.started(kind) as browser:
            page = await look(browser, port)
            await page.until("document.getElementById('state').textContent === 'live'")
            shares = await page.run(NARROW_PASSES)
            assert shares["device"] > 0.85
            assert 0.3 < shares["edge"] < 0.7
            assert shares["nobody"] < 0.1

    browsers.run(scenario())


TOPS = """["tiles", "rates", "line", "sessions"].map(
  (each) => document.getElementById(each).getBoundingClientRect().top)"""


def test_on_a_phone_what_concerns_all_stands_before_the_devices(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, _, _), browsers.started(kind) as browser:
            page = await look(browser, port, {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
            await page.until("document.getElementById('state').textContent === 'live'")
            assert await page.run(TOPS) == sorted(await page.run(TOPS))

    browsers.run(scenario())


def test_it_fits_a_phone(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, write, _), browsers.started(kind) as browser:
            page = await look(browser, port, {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
            text = asyncio.create_task(write("a device with quite a long name that does not fit one line"))
            await page.until("document.querySelectorAll('#sessions li').length === 1")
            assert await page.run("document.documentElement.scrollWidth <= 360")
            await text

    browsers.run(scenario())


def test_without_the_token_it_shows_nothing_and_asks(tiny_folder, browsers, kind):
    async def scenario():
        async with edge(tiny_folder) as (port, _, _), browsers.started(kind) as browser:
            page = await browser.page()
            await page.open(f"http://127.0.0.1:{port}/dashboard", DESKTOP)
            await page.until("!document.getElementById('join').hidden")
            assert await page.run("document.querySelector('main').hidden")
            for secret, told in (("✓", "this edge does not know the token"), (SECRET, "live")):
                await page.run(
                    f"document.getElementById('token').value = {json.dumps(secret)};"
                    "document.getElementById('join-form').requestSubmit()"
                )
                await page.until(f"document.getElementById('state').textContent === '{told}'")

    browsers.run(scenario())


def test_it_says_so_when_the_edge_has_gone(tiny_folder, browsers, kind):
    async def scenario():
        async with browsers.started(kind) as browser:
            async with edge(tiny_folder) as (port, _, _):
                page = await look(browser, port)
                await page.until("document.getElementById('state').textContent === 'live'")
            await page.until("document.getElementById('state').textContent !== 'live'")
            await page.close()

    browsers.run(scenario())
