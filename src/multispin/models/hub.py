"""Models from the hub: fetched once, with limits on size, files and time, and kept in the hub's own cache.

The library `huggingface_hub` fetches them in a separate process, which is ended when the download stalls, since a
server could make the library wait for ever. Kept files are used if the hub cannot be reached.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue

from multispin.errors import InputError, require
from multispin.models.references import MOST_BYTES

STALLED_S = 60.0
"""A download that brings less than `LEAST_BYTES` in this time is given up [s]."""
LEAST_BYTES = 2**16
"""Fewest bytes in `STALLED_S`, which is some 9 kbit/s."""
MODEL_BYTES = 2**41
"""Most bytes of all files of a model: 2 TiB."""
OTHER_BYTES = 2**27
"""Most bytes of a settings file that `MOST_BYTES` does not name."""
MOST_FILES = 2000
"""Most files of a model."""
FETCH_MEMORY_BYTES = 2**33
"""Most address space of the process that fetches [bytes]."""
_TELL_EVERY_S = 5.0
_LOOK_EVERY_S = 0.5
_SCRIPT = Path(__file__).with_name("hub_process.py")

log = logging.getLogger(__name__)


@cache
def folder_of(
    reference: str, weights: bool = True, quiet_s: float = STALLED_S, memory_bytes: int = FETCH_MEMORY_BYTES
) -> Path:
    """The folder with the files of a model from the hub; missing files are fetched.

    Args:
        reference: its Hub id (owner/name).
        weights: whether its weights are needed too, or only its settings and its tokenizer; default yes.
        quiet_s: a download that brings less than `LEAST_BYTES` in this time is given up [s]; default `STALLED_S`.
        memory_bytes: most address space of the process that fetches [bytes]; default `FETCH_MEMORY_BYTES`.

    Raises:
        InputError: the model does not exist, is too large, or the hub cannot be reached and nothing is kept.

    """
    require("huggingface_hub")
    part = "all" if weights else "settings"
    found = _Fetch(reference, part, "hub", quiet_s, memory_bytes).run()
    if isinstance(found, Path):
        return found
    kept = _Fetch(reference, part, "kept", quiet_s, memory_bytes).run()
    needed = ["config.json", *["*.safetensors"] * weights]
    if isinstance(kept, Path) and all(any(kept.glob(name)) for name in needed):
        log.warning("%s is used as it was fetched earlier: %s", reference, found)
        return kept
    raise InputError(
        f"cannot fetch {reference} from the hub ({found}): name a folder or a .gguf file, or try again later"
    )


class _Fetch:
    """One run of the process that fetches.

    Args:
        reference: Hub id.
        part: "settings" or "all".
        place: "hub" or "kept".
        quiet_s: a download that brings less than `LEAST_BYTES` in this time is given up [s].
        memory_bytes: most address space of the process [bytes].

    """

    def __init__(self, reference: str, part: str, place: str, quiet_s: float, memory_bytes: int) -> None:
        self._reference = reference
        self._quiet_s, self._memory_bytes = quiet_s, memory_bytes
        limits = {
            "model_bytes": MODEL_BYTES,
            "other_bytes": OTHER_BYTES,
            "settings_bytes": MOST_BYTES,
            "files": MOST_FILES,
            "memory_bytes": memory_bytes,
            "wait_s": quiet_s,
        }
        self._command = [sys.executable, "-P", str(_SCRIPT), reference, part, place, json.dumps(limits)]
        self._cache: Path | None = None
        self._total = 0

    def run(self) -> "Path | str":
        """The folder, or why there is none."""
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8",
        )  # fmt: skip
        lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=_pass_on, args=(process, lines), daemon=True).start()
        try:
            return self._watch(lines)
        finally:
            process.kill()
            process.wait()

    def _watch(self, lines: "SimpleQueue[str]") -> "Path | str":
        began_s = told_s = since_s = time.monotonic()
        before = 0
        while True:
            try:
                line = lines.get(timeout=_LOOK_EVERY_S)
            except Empty:
                line = None
            now_s = time.monotonic()
            if line == "":
                return f"the process that fetches it needed more than {self._memory_bytes >> 20} MiB, or was killed"
            if line is not None:
                answer = json.loads(line)
                if "folder" in answer:
                    return Path(answer["folder"])
                if "refused" in answer:
                    return str(answer["refused"])
                self._cache, self._total = Path(answer["cache"]), answer["bytes"]
                before, since_s = self._have(), now_s
                continue
            if now_s - since_s >= self._quiet_s:
                have = self._have()
                if have - before < LEAST_BYTES:
                    return f"only {max(0, have - before)} bytes came in {self._quiet_s:.0f} s"
                before, since_s = have, now_s
            if self._cache is not None and now_s - told_s >= _TELL_EVERY_S:
                told_s, have = now_s, self._have()
                log.info(
                    "fetching %s: %d of %d MB after %.0f s",
                    *(self._reference, have // 10**6, self._total // 10**6, now_s - began_s),
                )

    def _have(self) -> int:
        """Bytes of the model's files in the hub's cache."""
        files = [] if self._cache is None else self._cache.glob("blobs/*")
        have = 0
        for file in files:
            try:
                have += file.stat().st_size
            except OSError:  # renamed meanwhile
                continue
        return have


def _pass_on(process: "subprocess.Popen[str]", lines: "SimpleQueue[str]") -> None:
    """Each line of a process, then "" for its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")
