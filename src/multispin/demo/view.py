"""The demo on a terminal: a live table, the growing texts, and a summary at the end."""

import math
import time
from collections.abc import Callable
from contextlib import suppress

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from multispin.control import Scenario
from multispin.control.advice import STREAMS_MATTER
from multispin.control.frames import decide_with_frames
from multispin.demo.order import DemoOrder
from multispin.demo.result import LATE_FACTOR, DemoResult, PlayResult
from multispin.demo.site import DemoSite
from multispin.demo.state import DemoState
from multispin.errors import InputError
from multispin.outside import one_line, printable
from multispin.simulation.steady import streamed

SHOWN_CHARACTERS = 240
REPEAT_S = 30.0
"""Least time before the same log line is written again without another in between [s]."""
_WHO = {"plain": "nobody", "edge": "the edge", "streams": "in streams", "mixture": "a mixture", "auto": "whoever pays"}
"""Who drafts, by mode; in rounds it is the devices, by a policy."""
MAX_LATE_SHARE = 0.1
"""Share of late passes from which on the user is told."""


def live_view(state: DemoState) -> RenderableType:
    """The table of devices and the tail of every text."""
    elapsed_s = max(1e-9, time.monotonic() - state.began_s) if state.began_s else 0.0
    title = f"{state.label}: pass {state.passes}, {elapsed_s:.0f} s"
    table = _table(title, "α", "L", "band [Hz]", "tokens/s", "accepted")
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
            f"{state.slower * device.tokens / running_s:.1f}" if running_s else "–",
            f"{device.accepted}/{device.drafted}",
        )
        tail = device.text[-SHOWN_CHARACTERS:].replace("\n", " ")
        texts.append(Panel(_plain(tail or "…"), title=_plain(name), title_align="left"))
    return Group(table, *texts)


def _plain(text: str) -> Text:
    """Text from outside as one harmless line, without markup and control characters."""
    return Text(one_line(text))


def _table(title: str, *numbers: str) -> Table:
    """A table with one row per device, which fits 80 columns with the bundled prompts."""
    table = Table(title=_plain(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("device", "drafter", "task"):
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


class LogLines:
    """Log lines; a repeated line is written only after `REPEAT_S`.

    Args:
        clock: function that returns the time [s].
        write: function that prints a line.

    """

    def __init__(self, clock: Callable[[], float], write: Callable[[str], None]) -> None:
        self._clock = clock
        self._write = write
        self._last = ""
        self._written_s = 0.0

    def __call__(self, line: str) -> None:
        """Write a line if it is new, or if `REPEAT_S` have passed."""
        now_s = self._clock()
        if line != self._last or now_s - self._written_s >= REPEAT_S:
            self._last, self._written_s = line, now_s
            self._write(line)


def progress_line(state: DemoState) -> str:
    """One log line about the progress of the run."""
    tokens = sum(device.tokens for device in state.devices.values())
    if not state.began_s:
        return f"{state.label}: loading the models"
    return f"{state.label}: {time.monotonic() - state.began_s:.0f} s, pass {state.passes}, {tokens} tokens"


def print_summary(console: Console, order: DemoOrder, site: DemoSite | None, result: DemoResult) -> None:
    """Print the texts, a table of the devices, and the results."""
    for device in result.devices:
        text = Text(printable(device.text.strip()) or "(nothing)")
        console.print(Panel(text, title=_plain(device.name), title_align="left"))
    console.print(_devices_table(order, result))
    if site is not None:
        console.print(comparison_table(site, result))
        for sentence in _site_sentences(site, result):
            console.print(sentence)
    else:
        for sentence in _own_sentences(result):
            console.print(sentence)
    if result.not_compared:
        console.print(_plain(f"not compared with the target alone: {result.not_compared}"))
    for sentence in lost_devices(result):
        console.print(_plain(sentence), style="bold red")


def lost_devices(result: DemoResult) -> list[str]:
    """A sentence for every device that was lost."""
    return [f"{device.name} was lost: {device.lost}" for device in result.devices if device.lost]


def _devices_table(order: DemoOrder, result: DemoResult) -> Table:
    """The table of the devices of the main play."""
    table = _table(
        f"{order.plays[order.main].label} on {result.target}", "tokens", "accepted", "α", "L", "bytes", "text"
    )
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
            _same(device.identical_to_target),
        )
    return table


def comparison_table(site: DemoSite, result: DemoResult) -> Table:
    """One row for each play."""
    table = Table(title=_plain(f"{site.name}: who drafts"), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("who drafts", no_wrap=True)
    for heading in ("tokens/s", "× plain", "× edge", "slowest", "accepted", "bytes", "texts"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption = (
        "tokens/s of the site; ratio to plain and to the edge's own drafts; the least ratio of a user to plain; "
        "accepted of drafted tokens, by devices and edge; bytes sent; texts against the target alone"
    )
    plain = next((play for play in result.comparison if play.mode == "plain"), None)
    edge = next((play for play in result.comparison if play.mode == "edge"), None)
    for play in result.comparison:
        table.add_row(
            _WHO.get(play.mode, play.policy or play.mode),
            f"{play.goodput_tokens_per_s:.1f}",
            _ratio(play.goodput_tokens_per_s, plain),
            _ratio(play.goodput_tokens_per_s, edge),
            "–" if (least := slowest_gain(play, plain)) is None else f"{least:.2f}",
            f"{sum(user.accepted for user in play.users)}/{sum(user.drafted for user in play.users)}",
            str(sum(user.uplink_bytes for user in play.users)),
            _same(play.identical),
        )
    return table


def slowest_gain(play: PlayResult, plain: PlayResult | None) -> float | None:
    """The least ratio of a user's tokens per second to the same user's in plain decoding; None if unknown."""
    before = {user.name: user.tokens_per_s for user in plain.users} if plain else {}
    return min((u.tokens_per_s / before[u.name] for u in play.users if before.get(u.name)), default=None)


def _ratio(goodput: float, other: PlayResult | None) -> str:
    return f"{goodput / other.goodput_tokens_per_s:.2f}" if other and other.goodput_tokens_per_s else "–"


def _same(identical: bool | None) -> str:
    return {True: "identical", False: "DIFFERENT", None: "unchecked"}[identical]


def _site_sentences(site: DemoSite, result: DemoResult) -> list[str]:
    """Sentences about what is real, what is emulated, and what the site's own numbers predict."""
    verifier = site.scenario.verifier
    sentences = [
        f"Times are those of the site; it was played {site.pace}. Real: models, texts, sockets and "
        "decisions. Emulated, by waiting: "
        f"the engine ({1e3 * verifier.fixed_s:g} ms per pass + {1e3 * verifier.per_device_s:g} per device + "
        f"{1e3 * verifier.per_token_s:g} per token), the drafting times of devices and edge, the band and the "
        "delay of the links.",
    ]
    late = max(play.late_passes for play in result.comparison)
    slow = max((play.slowest_drafting or 0.0 for play in result.comparison), default=0.0)
    if late > MAX_LATE_SHARE or slow > LATE_FACTOR:
        sentences.append(
            f"This machine did not keep pace: {late:.0%} of passes were late, and drafting took up to {slow:.2f} times "
            "as long as at the site. Use a greater --slower."
        )
    sentences.append(expectation(site.scenario))
    return sentences


def expectation(scenario: Scenario) -> str:
    """A sentence about who should draft at a site by its own numbers, and the goodput of each choice."""
    decision = decide_with_frames(scenario)
    made = dict(decision.alternatives)  # a mixture that equals a pure choice is listed once
    made["rounds"] = decide_with_frames(scenario, mode="rounds").goodput_tokens_per_s  # with the frames' overhead
    names = {**_WHO, "rounds": "heterogeneous", "mixed": "a mixture of these"}
    if math.isclose(made["rounds"], made["plain"]):
        names["rounds"] += " (which lets no device draft)"
    promised = [f"{names[kind]} {goodput:.0f}" for kind, goodput in made.items()]
    advice = {
        "plain": "nobody should draft",
        "edge": "the edge should draft, and no device",
        "rounds": "the devices should draft",
        "mixed": "some devices should draft, and the edge for the others",
    }[decision.kind]
    with suppress(InputError):  # a site without streams
        streams, chance = streamed(scenario, 1).goodput_tokens_per_s, ""
        if streams >= (1.0 + STREAMS_MATTER) * decision.goodput_tokens_per_s:
            advice = "the devices should draft, in streams"
        elif streams > decision.goodput_tokens_per_s:
            chance = f"; less than {STREAMS_MATTER:.0%} more may be chance"
        promised.append(f"in streams {streams:.0f} (simulated{chance})")
    return (
        f"By the site's own acceptance rates, which are not those of the demo's small drafters, {advice}. "
        f"Tokens/s of the site by the planner's model: {', '.join(promised)}."
    )


def _own_sentences(result: DemoResult) -> list[str]:
    """Sentences that compare the measured goodput with the predicted one and with the target alone."""
    measured, predicted = result.goodput_tokens_per_s, result.predicted_goodput_tokens_per_s
    plans = f", {predicted:.1f} predicted by the plans, a factor of {measured / predicted:.2f}" if predicted else ""
    sentences = [f"goodput {measured:.1f} tokens/s measured{plans}; {result.rounds} passes in {result.wall_s:.1f} s"]
    if (alone := result.target_alone_tokens_per_s) is not None:
        sentences.append(
            f"the target alone, writing these texts in one batch on all cores of this machine: {alone:.1f} tokens/s "
            "(the devices' speeds and links are emulated, the target's is not)"
        )
    return sentences
