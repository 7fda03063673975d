"""Tries a GGUF file in a separate process, since llama.cpp ends its process if the file is malformed."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from multispin.errors import InputError
from multispin.models.gguf_header import check_end, check_header
from multispin.models.llama_cpp import LIBRARY_VERSION, LlamaCppContext, LlamaCppError, LlamaCppModel
from multispin.models.llama_tokenizer import tokenizer_of
from multispin.models.references import cache_folder, remove_older

TRIAL_TIMEOUT_S = 60.0
"""Longest time for trying a file [s]."""
PASSED_KEPT_S = 90 * 86_400.0
"""Time after which a file that has passed is tried again [s]."""
_REFUSED = 23  # exit status of a trial that says why the file cannot be used; 3 is that of abort() on Windows
_PYTHON_FAILED = 1  # the same error will come in this process, and is reported then
_SHORT_CONTEXT_TOKENS = 64
_PERHAPS = "this GGUF file is damaged, or of a kind that the library lacks"


def try_file(path: Path, timeout_s: float = TRIAL_TIMEOUT_S) -> None:
    """Let a separate process load a file and run the self-test. A file that has passed is not tried again.

    Args:
        path: a GGUF file from outside.
        timeout_s: longest time for this [s]; default `TRIAL_TIMEOUT_S`.

    Raises:
        LlamaCppError: the library refuses the file, ended the process, or did not finish.
        InputError: the file is of an unknown version, or longer than its tensors.

    """
    check_header(path)
    passed = _mark_of(path)
    if passed.is_file():
        return
    check_end(path)  # the library maps the file to its end
    trial = subprocess.Popen(
        [sys.executable, "-c", "from multispin.models.gguf_trial import main; main()", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,
    )
    try:
        said, _ = trial.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise LlamaCppError(f"llama.cpp's library did not read {path} within {timeout_s:g} s: {_PERHAPS}") from None
    finally:
        if sys.platform == "win32":  # which has no groups of processes
            trial.kill()
        else:
            with contextlib.suppress(ProcessLookupError):  # whatever it has started, too
                os.killpg(trial.pid, signal.SIGKILL)
        trial.wait()
    if trial.returncode not in (0, _PYTHON_FAILED, _REFUSED):
        code = trial.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code:#x}"  # Windows has no signals
        raise LlamaCppError(f"llama.cpp's library ended while reading {path} ({how}): {_PERHAPS}")
    if trial.returncode == _REFUSED:
        raise LlamaCppError(said.decode(errors="replace"))
    if trial.returncode == 0:
        with contextlib.suppress(OSError):  # without a cache it is tried each time
            passed.parent.mkdir(parents=True, exist_ok=True)
            remove_older(passed.parent, "*", PASSED_KEPT_S)
            passed.touch()


def main() -> None:
    """The trial: ends with the reason on standard output where the file cannot be used."""
    try:
        model = LlamaCppModel.load(Path(sys.argv[1]))
        LlamaCppContext.open(model, _SHORT_CONTEXT_TOKENS)
        tokenizer_of(model).encode("a")
    except InputError as error:
        sys.stdout.write(str(error))
        sys.stdout.flush()
        sys.exit(_REFUSED)


def _mark_of(path: Path) -> Path:
    """The empty file in the cache that says that a file, as it is now, has passed with this version of the library."""
    found = path.stat()
    about = f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {LIBRARY_VERSION}"
    return cache_folder() / "tried" / hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:32]
