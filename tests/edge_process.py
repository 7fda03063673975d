"""A real edge as a process, for tests that live in another environment than it does (no pytest plugin, no multispin).

The environment variable MULTISPIN names the command that serves.
"""

import contextlib
import json
import os
import subprocess
import threading

START_TIMEOUT_S = 480.0
"""The first start unpacks the target, which takes minutes where other work wants the processor too."""
QUESTION = "Why is the sky blue?"
EXPECTED = "The answer to this question lies in the intricate dance of light"
"""How the embedded target begins to answer `QUESTION` at temperature 0."""


@contextlib.contextmanager
def running_edge():
    """The port of an edge that runs for the length of a `with`."""
    with subprocess.Popen(
        [os.environ["MULTISPIN"], "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        timer = threading.Timer(START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            said = []
            for line in process.stdout:
                if '"listening"' in line:
                    port = json.loads(line)["port"]
                    break
                said.append(line)
            else:
                raise AssertionError(f"the edge was not up in {START_TIMEOUT_S:.0f} s; it said: {''.join(said[-5:])}")
            timer.cancel()
            threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
            yield port
        finally:
            timer.cancel()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
