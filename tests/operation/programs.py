"""Programs of others that run beside an edge: proxies, Prometheus."""

import contextlib
import socket
import subprocess
import time

START_S = 60


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def running(command, port, folder):
    """A process that listens on this port."""
    with (folder / "said").open("ab") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            end = time.monotonic() + START_S
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, (folder / "said").read_text(encoding="utf-8")
                assert time.monotonic() < end, (folder / "said").read_text(encoding="utf-8")
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
