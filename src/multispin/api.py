"""The front door: what `import multispin` offers beside the classes of the rooms.

Every function imports what it needs when it is called, so that planning loads no language model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from multispin.checks import one_of, shown, whole
from multispin.errors import InputError
from multispin.outside import whole_characters
from multispin.protocol.limits import check_credential
from multispin.speculation import Engine, Rule, SamplingParams
from multispin.speculation.by_hand import require_engine

if TYPE_CHECKING:
    from multispin.control import Plan, Scenario
    from multispin.control.advice import Advice
    from multispin.passes import Passes
    from multispin.protocol.events import EdgeEvent
    from multispin.simulation.study import Result


def load_scenario(name: str | Path) -> Scenario:
    """Read a scenario file, or a bundled scenario by its bare name.

    Args:
        name: path of a TOML file, or a name such as "paper-llama".

    """
    from multispin.control import load_scenario as load
    from multispin.data import scenario_path

    return load(scenario_path(str(name)))


def plan(scenario: Scenario | str | Path, policy: str = "heterogeneous", relative_gap: float = 1e-6) -> Plan:
    """Choose every device's draft length and share of the uplink for one round.

    Args:
        scenario: a scenario, the path of its file, or the name of a bundled one.
        policy: how to choose; one of `multispin.control.POLICIES`, default "heterogeneous", the exact optimum.
        relative_gap: how far the proven bound may be above the answer, as a share of it; default 1e-06.

    Example:
        >>> import multispin
        >>> round(multispin.plan("paper-llama").goodput_tokens_per_s, 1)
        181.2

    """
    from multispin.control import Scenario
    from multispin.control import plan as solve

    chosen = scenario if isinstance(scenario, Scenario) else load_scenario(scenario)
    return solve(chosen, policy, relative_gap=relative_gap)


def simulate(
    scenario: Scenario | str | Path,
    policy: str = "heterogeneous",
    *,
    mode: str = "rounds",
    rounds: int = 200,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    knows: bool = False,
) -> Result:
    """Run a site under a virtual clock, once per seed, in this process.

    Args:
        scenario: a scenario, the path of its file, or the name of a bundled one.
        policy: how the edge plans rounds; one of `multispin.control.RUNTIME_POLICIES`, default "heterogeneous", the
            exact optimum.
        mode: who drafts; default "rounds", every device as the policy plans. "plain", "edge", "mixture", "streams" and
            "auto" are the others that `multispin serve --mode` explains.
        rounds: verified rounds per run; in the other modes, passes; default 200.
        seeds: seeds of the simulation, one run each; default 1 … 5.
        knows: whether the controller knows the truth; otherwise it learns, as a real one does; default False.

    Returns:
        The measures of all runs; its `estimates()` are means with 95 % intervals.

    Raises:
        InputError: an argument or the scenario cannot be used.

    """
    from multispin.control import Scenario
    from multispin.data import scenario_path
    from multispin.simulation.setup import ScenarioFile, Setup
    from multispin.simulation.study import Result, SimulatedRun
    from multispin.simulation.study import simulate as run

    if not isinstance(seeds, Iterable) or not (numbers := tuple(seeds)):
        raise InputError(f"seeds is {shown(seeds)}; it must be a sequence of whole numbers, at least one")
    setup = Setup(scenario) if isinstance(scenario, Scenario) else ScenarioFile(scenario_path(str(scenario))).setup()
    asked = [SimulatedRun(setup, policy, seed, rounds, knows, mode=mode) for seed in numbers]
    return Result(policy, (), numbers, tuple(run(each) for each in asked), mode)


def advise(scenario: Scenario | str | Path) -> Advice:
    """Say whether devices should draft at a site: every way to serve it, side by side.

    Args:
        scenario: a scenario, the path of its file, or the name of a bundled one.

    Returns:
        An option for each way: nobody drafts, the edge's own drafter does, devices do in rounds by each policy or in
        streams, and the best mixture. Streams are simulated, the others planned, all with the truth known. Texts and
        prompts are those of the file; those of a `Scenario` are endless. Beside them the break-evens: the values of
        one quantity at which devices begin to pay. `multispin.control.advice.sentences` puts all of it into words.

    """
    from multispin.control import Scenario
    from multispin.control.advice import advise as compare
    from multispin.data import scenario_path
    from multispin.simulation.steady import streamed, texts_of

    if isinstance(scenario, Scenario):
        return compare(scenario, streams=streamed)
    texts = texts_of(scenario_path(str(scenario)))
    return compare(load_scenario(scenario), streams=partial(streamed, texts=texts), texts=texts)


def _check_text(**given: str) -> None:
    """InputError unless each of these is text, of whole characters."""
    for name, text in given.items():
        if not isinstance(text, str):
            raise InputError(f"{name} is {shown(text)}; it must be text")
        whole_characters(text, name)


def _check_credential(credential: str | None) -> None:
    """InputError unless this is None or text that a peer can show."""
    if credential is not None:
        _check_text(credential=credential)
        check_credential(credential, "credential")


@asynccontextmanager
async def run_edge(
    target: str = "embedded",
    *,
    engine: Engine | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    mode: str = "auto",
    edge_draft: str | None = None,
    policy: str = "heterogeneous",
    bandwidth_hz: float = 20e3,
    slots: int = 16,
    max_length: int = 1024,
    credential: str | None = None,
    on_event: Callable[[EdgeEvent], None] = lambda _: None,
) -> AsyncIterator[str]:
    """Run an edge server for as long as an `async with` block runs, which is given its address.

    `multispin serve` runs the same server with more options, and beside it the HTTP API, the pages and the metrics,
    which this one does not have.

    Args:
        target: reference of the target model: a folder, a .gguf file, a Hub id or "embedded"; default "embedded".
        engine: verification engine that runs the target model; default: a `Verifier` of it on the CPU.
        host: address to listen on; default: this machine only.
        port: default 0, any free one.
        mode: who drafts, as `multispin serve --mode` explains it; default "auto", whatever pays.
        edge_draft: drafter of the edge's own, as `multispin serve --edge-draft` names it; default none.
        policy: how draft lengths and bands are chosen in the modes "rounds" and "mixture"; one of
            `multispin.control.RUNTIME_POLICIES`; default "heterogeneous".
        bandwidth_hz: uplink band that all devices share [Hz]; default 20 kHz.
        slots: texts that are written at once, of the default engine; default 16.
        max_length: prompt and generated tokens per text, of the default engine; default 1024.
        credential: what every device must show; default none.
        on_event: function that gets every event; by default none.

    Yields:
        The address for devices, such as "ws://127.0.0.1:40123".

    """
    from multispin.edge import Access, EdgeServer, listening, place_of
    from multispin.models import load_verifier
    from multispin.passes.settings import MODES

    one_of("mode", mode, MODES)
    if engine is not None:
        require_engine(engine)
    _check_text(host=host)
    _check_credential(credential)
    whole("port", port, 0, 65535)
    if not host:
        raise InputError("host is empty: name an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine's")
    if edge_draft is not None and mode in ("plain", "rounds"):
        raise InputError(f"mode = {mode!r} never drafts at the edge: leave edge_draft out, or use mode = 'auto'")
    if engine is None:
        engine = await asyncio.to_thread(load_verifier, target, slots, max_length)
    passes = await asyncio.to_thread(_load_passes, target, engine, mode, edge_draft, policy, bandwidth_hz)
    server = EdgeServer(passes, on_event, Access(credential or ""))
    async with listening(server.application(), host, port) as taken:
        failure = asyncio.create_task(server.failure())
        try:
            yield f"ws://{place_of(host, taken)}"
        finally:
            failed = failure.done()
            failure.cancel()
        if failed:
            raise failure.result()


def _load_passes(
    target: str, engine: Engine, mode: str, edge_draft: str | None, policy: str, bandwidth_hz: float
) -> Passes:
    """The passes of an edge, with what it loads beside its engine; arguments as for `run_edge`."""
    from multispin.models import load_draft_source, load_grammars, load_tokenizer
    from multispin.passes import Controller, ControllerSettings, Passes
    from multispin.protocol import usual_frame_bits
    from multispin.speculation import bits_per_id

    tokenizer, edge_drafter = load_tokenizer(target), None
    settings = ControllerSettings(
        *(policy, bandwidth_hz, bits_per_id(engine.vocabulary_size)),
        frame_bits=usual_frame_bits(),
        mode=mode,
        edge_drafts=edge_draft is not None,
    )
    if edge_draft is not None:
        source = load_draft_source(edge_draft, target, batched=True)
        edge_drafter = source.edge_drafter(engine.slots, engine.max_length)
    return Passes(
        engine,
        Controller(settings),
        tokenizer.fingerprint,
        edge_drafter=edge_drafter,
        grammars=load_grammars(tokenizer),
        target=target,
    )


@dataclass(frozen=True)
class Generated:
    """A text that an edge and a device wrote together.

    Attributes:
        text: the text after the prompt.
        ids: token ids of the text.
        drafted: number of drafted tokens.
        accepted: how many of them the target accepted.
        rounds: number of verdicts that were received.
        uplink_bytes: bytes sent, with all framing.

    """

    text: str
    ids: tuple[int, ...]
    drafted: int
    accepted: int
    rounds: int
    uplink_bytes: int


async def generate(
    url: str,
    prompt: str,
    *,
    target: str = "embedded",
    draft: str = "q8",
    params: SamplingParams | None = None,
    rule: Rule | None = None,
    max_tokens: int = 256,
    min_tokens: int = 0,
    stops: Sequence[str] = (),
    name: str = "device",
    credential: str | None = None,
) -> Generated:
    """Be a device: draft with a small model, let the edge at `url` verify, and return the text.

    `multispin device` does the same with more options.

    Args:
        url: address of the edge, ws://HOST:PORT.
        prompt: a user message.
        target: reference of the edge's target, whose tokenizer is used here; default "embedded".
        draft: drafter, as `multispin device --draft` names it; default "q8", the target with rounded weights.
        params: how the target's next token is drawn; default: greedy.
        rule: acceptance rule; default `greedy` at temperature 0 and `coupled` above.
        max_tokens: longest text; default 256.
        min_tokens: fewest tokens of the text; default 0.
        stops: stop strings: generation ends at the first one, which is cut from the text; default none.
        name: how the edge calls this device; default "device".
        credential: credential that the edge asks for; default none.

    """
    from multispin.device import DeviceClient, session_url
    from multispin.models import load_drafter, load_tokenizer
    from multispin.protocol import PROTOCOL_VERSION, Hello, Profile, Request
    from multispin.protocol.limits import MAX_NAME_CHARACTERS
    from multispin.protocol.request import MAX_REQUEST_TOKENS

    _check_text(url=url, prompt=prompt, name=name)
    _check_credential(credential)
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        raise InputError(f"stops is {shown(stops)}; it must be a sequence of texts")
    _check_text(**{f"stops[{place}]": each for place, each in enumerate(stops)})
    if not name:
        raise InputError("name is empty: leave it out, or say how the edge shall call this device")
    if len(name) > MAX_NAME_CHARACTERS:
        raise InputError(f"name has {len(name)} characters, over the limit of {MAX_NAME_CHARACTERS}")
    if rule is not None:
        one_of("rule", rule, tuple(Rule))
    if params is not None and not isinstance(params, SamplingParams):
        raise InputError(f"params is {shown(params)}; it must be SamplingParams")
    whole("max_tokens", max_tokens, 1, MAX_REQUEST_TOKENS)
    whole("min_tokens", min_tokens, 0, MAX_REQUEST_TOKENS)
    edge = session_url(url)
    tokenizer = await asyncio.to_thread(load_tokenizer, target)
    ids = tokenizer.encode_chat(prompt)
    drafter, _ = await asyncio.to_thread(load_drafter, draft, target, len(ids) + max_tokens)
    request = Request(
        tuple(ids), params or SamplingParams(), max_tokens, min_tokens, tokenizer.stop_ids, tuple(stops), rule
    )
    profile = Profile(seconds_per_token=0.05, spectral_efficiency=5.0)  # believed until it is measured
    hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, name, draft[:80], draft != "none", profile, credential or "")
    client = DeviceClient(edge, hello, drafter, decode=tokenizer.decode)
    try:
        written = await client.generate(request)
    finally:
        client.close()
    counters = client.counters
    return Generated(
        *(client.session.text, tuple(written), counters.drafted, counters.accepted, counters.rounds),
        counters.uplink_bytes,
    )
