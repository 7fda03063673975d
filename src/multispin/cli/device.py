"""`multispin device`: one device that drafts."""

import asyncio
import contextlib
import ipaddress
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from multispin.cli.process import Parent, attended_option, ended_in_order, prepare, stop_signal, threads_option, writer
from multispin.cli.sampling import sampling_law, sampling_options
from multispin.device import DeviceClient, Emulation, Outage, Patience, session_url
from multispin.errors import InputError
from multispin.models.drafter_name import DrafterName
from multispin.models.gguf_drafter import is_for_llama_cpp
from multispin.models.references import EMBEDDED
from multispin.outside import one_line, printable, read, read_file, user_path, whole
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Progress, RefusedError, Request
from multispin.protocol.events import Away, Begin, Done, Event, Ready, Tried, Try, Written, from_order
from multispin.protocol.messages import MAX_CREDENTIAL_CHARACTERS, MAX_NAME_CHARACTERS

DEFAULT_URL = "ws://127.0.0.1:8765"
MAX_DELAY_S = 60.0
MAX_CREDENTIAL_BYTES = 4096


@click.command("device")
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--draft", default="q8", show_default=True,
              help="Model reference, .gguf file (for llama.cpp), q3 … q8, lookup, or none.")  # fmt: skip
@click.option("--target", show_default="embedded; for a .gguf drafter in llama.cpp, its own file",
              help="Target whose tokenizer and weights q8 … use.")  # fmt: skip
@click.option("--on", "place", default="cpu", show_default=True,
              help="Where torch runs the drafter: cpu, or a graphics processor such as cuda:0 or mps.")  # fmt: skip
@click.option("--gpu-layers", type=click.IntRange(0, 1000), default=0, show_default=True,
              help="Layers of a .gguf drafter that a graphics processor computes.")  # fmt: skip
@click.option("--serve", "serve_at", metavar="HOST:PORT",
              help="Serve OpenAI clients of this machine; this device drafts for them.")  # fmt: skip
@click.option("--sessions", type=click.IntRange(1, 64), default=2, show_default=True,
              help="With --serve: texts written at once.")  # fmt: skip
@click.option("--max-length", type=click.IntRange(2, 2**17), default=1024, show_default=True,
              help="With --serve: most tokens of a text, prompt included.")  # fmt: skip
@click.option("--name", default="", help="How the edge and its operator call this device.")
@click.option("--prompt", help="Text to answer; read from standard input if it is left out.")
@click.option("--system", help="System message that stands before the prompt.")
@click.option(
    "--template-variable",
    "variables",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value for the chat template, as JSON or as text; repeatable.",
)
@click.option("--thinking/--no-thinking", default=None, help="Set enable_thinking, which some chat templates know.")
@click.option("--raw", is_flag=True, help="Take the prompt as it is, without a chat template.")
@sampling_options
@click.option("--seconds-per-token", type=click.FloatRange(0.0), default=0.0, help="Emulate a device this slow.")
@click.option("--spectral-efficiency", type=click.FloatRange(0.0), default=0.0, help="Emulate this uplink, bit/s/Hz.")
@click.option("--delay-s", type=click.FloatRange(0.0, MAX_DELAY_S), default=0.0,
              help="Emulate a network that delays every message by so much, one way.")  # fmt: skip
@click.option("--max-wasted-share", type=click.FloatRange(0.0, 1.0), default=1.0, show_default="no bound",
              help="In streams: draft only so far ahead that no more than this share of the tokens is never verified, "
              "or hardly at all. Saves energy.")  # fmt: skip
@click.option("--credential", default="", envvar="MULTISPIN_CREDENTIAL", show_envvar=True,
              help="Token or secret of the edge, if it asks for one.")  # fmt: skip
@click.option("--credential-file", metavar="FILE", help="File that holds it: other users see a command line.")
@click.option(
    "--retry-for",
    "retry_for_s",
    type=click.FloatRange(0.0, 604_800.0),
    show_default="10 at first, 300 once an edge has answered",
    help="Go on for so many seconds without an edge.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for everything that happens.")
@attended_option
def command(**options: Any) -> None:
    """Draft with a small model, let the edge at URL verify, and print the text that comes out.

    Several URLs are tried in turn. The default is the edge on this machine, ws://127.0.0.1:8765.

    \b
    Examples:
      multispin device --prompt "Why is the sky blue?"
      multispin device ws://192.0.2.7:8765 --draft Qwen/Qwen3-0.6B --target Qwen/Qwen3-8B --prompt "Hello"
      multispin device ws://192.0.2.7:8765 ws://192.0.2.8:8765 --draft lookup --prompt "Hello" --retry-for 3600
      multispin device ws://192.0.2.7:8765 --draft small --on cuda:0 --prompt "Hello"
      multispin device ws://192.0.2.7:8765 --draft small.gguf --serve 127.0.0.1:8766
    """
    options["urls"] = tuple(session_url(url) for url in options["urls"] or (DEFAULT_URL,))
    sampling_law(options, 0)  # what does not fit together is refused before anything is loaded
    options["variables"] = _variables(options)
    if options["credential_file"] is not None:
        options["credential"] = read_file(user_path(options["credential_file"]), MAX_CREDENTIAL_BYTES).strip()
    for option in ("prompt", "system", "name", "credential"):
        whole(options[option] or "", f"--{option}")
    for text in options["stops"]:
        whole(text, "--stop")
    for option, most in (("name", MAX_NAME_CHARACTERS), ("credential", MAX_CREDENTIAL_CHARACTERS)):
        if len(options[option]) > most:
            raise InputError(f"--{option} has {len(options[option])} characters, over the limit of {most}")
    if options["serve_at"] is not None:
        options["serve_at"] = _loopback(options["serve_at"])
        if options["prompt"] is not None:
            raise InputError("--serve answers its clients' prompts: leave --prompt out")
    elif options["prompt"] is None:
        if options["attended"]:
            raise InputError("--attended needs --prompt")
        options["prompt"] = read(sys.stdin.buffer, "standard input")
    name = DrafterName.parse(options["draft"])
    name.check()
    options["threads"] = options["threads"] or max(1, (os.cpu_count() or 2) // 2)
    prepare(options["threads"], name.needs_model and not _runs_llama_cpp(name, options))
    if options["serve_at"] is not None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(options))
    else:
        asyncio.run(_device(options))


def _runs_llama_cpp(name: DrafterName, options: Mapping[str, Any]) -> bool:
    """Whether llama.cpp and not torch will draft; InputError for places that do not go together."""
    if options["place"] != "cpu":
        if options["gpu_layers"]:
            raise InputError("--gpu-layers is for llama.cpp and --on for torch: name one of them")
        return False
    return is_for_llama_cpp(name, options["target"])


def _loopback(text: str) -> tuple[str, int]:
    """Host and port of `--serve`; InputError unless only this machine's programs can reach it."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--serve {text!r} is not HOST:PORT, such as 127.0.0.1:8766")
    try:
        local = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InputError(f"--serve {text!r}: serve this machine only, at a loopback address such as 127.0.0.1")
    return host, int(port)


async def _serve(options: Mapping[str, Any]) -> None:
    """Serve OpenAI clients: their texts are sessions with the edge, and this device drafts for them."""
    from aiohttp import web

    from multispin.edge import Access, listening, place_of
    from multispin.gateway import Gateway, SessionPool, guard

    source = await asyncio.to_thread(_load_source, options)
    hello, emulation, patience = _hello(options, source.tokenizer), _emulation(options), _patience(options)

    def make(on_progress: Callable[[Progress], None]) -> DeviceClient:
        drafter, decode = source.drafter(options["max_length"]), source.tokenizer.decode
        return DeviceClient(
            *(options["urls"], hello, drafter, emulation, on_progress),
            decode=decode,
            patience=patience,
            max_wasted_share=options["max_wasted_share"],
        )

    pool = SessionPool(make, options["sessions"], options["max_length"])
    application = web.Application()
    name = options["target"] or (source.gguf.model.path.stem if source.gguf is not None else EMBEDDED)
    grammars = source.grammars if source.gguf is None else None  # else the edge says what cannot be compiled
    Gateway(pool, source.tokenizer, name, int(time.time()), grammars).add_routes(application, guard(Access()))
    host, port = options["serve_at"]
    async with listening(application, host, port) as taken:
        click.echo(f"{name} at http://{place_of(host, taken)}/v1, verified by {options['urls'][0]}")
        await stop_signal().wait()


def _variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """The template variables that the options name; InputError if they do not go with --raw, or are no pairs."""
    variables: dict[str, Any] = {}
    for text in options["variables"]:
        key, equals, value = whole(text, "--template-variable").partition("=")
        if not equals or not key.isidentifier():
            raise InputError(
                f"--template-variable {text!r} is not of the form KEY=VALUE, such as enable_thinking=false"
            )
        try:
            variables[key] = json.loads(value)
        except (ValueError, RecursionError):  # not JSON: a text
            variables[key] = value
    if options["thinking"] is not None:
        variables["enable_thinking"] = options["thinking"]
    if options["raw"] and (variables or options["system"] is not None):
        raise InputError("--raw leaves the chat template out: --system, --thinking and --template-variable need it")
    return variables


async def _device(options: Mapping[str, Any]) -> None:
    """Generate one text, or one for every order of the parent, until it vanishes."""
    with ended_in_order():
        await _texts(options)


async def _texts(options: Mapping[str, Any]) -> None:
    parent = Parent(options["attended"])
    await parent.connect()
    ready = await asyncio.to_thread(_load, options)
    tell = writer(options["as_json"], _Teller())
    tell(Ready())
    async for line in parent.orders():
        order = from_order(line)
        if isinstance(order, Try):
            tell(Tried(await asyncio.to_thread(_time_drafting, *ready[::2], order.tokens)))
            continue
        work = asyncio.create_task(_generate(options, order, *ready, tell))
        gone = asyncio.create_task(parent.gone())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:  # the edge is told that nobody waits for the text any more
            gone.cancel()
            work.cancel()
            await asyncio.wait([work])


def _time_drafting(drafter: Any, prompt: list[int], tokens: int) -> float:
    """Seconds per drafted token, after one draft that is not timed."""
    from multispin.speculation import SamplingParams

    for _ in range(2):
        began_s = time.monotonic()
        drafted = drafter.draft(prompt, tokens, SamplingParams())
    return (time.monotonic() - began_s) / max(1, len(drafted))


def _load(options: Mapping[str, Any]) -> tuple[Any, Any, list[int]]:
    """Drafter, which has read the prompt, tokenizer and prompt ids: the slow part of starting."""
    source = _load_source(options)
    prompt = _prompt_ids(source.tokenizer, options)
    if not prompt:
        raise InputError("the prompt is empty")
    drafter = source.drafter(len(prompt) + options["max_tokens"])
    drafter.prepare(prompt)
    return drafter, source.tokenizer, prompt


def _load_source(options: Mapping[str, Any]) -> Any:
    from multispin.models import load_draft_source

    return load_draft_source(
        options["draft"],
        options["target"],
        options["place"],
        threads=options["threads"],
        gpu_layers=options["gpu_layers"],
    )


def _emulation(options: Mapping[str, Any], slower: float = 1.0) -> Emulation:
    return Emulation(options["seconds_per_token"] * slower, options["spectral_efficiency"], options["delay_s"] * slower)


def _patience(options: Mapping[str, Any]) -> Patience:
    retry_for_s = options["retry_for_s"]
    return Patience() if retry_for_s is None else Patience(retry_for_s, retry_for_s)


def _hello(options: Mapping[str, Any], tokenizer: Any, slower: float = 1.0) -> Hello:
    emulation = _emulation(options, slower)
    return Hello(
        PROTOCOL_VERSION,
        tokenizer.fingerprint,
        options["name"] or f"device-{os.getpid()}",
        options["draft"][:80],
        options["draft"] != "none",
        Profile(emulation.seconds_per_token or 0.05, emulation.spectral_efficiency or 5.0),
        options["credential"],
    )


def _prompt_ids(tokenizer: Any, options: Mapping[str, Any]) -> list[int]:
    """The prompt as the target is to read it."""
    text, system, variables = options["prompt"], options["system"], options["variables"]
    ids: list[int]
    if options["raw"] or (system is None and not variables and not tokenizer.template):
        ids = tokenizer.encode(text)
    else:
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        ids = tokenizer.encode_messages(messages, variables)
    return ids


async def _generate(
    options: Mapping[str, Any], begin: Begin, drafter: Any, tokenizer: Any, prompt: list[int], tell: Any
) -> None:
    seed = options["seed"]
    params, rule = sampling_law(options, seed or 0)
    hello = _hello(options, tokenizer, begin.slower)

    def progress(_: Progress) -> None:
        session, counters = client.session, client.counters
        tell(Written(len(session.generated), session.text, counters.drafted, counters.accepted))

    def outage(found: Outage) -> None:
        tell(Away(found.url, found.why, found.delay_s, found.limit_s))

    client = DeviceClient(
        session_url(begin.url) if begin.url else options["urls"],
        hello,
        drafter,
        _emulation(options, begin.slower),
        progress,
        decode=tokenizer.decode,
        max_wasted_share=options["max_wasted_share"],
        patience=_patience(options),
        on_outage=outage,
    )
    began_s = time.monotonic()
    try:
        ids = await client.generate(
            Request(
                tuple(prompt),
                params,
                options["max_tokens"],
                options["min_tokens"],
                tokenizer.stop_ids,
                options["stops"],
                rule,
                seed is None,
                options["retained"],
                options["probability_bits"],
            )
        )
    except RefusedError as error:
        if error.code == "unauthorised":
            raise InputError(f"{error} (--credential-file)") from error
        raise
    finally:
        client.close()
    counters = client.counters
    tell(
        Done(
            ids=tuple(ids),
            text=client.session.text,
            tokens=len(ids),
            finish=client.session.finish,
            rule=rule.value,
            seconds=time.monotonic() - began_s,
            drafted=counters.drafted,
            accepted=counters.accepted,
            rounds=counters.rounds,
            uplink_bytes=counters.uplink_bytes,
            draft_bytes=counters.draft_bytes,
            reconnects=counters.reconnects,
            wasted=counters.wasted,
            downlink_bytes=counters.downlink_bytes,
        )
    )


class _Teller:
    """Shows the text to a person as it grows, and what it took at the end.

    A terminal is shown no character that it would obey; a file or another program gets the text as it is.
    """

    def __init__(self) -> None:
        self._shown = 0
        self._away = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Away) and not self._away:
            self._away = True
            why = f"no edge at {one_line(event.url)} ({one_line(event.why)})"
            click.echo(f"multispin: {why}; trying for {event.limit_s:.0f} s", err=True)
        if isinstance(event, Written | Done):
            self._away = False
            new, self._shown = event.text[self._shown :], len(event.text)
            # Not click's echo, which takes colours out of what goes to a file.
            print(printable(new) if sys.stdout.isatty() else new, end="", flush=True)
        if isinstance(event, Done):
            self._shown = 0
            print(flush=True)
            click.echo(
                f"{event.tokens} tokens in {event.seconds:.1f} s, {event.accepted} of {event.drafted} "
                f"drafted tokens accepted, {event.uplink_bytes} bytes sent",
                err=True,
            )
