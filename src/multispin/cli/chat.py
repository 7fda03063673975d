"""`multispin chat`: a conversation in the terminal, over the API of an edge, a device or any other server."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import msgspec
from msgspec import Struct

from multispin.checks import shown
from multispin.cli.options import FILE, Command
from multispin.cli.process import flag
from multispin.errors import InputError
from multispin.outside import MAX_TEXT_BYTES, check_keys, decode, one_line, printable, user_path, whole_characters
from multispin.protocol.limits import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from ssl import SSLContext

API_URL = "http://127.0.0.1:8765/v1"
KEY_VARIABLE = "MULTISPIN_API_KEY"
"""Environment variable with the API key. Other users of the machine could read it on a command line."""
MAX_LINE_BYTES = 2**20
"""Longest line of a server's stream [bytes]."""
MAX_ANSWER_BYTES = 2**22
"""Longest answer in one document, such as the list of models or an error [bytes]."""
_HELP = """\
/system TEXT   set the system message (without TEXT: remove it)
/clear         forget the conversation
/help          show this list
/quit          leave (also Ctrl-D)
Ctrl-C         stop the answer"""


class _Delta(Struct):
    content: str | None = None


class _StreamedChoice(Struct):
    delta: _Delta | None = None
    drafted: bool = False
    drafted_by: str = ""


class _Usage(Struct):
    completion_tokens: int | None = None


class _DraftCounts(Struct):
    num_accepted_draft_tokens: int = 0


class _StreamedMetrics(Struct):
    speculative_decoding: _DraftCounts | None = None


class _Model(Struct):
    id: str
    owned_by: str = ""


class ServerAnswer(Struct):
    """The fields of a server's answer that are read: part of a streamed chat, a list of models, or an error."""

    choices: list[_StreamedChoice] | None = None
    usage: _Usage | None = None
    metrics: _StreamedMetrics | None = None
    data: list[_Model] | None = None
    error: Any = None


@dataclass
class Talk:
    """A conversation and the server that answers.

    Attributes:
        url: base URL of the API.
        model: name of the model.
        ours: whether the server is multispin's own, which reports drafted text.
        options: sampling fields of every request.
        system: system message; empty for none.
        messages: messages so far, without the system message.
        tls: TLS settings for https:// addresses; None: the usual ones.

    """

    url: str
    model: str = ""
    ours: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    tls: "SSLContext | None" = None

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        marks = {"mark_drafted": True} if self.ours else {}
        return {
            "model": self.model,
            "messages": [*said, *self.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
            **marks,
        }


@click.command(cls=Command)
@click.argument("url", default=API_URL)
@click.option("--model", help="Name of the model.  [default: the server's first]")
@click.option("--system", default="", help="System message before the conversation.")
@click.option("--temperature", type=float, help="Sampling temperature; 0 is greedy decoding.  [default: the server's]")
@click.option(
    "--top-p",
    type=float,
    help="Keep the likeliest tokens that together have this probability.  [default: the server's]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same seed gives the same answers.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of an answer.")
@click.option(
    "--ca-file",
    type=FILE,
    metavar="FILE",
    help="PEM file of an authority to trust at https:// addresses.",
)
def command(url: str, ca_file: str | None, **options: Any) -> int:
    """Talk with a model in the terminal, over any OpenAI-compatible API.

    URL is the API's base URL. The answer appears while it is written. On a terminal, text that a device drafted is
    green, and text that the edge's own drafter drafted is cyan. Type /help for a list of commands. The environment
    variable MULTISPIN_API_KEY holds the API key.

    \b
    Examples:
      multispin chat                                      # the edge on this machine
      multispin chat http://127.0.0.1:8766/v1             # a device's own API (multispin device --serve)
      MULTISPIN_API_KEY=… multispin chat https://edge.example.org/v1 --temperature 0.7
      echo "Why is the sky blue?" | multispin chat --temperature 0

    If standard input is not a terminal, the exit code is 2 after an answer that was refused or broken off.
    """
    _check(url)
    named = {name: options[name] for name in ("temperature", "top_p", "seed", "max_tokens")}
    talk = Talk(url.rstrip("/"), options["model"] or "", system=whole_characters(options["system"], "--system"))
    talk.options = {name: value for name, value in named.items() if value is not None}
    if ca_file is not None:
        from multispin.device import trusting

        with flag("--ca-file"):
            talk.tls = trusting(user_path(ca_file))
    asyncio.run(_greet(talk))
    terminal, refused = sys.stdin is not None and sys.stdin.isatty(), False
    if terminal:
        click.echo(f"{one_line(talk.model)} at {url}; /help lists commands, /quit leaves")
        _edit_lines()
    while (line := _line(terminal)) is not None:
        if line.startswith("/"):
            if not _obey(talk, line):
                break
        elif line.strip() and not _answer(talk, line):
            refused = True
            if terminal and talk.messages:
                click.echo("if the conversation has become too long, /clear forgets it", err=True)
    return 2 if refused and not terminal else 0


def _check(url: str) -> None:
    """InputError unless this can be the base URL of an API and the API key can be sent in a header."""
    try:
        split = urlsplit(url)
        known = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{shown(url)} is not the base URL of an API: write one like {API_URL}")
    if not os.environ.get(KEY_VARIABLE, "").isprintable():
        raise InputError(f"{KEY_VARIABLE} has a line break or another character that no API key has")


def _line(terminal: bool) -> str | None:
    """The next line of input, typed or piped; None at the end."""
    if not terminal:
        return _next_line()
    while True:
        try:
            return whole_characters(input("> "), "what you typed")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo("\n(/quit leaves)")
        except (InputError, UnicodeDecodeError):
            click.echo("the line is not UTF-8 text: set your terminal to UTF-8", err=True)


def _next_line() -> str | None:
    """The next line of standard input; None at the end, or if it is closed. InputError if it is not text."""
    if sys.stdin is None or not (line := sys.stdin.buffer.readline(MAX_TEXT_BYTES + 1)):
        return None
    if len(line) > MAX_TEXT_BYTES:
        raise InputError(f"a line of standard input is longer than {MAX_TEXT_BYTES} bytes, the limit")
    return decode(line, "standard input").rstrip("\r\n")


def _edit_lines() -> None:
    """Let the arrow keys edit the line and recall earlier ones, if Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _obey(talk: Talk, line: str) -> bool:
    """Run a command that begins with a slash; False to leave."""
    name, _, rest = line.partition(" ")
    match name:
        case "/quit" | "/exit":
            return False
        case "/help":
            click.echo(_HELP)
        case "/clear":
            talk.messages.clear()
            click.echo("the conversation is forgotten")
        case "/system":
            talk.system = rest.strip()
            click.echo("the system message is set" if talk.system else "there is no system message")
        case _:
            click.echo(f"there is no command {one_line(name)}: /help lists them")
    return True


def _answer(talk: Talk, line: str) -> bool:
    """Ask, show the answer as it comes, and remember it; False if the server refused or broke off."""
    talk.messages.append({"role": "user", "content": line})
    written, answered = list[str](), True
    try:
        asyncio.run(_stream(talk, written))
    except KeyboardInterrupt:
        click.echo(click.style("\n[stopped]", dim=True))
    except InputError as error:
        answered = False
        click.echo(f"{chr(10) if written else ''}{one_line(str(error))}", err=True)
    if written:
        talk.messages.append({"role": "assistant", "content": "".join(written)})
    else:
        talk.messages.pop()
    return answered


async def _stream(talk: Talk, written: list[str]) -> None:
    """Show one answer, and add its text to `written` as it comes."""
    began_s, tokens, accepted = time.monotonic(), None, 0
    async for part in _events(talk):
        tokens = part.usage.completion_tokens if part.usage is not None else tokens
        if part.metrics is not None and part.metrics.speculative_decoding is not None:
            accepted = part.metrics.speculative_decoding.num_accepted_draft_tokens
        for choice in part.choices or ():
            if choice.delta is not None and (text := choice.delta.content):
                written.append(text)
                shown = printable(text)
                colour = "cyan" if choice.drafted_by == "edge" else "green"
                click.echo(click.style(shown, fg=colour) if choice.drafted else shown, nl=False)
                sys.stdout.flush()
    click.echo()
    if tokens is not None and sys.stdout.isatty():
        click.echo(click.style(_figures(tokens, time.monotonic() - began_s, accepted), dim=True))


def _figures(tokens: int, seconds: float, accepted: int) -> str:
    """The line after an answer: its speed, and how much of it was drafted.

    The time counts from the request, since the text may come in one part, and the first part may have many tokens.
    """
    speed = f", {tokens / seconds:.1f} tokens/s" if tokens and seconds > 0 else ""
    drafted = f", {accepted} of them drafted" if accepted else ""
    return f"[{tokens} tokens{drafted}{speed}]"


async def _greet(talk: Talk) -> None:
    """Find out the model's name, and whether the server is multispin's own."""
    import aiohttp

    from multispin.device.link import os_reason

    try:
        async with _http(talk) as http, http.get(f"{talk.url}/models") as answer:
            found = await _whole(answer)
    except InputError:
        raise
    except aiohttp.ClientConnectorCertificateError as error:
        why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        raise InputError(
            f"the certificate of {talk.url} is not trusted: {one_line(why)}; give the authority that signed it "
            "(--ca-file)"
        ) from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: a wrong host name
        why = os_reason(error.os_error) if isinstance(error, aiohttp.ClientConnectorError) else str(error)
        raise InputError(
            f"no API answers at {talk.url} ({one_line(why) or 'time ran out'}): start `multispin serve`, or give "
            "another base URL"
        ) from None
    models = found.data or []
    if not talk.model and not models:
        raise InputError(f"the server at {talk.url} lists no model: name one with --model")
    talk.model = talk.model or models[0].id
    talk.ours = any(each.owned_by == "multispin" for each in models)


async def _events(talk: Talk) -> AsyncIterator[ServerAnswer]:
    """The parts of a streamed answer; InputError says why there is none."""
    import aiohttp

    try:
        async with _http(talk) as http, http.post(f"{talk.url}/chat/completions", json=talk.body()) as answer:
            if answer.status != 200:
                await _whole(answer)
            async for line in _lines(answer):
                data = line.strip().removeprefix(b"data:").strip()
                if data == b"[DONE]" and line.startswith(b"data:"):
                    return
                if line.startswith(b"data:"):
                    yield read_answer(data)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the server broke off ({one_line(str(error)) or 'time ran out'}): ask again") from None
    raise InputError("the server's answer ended in the middle, without [DONE]: ask again")


async def _lines(answer: Any) -> AsyncIterator[bytes]:
    """The lines of a streamed answer, as they come; InputError for one that is too long."""
    begun = b""
    async for part in answer.content.iter_any():
        *complete, begun = (begun + part).split(b"\n")
        for line in complete:
            yield line
        if len(begun) > MAX_LINE_BYTES:
            raise InputError(f"the server sent a line of over {MAX_LINE_BYTES} bytes, the limit")
    yield begun


def _http(talk: Talk) -> Any:
    import aiohttp

    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=True if talk.tls is None else talk.tls)
    return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)


async def _whole(answer: Any) -> ServerAnswer:
    """An answer in one document; InputError with the server's own message if it refuses."""
    data = await _bounded(answer)
    of_a_proxy = answer.status != 200 and not data.lstrip().startswith(b"{")  # which answers in HTML, or with nothing
    found = ServerAnswer() if of_a_proxy else read_answer(data)
    if answer.status != 200:
        raise InputError(
            f"the server answered with HTTP status {answer.status}: is this the base URL of an OpenAI-compatible API?"
        )
    return found


async def _bounded(answer: Any) -> bytes:
    """The bytes of an answer; InputError if it is longer than `MAX_ANSWER_BYTES`."""
    data = b""
    while part := await answer.content.read(MAX_ANSWER_BYTES + 1 - len(data)):
        data += part
        if len(data) > MAX_ANSWER_BYTES:
            raise InputError(f"the server's answer is longer than {MAX_ANSWER_BYTES} bytes, the limit")
    return data


def read_answer(data: bytes) -> ServerAnswer:
    """Read a server's document; InputError if it is an error or does not fit an OpenAI-compatible API."""
    try:
        check_keys(data)
        found = msgspec.json.decode(data, type=ServerAnswer)
    except (InputError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"the server's answer is malformed ({error}): is this the base URL of an OpenAI-compatible API?"
        ) from None
    if found.error:
        message = found.error.get("message") if isinstance(found.error, dict) else found.error
        raise InputError(f"the server refuses: {str(message)[:500]}")
    return found
