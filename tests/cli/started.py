"""`multispin …` as a process of its own that is forked from one which has imported torch already.

It has its own pipes, signals and exit code, as `python -m multispin …` has: only the seconds of importing are missing.
`test_demo`, one test of `test_stop` and `tests/packaging` start commands by their names.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.reduction import DupFd

_forks = multiprocessing.get_context("forkserver")
PRELOAD = [
    "torch",
    "transformers",
    "uvloop",
    "multispin.models.verifier",
    "multispin.cli.serve",
    "multispin.cli.device",
]


def _play(arguments, pipes, ignores_ctrl_c):
    """In the new process: be `multispin ARGUMENTS`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, pipe in enumerate(pipes, 1):
        os.dup2(pipe.detach(), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_ctrl_c else signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests themselves were started with
    sys.argv = ["multispin", *arguments]
    from multispin.cli.main import main

    main()


class Started:
    """As much of `subprocess.Popen` as tests need.

    Attributes:
        stdout: what it writes, as lines of text.
        stderr: the same of its standard error; unread unless a test reads it.

    """

    def __init__(self, *arguments, ignores_ctrl_c=False):
        _forks.set_forkserver_preload(PRELOAD)
        (self.stdout, out), (self.stderr, err) = (_pipe() for _ in range(2))
        given = (list(map(str, arguments)), _Pipes(out, err), ignores_ctrl_c)
        self._process = _forks.Process(target=_play, args=given, daemon=True)
        self._process.start()
        for end in (out, err):
            os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait(60)

    @property
    def returncode(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()

    def wait(self, timeout=60):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("multispin", timeout)
        return self._process.exitcode

    def communicate(self, timeout=60):
        """What it still writes until it ends."""
        said = [[], []]
        readers = [
            threading.Thread(target=lambda each=each, to=to: to.append(each.read()), daemon=True)
            for each, to in zip((self.stdout, self.stderr), said, strict=True)
        ]
        for each in readers:
            each.start()
        self.wait(timeout)
        for each in readers:
            each.join(timeout)
        return said[0][0], said[1][0]


class _Pipes:
    """Descriptors that go to a new process."""

    def __init__(self, *ends):
        self._ends = ends

    def __getstate__(self):
        return [DupFd(end) for end in self._ends]

    def __setstate__(self, state):
        self._ends = state

    def __iter__(self):
        return iter(self._ends)


def _pipe():
    """A file to read text from, and the descriptor of the other end."""
    reads, writes = os.pipe()
    return open(reads, encoding="utf-8"), writes  # noqa: PTH123
