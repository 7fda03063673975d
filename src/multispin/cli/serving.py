"""The process of `multispin serve`: loads a model, and serves devices and clients until it is told to stop."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from multispin.cli.engine import load_engine
from multispin.cli.lifetime import Parent, end_in_order, stop_signal
from multispin.cli.main import TERMINATION, Termination
from multispin.cli.output import Output
from multispin.cli.process import flag
from multispin.cli.progress import loading
from multispin.cli.web import Pages
from multispin.errors import InputError, require
from multispin.outside import one_line, user_path
from multispin.passes import Limits
from multispin.protocol.events import as_line

if TYPE_CHECKING:
    from aiohttp import web

    from multispin.edge import Access, Certificate, EdgeServer, Gate
    from multispin.passes import Passes
    from multispin.protocol.events import EdgeEvent
    from multispin.speculation import BatchDrafter, Engine

METRICS_PATH = "/metrics"
log = logging.getLogger(__name__)


class _Doors(NamedTuple):
    """Who may use the edge, and the certificate that identifies it."""

    access: "Access"
    gate: "Gate"
    certificate: "Certificate | None"


class _Loaded(NamedTuple):
    """The parts of an edge that take long to load."""

    engine: Any
    tokenizer: Any
    edge_drafter: "BatchDrafter | None"


def serve_until_told(options: Mapping[str, Any], events: Output, dropped: Callable[[], int]) -> None:
    """Load the model and serve, until a signal comes or the parent is gone.

    Args:
        options: options of `serve`.
        events: output for the events, as text or with --json as JSON.
        dropped: returns the number of output lines that were not written.
    """
    require("prometheus_client")  # fails before a model is loaded
    doors = _doors(options)
    asyncio.run(_check_places(options))
    told = contextlib.nullcontext() if options["attended"] else loading(log, options["target"])  # the demo tells itself
    with told, stops_at_once() as stopped:
        loaded = load(options)
    if stopped():
        log.info("stopped before the model was loaded")
        return
    tell: Callable[[EdgeEvent], None] = partial(say, events, "ws" if options["tls_certificate"] is None else "wss")
    if options["as_json"]:
        tell = partial(_say_as_json, events)
    from multispin.edge import new_event_loop

    with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(options, doors, loaded, tell, partial(_show, events), dropped))


@contextlib.contextmanager
def stops_at_once(termination: Termination = TERMINATION) -> Iterator[Callable[[], bool]]:
    """Let SIGTERM and SIGINT end the loading of a model. Yields a function that says whether one of them came.

    A handler is installed here because a shell makes a script's background processes ignore SIGINT.
    """
    stopped = False
    with contextlib.suppress(ValueError):  # only a main thread may
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: stopped or termination.asked
    except (KeyboardInterrupt, SystemExit):
        stopped = True


def load(options: Mapping[str, Any]) -> _Loaded:
    """The tokenizer, the engine and the edge's own drafter that the options name."""
    from multispin.models import load_tokenizer

    tokenizer = load_tokenizer(options["target"])
    engine = load_engine(options)
    return _Loaded(engine, tokenizer, _edge_drafter(options, engine))


def _show(events: Output, text: str) -> None:
    events.line(text if events.watched else click.unstyle(text))


async def _serve(
    options: Mapping[str, Any],
    doors: _Doors,
    loaded: _Loaded,
    tell: "Callable[[EdgeEvent], None]",
    show: Callable[[str], None],
    dropped: Callable[[], int],
) -> None:
    from multispin.edge import EdgeServer, listening
    from multispin.gateway import Gateway, guard, local_sessions
    from multispin.passes.limits import most_of_one
    from multispin.protocol.events import Listening

    parent, stop = Parent(options["attended"]), stop_signal()
    await parent.connect()
    verifier, tokenizer, _ = loaded
    access, gate, certificate = doors
    passes = _passes(options, loaded)
    server = EdgeServer(passes, tell, access, options["come_back_s"])
    application, name = server.application(), options["model_name"] or options["target"]
    # Before the API, whose last route answers all unknown paths.
    pages = Pages(options, server, application, tokenizer, verifier.max_length, guard(access))
    if options["api"]:
        slots, waiting, share = options["slots"], options["max_waiting"], options["max_share"]
        source = local_sessions(
            *(server, tokenizer.fingerprint, tokenizer.decode, slots + waiting, verifier.max_length),
            most_of_one=slots + most_of_one(waiting, 0, share),
        )
        gateway = Gateway(source, tokenizer, name, int(time.time()), passes.grammars, share)
        gateway.add_routes(application, guard(access), access.door)
    async with contextlib.AsyncExitStack() as stack:
        await _add_metrics(options, application, server, access, name, dropped, stack)
        with flag("--host and --port"):
            tls = certificate.context if certificate is not None else None
            port = await stack.enter_async_context(listening(application, options["host"], options["port"], gate, tls))
        tell(Listening(options["host"], port, options["target"], verifier.slots, verifier.cache_bytes))
        if (about := pages.opened(port)) and not options["as_json"]:
            show(about)
        await _until_told(server, parent, stop, certificate)
        if stop.is_set():
            log.info("stopping: texts of HTTP clients have %.0f s to end, devices keep theirs", options["finish_s"])
            await end_in_order(server.finish, options["finish_s"], stop)


def _passes(options: Mapping[str, Any], loaded: _Loaded) -> "Passes":
    """The loop of passes with these options."""
    from multispin.models import load_grammars
    from multispin.passes import Controller, ControllerSettings, Passes
    from multispin.protocol import usual_frame_bits
    from multispin.speculation import bits_per_id

    verifier, tokenizer, edge_drafter = loaded
    settings = ControllerSettings(
        options["policy"],
        options["bandwidth_hz"],
        bits_per_id(verifier.vocabulary_size),
        options["max_draft_length"],
        frame_bits=usual_frame_bits(),
        mode=options["mode"],
        edge_drafts=options["edge_draft"] is not None,
    )
    return Passes(
        _paced(verifier, options["emulated_verification_s"]),
        Controller(settings),
        tokenizer.fingerprint,
        Limits(**{each.name: options[each.name] for each in fields(Limits) if each.name in options}),
        seed=options["seed"],
        edge_drafter=edge_drafter,
        grammars=load_grammars(tokenizer),
        target=options["model_name"] or options["target"],
    )


async def _add_metrics(
    options: Mapping[str, Any],
    application: "web.Application",
    server: "EdgeServer",
    access: "Access",
    name: str,
    dropped: Callable[[], int],
    stack: contextlib.AsyncExitStack,
) -> None:
    """Serve the metrics beside the API, or at an address of their own until the stack ends."""
    from aiohttp import web
    from prometheus_client import disable_created_metrics

    from multispin.edge import listening
    from multispin.edge.metrics import Metrics
    from multispin.gateway import guard

    disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, and nobody uses them
    metrics = Metrics(name, server.counts, dropped, server.origin_of)
    server.audience.add(metrics.tell)
    if options["metrics_at"] is None:
        application.router.add_get(METRICS_PATH, guard(access)(metrics.answer))
        return
    alone = web.Application()
    alone.router.add_get(METRICS_PATH, metrics.answer)
    with flag("--metrics-at"):
        await stack.enter_async_context(listening(alone, *options["metrics_at"]))


async def _until_told(
    server: "EdgeServer", parent: Parent, stop: asyncio.Event, certificate: "Certificate | None"
) -> None:
    """Serve until a signal comes or the parent is gone. A failure of the loop of passes is raised here."""
    failure = asyncio.create_task(server.failure())
    others = [asyncio.create_task(parent.gone()), asyncio.create_task(stop.wait())]
    renewing = None if certificate is None else asyncio.create_task(certificate.renew())
    await asyncio.wait([failure, *others], return_when=asyncio.FIRST_COMPLETED)
    if renewing is not None:
        renewing.cancel()
    if failure.done():
        raise failure.result()


def _doors(options: Mapping[str, Any]) -> _Doors:
    """Who may use the edge, how many connections it takes, and its certificate."""
    from multispin.edge import Access, Certificate, Gate, TokenFile
    from multispin.edge.door import Door, read_network, read_origin
    from multispin.edge.gate import raise_descriptors

    with flag("--trusted-proxy"):
        proxies = [read_network(text) for text in options["proxies"]]
    with flag("--allowed-origin"):
        origins = [read_origin(text) for text in options["allowed_origins"]]
    most = options["max_connections_per_address"]
    hosts = options["allowed_hosts"]
    door = Door(most_per_address=most, allowed_hosts=hosts, proxies=proxies, allowed_origins=origins)
    tokens = None if options["tokens"] is None else TokenFile(user_path(options["tokens"]))
    access = Access(options["credential"] or "", tokens, door)
    certificate, key = options["tls_certificate"], options["tls_key"]
    if key is not None and certificate is None:
        raise InputError("--tls-key needs --tls-certificate")
    with flag("--tls-certificate"):
        tls = None if certificate is None else Certificate(user_path(certificate), user_path(key) if key else None)
    raise_descriptors()
    return _Doors(access, Gate(most_per_address=most, proxies=proxies), tls)


async def _check_places(options: Mapping[str, Any]) -> None:
    """InputError if another program already listens at this edge's addresses."""
    from multispin.edge import check_free

    with flag("--host and --port"):
        await check_free(options["host"], options["port"])
    if options["metrics_at"] is not None:
        with flag("--metrics-at"):
            await check_free(*options["metrics_at"])


def _edge_drafter(options: Mapping[str, Any], engine: "Engine") -> "BatchDrafter | None":
    """The edge's own drafter, if there is one."""
    if options["edge_draft"] is None:
        return None
    from multispin.models import load_draft_source

    source = load_draft_source(options["edge_draft"], options["target"], options["place"], batched=True)
    drafter = source.edge_drafter(engine.slots, engine.max_length)
    if (seconds := options["emulated_edge_draft_s"]) is None:
        return drafter
    from multispin.control import EdgeDrafter
    from multispin.edge.paced import PacedBatchDrafter

    fixed_s, per_device_s = seconds
    return PacedBatchDrafter(drafter, EdgeDrafter(fixed_s, per_device_s, acceptance_rate=0.0))


def _paced(engine: "Engine", seconds: tuple[float, float, float] | None) -> "Engine":
    """The engine, slowed down to an emulated one if its times are given."""
    if seconds is None:
        return engine
    from multispin.control import Verification
    from multispin.edge.paced import PacedEngine

    return PacedEngine(engine, Verification(*seconds))


def _say_as_json(output: Output, event: "EdgeEvent") -> None:
    output.line(as_line(event))


def say(output: Output, scheme: str, event: "EdgeEvent") -> None:
    """Print an event for people."""
    from multispin.edge import place_of
    from multispin.protocol import events

    match event:
        case events.Listening():
            output.line(
                f"{event.target} listens on {scheme}://{place_of(event.host, event.port)}, {event.slots} slots "
                f"({event.cache_bytes / 2**20:.0f} MiB of cache, fixed)"
            )
        case events.Connected():
            output.line(f"+ {one_line(event.name)} ({one_line(event.drafter)}){' again' if event.again else ''}")
        case events.Lost():
            output.line(f"- {one_line(event.name)} lost its connection")
        case events.Expired():
            output.line(f"- {one_line(event.name)} did not come back")
        case events.Refused():
            output.line(f"- {one_line(event.name)}: {one_line(event.why)}")
        case events.Round() if output.watched:  # dozens a second are too many for a service's log
            shares = ", ".join(
                f"{one_line(device.name)} {device.accepted}/{device.drafted}" for device in event.devices
            )
            output.line(f"round {event.round}: verified in {event.verify_s * 1e3:.0f} ms  {shares}")
