"""What a person sees of the demo: a live table, the growing texts, and a summary at the end."""

import time

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from multispin.demo.result import DemoResult
from multispin.demo.state import DemoState
from multispin.outside import one_line, printable

SHOWN_CHARACTERS = 240


def live_view(state: DemoState) -> RenderableType:
    """The table of devices and the tail of every text."""
    elapsed_s = max(1e-9, time.monotonic() - state.began_s) if state.began_s else 0.0
    table = _table(f"round {state.rounds}, {elapsed_s:.0f} s", "α", "L", "band [Hz]", "tokens/s", "accepted")
    texts = []
    for name, device in state.devices.items():
        running_s = device.done.seconds if device.done else elapsed_s
        over = bool(device.done or device.lost)
        table.add_row(
            _plain(name + (" (lost)" if device.lost else " (done)" if device.done else "")),
            _plain(device.spec.drafter),
            _plain(device.spec.task),
            "–" if device.acceptance_rate is None else f"{device.acceptance_rate:.2f}",
            "–" if over else str(device.length),
            "–" if over else f"{device.bandwidth_hz:.0f}",
            f"{device.tokens / running_s:.1f}" if running_s else "–",
            f"{device.accepted}/{device.drafted}",
        )
        tail = device.text[-SHOWN_CHARACTERS:].replace("\n", " ")
        texts.append(Panel(_plain(tail or "…"), title=_plain(name), title_align="left"))
    return Group(table, *texts)


def _plain(text: str) -> Text:
    """What others said, as one line without effect: neither markup nor control characters are obeyed."""
    return Text(one_line(text))


def _table(title: str, *numbers: str) -> Table:
    """Devices in rows, narrow enough for 80 columns with the bundled prompts."""
    table = Table(title=_plain(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("device", "drafter", "task"):
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def progress_line(state: DemoState) -> str:
    """One line for a log: how far the run is."""
    tokens = sum(device.tokens for device in state.devices.values())
    if not state.began_s:
        return "starting: the models are being loaded"
    return f"{time.monotonic() - state.began_s:.0f} s, round {state.rounds}, {tokens} tokens"


def print_summary(console: Console, result: DemoResult) -> None:
    """Print the texts, a table of the devices, and measured against predicted goodput."""
    for device in result.devices:
        text = Text(printable(device.text.strip()) or "(nothing)")
        console.print(Panel(text, title=_plain(device.name), title_align="left"))
    table = _table(f"{result.policy} on {result.target}", "tokens", "accepted", "α", "L", "bytes", "text")
    table.caption = "accepted of drafted, mean L, bytes sent, text against the target alone"
    for device in result.devices:
        rate = device.acceptance_rate
        table.add_row(
            _plain(device.name),
            _plain(device.drafter),
            _plain(device.task),
            str(device.tokens),
            f"{device.accepted}/{device.drafted}",
            "–" if rate is None else f"{rate:.2f}",
            f"{device.mean_draft_length:.1f}",
            str(device.uplink_bytes),
            {True: "identical", False: "DIFFERENT", None: "unchecked"}[device.identical_to_target],
        )
    console.print(table)
    measured, predicted = result.goodput_tokens_per_s, result.predicted_goodput_tokens_per_s
    ratio = f", a factor of {measured / predicted:.2f}" if predicted else ""
    console.print(
        f"goodput {measured:.1f} tokens/s measured, {predicted:.1f} predicted by the plans{ratio}; "
        f"{result.rounds} rounds in {result.wall_s:.1f} s"
    )
    alone = result.target_alone_tokens_per_s
    if alone is not None:
        console.print(
            f"the target alone, writing these texts in one batch on all cores of this machine: {alone:.1f} tokens/s "
            "(the devices' speeds and links are emulated, its own are not)"
        )
    if result.not_compared:
        console.print(_plain(f"not compared with the target alone: {result.not_compared}"))
    for sentence in lost_devices(result):
        console.print(_plain(sentence), style="bold red")


def lost_devices(result: DemoResult) -> list[str]:
    """A sentence for every device that was lost."""
    return [f"{device.name} was lost: {device.lost}" for device in result.devices if device.lost]
