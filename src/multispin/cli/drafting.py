"""The process of `multispin device`: drafts for one text, or for the texts of OpenAI clients."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import click

from multispin.cli.lifetime import Parent, end_in_order, ended_in_order, stop_signal
from multispin.cli.process import flag, writer
from multispin.cli.progress import loading
from multispin.cli.sampling import sampling_and_rule
from multispin.device import DeviceClient, Emulation, Outage, Patience, WebSocketLink, Why, session_url
from multispin.errors import InputError
from multispin.outside import one_line, printable
from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Progress, RefusedError, Request
from multispin.protocol.events import Away, Begin, Done, Event, Ready, Tried, Try, Written, from_order
from multispin.protocol.limits import FINISH_TEXTS_S

log = logging.getLogger(__name__)


async def serve(options: Mapping[str, Any]) -> None:
    """Serve OpenAI clients. Their texts are sessions with the edge, and this device drafts for them."""
    from aiohttp import web

    from multispin.edge import Access, alive, check_free, listening, place_of
    from multispin.edge.door import Door
    from multispin.gateway import Gateway, SessionPool, guard

    host, port = options["serve_at"]
    with flag("--serve"):
        await check_free(host, port)  # before a model is loaded
    with loading(log, options["draft"]):
        source = await asyncio.to_thread(_load_source, options)
    hello, emulation, patience = _hello(options, source.tokenizer), _emulation(options), _patience(options)
    told: set[Why | None] = {None}

    def make(on_progress: Callable[[Progress], None]) -> DeviceClient:
        drafter, decode = source.drafter(_room(options, options["max_length"])), source.tokenizer.decode

        def progressed(progress: Progress) -> None:
            on_progress(progress)
            if progress.finish and (why := client.silence.reason(client.counters.drafted)) not in told:
                told.add(why)  # one message of a kind is enough
                log.warning(note_of(client, options))

        client = DeviceClient(
            *(options["urls"], hello, drafter, emulation, progressed),
            decode=decode,
            patience=patience,
            max_wasted_share=options["max_wasted_share"],
            link=WebSocketLink(options["tls"]),
        )
        return client

    pool = SessionPool(make, options["sessions"], options["max_length"])
    application = web.Application()
    application.router.add_get("/health", alive)
    name = options["model_name"] or options["target"] or source.target_name
    access = Access(door=Door(allowed_origins=options["allowed_origins"]))
    gateway = Gateway(pool, source.tokenizer, name, int(time.time()), source.grammars)
    gateway.add_routes(application, guard(access), access.door)
    async with listening(application, host, port) as taken:
        click.echo(f"{name} at http://{place_of(host, taken)}/v1, verified by {options['urls'][0]}")
        stop = stop_signal()
        await stop.wait()
        await end_in_order(pool.finish, FINISH_TEXTS_S, stop)


async def write(options: Mapping[str, Any]) -> None:
    """Generate one text, or one for every order of the parent process until it ends."""
    with ended_in_order():
        await _texts(options)


async def _texts(options: Mapping[str, Any]) -> None:
    parent = Parent(options["attended"])
    await parent.connect()
    with nullcontext() if options["attended"] else loading(log, options["draft"]):  # the demo tells it itself
        ready = await asyncio.to_thread(prepared_drafter, options)
    tell = writer(options["as_json"], Teller())
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
        finally:  # tells the edge that the text is no longer wanted
            gone.cancel()
            work.cancel()
            await asyncio.wait([work])


def _time_drafting(drafter: Any, prompt: list[int], tokens: int) -> float:
    """Time per drafted token [s], after one draft that is not timed."""
    from multispin.speculation import SamplingParams

    for _ in range(2):
        began_s = time.monotonic()
        drafted = drafter.draft(prompt, tokens, SamplingParams())
    return (time.monotonic() - began_s) / max(1, len(drafted))


def prepared_drafter(options: Mapping[str, Any]) -> tuple[Any, Any, list[int]]:
    """The drafter, which has read the prompt, the tokenizer, and the prompt's ids: the slow part of starting."""
    source = _load_source(options)
    prompt = prompt_ids(source.tokenizer, options)
    if not prompt:
        raise InputError("the prompt is empty: give one with --prompt or on standard input")
    drafter = source.drafter(_room(options, len(prompt) + options["max_tokens"]))
    drafter.prepare(prompt)
    return drafter, source.tokenizer, prompt


def _room(options: Mapping[str, Any], text_tokens: int) -> int:
    """Most tokens that the drafter must hold, for texts of at most `text_tokens`."""
    return min(text_tokens, options["context"] or text_tokens)


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
        options["credential"] or "",
    )


def prompt_ids(tokenizer: Any, options: Mapping[str, Any]) -> list[int]:
    """Token ids of the prompt as the target reads it."""
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
    """Generate one text as the parent's `begin` says, and report it as it grows."""

    def progress(_: Progress) -> None:
        session, counters = client.session, client.counters
        tell(Written(len(session.generated), session.text, counters.drafted, counters.accepted))

    def outage(found: Outage) -> None:
        tell(Away(found.url, found.why, found.delay_s, found.limit_s))

    client = DeviceClient(
        session_url(begin.url) if begin.url else options["urls"],
        _hello(options, tokenizer, begin.slower),
        drafter,
        _emulation(options, begin.slower),
        progress,
        decode=tokenizer.decode,
        max_wasted_share=options["max_wasted_share"],
        link=WebSocketLink(options["tls"]),
        patience=_patience(options),
        on_outage=outage,
    )
    request = _request(options, tokenizer, prompt)
    began_s = time.monotonic()
    try:
        ids = await client.generate(request)
    except RefusedError as error:
        if error.code == "unauthorised":
            raise InputError(f"{error} (--credential-file)") from error
        raise
    finally:
        client.close()
    tell(_done(client, ids, request, time.monotonic() - began_s, note_of(client, options)))


def _request(options: Mapping[str, Any], tokenizer: Any, prompt: list[int]) -> Request:
    """The request that the options ask for, for a prompt of these ids."""
    seed = options["seed"]
    params, rule = sampling_and_rule(options, seed or 0)
    return Request(
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


def note_of(client: DeviceClient, options: Mapping[str, Any]) -> str:
    """A sentence that tells the user why parts of a text were written without drafts; empty if none is needed."""
    if options["draft"] == "none":
        return ""
    ours = client.silence.most == options["context"]
    remedies = {Why.CONTEXT: "--context" if ours else "its model knows no more", Why.RESTING: "--max-wasted-share"}
    return client.silence.sentence(client.counters.drafted, len(client.session.generated), remedies)


def _done(client: DeviceClient, ids: Sequence[int], request: Request, seconds: float, note: str) -> Done:
    """The event of a finished text that took `seconds`."""
    counters = client.counters
    return Done(
        ids=tuple(ids),
        text=client.session.text,
        tokens=len(ids),
        finish=client.session.finish,
        rule=request.acceptance_rule.value,
        seconds=seconds,
        drafted=counters.drafted,
        accepted=counters.accepted,
        rounds=counters.rounds,
        uplink_bytes=counters.uplink_bytes,
        draft_bytes=counters.draft_bytes,
        reconnects=counters.reconnects,
        wasted=counters.wasted,
        downlink_bytes=counters.downlink_bytes,
        undrafted=(client.silence.reason(counters.drafted) or "") if note else "",
        note=note,
    )


class Teller:
    """Shows the text as it grows, and its figures at the end.

    A terminal gets no control characters; a file or another program gets the text unchanged.
    """

    def __init__(self) -> None:
        self._shown = 0
        self._away = False

    def __call__(self, event: Event) -> None:
        """Print an event, if it concerns the user."""
        if isinstance(event, Away) and not self._away:
            self._away = True
            why = f"no edge at {one_line(event.url)} ({one_line(event.why)})"
            click.echo(f"multispin: {why}; trying for {event.limit_s:.0f} s", err=True)
        if isinstance(event, Written | Done):
            self._away = False
            new, self._shown = event.text[self._shown :], len(event.text)
            # Not click's echo, which removes colour codes for a file.
            print(printable(new) if sys.stdout.isatty() else new, end="", flush=True)
        if isinstance(event, Done):
            self._shown = 0
            print(flush=True)
            click.echo(
                f"{event.tokens} tokens in {event.seconds:.1f} s, {event.accepted} of {event.drafted} "
                f"drafted tokens accepted, {event.uplink_bytes} bytes sent",
                err=True,
            )
            if event.note:
                click.echo(f"multispin: {event.note}", err=True)
