"""Functions that commands share: threads, options and their errors, output files, JSON lines."""

import contextlib
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from multispin.checks import thread_count
from multispin.errors import InputError, require
from multispin.outside import first_line, one_line

if TYPE_CHECKING:
    from multispin.protocol.events import Event

MAX_THREADS = 1024
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    help="Processor threads for the model. Set this if several processes share the cores of this machine.",
)
attended_option = click.option(
    "--attended", is_flag=True, hidden=True, help="Begin at a line on standard input, end at its end."
)


class _Renamed(click.Option):
    """An option with old names that still work in scripts; help and messages show only the first name."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        names, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names

    def get_error_hint(self, ctx: click.Context | None) -> str:
        return f"'{self.opts[0]}'"


place_option = click.option(
    "--on", "--device", "place", cls=_Renamed, default="cpu", show_default=True,
    help="Where the target runs: cpu, or a GPU such as cuda:0.",
)  # fmt: skip
"""Its old name, --device, still works. It was ambiguous, since a phone or a laptop is called a device, too."""

SPIN_COUNT = 100_000
"""Turns for which a waiting thread of a model spins before it sleeps: 1 to 7 ms, by how long the processor pauses.

A forward pass has some hundred parallel regions, microseconds apart. Threads that sleep at once are woken for each
(docs/measurements/verifier.md has figures), which takes longest where the machine is shared. Threads that spin on after
the last one take the cores from the other processes of a small machine.
"""


KERNELS = 256
"""Matrix products that oneDNN keeps compiled, one for each number of rows and layer's size.

Its own default of 1,024 keeps some 250 MiB more after passes of many sizes, and is not quicker
(docs/measurements/faults.md).
"""


class _LogLine(logging.Formatter):
    """Formats a message as one line, even if it quotes text from outside."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))


def prepare(threads: int, models: bool = True, handler: logging.Handler | None = None) -> None:
    """Set the threads of the model and show log messages on standard error; call before torch is imported.

    Waiting threads spin for `SPIN_COUNT` turns and then sleep, unless OMP_WAIT_POLICY is set. oneDNN keeps `KERNELS`
    products, unless ONEDNN_PRIMITIVE_CACHE_CAPACITY is set.

    Args:
        threads: threads of the model.
        models: whether this process runs a model, which needs torch; default True.
        handler: handler of the log messages; default: a handler that writes them at once.

    Raises:
        InputError: there are too many for this machine (`thread_count`).

    """
    thread_count(threads, "--threads")
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_LogLine("multispin: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("multispin").setLevel(logging.INFO)
    if not models:
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    import torch

    torch.set_num_threads(threads)


@contextmanager
def flag(name: str) -> Iterator[None]:
    """Put the option's name before an InputError of the block, since lower rooms do not know options."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(f"{name}{' ' if message.startswith(chr(39)) else ': '}{message}") from error


def host_and_port(text: str, option: str) -> tuple[str, int]:
    """Host and port of an option; InputError if it is not HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{option} {text!r} is not of the form HOST:PORT: write, for example, 127.0.0.1:8766")
    return host.strip("[]"), int(port)


def make_folder(folder: Path) -> None:
    """Make the folder that a long command will write to, before the long part; InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from None


def check_outputs(*paths: Path | None) -> None:
    """InputError if a file that a long command writes at its end cannot be written. Call it before the long part.

    Beside files, only device files and what this process has open already, such as /dev/stdout, may be written: opening
    a named pipe waits until somebody reads it.
    """
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        if path.exists():
            named = Path(os.path.realpath(path))  # an open pipe has no name in any folder
            if named.exists() and not (named.is_file() or named.is_char_device()):
                raise InputError(f"{path} cannot be written: it is not a file")
        else:  # a device file may stand in a folder that is not writable
            try:
                tempfile.TemporaryFile(dir=path.parent).close()
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror}") from None


def check_plot(path: Path | None) -> None:
    """InputError if a picture cannot be drawn here or written under this name."""
    if path is None:
        return
    require("matplotlib")
    if path.suffix not in PLOT_SUFFIXES:
        raise InputError(f"--plot {path}: the name must end in {', '.join(PLOT_SUFFIXES)}")
    check_outputs(path)


def machine_name(device: str, threads: int) -> str:
    """Name of the computing hardware, for records: the GPU, or the processor and the number of threads."""
    if device.startswith("cuda"):
        import torch

        try:
            return torch.cuda.get_device_name(device)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(f"there is no device {device!r} here: {first_line(error)}; cpu always works") from None
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {threads} threads"


def writer(as_json: bool, say: "Callable[[Event], None]") -> "Callable[[Event], None]":
    """The function with which a command reports events: JSON lines for machines, `say` for people."""
    if not as_json:
        return say
    from multispin.protocol.events import as_line

    return lambda event: print(as_line(event), flush=True)
