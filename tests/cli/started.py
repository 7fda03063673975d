"""`multispin …` as a process of its own that is forked from one which has imported torch already.

It has its own pipes, signals and exit code, as `python -m multispin …` has: only the seconds of importing are missing.
A demo forks its processes in the same way. One test of `test_stop` and `tests/packaging` start commands by their names.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import threading

from multispin.demo.forks import PRELOAD, Pipes, be_multispin

_forks = multiprocessing.get_context("forkserver")


def _play(arguments, pipes, ignores_ctrl_c):
    """In the new process: be `multispin ARGUMENTS`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_ctrl_c else signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests themselves were started with
    be_multispin(arguments, pipes)


class Started:
    """As much of `subprocess.Popen` as tests need.

    Attributes:
        stdout: what it writes, as lines of text.
        stderr: the same of its standard error; unread unless a test reads it.

    """

    def __init__(self, *arguments, ignores_ctrl_c=False):
        _forks.set_forkserver_preload(list(PRELOAD))
        (self.stdout, out), (self.stderr, err), nothing = _pipe(), _pipe(), os.open(os.devnull, os.O_RDONLY)
        given = (list(map(str, arguments)), Pipes(nothing, out, err), ignores_ctrl_c)
        self._process = _forks.Process(target=_play, args=given)
        self._process.start()
        atexit.register(self.kill)
        for end in (nothing, out, err):
            os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait(60)

    @property
    def pid(self):
        return self._process.pid

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


def _pipe():
    """A file to read text from, and the descriptor of the other end."""
    reads, writes = os.pipe()
    return open(reads, encoding="utf-8"), writes  # noqa: PTH123
