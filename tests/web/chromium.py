"""Headless Chromium, driven from Python over its DevTools protocol: all that the tests of the pages need of it.

aiohttp speaks WebSocket already, so this file takes the place of a library for browsers, which would bring
a Node.js and a browser of its own version.
"""

import asyncio
import base64
import contextlib
import itertools
import json
from pathlib import Path

from tests.web.tab import PHONE, Browser, PageError, Tab, browser_path


class Page(Tab):
    """One tab."""

    def __init__(self, socket):
        super().__init__()
        self._socket = socket
        self._numbers, self._waiting = itertools.count(1), {}
        self._reading = asyncio.create_task(self._read())

    async def send(self, method, **params):
        """Call a method of the DevTools protocol."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await self._waiting[number]

    async def _read(self):
        async for frame in self._socket:
            message = json.loads(frame.data)
            if "id" in message:
                future = self._waiting.pop(message["id"])
                if future.cancelled():
                    continue
                if "error" in message:
                    future.set_exception(PageError(message["error"]["message"]))
                else:
                    future.set_result(message["result"])
            else:
                self._note(message["method"], message["params"])
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PageError("the tab is gone"))

    def _note(self, method, params):
        if method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    async def open(self, url, screen=PHONE):
        """Load an address, on a screen of that size."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Emulation.setDeviceMetricsOverride", **screen)
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script):
        """Value of a JavaScript expression; a promise is awaited."""
        found = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    async def cores(self, count):
        """Pretend that the machine has so many processor cores."""
        await self.send("Emulation.setHardwareConcurrencyOverride", hardwareConcurrency=count)

    async def before(self, script):
        """Run a script before the page's own, whenever a page is loaded from now on."""
        await self.send("Page.enable")
        await self.send("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def reload(self, script):
        """Load the page anew; the script runs before the page's own."""
        await self.before(script)
        await self.send("Page.reload")

    async def picture(self, path, dark=False):
        """Save a screenshot of the whole tab."""
        scheme = "dark" if dark else "light"
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await asyncio.sleep(0.3)
        found = await self.send("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(found["data"]))

    async def close(self):
        """Close the tab, as a user would."""
        self.closed = True
        with contextlib.suppress(PageError):
            await self.send("Page.close")
        await self._socket.close()
        await self._reading


class Chromium(Browser):
    """Chromium, for the length of an `async with`."""

    port_file = "DevToolsActivePort"

    @staticmethod
    def path():
        return browser_path("Chromium", "MULTISPIN_CHROMIUM", "chromium", "chromium-browser")

    def command(self, profile):
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        profile_and_port = [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--no-first-run"]
        return ["--headless=new", *options, *profile_and_port]

    async def connect(self, found):
        port, line_end, _ = found.partition("\n")
        self._address = f"http://127.0.0.1:{port}"
        return bool(line_end)

    async def new_tab(self):
        async with self.http.put(f"{self._address}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        socket = await self.http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**28)
        return Page(socket)
