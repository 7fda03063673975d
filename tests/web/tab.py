"""A tab of a headless browser, as far as all browsers that the tests drive agree."""

import asyncio
import contextlib
import os
import shutil

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
