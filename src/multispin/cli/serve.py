"""`multispin serve`: the options of the edge server."""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import click

from multispin.cli.config import config_options, printed
from multispin.cli.engine import check_edge_draft, check_edge_drafter_name, engine_options
from multispin.cli.options import FILE, Command, Decorator, Number, credential_option
from multispin.cli.output import Output, OutputHandler
from multispin.cli.process import attended_option, host_and_port, place_option, prepare, threads_option
from multispin.cli.serving import serve_until_told
from multispin.cli.unused import idle_of_serve
from multispin.cli.web import check_web, web_options
from multispin.control import RUNTIME_POLICIES
from multispin.errors import InputError
from multispin.outside import whole_characters
from multispin.passes import Limits
from multispin.passes.settings import MODES
from multispin.protocol.limits import check_credential

MAX_EMULATED_S = 600.0
log = logging.getLogger(__name__)


def _limit(name: str, values: click.IntRange | click.FloatRange, text: str) -> Decorator:
    """An option that is a field of `Limits`, with its default."""
    option = "--" + name.replace("_", "-")
    return click.option(option, type=values, default=getattr(Limits, name), show_default=True, help=text)


@click.command("serve", cls=Command)
@config_options
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@engine_options
@click.option("--batch-invariant", is_flag=True, help="Make texts independent of each other in bfloat16, too: "
              "all passes have one shape. This costs speed; see docs/losslessness.md.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; 0.0.0.0 lets other machines in.")  # fmt: skip
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 takes any free port.",
)
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True,
              help="Who drafts. plain: nobody; edge: only the edge's own drafter; rounds: every device; streams: every "
              "device, also while it is verified; mixture: for each text the best of the first three; auto: whatever "
              "pays.")  # fmt: skip
@click.option("--edge-draft", metavar="DRAFTER", help="The edge's own drafter, which drafts many texts at once: small, "
              "medium, large, q8 or a model. Embedded engine only.")  # fmt: skip
@click.option("--policy", type=click.Choice(RUNTIME_POLICIES), default="heterogeneous", show_default=True,
              help="How draft lengths and bands of devices are planned, in the modes rounds and mixture. "
              "In streams and auto only the policy fair has an effect.")  # fmt: skip
@click.option("--bandwidth-hz", type=Number(0.0, min_open=True), default=20e3, show_default=True,
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
    Number(0.0, 100.0),
    "Prompts are read only so far that they lengthen a pass by at most this share.",
)
@_limit(
    "deadline_factor",
    Number(1.0, 1000.0),
    "A round waits for drafts at most this many times their planned time, plus --deadline-slack-s.",
)
@_limit("deadline_slack_s", Number(0.0, 3600.0), "Seconds that a round may wait beyond --deadline-factor.")
@_limit(
    "longest_wait_s",
    Number(0.0, 3600.0),
    "In streams: a text that was in no pass for this many seconds rides in the next one.",
)
@_limit(
    "max_sessions",
    click.IntRange(1, 65536),
    "Most sessions at once: connected devices, HTTP requests, and lost devices whose sessions are kept.",
)
@_limit("max_waiting", click.IntRange(0, 65536), "Most requests that may wait for a slot.")
@_limit(
    "max_share",
    Number(0.0, 1.0, min_open=True),
    "Share of sessions, requests and places to wait, of those that all others leave, that one token, or one address "
    "where no token is shown, may have.",
)
@_limit("resume_grace_s", Number(0.0, 3600.0), "Seconds for which a lost device's session is kept.")
@_limit(
    "slot_grace_s",
    Number(0.0, 3600.0),
    "Seconds for which a lost device keeps its slot while others wait for one.",
)
@_limit(
    "draft_timeout_s",
    Number(1.0, 3600.0),
    "Disconnect a device that has not answered for this many seconds.",
)
@_limit(
    "idle_timeout_s",
    Number(1.0, 604800.0),
    "Disconnect a device without a request after this many seconds.",
)
@place_option
@click.option("--emulated-verification-s", type=Number(0.0, MAX_EMULATED_S), nargs=3, default=None,
              metavar="FIXED PER_DEVICE PER_TOKEN", help="Emulate a slower engine: verification takes at least FIXED + "
              "PER_DEVICE for each device + PER_TOKEN for each token, in seconds.")  # fmt: skip
@click.option("--emulated-edge-draft-s", type=Number(0.0, MAX_EMULATED_S), nargs=2, default=None,
              metavar="FIXED PER_DEVICE", help="Emulate a slower edge drafter: a drafting step takes at least FIXED + "
              "PER_DEVICE for each text in it, in seconds.")  # fmt: skip
@credential_option("Secret that devices and clients may send instead of a token.")
@click.option(
    "--tokens",
    type=FILE,
    metavar="FILE",
    help="File of access tokens (see multispin token add). Devices and clients without a token are refused.",
)
@click.option("--trusted-proxy", "proxies", multiple=True, metavar="NETWORK",
              help="Address or network of a proxy whose X-Forwarded-For is believed, such as 127.0.0.1; "
              "repeatable.")  # fmt: skip
@click.option("--max-connections-per-address", type=click.IntRange(1, 65536), default=256, show_default=True,
              help="Most connections at once from one address.")  # fmt: skip
@click.option(
    "--tls-certificate",
    type=FILE,
    metavar="FILE",
    help="PEM file of a certificate and its chain. The edge then serves wss:// and https://.",
)
@click.option(
    "--tls-key",
    type=FILE,
    metavar="FILE",
    help="PEM file of the certificate's private key.  [default: the same file]",
)
@click.option("--metrics-at", metavar="HOST:PORT", show_default="beside the API, for whoever may use it",
              help="Serve /metrics only at this address, without asking for a token.")  # fmt: skip
@click.option("--log-format", type=click.Choice(("text", "json")), default="text", show_default=True,
              help="Format of the log on standard error.")  # fmt: skip
@click.option("--finish-s", type=Number(0.0, 3600.0), default=10.0, show_default=True,
              help="Seconds for which texts of HTTP clients may go on after a signal to stop.")  # fmt: skip
@click.option("--come-back-s", type=Number(0.0, 3600.0), default=10.0, show_default=True,
              help="When the edge stops, it tells devices to come back after this many seconds.")  # fmt: skip
@click.option("--api/--no-api", default=True, show_default=True,
              help="Serve OpenAI clients at http://HOST:PORT/v1.")  # fmt: skip
@click.option("--model-name", default="", show_default="the target", help="Name of the model for OpenAI clients.")
@web_options
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
              help="Seed of the sampling noise of requests without a seed.")  # fmt: skip
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line for each event.")
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
    _check_mode(options)
    check_web(options)
    if printed(options):
        return
    whole_characters(options["model_name"], "--model-name")
    if options["credential"] is not None:
        check_credential(options["credential"], "--credential")
    if not options["host"]:
        raise InputError("--host is empty: give an address, or 0.0.0.0 for all addresses of this machine")
    check_edge_drafter_name(options)
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
        serve_until_told(options, events, lambda: events.dropped + errors.dropped)


def _check_mode(options: Mapping[str, Any]) -> None:
    """InputError if the mode needs a drafter that is not there, or the drafter does not go with the engine."""
    check_edge_draft(options, [options["mode"]])
    if options["mode"] == "edge" and options["edge_draft"] is None:
        raise InputError("--mode edge needs a drafter of the edge's own: name one with --edge-draft")
