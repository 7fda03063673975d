"""The page that drafts, in headless browsers at a real edge; the main tests run in Firefox and with a real model."""

import asyncio
import importlib.util
import json
import math
import re
from urllib.parse import quote

import pytest
from tests.web.site import SECRET, Phones, answered, ask, own_text, ready

from multispin.device import DeviceClient
from multispin.models import decode_alone, load_draft_source
from multispin.models.references import EMBEDDED
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Request
from multispin.protocol.events import Connected, Ended, Lost
from multispin.speculation import SamplingParams
from multispin.speculation.conformance import check_drafter
from multispin.web.join import own_addresses

pytestmark = pytest.mark.processes

RAINBOW = "What is a rainbow? Answer in two sentences."
POEM = "Write a poem about the sea."
PROMPTS = (RAINBOW, "Count from one to twenty.", "Name five animals and say what each of them eats.")


@pytest.fixture(autouse=True)
def _page():
    if importlib.util.find_spec("multispin_wllama") is None:
        pytest.skip("multispin-wllama is not installed: the page that drafts is not tested here (make web)")


@pytest.mark.embedded
@pytest.mark.both_browsers
def test_the_page_drafts_and_its_text_is_the_targets_own(target, kind):
    async def scenario():
        async with target.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, RAINBOW)
            answer = await answered(page)
            assert answer["ids"] == own_text(target, RAINBOW, 40)
            assert answer["text"] == target.tokenizer.decode(answer["ids"])
            drafted = await page.run("document.querySelector('.assistant').innerText")
            assert drafted.strip() == answer["text"].strip()
            assert await page.run("document.querySelectorAll('.assistant .own').length") > 0
            assert await page.run("document.getElementById('accepted').textContent !== '–'")
            assert await page.run("crossOriginIsolated")
            own = (edge.address, f"blob:{edge.address}", "data:")
            foreign = [url for url in page.requests if not url.startswith(own)]
            assert (page.errors, foreign) == ([], [])
            devices = [device for event in edge.events for device in getattr(event, "devices", ())]
            assert sum(device.accepted for device in devices) > 0
            assert not any(SECRET in url for url in page.requests)

    target.run(scenario())


@pytest.mark.embedded
@pytest.mark.both_browsers
def test_in_a_stream_the_page_drafts_on_while_it_is_verified(target, kind):
    async def scenario():
        async with target.edge(mode="streams") as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, RAINBOW, most=16)
            answer = await answered(page)
            assert answer["ids"] == own_text(target, RAINBOW, 16)
            assert await page.run("document.querySelectorAll('.assistant .own').length") > 0
            (session,) = [event.session for event in edge.events if isinstance(event, Connected)]
            ended = [event for event in edge.events if isinstance(event, Ended)]
            assert [event.session for event in ended] == [session]
            words = (await page.run("document.getElementById('accepted').textContent")).split()
            assert 0 < int(words[0]) == ended[0].accepted
            assert page.errors == []

    target.run(scenario())


def test_a_phone_that_may_waste_little_drafts_less_far_ahead(tiny, kind):
    async def scenario():
        async with tiny.edge(mode="streams") as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await page.run(
                """(async () => {
                  const { DeviceSession: { prototype } } = await import("/device/client/index.js");
                  const begin = prototype.begin;
                  window.distances = [];
                  prototype.begin = function (request) {
                    distances.push(String(this.thrift.ahead));
                    return begin.call(this, request);
                  };
                })()"""
            )
            for number, percent in enumerate(("100", "40", ""), 1):
                await page.run(f"document.getElementById('wasted').value = '{percent}'")
                await ask(page, RAINBOW, most=4)
                answer = await answered(page, number)
                await page.run("document.getElementById('forget').click()")
                assert answer["ids"] == own_text(tiny, RAINBOW, 4)
            assert await page.run("distances") == ["Infinity", "63", "Infinity"]
            await page.run("document.getElementById('wasted').value = '-5'")
            await ask(page, RAINBOW, most=4)
            assert await page.run("document.querySelector('#ask details').open")  # where the browser points at it
            assert await page.run("document.querySelectorAll('.user').length") == 0
            assert page.errors == []

    tiny.run(scenario())


def test_a_phone_with_more_cores_drafts_with_more_threads(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join(cores=4)
            assert "2 threads" in await page.run("document.getElementById('drafter-state').textContent")
            await ask(page, RAINBOW, most=12)
            answer = await answered(page)
            assert answer["ids"] == own_text(tiny, RAINBOW, 12)
            assert await page.run("document.querySelectorAll('.assistant .own').length") > 0
            assert page.errors == []

    tiny.run(scenario())


@pytest.mark.both_browsers
@pytest.mark.parametrize("question", [POEM, RAINBOW])
def test_a_sampled_text_is_the_same_with_the_pages_help_and_without(tiny, kind, question):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            seeds = []
            for helping in (True, False):
                await ask(page, question, most=16, temperature=0.8, helping=helping)
                answer = await answered(page, len(seeds) + 1)
                seeds.append(answer["seed"])
                params = SamplingParams(0.8, seed=int(answer["seed"]))
                prompt = tiny.tokenizer.encode_chat(question)
                assert answer["ids"] == decode_alone(tiny.model, prompt, params, 16, tiny.tokenizer.stop_ids)
                with_help, without = await page.run(
                    "['with', 'without'].map((id) => document.getElementById(id).textContent)"
                )
                assert float(with_help) > 0
                assert without == "–" if helping else float(without) > 0
                await page.run("document.getElementById('forget').click()")
            drafters = [event.drafter for event in edge.events if isinstance(event, Connected)]
            assert drafters == ["tiny (page)", "none"]

    tiny.run(scenario())


@pytest.mark.embedded
def test_the_page_is_accepted_at_least_as_often_as_the_same_drafter_in_python(target, kind):
    """One token a draft: each is a trial. The page's rate lies in the 95 % interval of the other, or above it."""

    async def python_counts(edge):
        source = load_draft_source(str(target.drafter.path), EMBEDDED)
        drafted = accepted = 0
        for question in PROMPTS:
            hello = Hello(
                PROTOCOL_VERSION, target.tokenizer.fingerprint, "python", "small", True, Profile(0.05, 5.0), SECRET
            )
            client = DeviceClient(edge.url, hello, source.drafter(512))
            prompt = target.tokenizer.encode_chat(question)
            await client.generate(Request(tuple(prompt), SamplingParams(), 30, stop_ids=target.tokenizer.stop_ids))
            drafted, accepted = drafted + client.counters.drafted, accepted + client.counters.accepted
            client.close()
        return drafted, accepted

    async def scenario():
        async with target.edge(longest=1) as edge, edge.browser(kind) as phones:
            drafted, accepted = await python_counts(edge)
            page = await phones.join()
            for number, question in enumerate(PROMPTS, 1):
                await ask(page, question, most=30)
                await answered(page, number)
                await page.run("document.getElementById('forget').click()")
            words = (await page.run("document.getElementById('accepted').textContent")).split()
            page_accepted, page_drafted = int(words[0]), int(words[2])
            assert min(drafted, page_drafted) > 30
            rate = accepted / drafted
            margin = 1.96 * math.sqrt(max(rate * (1 - rate), 0.01) / drafted)
            assert page_accepted / page_drafted >= rate - margin

    target.run(scenario())


SILENCE = "document.getElementById('silence').textContent"


def test_a_text_without_drafts_has_a_reason_on_the_page(tiny, kind):
    short = (
        "import('/device/static/drafter.js').then(({ WllamaDrafter: drafter }) => {"
        "const { load } = drafter; drafter.load = (file, _, table) => load.call(drafter, file, 50, table); });"
    )
    asks_none = r"12 of 12 tokens .* this device: the edge asked for none: it asks only devices that make texts faster"
    too_long = r"\d+ of 120 tokens .* this device: the text is longer than the 50 tokens that its drafter can read"

    async def scenario():
        for longest, tokens, script, words in ((0, 12, "", asks_none), (4, 120, short, too_long), (4, 12, "", "")):
            async with tiny.edge(longest=longest) as edge, edge.browser(kind) as phones:
                page = await phones.open(script)
                await ready(page)
                await ask(page, RAINBOW, most=tokens)
                assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, tokens)
                assert re.fullmatch(words, await page.run(SILENCE))
                await ask(page, RAINBOW, most=12, helping=False)
                await answered(page, 2)
                assert await page.run(SILENCE) == ""  # who turned it off knows why
                assert page.errors == []

    tiny.run(scenario())


def test_who_waits_for_the_edge_or_the_drafter_sees_it(tiny, kind):
    """A text that begins, and ends, before the drafter has come."""
    held = """
    const whole = window.fetch;
    const held = new Promise((resolve) => (window.release = resolve));
    window.fetch = async (path, options) => {
      if (String(path).endsWith(".gguf")) await held;
      return whole(path, options);
    };
    """
    state, drafter = (f"document.getElementById('{name}').textContent" for name in ("state", "drafter-state"))

    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.open(held)
            await page.until(f"{drafter} === 'loading tiny …'")
            assert await page.run("!document.getElementById('drafter-progress').hidden")
            await page.run(
                f"""
                window.states = [];
                const box = () => document.querySelector(".assistant");
                const noted = () => states.push([{state}, box()?.matches(":empty") ?? null]);
                new MutationObserver(noted).observe(document.getElementById("state"), {{ childList: true }});
                """
            )
            await ask(page, RAINBOW, most=12)
            assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 12)
            assert await page.run("states.slice(0, 3)") == [
                ["waiting for the edge …", None],
                ["waiting for the edge …", True],
                ["joined; large model: embedded", False],
            ]
            assert await page.run(SILENCE) == "the text began before this device’s drafter was loaded"
            await page.run("release()")
            await ready(page)
            assert await page.run("document.getElementById('drafter-progress').hidden")
            await ask(page, RAINBOW, most=12)
            await answered(page, 2)
            assert await page.run(SILENCE) == ""
            assert page.errors == []

    tiny.run(scenario())


@pytest.mark.both_browsers
@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_phone_that_comes_over_plain_http_drafts_too(tiny, kind, mode):
    """As on a phone in the same network: no secure context, so none of the functions that browsers give only there."""
    addresses = own_addresses("0.0.0.0")
    if not addresses:
        pytest.skip("this machine has no address in a network")

    async def scenario():
        for host in addresses:
            async with tiny.edge(mode=mode, host=host) as edge, edge.browser(kind) as phones:
                page = await phones.join(cores=8)
                absent = (
                    "isSecureContext",
                    "crossOriginIsolated",
                    "crypto.subtle",
                    "navigator.storage",
                    "window.caches",
                )
                assert not any([await page.run(f"Boolean({each})") for each in absent])
                assert "1 thread (more" in await page.run("document.getElementById('drafter-state').textContent")
                await ask(page, RAINBOW, most=12)
                assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 12)
                assert await page.run("document.querySelectorAll('.assistant .own').length") > 0
                await page.reload("window.anew = true")
                await page.until("window.anew")
                await ready(page)
                assert len([url for url in page.requests if url.endswith(".gguf")]) == 1  # it was kept
                ignored = "Cross-Origin-Opener-Policy header has been ignored"  # Chromium's word for no secure context
                assert [each for each in page.errors if ignored not in each] == []

    tiny.run(scenario())


class OverTheWire:
    """The drafter of a page as a `Drafter` in Python: each call is a call in the browser."""

    def __init__(self, loop, page):
        self._loop, self._page = loop, page
        self._call("alone(() => theDrafter.rewind([-1]))")  # a new drafter has nothing cached

    def prepare(self, committed):
        self._call(f"prepare({list(committed)})")

    def draft(self, committed, length, params):
        given = {"temperature": params.temperature, "topK": params.top_k, "topP": params.top_p, "seed": params.seed}
        return self._call(f"draft({list(committed)}, {length}, {given}, new AbortController().signal)")

    def _call(self, call):
        return asyncio.run_coroutine_threadsafe(self._page.run(f"theDrafter.{call}"), self._loop).result(60)


@pytest.mark.embedded
@pytest.mark.conformance
def test_the_pages_drafter_keeps_what_a_drafter_promises(target, kind):
    async def scenario():
        async with target.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await page.run(
                """(async () => {
                  const client = await import("/device/client/index.js");
                  const { Edge } = await import("/device/static/edge.js");
                  const { WllamaDrafter } = await import("/device/static/drafter.js");
                  const edge = new Edge(localStorage.getItem("multispin.token"));
                  const table = client.TokenTable.unpack(await edge.tokens());
                  const file = await edge.drafter((await edge.about()).drafter, () => {});
                  window.theDrafter = await WllamaDrafter.load(file, 64, table);
                })()"""
            )
            texts = [target.tokenizer.encode(text) for text in ("The sky is blue because", "One, two, three,")]
            loop = asyncio.get_running_loop()
            await asyncio.to_thread(
                check_drafter, lambda: OverTheWire(loop, page), texts, target.tokenizer.size, distributions=False
            )

    target.run(scenario())


@pytest.mark.both_browsers
@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_reload_in_mid_text_goes_on_and_ends_with_the_same_text(tiny, kind, mode):
    async def scenario():
        async with tiny.edge(mode=mode) as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, POEM, most=120)
            await page.until("document.querySelector('.assistant')?.innerText.length > 30")
            before = await page.run("document.querySelector('.assistant').innerText")
            script = "document.addEventListener('answered', (event) => (window.answers ??= []).push(event.detail))"
            await page.reload(script)
            answer = await answered(page)
            assert answer["ids"] == own_text(tiny, POEM, 120)
            assert answer["text"].startswith(before.strip()[:30])
            assert [event.session for event in edge.events if isinstance(event, Connected)] == [1, 1]  # it resumed
            await ready(page)  # from the browser's own store
            fetched = [url for url in page.requests if url.endswith(".gguf")]
            assert len(fetched) == 1

    tiny.run(scenario())


def test_a_text_goes_on_at_an_edge_that_was_started_anew(tiny, kind):
    async def scenario():
        async with tiny.browsers.started(kind) as browser:
            async with tiny.edge() as edge:
                page = await Phones(browser, edge).join()
                await ask(page, POEM, most=120)
                await page.until("document.querySelector('.assistant')?.innerText.length > 30")
            async with tiny.edge(port=edge.port) as other:
                answer = await answered(page)
                assert answer["ids"] == own_text(tiny, POEM, 120)
                assert any(isinstance(event, Connected) for event in other.events)

    tiny.run(scenario())


ANSWERS = "document.addEventListener('answered', (event) => (window.answers ??= []).push(event.detail));"
NO_STORE = """
for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}
"""
FULL_STORE = """
Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };
"""


@pytest.mark.parametrize("script", [NO_STORE, FULL_STORE])
def test_a_browser_that_keeps_nothing_for_the_page_writes_the_same_text(tiny, kind, script):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.open(script)
            await ready(page)
            await ask(page, RAINBOW)
            answer = await answered(page)
            assert answer["ids"] == own_text(tiny, RAINBOW, 40)
            assert await page.run("document.querySelectorAll('.assistant .own').length") > 0
            assert page.errors == []

    tiny.run(scenario())


def test_a_drafter_that_fails_takes_no_text_with_it(tiny, kind):
    failing = """(async () => {
      const { WllamaDrafter } = await import("/device/static/drafter.js");
      WllamaDrafter.prototype.draw = async () => { throw new Error("no memory"); };
    })()"""

    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await page.run(failing)
            await ask(page, RAINBOW)
            assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 40)
            state = await page.run("document.getElementById('drafter-state').textContent")
            assert state == "the drafter failed (no memory); the edge writes alone"
            assert page.errors == []

    tiny.run(scenario())


def test_a_browser_that_cannot_draft_says_so_and_the_edge_writes_alone(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.open("WebAssembly.validate = () => false;")
            await page.until("/^this device cannot .*SIMD/.test(document.getElementById('drafter-state').textContent)")
            await ask(page, RAINBOW)
            answer = await answered(page)
            assert answer["ids"] == own_text(tiny, RAINBOW, 40)
            assert not [url for url in page.requests if url.endswith(".gguf")]  # nothing was fetched for nothing
            assert page.errors == []

    tiny.run(scenario())


@pytest.mark.embedded
def test_a_download_that_breaks_off_goes_on_where_it_was(target, kind):
    breaking = """
    const whole = window.fetch;
    window.ranges = [];
    window.fetch = async (path, options) => {
      const answer = await whole(path, options);
      if (!String(path).endsWith(".gguf")) return answer;
      ranges.push([options.headers.Range ?? "", answer.status]);
      if (ranges.length > 1) return answer;
      const reader = answer.body.getReader();
      let parts = 0;
      return new Response(new ReadableStream({
        async pull(to) {
          if (++parts > 3) return to.error(new TypeError("network error"));
          to.enqueue((await reader.read()).value);
        },
      }));
    };
    """

    async def scenario():
        async with target.edge() as edge, edge.browser(kind) as phones:
            page = await phones.open(breaking)
            await ready(page)
            (first, _), (second, status) = await page.run("ranges")
            assert (first, status) == ("", 206)
            assert int(second.removeprefix("bytes=").removesuffix("-")) > 0
            await ask(page, RAINBOW)
            assert (await answered(page))["ids"] == own_text(target, RAINBOW, 40)

    target.run(scenario())


def test_a_phone_whose_network_changes_connects_anew_and_goes_on(tiny, kind):
    async def scenario():
        async with tiny.edge(mode="streams") as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, POEM, most=120)
            await page.until("document.querySelector('.assistant')?.innerText.length > 30")
            await page.run("window.dispatchEvent(new Event('online'))")
            answer = await answered(page)
            assert answer["ids"] == own_text(tiny, POEM, 120)
            assert [event.session for event in edge.events if isinstance(event, Connected)] == [1, 1]

    tiny.run(scenario())


def test_a_question_to_an_edge_that_is_away_is_not_lost(tiny, kind):
    """The edge is away, then it has another token, then another name: the page says so each time, and goes on."""
    question = "document.getElementById('question').value"
    note = "[...document.querySelectorAll('.note')].at(-1)?.textContent"

    async def scenario():
        async with tiny.browsers.started(kind) as browser:
            async with tiny.edge() as edge:
                page = await Phones(browser, edge).join()
            await ask(page, RAINBOW)
            await page.until(f"/cannot be reached/.test({note})")
            assert await page.run(question) == RAINBOW
            state = await page.run("document.getElementById('state').textContent")
            assert re.fullmatch(r"not connected: the edge cannot be reached; trying again in \d+\.\d s", state)
            async with tiny.edge(port=edge.port, secret="another"):
                await page.until("!document.getElementById('join').hidden")
                assert await page.run(question) == RAINBOW
                await page.run("document.getElementById('token').value = 'another'")
                await page.run("document.getElementById('join-form').requestSubmit()")
                await page.until("!document.getElementById('ask').hidden")
                await page.run("document.getElementById('ask').requestSubmit()")
                assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 40)
            async with tiny.edge(port=edge.port, secret="another", name="another model"):
                await page.before(ANSWERS)
                await ask(page, POEM, most=10)
                await page.until(f"/has restarted/.test({note})")
                assert await page.run(question) == POEM
                assert "another model" in await page.run("document.getElementById('state').textContent")
                said = "[...document.querySelectorAll('main > div:not(.note)')].map((box) => box.className)"
                assert await page.run(said) == ["user", "assistant"]
                await page.run("document.getElementById('ask').requestSubmit()")
                await answered(page)

    tiny.run(scenario())


def test_a_text_of_another_model_does_not_go_on(tiny, kind):
    """A reload, after the edge was started with a model whose ids mean something else."""

    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, POEM, most=200)
            await page.until("document.querySelector('.assistant')?.innerText.length > 30")
            await page.reload(
                "const kept = JSON.parse(sessionStorage.getItem('multispin.text'));"
                "const changed = JSON.stringify({ ...kept, fingerprint: 'another' });"
                "if (kept) sessionStorage.setItem('multispin.text', changed);"
            )
            await page.until("/cannot go on/.test(document.querySelector('.note')?.textContent)")
            assert len(await page.run("document.querySelector('.assistant').innerText")) > 30
            await page.run("document.getElementById('forget').click()")
            await ask(page, RAINBOW)
            assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 40)

    tiny.run(scenario())


def test_a_new_conversation_begins_empty_even_in_mid_text(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, POEM, most=200)
            await page.until("document.querySelector('.assistant')?.innerText.length > 10")
            await page.run("document.getElementById('forget').click()")
            await answered(page)
            await page.until("document.querySelectorAll('main > div').length === 0")
            assert await page.run("JSON.parse(sessionStorage.getItem('multispin.messages'))") is None
            await ask(page, RAINBOW)
            assert (await answered(page, 2))["ids"] == own_text(tiny, RAINBOW, 40)

    tiny.run(scenario())


def test_a_closed_tab_hurts_nobody(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            stays, leaves = await phones.join(), await phones.join()
            await ask(leaves, POEM, most=200)
            await ask(stays, RAINBOW)
            await leaves.until("document.querySelector('.assistant')?.innerText.length > 10")
            await leaves.close()
            answer = await answered(stays)
            assert answer["ids"] == own_text(tiny, RAINBOW, 40)
            assert any(isinstance(event, Lost) for event in edge.events)
            async with asyncio.timeout(30):
                while edge.passes.sessions:
                    await asyncio.sleep(0.1)

    tiny.run(scenario())


def test_a_text_that_is_stopped_while_its_edge_is_away_does_not_count_as_joined(tiny, kind):
    async def scenario():
        async with tiny.browsers.started(kind) as browser:
            async with tiny.edge() as edge:
                page = await Phones(browser, edge).join()
                await ask(page, POEM, most=200)
                await page.until("document.querySelector('.assistant')?.innerText.length > 10")
            await page.until("/trying again/.test(document.getElementById('state').textContent)")
            await page.run("document.getElementById('ask').requestSubmit()")
            assert (await answered(page))["ids"]
            await page.until("/^not connected: .* trying again in/.test(document.getElementById('state').textContent)")

    tiny.run(scenario())


@pytest.mark.both_browsers
@pytest.mark.parametrize("name", ["embedded", "another model"])
def test_a_page_finds_an_edge_that_comes_back_by_itself(tiny, kind, name):
    """Nobody sends a message. An edge with another model has the page loaded anew, and what was typed stays."""
    state = "document.getElementById('state').textContent"

    async def scenario():
        async with tiny.browsers.started(kind) as browser:
            async with tiny.edge() as edge:
                page = await Phones(browser, edge).join()
            await page.run(
                f"""
                window.waits = [];
                const noted = () => waits.push(...[/trying again in (\\S+) s$/.exec({state})?.[1]].filter(Boolean));
                new MutationObserver(noted).observe(document.getElementById("state"), {{ childList: true }});
                Math.random = () => 1;
                """
            )
            await ask(page, RAINBOW)
            assert await page.until("waits.length >= 3 && waits.slice(0, 3)") == ["1.0", "2.0", "4.0"]
            async with tiny.edge(port=edge.port, name=name):
                await page.until(f"{state} === 'joined; large model: {name}'")
                assert await page.run("document.getElementById('question').value") == RAINBOW
                await ready(page)
                await ask(page, RAINBOW, most=12)
                assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 12)

    tiny.run(scenario())


def test_a_network_that_comes_back_is_used_at_once(tiny, kind):
    async def scenario():
        async with tiny.browsers.started(kind) as browser:
            async with tiny.edge() as edge:
                page = await Phones(browser, edge).join()
            await page.run("window.setTimeout = () => 0")  # no wait ends
            await ask(page, RAINBOW)
            await page.until("/trying again in/.test(document.getElementById('state').textContent)")
            async with tiny.edge(port=edge.port):
                await page.run("window.dispatchEvent(new Event('online'))")
                await page.until("/^joined/.test(document.getElementById('state').textContent)")

    tiny.run(scenario())


def test_a_stopped_text_ends_at_the_edge_too(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, POEM, most=200)
            await page.until("document.querySelector('.assistant')?.innerText.length > 10")
            await page.run("document.getElementById('ask').requestSubmit()")
            answer = await answered(page)
            assert 0 < len(answer["ids"]) < 200
            async with asyncio.timeout(4):  # less than the time that a lost session is kept
                while edge.passes.sessions:
                    await asyncio.sleep(0.05)

    tiny.run(scenario())


def test_each_paragraph_runs_as_its_script_does(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, "Hello.\nمرحبا", most=4)
            left, right = await page.run(
                """(() => {
                    const box = document.querySelector('.user'), text = box.firstChild;
                    const rects = [[0, 6], [7, 12]].map(([from, to]) => {
                        const line = document.createRange(); line.setStart(text, from); line.setEnd(text, to);
                        return line.getBoundingClientRect();
                    });
                    const { left, right } = box.getBoundingClientRect();
                    return [rects[0].left - left, right - rects[1].right];
                })()"""
            )
            assert left == pytest.approx(right, abs=2)  # the padding

    tiny.run(scenario())


def test_a_page_without_the_token_asks_for_it(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones._browser.page()
            await page.open(f"{edge.address}/device")
            await page.until("!document.getElementById('join').hidden")
            assert await page.run("document.getElementById('ask').hidden")
            for secret, joined in (
                ("wrong", False),
                ("✓", False),
                ("a\x01b", False),
                ("x" * 9000, False),
                (SECRET, True),
            ):
                await page.run(
                    "document.getElementById('join-problem').textContent = '';"
                    f"document.getElementById('token').value = {json.dumps(secret)};"
                    "document.getElementById('join-form').requestSubmit()"
                )
                if not joined:
                    await page.until("/does not know/.test(document.getElementById('join-problem').textContent)")
                await page.until(f"document.getElementById('ask').hidden !== {str(joined).lower()}")
            assert "joined" in await page.run("document.getElementById('state').textContent")
            for given, shown in (("#token=wrong", "join"), ("", "ask")):  # a wrong one takes no other tab's token away
                other = await phones._browser.page()
                await other.open(f"{edge.address}/device{given}")
                await other.until(f"!document.getElementById('{shown}').hidden")

    tiny.run(scenario())


def test_a_token_may_have_any_letters(tiny, kind):
    async def scenario():
        async with tiny.edge(secret="Schlüssel ✓") as edge, edge.browser(kind) as phones:
            page = await phones._browser.page()
            await page.open(f"{edge.address}/device#token={quote('Schlüssel ✓')}")
            await ready(page)
            await ask(page, RAINBOW)
            assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 40)

    tiny.run(scenario())


def test_a_phone_without_network_says_so(tiny, kind):
    async def scenario():
        async with tiny.edge() as edge, edge.browser(kind) as phones:
            page = await phones.join()
            await ask(page, RAINBOW)
            await page.until("document.getElementById('send').textContent === 'Stop'")
            lost = "window.dispatchEvent(new Event('offline')), document.getElementById('state').textContent"
            assert await page.run(lost) == "this device has no network; the text goes on when the network is back"
            assert (await answered(page))["ids"] == own_text(tiny, RAINBOW, 40)
            assert await page.run("document.getElementById('state').textContent") == "joined; large model: embedded"

    tiny.run(scenario())
