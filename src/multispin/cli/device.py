"""`multispin device`: one device that drafts."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from multispin.cli.process import Parent, attended_option, prepare, threads_option, writer
from multispin.cli.sampling import sampling_law, sampling_options
from multispin.errors import InputError

if TYPE_CHECKING:
    from multispin.protocol.events import Event


@click.command("device")
@click.argument("url", default="ws://127.0.0.1:8765")
@click.option("--draft", default="q8", show_default=True, help="Model reference, q3 … q8, lookup, or none.")
@click.option("--target", default="embedded", show_default=True, help="Target whose tokenizer and weights q8 … use.")
@click.option("--name", default="", help="How the edge and its operator call this device.")
@click.option("--prompt", help="Text to answer; read from standard input if it is left out.")
@sampling_options
@click.option("--seconds-per-token", type=click.FloatRange(0.0), default=0.0, help="Emulate a device this slow.")
@click.option("--spectral-efficiency", type=click.FloatRange(0.0), default=0.0, help="Emulate this uplink, bit/s/Hz.")
@click.option("--credential", default="", help="What the edge asks for.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for everything that happens.")
@attended_option
def command(**options: Any) -> None:
    """Draft with a small model, let the edge at URL verify, and print the text that comes out.

    \b
    Examples:
      multispin device --prompt "Why is the sky blue?"
      multispin device ws://192.0.2.7:8765 --draft Qwen/Qwen3-0.6B --target Qwen/Qwen3-8B --prompt "Hello"
    """
    if not options["url"].startswith(("ws://", "wss://")):
        raise InputError(f"{options['url']} is not an address of an edge: write ws://HOST:PORT")
    runs_model = options["draft"] not in ("lookup", "none")
    prepare(options["threads"] or max(1, (os.cpu_count() or 2) // 2), runs_model)
    sampling_law(options, 0)  # what does not fit together is refused before anything is loaded
    if options["prompt"] is None:
        if options["attended"]:
            raise InputError("--attended needs --prompt")
        options["prompt"] = sys.stdin.read()
    asyncio.run(_device(options))


async def _device(options: Mapping[str, Any]) -> None:
    """Generate one text, unless the parent vanishes first."""
    parent = Parent(options["attended"])
    await parent.connect()
    ready = await asyncio.to_thread(_load, options)
    from multispin.protocol.events import Ready

    tell = writer(options["as_json"], _Teller())
    tell(Ready())
    await parent.go()
    work = asyncio.create_task(_generate(options, *ready, tell))
    gone = asyncio.create_task(parent.gone())
    await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if work.done():
        work.result()
    work.cancel()


def _load(options: Mapping[str, Any]) -> tuple[Any, Any, list[int]]:
    """Drafter, which has read the prompt, tokenizer and prompt ids: the slow part of starting."""
    from multispin.models import load_drafter, load_tokenizer
    from multispin.protocol import MAX_DRAFT_LENGTH

    prompt = load_tokenizer(options["target"]).encode_chat(options["prompt"])
    max_length = len(prompt) + options["max_tokens"] + MAX_DRAFT_LENGTH
    drafter, tokenizer = load_drafter(options["draft"], options["target"], max_length)
    drafter.prepare(prompt)
    return drafter, tokenizer, prompt


async def _generate(options: Mapping[str, Any], drafter: Any, tokenizer: Any, prompt: list[int], tell: Any) -> None:
    from multispin.device import DeviceClient, Emulation
    from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile, Progress, RefusedError, Request
    from multispin.protocol.events import Done, Written

    seed = options["seed"]
    params, rule = sampling_law(options, seed or 0)
    emulation = Emulation(options["seconds_per_token"], options["spectral_efficiency"])
    profile = Profile(emulation.seconds_per_token or 0.05, emulation.spectral_efficiency or 5.0)
    name = options["name"] or f"device-{os.getpid()}"
    hello = Hello(
        PROTOCOL_VERSION,
        tokenizer.fingerprint,
        name,
        options["draft"][:80],
        options["draft"] != "none",
        profile,
        options["credential"],
    )

    def progress(_: Progress) -> None:
        session, counters = client.session, client.counters
        tell(Written(len(session.generated), session.text, counters.drafted, counters.accepted))

    client = DeviceClient(
        options["url"].rstrip("/") + SESSION_PATH, hello, drafter, emulation, progress, decode=tokenizer.decode
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
            raise InputError(f"{error} (--credential)") from error
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
        )
    )


class _Teller:
    """Shows the text to a person as it grows, and what it took at the end."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, event: "Event") -> None:
        from multispin.protocol.events import Done, Written

        if isinstance(event, Written) and event.text.startswith(self._shown):
            click.echo(event.text[len(self._shown) :], nl=False)
            self._shown = event.text
        if isinstance(event, Done):
            click.echo()
            click.echo(
                f"{event.tokens} tokens in {event.seconds:.1f} s, {event.accepted} of {event.drafted} "
                f"drafted tokens accepted, {event.uplink_bytes} bytes sent",
                err=True,
            )
