"""`multispin`: runs the command, and turns an input error into one sentence and exit code 2."""

import contextlib
import gc
import importlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from multispin import __version__
from multispin.cli.options import CommandGroup
from multispin.errors import InputError, missing_extra
from multispin.outside import complain, never_fails, unheard

COMMANDS = {
    "demo": "Start one edge and several devices on this machine, and compare who should draft.",
    "serve": "Run the edge server.",
    "device": "Run one device.",
    "token": "Make, list and revoke the tokens that an edge asks for.",
    "chat": "Talk with a model in the terminal.",
    "plan": "Choose draft lengths and bandwidth shares for a scenario file.",
    "advise": "Say whether devices should draft at a site.",
    "profile": "Measure on this machine what the controller needs.",
    "distill": "Make a small drafter for a target.",
    "convert": "Write a drafter as a GGUF file, for llama.cpp and browsers.",
    "simulate": "Run a site under a virtual clock, and compare modes and policies.",
    "reproduce": "Compute the paper's figures, and compare them with the paper.",
}
"""Name and one-line help of every command; each is the object `command` in `multispin.cli.<name>`."""

RARELY = (100_000, 50, 50)
"""Thresholds of Python's garbage collector for its three generations."""


class _LazyGroup(CommandGroup):
    """Imports a command's file only when it is used, so that `multispin plan` need not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"multispin.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="multispin")
def cli() -> None:
    """Devices draft with small models, and one edge verifies with a large one. Each text is exactly the large model's.

    \b
    Examples:
      multispin demo
      multispin plan paper-llama
    """


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0, 2 for refused input, 130 after Ctrl-C.

    The exit code is 1 if the reader of the output has gone, as in click.
    """
    try:
        result = _obey(arguments)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "multispin"
        complain(f"{_in_plain_words(error.format_message())} (see {where} --help)", where)
        return 2
    except click.ClickException as error:
        complain(error.format_message())
        return 2
    except InputError as error:
        complain(str(error))  # made printable, since it may quote text from outside
        return 2
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        complain(str(missing))
        return 2
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the output is dropped silently
        return 1
    except OSError as error:  # a full disk, a file without permission
        complain(f"{error.filename or 'a file or the output'}: {error.strerror or error}")
        return 2
    except (KeyboardInterrupt, click.Abort):
        complain("stopped")
        return 130
    return result if isinstance(result, int) else 0


def _in_plain_words(message: str) -> str:
    """The message of click about a value, with plain words for number types."""
    for theirs, ours in (("integer", "whole number"), ("float", "number")):
        message = re.sub(rf"(?<=' is not a valid ){theirs}(?: range)?\.$", f"{ours}.", message)
    return message


def _obey(arguments: list[str]) -> object:
    """Run a command line and return its result; show the help if it names no command."""
    # NO_COLOR means no colours (https://no-color.org); click does not check it.
    colour = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    try:
        return cli.main(args=arguments, prog_name="multispin", standalone_mode=False, color=colour)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0


class Termination:
    """Remembers whether a signal to end has come, since an exception raised while a destructor runs is lost.

    Attributes:
        asked: whether a signal to end has come.

    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, _frame: object) -> NoReturn:
        """Handle a signal: end the command as Ctrl-C does, so that it cleans up first."""
        self.asked = True
        raise SystemExit(128 + number)


TERMINATION = Termination()
"""This process's handler of SIGTERM and of the end of the terminal."""


def end_signals() -> tuple[signal.Signals, ...]:
    """Signals that ask a command to end, beside Ctrl-C: SIGTERM, and SIGHUP unless it is ignored, as `nohup` does."""
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is None or signal.getsignal(hang_up) is signal.SIG_IGN:
        return (signal.SIGTERM,)
    return signal.SIGTERM, hang_up


def keep_standard_numbers() -> None:
    """Open the null device in place of a closed standard input, output or error.

    Otherwise a socket would get that file descriptor, and prints would go into it. libuv ends the process when it
    closes such a socket.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def main() -> None:
    """Entry point of the `multispin` command.

    torch and transformers make about a hundred thousand objects that live as long as the process. Garbage collection of
    them took a fifth of the start and a second at the end, which also slowed down other devices on the machine.
    """
    keep_standard_numbers()
    never_fails(sys.stdout)
    sys.stderr = unheard(sys.stderr)
    for number in end_signals():
        signal.signal(number, TERMINATION)
    gc.set_threshold(*RARELY)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)
