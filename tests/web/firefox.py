"""Headless Firefox, driven from Python over WebDriver BiDi, which it speaks itself: all that the tests need of it.

https://w3c.github.io/webdriver-bidi/
"""

import asyncio
import base64
import contextlib
import itertools
import json
from pathlib import Path

from tests.web.tab import PHONE, Browser, PageError, Tab, browser_path

PREFERENCES = 'user_pref("browser.shell.checkDefaultBrowser", false);\n'
EVENTS = ["log.entryAdded", "network.beforeRequestSent"]


def plain(remote):
    """A value of the browser as a value of Python."""
    kind, value = remote["type"], remote.get("value")
    if kind == "array":
        return [plain(each) for each in value]
    if kind == "object":
        return {name: plain(each) for name, each in value}
    return int(value) if kind == "bigint" else value


class Page(Tab):
    """One tab."""

    def __init__(self, browser, context):
        super().__init__()
        self._browser, self._context = browser, context

    def note(self, method, params):
        """Keep what the browser tells of this tab."""
        if method == "network.beforeRequestSent":
            self.requests.append(params["request"]["url"])
        elif params["level"] == "error":
            self.errors.append(params["text"])
        else:
            self.console.append(params["text"])

    async def open(self, url, screen=PHONE):
        """Load an address, on a screen of that size."""
        size = {"width": screen["width"], "height": screen["height"]}
        call = self._browser.call
        scale = screen["deviceScaleFactor"]
        await call("browsingContext.setViewport", context=self._context, viewport=size, devicePixelRatio=scale)
        await call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def run(self, script):
        """Value of a JavaScript expression; a promise is awaited."""
        found = await self._browser.call(
            "script.evaluate",
            expression=script,
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        if found["type"] == "exception":
            raise PageError(found["exceptionDetails"]["text"])
        return plain(found["result"])

    async def cores(self, count):
        """Pretend to the page that the machine has so many processor cores."""
        await self.before(f"Object.defineProperty(navigator, 'hardwareConcurrency', {{ get: () => {count} }})")

    async def before(self, script):
        """Run a script before the page's own, whenever a page is loaded from now on."""
        function = f"() => {{ {script}; }}"
        await self._browser.call("script.addPreloadScript", functionDeclaration=function, contexts=[self._context])

    async def reload(self, script):
        """Load the page anew; the script runs before the page's own."""
        await self.before(script)
        await self._browser.call("browsingContext.reload", context=self._context)

    async def picture(self, path):
        """Save a screenshot of the whole tab."""
        found = await self._browser.call("browsingContext.captureScreenshot", context=self._context)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    async def close(self):
        """Close the tab, as a user would."""
        self.closed = True
        with contextlib.suppress(PageError):
            await self._browser.call("browsingContext.close", context=self._context)


class Firefox(Browser):
    """Firefox, for the length of an `async with`."""

    port_file = "WebDriverBiDiServer.json"

    def __init__(self):
        self._numbers, self._waiting, self._pages = itertools.count(1), {}, {}
        self._reading = None

    @staticmethod
    def path():
        return browser_path("Firefox", "MULTISPIN_FIREFOX", "firefox-esr", "firefox")

    def prepare(self, profile):
        (profile / "user.js").write_text(PREFERENCES)

    def command(self, profile):
        return ["--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0"]

    async def connect(self, found):
        if not found.endswith("}"):
            return False
        address = f"ws://127.0.0.1:{json.loads(found)['ws_port']}/session"
        self._socket = await self.http.ws_connect(address, max_msg_size=2**28)
        self._reading = asyncio.create_task(self._read())
        await self.call("session.new", capabilities={})
        await self.call("session.subscribe", events=EVENTS)
        return True

    async def disconnect(self):
        if self._reading is not None:
            await self._reading

    async def call(self, method, **params):
        """Call a method of WebDriver BiDi."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await self._waiting[number]

    async def _read(self):
        async for frame in self._socket:
            message = json.loads(frame.data)
            if message["type"] == "event":
                params = message["params"]
                page = self._pages.get(params.get("context") or params.get("source", {}).get("context"))
                if page is not None:
                    page.note(message["method"], params)
                continue
            future = self._waiting.pop(message["id"])
            if future.cancelled():
                continue
            if message["type"] == "error":
                future.set_exception(PageError(message["message"]))
            else:
                future.set_result(message["result"])
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PageError("the browser is gone"))

    async def new_tab(self):
        context = (await self.call("browsingContext.create", type="tab"))["context"]
        self._pages[context] = Page(self, context)
        return self._pages[context]
