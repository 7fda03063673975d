"""A headless browser and its tabs, as far as all browsers that the tests drive agree."""

import asyncio
import contextlib
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

START_TIMEOUT_S = 60.0
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1100, "height": 800, "deviceScaleFactor": 1, "mobile": False}


class PageError(AssertionError):
    """A program of the page failed."""


def browser_path(name, variable, *commands):
    """Path of a browser; skips where there is none."""
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, commands)), None)
    if found is None:
        pytest.skip(f"{name} is not installed: the pages are not tested in it here (apt-get install {commands[0]})")
    return found


class Tab:
    """One tab. What the browser told of it stands in `console`, `errors` and `requests` (addresses)."""

    def __init__(self):
        self.console, self.errors, self.requests = [], [], []
        self.closed = False

    async def run(self, script):
        """Value of a JavaScript expression; a promise is awaited."""
        raise NotImplementedError

    async def until(self, condition, timeout_s=120.0):
        """Wait until an expression is true; its value."""
        last = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(PageError):  # the page is being loaded anew
                        last = await self.run(condition)
                        if last:
                            return last
                    await asyncio.sleep(0.1)
        text = await self.run("document.body ? document.body.innerText : ''")
        raise PageError(f"{condition} stays {last!r}; the page says: {text[-1500:]}; errors: {self.errors}")


class Browser:
    """A browser with an empty profile, for the length of an `async with`. It writes its port into a file there."""

    port_file: str
    """Name of that file in the profile."""

    @staticmethod
    def path():
        """Path of the browser; skips where there is none."""
        raise NotImplementedError

    def prepare(self, profile):
        """Write what stands in the profile before the start."""

    def command(self, profile):
        """Options of the start."""
        raise NotImplementedError

    async def connect(self, found):
        """Get in touch with the browser, from its port file's text; False while that is not whole."""
        raise NotImplementedError

    async def disconnect(self):
        """Wait until what `connect` began has ended; the process has ended already."""

    async def new_tab(self):
        """A new tab."""
        raise NotImplementedError

    async def page(self):
        """A new tab, which `close_tabs` closes."""
        page = await self.new_tab()
        self._tabs.append(page)
        return page

    async def close_tabs(self):
        """Close the tabs that are still open."""
        tabs, self._tabs = self._tabs, []
        for tab in tabs:
            if not tab.closed:
                await tab.close()

    async def __aenter__(self):
        self._tabs = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        profile = Path(self._folder.name)
        self.prepare(profile)
        quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
        self._process = await asyncio.create_subprocess_exec(
            self.path(), *self.command(profile), "about:blank", **quiet
        )
        self.http = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                file = profile / self.port_file
                while not (file.exists() and await self.connect(file.read_text())):
                    await asyncio.sleep(0.1)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        await self.disconnect()
        await self.http.close()
        self._folder.cleanup()


class Browsers:
    """Browsers that are started once for all tests; tests run in one event loop, which is theirs."""

    def __init__(self):
        self._runner, self._started = asyncio.Runner(), {}

    def run(self, scenario):
        """Run a coroutine."""
        return self._runner.run(scenario)

    @asynccontextmanager
    async def started(self, kind):
        """A browser of a kind; the tabs that were opened are closed at the end of the block."""
        if kind not in self._started:
            self._started[kind] = await kind().__aenter__()
        browser = self._started[kind]
        try:
            yield browser
        finally:
            await browser.close_tabs()

    def close(self):
        """End all of them."""
        for browser in self._started.values():
            self.run(browser.__aexit__())
        self._runner.close()
