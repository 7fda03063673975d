"""`multispin demo`: one edge and several devices on this machine, whose texts are compared with the target alone."""

import json
import os
from typing import Any

import click
from click.core import ParameterSource

from multispin.cli.engine import (
    check_edge_draft,
    check_edge_drafter_name,
    check_engine_options,
    engine_arguments,
    engine_options,
)
from multispin.cli.options import Command, Number
from multispin.cli.process import flag, prepare
from multispin.cli.sampling import sampling_and_rule, sampling_arguments, sampling_options
from multispin.cli.unused import idle_policies
from multispin.control import RUNTIME_POLICIES
from multispin.data import bundled_sites
from multispin.errors import InputError
from multispin.models.references import USUAL_MAX_LENGTH
from multispin.outside import one_line
from multispin.passes.settings import MODES

MAX_DEVICES = 64
EDGE_DRAFTER = "small"
"""The edge's own drafter for the embedded target."""
ROOM_FOR_PROMPT = 512
OWN_SITE = ("devices", "bandwidth_hz")
"""Options of a demo without a site."""
SITE_TOKENS = 32
"""Longest text at a site if --max-tokens is not given."""
POLICIES_SHOWN = ("heterogeneous", "fixed")
"""Policies that are compared at a site if --policy is not given."""
_HELP = f"""Start one edge server and several devices on this machine, and let them write texts together.

The demo plays a site: an edge with a large model, devices that draft for it, and the links between them. It answers the
same prompts in several ways and prints a table that compares them. Models, texts and sockets are real. The links
and the speeds of engine and devices are emulated. At the end the target writes every text once more, alone, and all
tokens are compared. Under the rejection rules there is no text to compare with. Texts have up to {SITE_TOKENS} tokens
unless --max-tokens is given. The policies {" and ".join(POLICIES_SHOWN)} are compared unless --policy is given.

With --devices or --bandwidth-hz the demo plays no site. The engine is then as fast as this machine allows, and the
devices are a laptop, a tablet, a phone and a watch, in turn.

\b
Sites: {", ".join(bundled_sites())}

\b
Examples:
  multispin demo
  multispin demo --site h100-7b
  multispin demo --site my-site.toml --mode plain --mode rounds
  multispin demo --devices 6 --temperature 0.8 --seed 7
  multispin demo --devices 2 --draft q8 --draft lookup --prompt "Write a haiku about rain." --json
  multispin demo --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B --devices 4 --on cuda:0 --dtype bfloat16
"""


@click.command("demo", cls=Command, help=_HELP)
@click.option("--site", help="Site to play: a name, or a scenario file.  [default: a100-7b]")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True,
              help="Who drafts: nobody (plain), the edge's own drafter (edge), the devices (rounds), the devices "
              "while they are verified (streams), for each text the best of the first three (mixture), or whatever "
              "pays (auto); repeatable.  [default: all but mixture at a site, else rounds]")  # fmt: skip
@click.option("--edge-draft", metavar="DRAFTER", show_default="small for the embedded target",
              help="The edge's own drafter.")  # fmt: skip
@click.option("--slower", type=Number(1.0, 1000.0), show_default="as much as this machine needs",
              help="Slow the whole site down by this factor.")  # fmt: skip
@click.option("--devices", type=click.IntRange(1, MAX_DEVICES), default=4, show_default=True,
              help="Without a site: number of devices.")  # fmt: skip
@click.option("--policy", type=click.Choice(RUNTIME_POLICIES), default="heterogeneous",
              show_default="heterogeneous and fixed at a site, else heterogeneous",
              help="How the edge plans, in the modes rounds and mixture. In streams and auto only the policy fair "
              "has an effect.")  # fmt: skip
@click.option("--bandwidth-hz", type=Number(0, min_open=True), default=20e3, show_default=True,
              help="Without a site: uplink band that all devices share.")  # fmt: skip
@click.option("--target", default="embedded", show_default=True, help="Hub id, model folder, .gguf file or 'embedded'.")
@engine_options
@click.option("--on", "place", default="cpu", show_default=True,
              help="Where the target runs: cpu, or a GPU such as cuda:0.")  # fmt: skip
@click.option("--draft", "drafts", multiple=True, help="Drafter, one per device in turn; repeatable.")
@click.option("--prompt", "prompts", multiple=True, help="Prompt, one per device in turn; repeatable.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on standard output.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> int:
    """The command behind `multispin demo`; its help is `_HELP`."""

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is not ParameterSource.DEFAULT

    own = [name for name in OWN_SITE if given(name)]
    if own and (options["site"] is not None or options["slower"] is not None):
        raise InputError(f"--{own[0].replace('_', '-')} is for a demo without a site: leave out --site and --slower")
    prepare(os.cpu_count() or 1)  # before torch is imported
    from multispin.demo.program import play_all
    from multispin.demo.view import lost_devices, print_summary

    check_edge_draft(options, options["modes"] or (("rounds",) if own else MODES))
    check_edge_drafter_name(options)
    check_engine_options(options)
    if options["engine"] == "vllm" and options["place"] != "cpu":
        raise InputError("--on does not go with --engine vllm, whose build decides where it computes: leave it out")
    if not own and not given("max_tokens"):
        options["max_tokens"] = SITE_TOKENS
    if given("policy") and (idle := idle_policies([options["policy"]], options["modes"] or MODES)):
        click.echo(idle, err=True)
    order = _order(options, own=bool(own), policies=(options["policy"],) if given("policy") or own else POLICIES_SHOWN)
    site, result = play_all(order)
    if options["as_json"]:
        click.echo(json.dumps(result.document()))
        for sentence in lost_devices(result):
            click.echo(one_line(sentence), err=True)
    else:
        from rich.console import Console

        print_summary(Console(), order, site, result)
    return 0 if result.all_identical else 1


for _option in command.params:
    if isinstance(_option, click.Option) and _option.name == "max_tokens":
        _option.show_default = f"{_option.default}, or {SITE_TOKENS} at a site"


def _order(options: dict[str, Any], own: bool, policies: tuple[str, ...]) -> Any:
    from multispin.demo.crew import make_devices
    from multispin.demo.order import DemoOrder, Play
    from multispin.demo.site import SITE, DemoSite, read_site, site_crew

    seed = options["seed"] or 0
    params, rule = sampling_and_rule(options, seed)
    embedded = options["target"] == "embedded"
    serve, site = _serve_arguments(options), None
    if own:
        crew = make_devices(options["devices"], embedded, options["drafts"], options["prompts"], seed)
        serve += ("--bandwidth-hz", str(options["bandwidth_hz"]))
    else:
        name = SITE if options["site"] is None else options["site"]
        with flag("--site"):
            site = (name, read_site(name))
            DemoSite(*site, options["slower"] or 1.0)  # refuses a site that cannot be played before anything starts
            crew = site_crew(site[1], embedded, options["drafts"], options["prompts"], seed)
    edge_drafter = options["edge_draft"] or (EDGE_DRAFTER if embedded and options["engine"] == "embedded" else None)
    lacks = "name one with --edge-draft"
    if site is not None and site[1].edge_drafter is None:
        lacks = f"{site[0]} has no [edge_drafter], which says how fast it drafts there"
        if options["edge_draft"] is not None:
            raise InputError(f"--edge-draft is not for this site: {lacks}")
        edge_drafter = None
    modes = tuple(dict.fromkeys(options["modes"]))
    if not modes:
        usual = tuple(mode for mode in MODES if mode != "mixture" and (mode != "edge" or edge_drafter is not None))
        modes = ("rounds",) if own else usual
    if "edge" in modes and edge_drafter is None:
        raise InputError(f"--mode edge needs a drafter of the edge's own: {lacks}")
    return DemoOrder(
        crew=crew,
        plays=tuple(
            Play(mode, policy, edge_drafter if mode not in ("plain", "rounds") else None)
            for mode in modes
            for policy in (policies if mode == "rounds" else policies[:1])
        ),
        site=site,
        slower=options["slower"],
        target=options["target"],
        engine=options["engine"],
        dtype=options["dtype"],
        engine_options=options["engine_options"],
        sampling=params,
        rule=rule,
        max_tokens=options["max_tokens"],
        min_tokens=options["min_tokens"],
        stops=options["stops"],
        serve=(*serve, "--slots", str(len(crew))),
        device=("--target", options["target"], *sampling_arguments(options)),
        place=options["place"],
    )


def _serve_arguments(options: dict[str, Any]) -> tuple[str, ...]:
    arguments = ["--target", options["target"], *engine_arguments(options)]
    if options["place"] != "cpu":
        arguments += ["--on", options["place"]]
    if options["max_tokens"] > USUAL_MAX_LENGTH - ROOM_FOR_PROMPT:
        arguments += ["--max-length", str(options["max_tokens"] + ROOM_FOR_PROMPT)]
    return tuple(arguments)
