"""The demo from its order to its result: play it, have the target write every text alone, and compare."""

import asyncio
import contextlib
import sys

from rich.console import Console
from rich.live import Live

from multispin.demo.order import DemoOrder
from multispin.demo.processes import run_demo
from multispin.demo.result import DemoResult, result_of
from multispin.demo.state import DemoState, DeviceState
from multispin.demo.target import TextRequest, own_goodput, own_texts, requests_of
from multispin.demo.view import live_view, progress_line
from multispin.errors import InputError
from multispin.models import check_drafter, load_tokenizer
from multispin.speculation import ID_RULES, TextStream

PROGRESS_PERIOD_S = 2.0


def run(order: DemoOrder) -> DemoResult:
    """Play a demo; progress goes to standard error.

    Raises:
        InputError: the order cannot be met, or every device was lost.

    """
    for spec in order.crew:
        check_drafter(spec.drafter)
    load_tokenizer(order.target)  # refuses a model that does not exist, and converts a GGUF file once
    state = DemoState({spec.name: DeviceState(spec) for spec in order.crew})
    asyncio.run(_watched(order, state))
    finished = [name for name, device in state.devices.items() if device.done]
    if not finished:
        raise InputError("every device was lost: " + "; ".join(device.lost for device in state.devices.values()))
    requests = requests_of(order, finished)
    result = result_of(order, state)
    if order.rule in ID_RULES:
        result = result.compared(_compare(order, state, finished, requests))
    _say("timing the target alone, all texts in one batch")
    return result.timed(own_goodput(order, requests))


def _compare(order: DemoOrder, state: DemoState, finished: list[str], requests: list[TextRequest]) -> dict[str, bool]:
    """Have the target write each text alone, and say whether the tokens are the same."""
    decode = load_tokenizer(order.target).decode
    texts = own_texts(order, requests)
    identical = {}
    for index, name in enumerate(finished, start=1):
        _say(f"comparing {index}/{len(finished)}: {name}")
        done = state.devices[name].done
        assert done is not None
        alone = next(texts)
        stream = TextStream(decode, order.stops, order.min_tokens)
        stream.push(alone)
        identical[name] = list(done.ids) == alone[: stream.tokens]
    return identical


async def _watched(order: DemoOrder, state: DemoState) -> None:
    """Run the processes with something to look at: a live table on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    live = Live(get_renderable=lambda: live_view(state), console=console, transient=True, auto_refresh=True)
    running = asyncio.create_task(
        run_demo(state, order.serve, order.device, lambda name, pid: _say(f"{name} is process {pid}"))
    )
    try:
        with live if console.is_terminal else contextlib.nullcontext():
            while not running.done():
                await asyncio.wait([running], timeout=PROGRESS_PERIOD_S)
                if not console.is_terminal and not running.done():
                    _say(progress_line(state))
        running.result()
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait([running])


def _say(line: str) -> None:
    print(line, file=sys.stderr)
