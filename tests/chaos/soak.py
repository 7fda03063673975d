"""An edge for a long time, with devices that come and go: no growth in memory, descriptors or tasks.

python tests/chaos/soak.py [SECONDS [DEVICES]]      `make soak` runs half an hour with 20 devices

The target is that of `schedules`; every text is compared with the undisturbed one. What is counted is looked at once
everybody has left, after the first tenth of the time and at the end. `/health` is asked all the while.
"""

import asyncio
import contextlib
import gc
import importlib.util
import os
import random
import sys
import time
from pathlib import Path

import aiohttp

from multispin.device import DeviceClient, Patience
from multispin.device.link import WebSocketLink
from multispin.edge import EdgeServer, listening
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Request
from multispin.speculation import SamplingParams

spec = importlib.util.spec_from_file_location("schedules", Path(__file__).with_name("schedules.py"))
schedules = importlib.util.module_from_spec(spec)
sys.modules["schedules"] = schedules
spec.loader.exec_module(schedules)

MOST_GROWTH = 0.1
"""Share by which memory may grow from the first look to the last."""
SPARE_BYTES = 8 * 2**20


def counted() -> tuple[int, int, int]:
    """Resident memory [bytes], open descriptors, and tasks of the event loop."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), sum(1 for _ in Path("/proc/self/fd").iterdir()), len(asyncio.all_tasks())


async def device(url: str, number: int, until_s: float, ended: list[int]) -> None:
    """Texts, one after the other; some are given up, some come over a bad link."""
    rng = random.Random(number)
    loop = asyncio.get_running_loop()
    while loop.time() < until_s:
        link = schedules.BadLink(random.Random(rng.random())) if rng.random() < 0.3 else WebSocketLink()
        client = DeviceClient(
            url,
            Hello(PROTOCOL_VERSION, "chaos", f"d{number}", "q5", True, Profile(0.001, 5.0)),
            schedules.Guesser(number),
            link=link,
            patience=Patience(60.0, 60.0, 0.02, 0.2),
        )
        prompt, count = [rng.randrange(schedules.V) for _ in range(rng.choice([1, 5, 90]))], rng.randrange(10, 60)
        writing = client.generate(Request(prompt, SamplingParams(), count))
        try:
            if rng.random() < 0.2:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(writing, rng.uniform(0.0, 0.5))
            else:
                assert await writing == schedules.undisturbed(prompt, count), f"a text of device {number} differs"
                ended[0] += 1
        finally:
            client.close()
        await asyncio.sleep(rng.choice([0.0, 0.1, 0.5]))


async def soak(seconds: float, devices: int) -> str:
    """Run for so long; AssertionError if something grew."""
    controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 8, mode="auto"))
    limits = Limits(resume_grace_s=2.0, slot_grace_s=0.3, deadline_slack_s=0.05)
    server, ended = EdgeServer(Passes(schedules.Engine(max(1, devices // 2)), controller, "chaos", limits)), [0]
    async with listening(server.application(), "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:

        async def stretch(length_s: float) -> tuple[int, int, int]:
            until_s = asyncio.get_running_loop().time() + length_s
            url = f"ws://127.0.0.1:{port}{SESSION_PATH}"
            crowd = asyncio.gather(*(device(url, k, until_s, ended) for k in range(devices)))
            while not crowd.done():
                async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                    assert answer.status == 200
                await asyncio.wait([crowd], timeout=1.0)
            crowd.result()
            await asyncio.sleep(limits.resume_grace_s + 2.0)  # what is lost is forgotten
            return counted()

        first = await stretch(0.1 * seconds)
        last = await stretch(0.9 * seconds)
    said = " ".join(f"{a} → {b}" for a, b in zip(first, last, strict=True))
    assert last[0] <= first[0] * (1 + MOST_GROWTH) + SPARE_BYTES, f"memory grew: {said}"
    assert last[1] <= first[1] + 2, f"descriptors grew: {said}"
    assert last[2] <= first[2] + 2, f"tasks grew: {said}"
    return f"{ended[0]} texts, none wrong; resident bytes, descriptors and tasks: {said}"


def main(seconds: float, devices: int) -> None:
    began_s = time.monotonic()
    print(f"{asyncio.run(soak(seconds, devices))}; {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main(float((sys.argv[1:] or ["1800"])[0]), int((sys.argv[2:] or ["20"])[0]))
