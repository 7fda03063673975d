"""An advice as a picture: every way to serve a site, and how that changes with the devices' speed and with users."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from multispin.control.advice import Advice, Curve, Option
from multispin.control.break_even import counted
from multispin.report.style import MODE_COLOURS, RC, canvas, colour_of, legend_above

_MODES = {
    "plain": ("nobody", "-"),
    "edge": ("the edge", "-"),
    "rounds": ("devices (heterogeneous)", "--"),
    "streams": ("devices, in streams", "-"),
    "mixture": ("best mixture, no streams", "-"),
}
"""Who drafts, and line of each mode."""


def write_advice_figure(advice: Advice, curves: tuple[Curve, Curve], title: str, path: Path) -> None:
    """Write the picture; its kind follows from the file's suffix."""
    with rc_context(RC):
        advice_figure(advice, curves, title).savefig(path)


def advice_figure(advice: Advice, curves: tuple[Curve, Curve], title: str) -> Figure:
    """The picture of an advice."""
    users = counted(advice.options[0].users, "user")
    note = (
        f"{title}: {users}. Tokens per second of all users together, by the planner's model: no jitter, no "
        "stragglers, speeds and acceptance rates known; streams are simulated and know them too. Dotted: the site as "
        "it is. Shaded: where devices pay in rounds."
    )
    drawn, axes = canvas("Will it help?", note, 1, 3, 4.0, legend=True)
    bars, speed, many = axes[0]
    _bars(bars, advice)
    borders = {found.quantity: found for found in advice.break_evens}
    for panel, curve, scale, label in (
        (speed, curves[0], 1e3, "a device's time per drafted token [ms]"),
        (many, curves[1], 1.0, "users"),
    ):
        x = scale * np.array(curve.values)
        for mode, (name, style) in _MODES.items():
            if mode in curve.goodputs:
                wide = 3.2 if mode == "mixture" else 1.8
                panel.plot(
                    x,
                    curve.goodputs[mode],
                    style,
                    color=MODE_COLOURS[mode],
                    label=name,
                    lw=wide,
                    zorder=1 if mode == "mixture" else 2,
                )
        if curve.streamed:
            name, style = _MODES["streams"]
            at, made = np.array(curve.streamed).T
            panel.plot(scale * at, made, f"o{style}", color=MODE_COLOURS["streams"], label=name, lw=1.8, markersize=4)
        panel.axvline(scale * curve.here, color="#888888", ls=":", lw=1.2)
        found = borders[curve.quantity]
        if found.pays != "never":
            low, high = x[0], x[-1]
            if found.value is not None:
                low, high = (low, scale * found.value) if found.pays == "below" else (scale * found.value, high)
            panel.axvspan(max(low, x[0]), min(high, x[-1]), color="#0072B2", alpha=0.07, lw=0)
        panel.set_xscale("log")
        panel.set_xlim(x[0], x[-1])
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel("tokens/s of all users")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.minorticks_off()
    legend_above(drawn, speed)
    return drawn


def _bars(panel: Axes, advice: Advice) -> None:
    shown = sorted(advice.options, key=lambda option: option.goodput_tokens_per_s)
    values = [option.goodput_tokens_per_s for option in shown]
    panel.barh(range(len(shown)), values, color=[colour_of(option.mode, option.policy) for option in shown])
    panel.set_yticks(range(len(shown)), [_label(option) for option in shown])
    panel.set_xlabel("tokens/s")
    panel.grid(axis="y", visible=False)
    for y, value in enumerate(values):
        inside = value > 0.3 * max(values)
        panel.annotate(
            f"{value:.4g}",
            (value, y),
            (-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside else "black",
        )


def _label(option: Option) -> str:
    return f"devices ({option.policy})" if option.mode == "rounds" else _MODES[option.mode][0]
