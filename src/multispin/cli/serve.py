"""`multispin serve`: the edge server."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from multispin.cli.config import config_options, printed
from multispin.cli.engine import check_edge_draft, engine_options, load_engine
from multispin.cli.lifetime import Parent, end_in_order, stop_signal
from multispin.cli.main import TERMINATION, Termination
from multispin.cli.options import Decorator
from multispin.cli.output import Output, OutputHandler
from multispin.cli.process import attended_option, flag, host_and_port, place_option, prepare, threads_option
from multispin.cli.unused import idle_of_serve
from multispin.cli.web import Pages, check_web, web_options
from multispin.control import RUNTIME_POLICIES
from multispin.errors import InputError
from multispin.outside import one_line, user_path
from multispin.passes import Limits
from multispin.passes.settings import MODES
from multispin.protocol.events import as_line

if TYPE_CHECKING:
    from aiohttp import web

    from multispin.edge import Access, Certificate, EdgeServer, Gate
    from multispin.passes import Passes
    from multispin.protocol.events import EdgeEvent
    from multispin.speculation import BatchDrafter, Engine

MAX_EMULATED_S = 600.0
METRICS_PATH = "/metrics"
log = logging.getLogger(__name__)


def _limit(name: str, values: click.IntRange | click.FloatRange, text: str) -> Decorator:
    """An option that is a field of `Limits`, with its default."""
    option = "--" + name.replace("_", "-")
    return click.option(option, type=values, default=getattr(Limits, name), show_default=True, help=text)


@click.command("serve")
@config_options
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@engine_options
@click.option("--batch-invariant", is_flag=True, help="No text depends on who shares its passes, in bfloat16 too: "
              "all passes have one shape. It costs speed; see docs/losslessness.md.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen at; 0.0.0.0 lets other machines in.")  # fmt: skip
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen at; 0 takes any free port.",
)
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True,
              help="Who drafts: plain, nobody; edge, only the edge's own drafter; rounds, every device; streams, every "
              "device, also while it is verified; mixture, for each text the best of the first three; auto, whatever "
              "pays.")  # fmt: skip
@click.option("--edge-draft", metavar="DRAFTER", help="The edge's own drafter, which drafts many texts at once: small, "
              "medium, large, q8 or a model. Embedded engine only.")  # fmt: skip
@click.option("--policy", type=click.Choice(RUNTIME_POLICIES), default="heterogeneous", show_default=True,
              help="How draft lengths and bands of devices are planned, in the modes rounds and mixture. "
              "In streams and auto only the policy fair has an effect.")  # fmt: skip
@click.option("--bandwidth-hz", type=click.FloatRange(0.0, min_open=True), default=20e3, show_default=True,
              help="Uplink band shared by all devices.")  # fmt: skip
@click.option("--max-draft-length", type=click.IntRange(1, 63), default=16, show_default=True,
              help="Longest draft, in tokens; in streams, most drafted tokens of a text that one pass "
              "verifies.")  # fmt: skip
@click.option(
    "--slots", type=click.IntRange(1, 4096), default=16, show_default=True, help="Most texts written at once."
)
@click.option(
    "--max-length", type=click.IntRange(2), show_default="1024 or less", help="Most tokens of a text, prompt included."
)
@_limit("prefill_tokens_per_round", click.IntRange(1, 65536), "Most prompt tokens that are read in one pass.")
@_limit(
    "prefill_share",
    click.FloatRange(0.0, 100.0),
    "Reading prompts makes a pass longer by at most this share of its time.",
)
@_limit(
    "deadline_factor",
    click.FloatRange(1.0, 1000.0),
    "A round waits for drafts at most this many times their planned time, plus --deadline-slack-s.",
)
@_limit("deadline_slack_s", click.FloatRange(0.0, 3600.0), "Seconds that a round may wait beyond --deadline-factor.")
@_limit(
    "longest_wait_s",
    click.FloatRange(0.0, 3600.0),
    "In streams: a text that was in no pass for this many seconds is in the next one.",
)
@_limit(
    "max_sessions",
    click.IntRange(1, 65536),
    "Most devices at once: those connected, and those whose sessions are kept until they come back.",
)
@_limit("max_waiting", click.IntRange(0, 65536), "Most requests that may wait for a slot.")
@_limit("resume_grace_s", click.FloatRange(0.0, 3600.0), "Seconds for which a lost device's session is kept.")
@_limit(
    "slot_grace_s",
    click.FloatRange(0.0, 3600.0),
    "Seconds for which a lost device keeps its slot while others wait for one.",
)
@_limit(
    "draft_timeout_s",
    click.FloatRange(1.0, 3600.0),
    "A device that owes an answer for this many seconds is disconnected.",
)
@_limit(
    "idle_timeout_s",
    click.FloatRange(1.0, 604800.0),
    "A device that asks for nothing for this many seconds is disconnected.",
)
@place_option
@click.option("--emulated-verification-s", type=click.FloatRange(0.0, MAX_EMULATED_S), nargs=3, default=None,
              metavar="FIXED PER_DEVICE PER_TOKEN", help="Emulate a slower engine: verification takes at least FIXED + "
              "PER_DEVICE for each device + PER_TOKEN for each token, in seconds.")  # fmt: skip
@click.option("--emulated-edge-draft-s", type=click.FloatRange(0.0, MAX_EMULATED_S), nargs=2, default=None,
              metavar="FIXED PER_DEVICE", help="Emulate a slower edge drafter: a drafting step takes at least FIXED + "
              "PER_DEVICE for each text in it, in seconds.")  # fmt: skip
@click.option("--credential", default="", envvar="MULTISPIN_CREDENTIAL", show_envvar=True,
              help="Secret that devices and clients may send instead of a token.")  # fmt: skip
@click.option(
    "--tokens", metavar="FILE", help="File of access tokens (multispin token add). A peer without one is refused."
)
@click.option("--trusted-proxy", "proxies", multiple=True, metavar="NETWORK",
              help="Address or network of a proxy whose X-Forwarded-For is believed, such as 127.0.0.1; "
              "repeatable.")  # fmt: skip
@click.option("--max-connections-per-address", type=click.IntRange(1, 65536), default=256, show_default=True,
              help="Most connections at once from one address.")  # fmt: skip
@click.option(
    "--tls-certificate",
    metavar="FILE",
    help="PEM file of a certificate and its chain. The edge then serves wss:// and https://.",
)
@click.option("--tls-key", metavar="FILE", help="PEM file of the certificate's private key.  [default: the same file]")
@click.option("--metrics-at", metavar="HOST:PORT", show_default="beside the API, for whoever may use it",
              help="Serve /metrics at this address only, and without asking for a token.")  # fmt: skip
@click.option("--log-format", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Format of the log on standard error.")  # fmt: skip
@click.option("--finish-s", type=click.FloatRange(0.0, 3600.0), default=10.0, show_default=True,
              help="Seconds for which texts of HTTP clients may go on after the edge was told to stop.")  # fmt: skip
@click.option("--come-back-s", type=click.FloatRange(0.0, 3600.0), default=10.0, show_default=True,
              help="Seconds after which devices should come back; they are told when the edge stops.")  # fmt: skip
@click.option("--api/--no-api", default=True, show_default=True,
              help="Serve OpenAI clients at http://HOST:PORT/v1, or do not.")  # fmt: skip
@click.option("--model-name", default="", show_default="the target", help="Name of the model for OpenAI clients.")
@web_options
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Seed of the sampling noise of requests that name none.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line for everything that happens.")
@attended_option
def command(**options: Any) -> None:
    """Run an edge: verify the drafts of all devices with the target model, and decide how much each device drafts.

    \b
    Examples:
      multispin serve
      multispin serve --target Qwen/Qwen3-8B --on cuda:0 --dtype bfloat16 --host 0.0.0.0
      multispin serve --edge-draft large
      multispin serve --config edge.toml --port 9000
      multispin serve --engine vllm --target Qwen/Qwen3-32B --dtype bfloat16 --engine-option tensor_parallel_size=8
    """
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')} is not a number")
    _check_mode(options)
    check_web(options)
    if printed(options):
        return
    if options["metrics_at"] is not None:
        options["metrics_at"] = host_and_port(options["metrics_at"], "--metrics-at")
    with contextlib.ExitStack() as stack:
        events, errors = (stack.enter_context(closing(Output(stream))) for stream in (sys.stdout, sys.stderr))
        prepare(
            options["threads"] or os.cpu_count() or 1,
            handler=OutputHandler(errors, options["log_format"] == "json"),
        )
        for sentence in idle_of_serve(command, options):
            log.warning(sentence)
        doors = _doors(options)  # what is wrong there is said before a model is loaded
        asyncio.run(_check_places(options))
        with stops_at_once() as stopped:
            loaded = _load(options)
        if stopped():
            log.info("stopped before the model was loaded")
            return
        tell: Callable[[EdgeEvent], None] = partial(say, events, "ws" if options["tls_certificate"] is None else "wss")
        if options["as_json"]:
            tell = partial(_say_as_json, events)
        from multispin.edge import new_event_loop

        with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(
                _serve(options, doors, loaded, tell, partial(_show, events), lambda: events.dropped + errors.dropped)
            )


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


@contextlib.contextmanager
def stops_at_once(termination: Termination = TERMINATION) -> Iterator[Callable[[], bool]]:
    """Let SIGTERM and SIGINT end the loading of a model. The function that is yielded says whether one of them came.

    A shell lets background processes of a script ignore SIGINT, so a handler is installed here.
    """
    stopped = False
    with contextlib.suppress(ValueError):  # only a main thread may
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: stopped or termination.asked
    except (KeyboardInterrupt, SystemExit):
        stopped = True


def _load(options: Mapping[str, Any]) -> _Loaded:
    from multispin.models import load_tokenizer

    tokenizer = load_tokenizer(options["target"])
    engine = load_engine(options)
    return _Loaded(engine, tokenizer, _edge_drafter(options, engine))


def _check_mode(options: Mapping[str, Any]) -> None:
    """InputError if a mode has no drafter, or a drafter has no engine to go with."""
    check_edge_draft(options)
    if options["mode"] == "edge" and options["edge_draft"] is None:
        raise InputError("--mode edge needs a drafter of the edge's own: name one with --edge-draft")
    if options["edge_draft"] is not None and options["mode"] in ("plain", "rounds"):
        raise InputError(
            f"--mode {options['mode']} never drafts at the edge: leave --edge-draft out, or use --mode auto"
        )


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
    from multispin.protocol.events import Listening

    parent, stop = Parent(options["attended"]), stop_signal()
    await parent.connect()
    verifier, tokenizer, _ = loaded
    access, gate, certificate = doors
    passes = _passes(options, loaded)
    server = EdgeServer(passes, tell, access, options["come_back_s"])
    application, name = server.application(), options["model_name"] or options["target"]
    # Before the API, whose last route answers for all that is not there.
    pages = Pages(options, server, application, tokenizer, verifier.max_length, guard(access))
    if options["api"]:
        texts = options["slots"] + options["max_waiting"]
        source = local_sessions(*(server, tokenizer.fingerprint, tokenizer.decode, texts, verifier.max_length))
        gateway = Gateway(source, tokenizer, name, int(time.time()), passes.grammars)
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
            log.info("stopping: texts of HTTP clients have %.0f s to end, and devices keep theirs", options["finish_s"])
            await end_in_order(server.finish, options["finish_s"], stop)


def _passes(options: Mapping[str, Any], loaded: _Loaded) -> "Passes":
    """The loop of passes, as the options say."""
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

    from multispin.edge import Metrics, listening
    from multispin.gateway import guard

    disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, and nobody asks for it
    metrics = Metrics(name, server.counts, dropped)
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
    """Serve until a signal comes or the parent is gone; what ends the loop of passes is raised here."""
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
    access = Access(options["credential"], tokens, door)
    certificate, key = options["tls_certificate"], options["tls_key"]
    if key is not None and certificate is None:
        raise InputError("--tls-key needs --tls-certificate")
    with flag("--tls-certificate"):
        tls = None if certificate is None else Certificate(user_path(certificate), user_path(key) if key else None)
    raise_descriptors()
    return _Doors(access, Gate(most_per_address=most, proxies=proxies), tls)


async def _check_places(options: Mapping[str, Any]) -> None:
    """InputError if another program listens where this edge is to listen."""
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
    """The engine, or the engine at the speed of an emulated one."""
    if seconds is None:
        return engine
    from multispin.control import Verification
    from multispin.edge.paced import PacedEngine

    return PacedEngine(engine, Verification(*seconds))


def _say_as_json(output: Output, event: "EdgeEvent") -> None:
    output.line(as_line(event))


def say(output: Output, scheme: str, event: "EdgeEvent") -> None:
    """Tell a person what happens."""
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
        case events.Round() if output.watched:  # dozens a second: more than a log of a service should keep
            shares = ", ".join(
                f"{one_line(device.name)} {device.accepted}/{device.drafted}" for device in event.devices
            )
            output.line(f"round {event.round}: verified in {event.verify_s * 1e3:.0f} ms  {shares}")
