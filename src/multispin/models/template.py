"""Chats in a model's chat template, which is a program of its author's: bounded in time, in memory and in size.

A template runs in a process of its own, which is ended when it takes too long. The process is kept for the next text.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multispin.errors import InputError, require

MOST_S = 10.0
"""A template that takes longer is ended [s]; usual ones take a millisecond, and the process a second to start."""
MOST_BYTES = 2**29
"""Most memory of the process that runs templates [bytes]."""
MOST_CHARACTERS = 2**22
"""Longest text that a template may write; it is far over what any session may hold."""
_SCRIPT = Path(__file__).with_name("template_process.py")


class _Writer:
    """The process that runs templates, for all threads of this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, question: Mapping[str, Any]) -> dict[str, str]:
        """The answer to a question; {"slow": ""} or {"large": ""} if there is none."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            ended = threading.Timer(MOST_S, process.kill)
            ended.start()
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:  # it is gone
                line = ""
            finally:
                slow = not ended.is_alive()
                ended.cancel()
            if line.endswith("\n"):
                answer: dict[str, str] = json.loads(line)
                return answer
            process.kill()
            process.wait()
            self._process = None
            return {"slow" if slow else "large": ""}

    def _running(self) -> "subprocess.Popen[str]":
        """The process; a new one where there is none, or only that of the process that this one was forked from."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-P", str(_SCRIPT), str(MOST_BYTES), str(MOST_CHARACTERS)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8",
            )  # fmt: skip
            self._owner = os.getpid()
        return self._process


_writer = _Writer()


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text that a chat template writes.

    Args:
        template: Jinja source, with the additions that templates on the hub rely on.
        variables: what it may name, as values of JSON.

    Raises:
        InputError: the template is damaged, refuses these variables, or takes too much time, memory or text.

    """
    require("jinja2")
    answer = _writer.ask({"template": template, "variables": dict(variables)})
    match answer:
        case {"text": text}:
            return text
        case {"damaged": why}:
            raise InputError(f"the model's chat template is damaged: {why}")
        case {"refused": why}:
            raise InputError(f"the model's chat template refuses these messages: {why}")
        case {"slow": _}:
            raise InputError(f"the model's chat template does not end within {MOST_S:.0f} s")
    raise InputError(
        f"the model's chat template takes more than {MOST_BYTES >> 20} MiB, or writes more than "
        f"{MOST_CHARACTERS} characters"
    )
