"""Fetches a model from the hub in a separate process, where everything that a server sends is bounded.

Run by `models.hub`, as a script, so that nothing of the package is imported. It writes one JSON object a line on
standard output: {"cache": folder, "bytes": all} before a file is fetched, then {"folder": path} or {"refused": why}.
File size and memory are limited here, time by the process that started this one. It ends when standard input does.
"""

import contextlib
import errno
import json
import os
import re
import sys
import threading
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.request import getproxies

SETTINGS = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")
"""Files of a model beside its weights; those in folders are for other programs."""
WEIGHTS = ("*.safetensors",)
"""Files of weights. Pickles are never fetched."""
UNREAD = ("consolidated*",)
"""The same weights again, in other programs' names."""
_FOLDERS = "*/*"
_SPARE_BYTES = 2**20
"""A file may be this much larger than the listing says: locks and listings are written too."""

_ERROR_NUMBER = re.compile(r"^\[Errno -?\d+\] ")


class _NotFetchedError(Exception):
    """Why a model is not fetched, in one sentence."""


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not any(
        fnmatchcase(name, pattern) for pattern in (*UNREAD, _FOLDERS)
    )


def _checked(reference: str, patterns: Sequence[str], limits: dict[str, Any]) -> dict[str, int]:
    """Sizes of the files to be fetched, by name, once they are known to be within the limits."""
    from huggingface_hub import HfApi

    listed = HfApi().model_info(reference, files_metadata=True, timeout=limits["wait_s"]).siblings or []
    sizes = {file.rfilename: file.size for file in listed if _wanted(file.rfilename, patterns)}
    if "config.json" not in sizes:
        raise _NotFetchedError("it has no config.json, so it is no model that can be read")
    if patterns != SETTINGS and not any(_wanted(name, WEIGHTS) for name in sizes):
        raise _NotFetchedError("it holds no .safetensors file; weights of other kinds are not read")
    if len(sizes) > limits["files"]:
        raise _NotFetchedError(f"it holds {len(sizes)} files, over the limit of {limits['files']}")
    known = dict[str, int]()
    for name, size in sizes.items():
        most = limits["model_bytes"] if _wanted(name, WEIGHTS) else limits["settings_bytes"].get(name)
        most = limits["other_bytes"] if most is None else most
        if not isinstance(size, int) or not 0 <= size <= most:
            raise _NotFetchedError(f"its {name[:80]!r} has {size} bytes, over the limit of {most} for such a file")
        known[name] = size
    total = sum(known.values())
    if total > limits["model_bytes"]:
        raise _NotFetchedError(f"its files have {total} bytes, over the limit of {limits['model_bytes']}")
    return known


def _bound(most_bytes: int, memory_bytes: int) -> None:
    """No file of this process grows beyond `most_bytes`, and the process not beyond `memory_bytes`."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _fetch(reference: str, patterns: Sequence[str], limits: dict[str, Any]) -> str:
    """The folder with the model's files."""
    import shutil

    from huggingface_hub import constants, snapshot_download

    _bound(limits["other_bytes"], limits["memory_bytes"])
    sizes = _checked(reference, patterns, limits)
    cache = Path(constants.HF_HUB_CACHE) / ("models--" + reference.replace("/", "--"))
    _say(cache=str(cache), bytes=sum(sizes.values()))
    cache.mkdir(parents=True, exist_ok=True)
    have = sum(file.stat().st_size for file in cache.glob("blobs/*"))
    missing, free = sum(sizes.values()) - have, shutil.disk_usage(cache).free
    if missing > free:
        raise _NotFetchedError(f"{missing} bytes are still to be fetched, and {cache} has room for {free}")
    _bound(max(sizes.values()) + _SPARE_BYTES, limits["memory_bytes"])
    return snapshot_download(reference, allow_patterns=list(sizes), ignore_patterns=[*UNREAD, _FOLDERS])


def _kept(reference: str, patterns: Sequence[str]) -> str:
    """The folder with what was fetched at an earlier time."""
    from huggingface_hub import snapshot_download

    left_out = [*UNREAD, _FOLDERS]
    return snapshot_download(reference, allow_patterns=[*patterns], ignore_patterns=left_out, local_files_only=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".: ")[:300]


def why_not_fetched(error: Exception) -> str:
    """Why a download failed, in one sentence; with the proxy, where one is named and the hub was not reached."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file is larger than the hub's listing says"
    reason = _ERROR_NUMBER.sub("", _first_line(error))
    by_way_of = getproxies().get("https") or getproxies().get("all")
    if by_way_of is None or "connect" not in type(error).__name__.lower():
        return reason
    place = by_way_of.rpartition("@")[2].removeprefix("http://")
    return f"{reason}, through the proxy {place} that HTTPS_PROXY or ALL_PROXY names"


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main(reference: str, part: str, place: str, limits: dict[str, Any]) -> None:
    """Find the folder of a model.

    Args:
        reference: Hub id of the model.
        part: "settings", or "all" that is read of it.
        place: "hub" to fetch what is missing, or "kept" for what was fetched earlier.
        limits: see `models.hub`.

    """
    os.environ["HF_HUB_DISABLE_XET"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # plain files grow by what came
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        patterns = SETTINGS if part == "settings" else SETTINGS + WEIGHTS
        _say(folder=_kept(reference, patterns) if place == "kept" else _fetch(reference, patterns, limits))
    except MemoryError:
        _say(refused=f"its listing takes more than {limits['memory_bytes']} bytes of memory")
    except Exception as error:  # whatever the library makes of a server's answers
        _say(refused=why_not_fetched(error))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
