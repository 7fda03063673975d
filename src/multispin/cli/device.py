"""`multispin device`: runs one device that drafts."""

import contextlib
import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Any

import click

from multispin.cli.options import CREDENTIAL_VARIABLE, FILE, Command, Number, credential_option
from multispin.cli.process import attended_option, flag, host_and_port, prepare, threads_option
from multispin.cli.sampling import sampling_and_rule, sampling_options
from multispin.cli.unused import idle_of_device
from multispin.errors import InputError
from multispin.models.drafter_name import DrafterName
from multispin.outside import json_or_text, read_file, read_standard_input, user_path, whole_characters
from multispin.protocol.limits import MAX_NAME_CHARACTERS, check_credential

log = logging.getLogger(__name__)

EDGE_URL = "ws://127.0.0.1:8765"
MAX_DELAY_S = 60.0
MAX_CREDENTIAL_BYTES = 4096


@click.command("device", cls=Command)
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--draft", default="q8", show_default=True,
              help="What drafts: a model, a .gguf file (in llama.cpp), small, medium, large, q3 … q8 (the "
              "target with rounded "
              "weights), lookup, or none.")  # fmt: skip
@click.option("--target", show_default="embedded; for a .gguf drafter in llama.cpp, its own file",
              help="Target of the edge. The device needs its tokenizer, and for q3 … q8 its weights.")  # fmt: skip
@click.option("--on", "place", default="cpu", show_default=True,
              help="Where torch runs the drafter: cpu, or a GPU such as cuda:0 or mps.")  # fmt: skip
@click.option("--gpu-layers", type=click.IntRange(0, 1000), default=0, show_default=True,
              help="Number of layers of a .gguf drafter that run on a GPU.")  # fmt: skip
@click.option("--context", type=click.IntRange(16, 2**17), show_default="the whole text",
              help="Most tokens of a text that the drafter reads, which bounds its memory. A longer text goes on "
              "without drafts.")  # fmt: skip
@click.option("--serve", "serve_at", metavar="HOST:PORT",
              help="Serve OpenAI clients of this machine; this device drafts for them.")  # fmt: skip
@click.option("--sessions", type=click.IntRange(1, 64), default=2, show_default=True,
              help="With --serve: most texts written at once.")  # fmt: skip
@click.option("--max-length", type=click.IntRange(2, 2**17), default=1024, show_default=True,
              help="With --serve: most tokens of a text, prompt included.")  # fmt: skip
@click.option("--model-name", default="", show_default="--target, or the drafter's file",
              help="With --serve: name of the model for clients, for example the edge's.")  # fmt: skip
@click.option("--allowed-origin", "allowed_origins", metavar="ORIGIN", multiple=True,
              help="With --serve: other server whose web pages may use the API, such as https://chat.example; "
              "repeatable.")  # fmt: skip
@click.option("--name", default="", help="Name of this device, shown to the edge and its operator.")
@click.option("--prompt", help="Text to answer; read from standard input if it is left out.")
@click.option("--system", help="System message before the prompt.")
@click.option(
    "--template-variable",
    "variables",
    multiple=True,
    metavar="KEY=VALUE",
    help="Value for the chat template, as JSON or as text; repeatable.",
)
@click.option("--thinking/--no-thinking", default=None, help="Set enable_thinking, which some chat templates have.")
@click.option("--raw", is_flag=True, help="Take the prompt as it is, without a chat template.")
@sampling_options
@click.option(
    "--seconds-per-token",
    type=Number(0.0),
    default=0.0,
    help="Emulate a device that takes this time to draft a token [s].",
)
@click.option("--spectral-efficiency", type=Number(0.0), default=0.0, help="Emulate an uplink with this many bit/s/Hz.")
@click.option("--delay-s", type=Number(0.0, MAX_DELAY_S), default=0.0,
              help="Emulate a network that delays every message by this time, one way [s].")  # fmt: skip
@click.option("--max-wasted-share", type=Number(0.0, 1.0), default=1.0, show_default="no bound",
              help="In streams: draft less far ahead, so that at most about this share of the drafted tokens is never "
              "verified. Saves energy.")  # fmt: skip
@credential_option("Token or secret of the edge, if it asks for one.")
@click.option(
    "--ca-file",
    type=FILE,
    metavar="FILE",
    help="PEM file of an authority to trust at wss:// addresses.",
)
@click.option(
    "--credential-file",
    type=FILE,
    metavar="FILE",
    help="File with the credential. Safer than --credential, since other users can see a command line.",
)
@click.option(
    "--retry-for",
    "retry_for_s",
    type=Number(0.0, 604_800.0),
    show_default="10 at first, 300 once an edge has answered",
    help="Seconds for which the device looks for an edge before it gives up.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line for each event.")
@attended_option
def command(**options: Any) -> None:
    """Draft with a small model, let the edge at URL verify, and print the text.

    Several URLs are tried in turn. The default is the edge on this machine, ws://127.0.0.1:8765.

    \b
    Examples:
      multispin device --prompt "Why is the sky blue?"
      multispin device ws://192.0.2.7:8765 --draft Qwen/Qwen3-0.6B --target Qwen/Qwen3-8B --prompt "Hello"
      multispin device ws://192.0.2.7:8765 ws://192.0.2.8:8765 --draft lookup --prompt "Hello" --retry-for 3600
      multispin device ws://192.0.2.7:8765 --draft small --on cuda:0 --prompt "Hello"
      multispin device ws://192.0.2.7:8765 --draft small.gguf --serve 127.0.0.1:8766
    """
    import asyncio  # imported late, so that --help is quick

    from multispin.cli import drafting
    from multispin.device import UntrustedError
    from multispin.protocol import RefusedError

    order = settled(options)
    name = DrafterName.parse(order["draft"])
    by_llama_cpp = _runs_llama_cpp(name, order)  # refuses --gpu-layers for a drafter without a model, too
    prepare(order["threads"], name.needs_model and not by_llama_cpp)
    for sentence in idle_of_device(command, options):
        log.warning(sentence)
    try:
        if order["serve_at"] is not None:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(drafting.serve(order))
        else:
            asyncio.run(drafting.write(order))
    except UntrustedError as error:
        raise InputError(f"{error} (--ca-file)") from None
    except RefusedError as error:
        if error.code == "tokenizer-mismatch":
            raise InputError(f"{error} (--target)") from None
        raise


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the request, with the prompt from standard input if none is given.

    InputError for options that do not go together, before anything is loaded.
    """
    from multispin.device import session_url, trusting

    options = dict(options)
    options["urls"] = tuple(session_url(url) for url in options["urls"] or (EDGE_URL,))
    sampling_and_rule(options, 0)
    options["variables"] = _variables(options)
    with flag("--ca-file"):
        options["tls"] = trusting(None if options["ca_file"] is None else user_path(options["ca_file"]))
    if options["credential_file"] is not None:
        if options["credential"] not in (None, os.environ.get(CREDENTIAL_VARIABLE)):
            raise InputError("--credential-file cannot go with --credential: give the credential in one of them")
        file = user_path(options["credential_file"])
        options["credential"] = read_file(file, MAX_CREDENTIAL_BYTES).strip()
        if not options["credential"]:
            raise InputError(f"--credential-file: {file} holds no credential: write one into it, or leave it out")
    if options["credential"] is not None:
        check_credential(options["credential"], "--credential")
    for option in ("prompt", "system", "name", "model_name"):
        whole_characters(options[option] or "", f"--{option.replace('_', '-')}")
    for text in options["stops"]:
        whole_characters(text, "--stop")
    if len(options["name"]) > MAX_NAME_CHARACTERS:
        raise InputError(f"--name has {len(options['name'])} characters, over the limit of {MAX_NAME_CHARACTERS}")
    if options["serve_at"] is not None:
        options["serve_at"] = _loopback(options["serve_at"])
        if options["prompt"] is not None:
            raise InputError("--serve answers its clients' prompts: leave --prompt out")
        if options["allowed_origins"]:
            from multispin.edge.door import read_origin

            with flag("--allowed-origin"):
                options["allowed_origins"] = tuple(map(read_origin, options["allowed_origins"]))
    elif options["allowed_origins"]:
        raise InputError("--allowed-origin is for the API of --serve: add --serve")
    elif options["prompt"] is None:
        if options["attended"]:
            raise InputError("--attended needs --prompt")
        options["prompt"] = read_standard_input()
    name = DrafterName.parse(options["draft"])
    name.check()
    if options["context"] is not None and not name.needs_model:
        raise InputError(f"--context bounds what a model reads, and {name.text!r} has no model: leave it out")
    options["threads"] = options["threads"] or max(1, (os.cpu_count() or 2) // 2)
    return options


def _runs_llama_cpp(name: DrafterName, options: Mapping[str, Any]) -> bool:
    """Whether llama.cpp and not torch will draft; InputError if --gpu-layers or --on do not fit it."""
    if options["place"] != "cpu":
        if options["gpu_layers"]:
            raise InputError("--gpu-layers is for llama.cpp and --on for torch: give one of them")
        return False
    from multispin.models.gguf_drafter import is_for_llama_cpp

    runs = is_for_llama_cpp(name, options["target"])
    if options["gpu_layers"] and not runs:
        raise InputError(f"--gpu-layers is for llama.cpp, which does not run {name.text!r} here: leave it out")
    return runs


def _loopback(text: str) -> tuple[str, int]:
    """Host and port of `--serve`; InputError unless only this machine's programs can reach it."""
    host, port = host_and_port(text, "--serve")
    try:
        local = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InputError(f"--serve {text!r}: serve this machine only, at a loopback address such as 127.0.0.1")
    return host, port


def _variables(options: Mapping[str, Any]) -> dict[str, Any]:
    """The template variables of the options; InputError if they are malformed or do not go with --raw."""
    variables: dict[str, Any] = {}
    for text in options["variables"]:
        key, equals, value = whole_characters(text, "--template-variable").partition("=")
        if not equals or not key.isidentifier():
            raise InputError(
                f"--template-variable {text!r} is not of the form KEY=VALUE: write, for example, enable_thinking=false"
            )
        if key in variables:
            raise InputError(f"--template-variable gives {key} twice")
        variables[key] = json_or_text(value, f"--template-variable {key}")
    if options["thinking"] is not None:
        variables["enable_thinking"] = options["thinking"]
    if options["raw"] and (variables or options["system"] is not None):
        raise InputError("--raw leaves out the chat template, which --system, --thinking and --template-variable need")
    return variables
