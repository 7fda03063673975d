"""The demo from its options to its result: plays it, lets the target write every text alone, and compares."""

import asyncio
import contextlib
import sys
import time

from rich.console import Console
from rich.live import Live

from multispin.demo.order import DemoOrder
from multispin.demo.processes import Crew
from multispin.demo.result import DemoResult, Identical, result_of
from multispin.demo.site import DRAFT_S, LLAMA_CPP_DRAFT_S, TRIED_TOKENS, DemoSite, slow_enough
from multispin.demo.state import DemoState, DeviceState
from multispin.demo.target import own_goodput, own_texts, requests_of
from multispin.demo.view import LogLines, live_view, progress_line
from multispin.errors import InputError
from multispin.models import DrafterName, load_tokenizer
from multispin.models.gguf_drafter import file_for_llama_cpp, is_for_llama_cpp
from multispin.models.loading import check_place
from multispin.speculation import ID_RULES, TextStream

PROGRESS_PERIOD_S = 2.0


def play_all(order: DemoOrder) -> tuple[DemoSite | None, DemoResult]:
    """Play a demo; progress goes to standard error.

    Returns:
        The played site (None if none was played), and the result.

    Raises:
        InputError: the options cannot be met, or every device was lost.

    """
    names = {spec.drafter: DrafterName.parse(spec.drafter) for spec in order.crew}
    for name in names.values():
        name.check()
    check_place(order.place)
    load_tokenizer(order.target)  # refuses a model that does not exist, and converts a GGUF file once
    for name in names.values():
        if is_for_llama_cpp(name, order.target):
            file_for_llama_cpp(name, order.target)  # once here, not in each device that drafts with it
    site, states = asyncio.run(_watched(order))
    for state in states:
        if not any(device.done for device in state.devices.values()):
            raise InputError("every device was lost: " + "; ".join(device.lost for device in state.devices.values()))
    compared: list[Identical] = _compare(order, states) if order.rule in ID_RULES else [{} for _ in states]
    alone_tokens_per_s = None
    if order.site is None:
        _say("timing the target alone, all texts in one batch")
        finished = [name for name, device in states[order.main].devices.items() if device.done]
        alone_tokens_per_s = own_goodput(order, requests_of(order, finished))
    return site, result_of(order, site, states, compared, alone_tokens_per_s)


def _compare(order: DemoOrder, states: list[DemoState]) -> list[Identical]:
    """Let the target write each text alone, and say for each play which texts have the same tokens."""
    decode = load_tokenizer(order.target).decode
    names = [spec.name for spec in order.crew if any(state.devices[spec.name].done for state in states)]
    texts = own_texts(order, requests_of(order, names))
    compared: list[Identical] = [{} for _ in states]
    for index, name in enumerate(names, start=1):
        _say(f"comparing {index}/{len(names)}: {name}")
        alone = next(texts)
        stream = TextStream(decode, order.stops, order.min_tokens)
        stream.push(alone)
        alone = alone[: stream.tokens]
        for state, identical in zip(states, compared, strict=True):
            if (done := state.devices[name].done) is not None:
                identical[name] = list(done.ids) == alone
    return compared


async def _watched(order: DemoOrder) -> tuple[DemoSite | None, list[DemoState]]:
    """Play, with a live table on a terminal, or progress lines elsewhere."""
    console = Console(stderr=True)
    states: list[DemoState] = [_state(order, "starting", 1.0)]
    live = Live(get_renderable=lambda: live_view(states[-1]), console=console, transient=True, auto_refresh=True)
    lines = LogLines(time.monotonic, _say)
    running = asyncio.create_task(_play(order, states))
    try:
        with live if console.is_terminal else contextlib.nullcontext():
            while not running.done():
                await asyncio.wait([running], timeout=PROGRESS_PERIOD_S)
                if not console.is_terminal and not running.done():
                    lines(progress_line(states[-1]))
        return running.result(), states[1:]
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait([running])


async def _play(order: DemoOrder, states: list[DemoState]) -> DemoSite | None:
    """Play all plays; each adds its state to `states`. Returns the site as it was played."""
    forks = order.engine == "embedded" and order.place == "cpu"
    crew = Crew(order.crew, order.device, lambda name, pid: _say(f"{name} is process {pid}"), forks)
    try:
        await crew.start()
        site, slower = None, 1.0
        if order.site is not None:
            name, scenario = order.site
            streams = any(play.mode in ("streams", "auto") for play in order.plays)
            slower = order.slower or slow_enough(
                scenario, order.crew, await crew.time_drafting(TRIED_TOKENS), _usual_draft_s(order), streams
            )
            site = DemoSite(name, scenario, slower)
            _say(f"the site {name} is played {site.pace}")
            if site.unplayed:
                _say(f"ignored, because a running edge has no such setting: {', '.join(site.unplayed)}")
        for play in order.plays:
            states.append(_state(order, play.label, slower))
            emulated = () if site is None else site.serve(play.edge_drafter is not None)
            await crew.play((*order.serve, *play.serve, *emulated), slower, states[-1])
        return site
    finally:
        await crew.stop()


def _usual_draft_s(order: DemoOrder) -> dict[str, float]:
    """Processor time per token of the package's own drafters [s], in the library that runs them here."""
    return {
        name: (LLAMA_CPP_DRAFT_S if is_for_llama_cpp(DrafterName.parse(name), order.target) else DRAFT_S)[name]
        for name in {spec.drafter for spec in order.crew} & DRAFT_S.keys()
    }


def _state(order: DemoOrder, label: str, slower: float) -> DemoState:
    return DemoState({spec.name: DeviceState(spec) for spec in order.crew}, label, slower)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
