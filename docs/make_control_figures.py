"""Draw the figures of docs/control.md: `python docs/make_control_figures.py` (ten seconds on one core)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from multispin.control import Cell, Device, Mode, Scenario, Verification, load_scenario, plan
from multispin.control.exact.objective import SumGoodput
from multispin.control.exact.relaxation import greedy, relax
from multispin.control.exact.search import _with_caps
from multispin.control.goodput import Floats
from multispin.control.problem import Problem, as_problem

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
DRAWS = 8
STYLE = {
    "heterogeneous": ("#1b5e9b", "-"),
    "algorithm1": ("#e08a1e", "--"),
    "fair": ("#3a9a5b", "-"),
    "uniform-bandwidth": ("#8f5aa8", "-"),
    "homogeneous": ("#c0392b", "-"),
    "goodput-argmax": ("#7a7a7a", "-"),
    "fixed": ("#222222", ":"),
    "centralized": ("#d45d9a", "-."),
    "p2p": ("#a08040", ":"),
    "plain": ("#000000", "--"),
}


def interval_bounds(problem: Problem, level: float, edges: Floats) -> Floats:
    """Bound on the goodput of all choices with a drafting time in each interval."""
    objective = SumGoodput(problem)
    intervals = _with_caps(edges[:-1], edges[1:], np.array([int(problem.longest.max())]))
    relaxed = relax(problem, objective, level, intervals, problem.shortest)
    return objective.bound(level, relaxed.excess(), relaxed.earliest, relaxed.latest)


def draw_search(ax: Axes, problem: Problem, best: float, centre: float, low: float, high: float, cuts: int) -> None:
    """Bounds of equal intervals as steps, and whole-length choices as dots."""
    edges = np.linspace(low, high, cuts + 1)
    ax.stairs(
        interval_bounds(problem, best, edges), 1e3 * edges, color="#c0392b", lw=1.2, label=f"bound, {cuts} intervals"
    )
    points = np.linspace(low, high, 400)
    spots = _with_caps(points, points, np.array([int(problem.longest.max())]))
    lengths = np.unique(greedy(problem, SumGoodput(problem), best, spots, problem.shortest)[0], axis=0)
    round_s = problem.round_s(lengths)
    draft = round_s - problem.verification_s(lengths)
    ax.plot(1e3 * draft, SumGoodput(problem).score(lengths, round_s), ".", ms=3, color="#1b5e9b", label="whole lengths")
    ax.plot([1e3 * centre], [best], "*", ms=12, color="#e08a1e", mec="k", mew=0.5, label="optimum")
    ax.axhline(best, color="k", lw=0.5)
    ax.set_xlim(1e3 * low, 1e3 * high)
    ax.set_xlabel("drafting time φ [ms]")


def search_figure() -> None:
    """Goodput over φ and the bound, coarse and near the optimum."""
    scenario = load_scenario(DOCS.parent / "examples" / "scenarios" / "paper-llama.toml")
    problem = as_problem(scenario)
    made = plan(scenario, relative_gap=0.0)
    lengths = np.array([device.draft_length for device in made.devices])
    best = made.goodput_tokens_per_s
    centre = made.round_s - float(problem.verification_s(lengths))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_search(left, problem, best, centre, 0.03, 0.45, 24)
    left.set_ylim(0.55 * best, 1.1 * best)
    left.set_ylabel("goodput [tokens/s]")
    left.set_title("All drafting times of interest")
    draw_search(right, problem, best, centre, 0.97 * centre, 1.03 * centre, 24)
    right.set_ylim(best * 0.9996, best * 1.0002)
    right.ticklabel_format(axis="y", useOffset=False)
    right.set_title("Within 3 % of the optimum")
    right.legend(loc="lower left", frameon=False)
    figure.savefig(IMAGES / "control-search.png", dpi=130)


def paper_like(seed: int, size: int = 20, band: float = 10e6, server_s: float = 0.043, spread: float = 1.0) -> Scenario:
    """The paper's Llama pair; `spread` scales how much devices differ in speed, channel and acceptance."""
    random = np.random.default_rng(seed)
    rates = 0.757 + spread * (random.choice([0.8582, 0.7390, 0.7393, 0.7126], size) - 0.757)
    speeds = 0.008 * (1 + spread * random.uniform(-0.15, 0.15, size))
    gains = random.exponential(random.uniform(0.2, 0.5, size))
    efficiency = np.log2(1 + 10**2.4 * 0.35 * (gains / 0.35) ** spread)
    verifier = Verification(0.02268, 0.01272, draft_seconds_per_token=server_s)
    devices = tuple(Device(f"d{k}", float(speeds[k]), float(efficiency[k]), float(rates[k])) for k in range(size))
    return Scenario(Cell(band, 31744), verifier, devices)


def sweep(ax: Axes, values: Sequence[float], make: Callable[[float, int], Scenario], policies: Sequence[str]) -> None:
    """Mean goodput of each policy relative to the optimum."""
    for policy in policies:
        share = [
            np.mean(
                [
                    plan(make(v, s), policy).goodput_tokens_per_s / plan(make(v, s)).goodput_tokens_per_s
                    for s in range(DRAWS)
                ]
            )
            for v in values
        ]
        colour, line = STYLE[policy]
        ax.plot(values, 100 * np.array(share), line, color=colour, label=policy, lw=1.6)
    ax.grid(alpha=0.25)


def ticks(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers."""
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()


def policies_figure() -> None:
    """When each policy wins: goodput relative to the optimum of P2 over band, differences, and the server's speed."""
    near = (
        "heterogeneous",
        "algorithm1",
        "fair",
        "uniform-bandwidth",
        "homogeneous",
        "goodput-argmax",
        "fixed",
        "plain",
    )
    far = ("heterogeneous", "centralized", "p2p", "fixed", "plain")
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained", sharey=True)
    bands = (2, 3, 5, 10, 20, 40, 80)
    sweep(axes[0], bands, lambda v, s: paper_like(s, band=1e6 * v), near)
    ticks(axes[0], bands)
    axes[0].set(xlabel="band B [MHz]", ylabel="goodput [% of heterogeneous]", title="Scarce to plentiful radio")
    sweep(axes[1], (0.0, 0.25, 0.5, 1.0, 1.5), lambda v, s: paper_like(s, spread=v), near)
    axes[1].set(xlabel="how much devices differ (1: the paper)", title="Alike to different devices")
    steps = (5, 10, 20, 40, 80, 160)
    sweep(axes[2], steps, lambda v, s: paper_like(s, server_s=1e-3 * v), far)
    ticks(axes[2], steps)
    axes[2].set(xlabel="server drafts one token for all in [ms]", title="Drafting at the edge instead")
    axes[0].set_ylim(20, 130)
    handles = {h.get_label(): h for ax in axes for h in ax.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(IMAGES / "control-policies.png", dpi=130)


RULES = {"coupled": "#3a9a5b", "rejection-up": "#e08a1e", "rejection": "#c0392b"}


def ruled(scenario: Scenario, rules: Sequence[str]) -> Scenario:
    """The scenario with these acceptance rules to choose from; coupling accepts (1 - TV) / (1 + TV) for 1 - TV."""
    devices = []
    for device in scenario.devices:
        alpha = device.acceptance_rate or 0.0
        modes = {
            "coupled": Mode("coupled", alpha / (2 - alpha), bits_per_token=15),
            "rejection-up": Mode("rejection-up", alpha, bits_per_token=31, bits_per_rejection=31744),
            "rejection": Mode("rejection", alpha, bits_per_token=31744),
        }
        chosen = tuple(modes[rule] for rule in rules)
        devices.append(replace(device, acceptance_rate=None, modes=chosen))
    return replace(scenario, devices=tuple(devices))


def modes_figure() -> None:
    """Which acceptance rule wins on which band, alone and chosen by each device."""
    bands = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for rule, colour in RULES.items():
        alone = [
            np.mean([plan(ruled(paper_like(s, band=1e6 * v), [rule])).goodput_tokens_per_s for s in range(DRAWS)])
            for v in bands
        ]
        left.plot(bands, alone, color=colour, label=rule, lw=1.6)
    made = [[plan(ruled(paper_like(s, band=1e6 * v), list(RULES))) for s in range(DRAWS)] for v in bands]
    left.plot(
        bands,
        [np.mean([each.goodput_tokens_per_s for each in plans]) for plans in made],
        "k:",
        label="each device its best",
        lw=2.2,
    )
    plain = plan(paper_like(0), "plain").goodput_tokens_per_s  # the same for every draw and band
    left.axhline(plain, color="k", ls="--", lw=1.2, label="plain: nobody drafts")
    left.set(xlabel="band B [MHz]", ylabel="goodput [tokens/s]", ylim=(0, None), title="Goodput of each rule")
    left.grid(alpha=0.25)
    share = [
        [100 * np.mean([d.mode == rule for each in plans for d in each.devices]) for plans in made] for rule in RULES
    ]
    right.stackplot(bands, share, colors=list(RULES.values()), alpha=0.85)
    right.set(xlabel="band B [MHz]", ylabel="devices [%]", ylim=(0, 100), xlim=(bands[0], bands[-1]))
    right.set_title("Rule of each device, if each has its best")
    for ax in (left, right):
        ticks(ax, bands)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(IMAGES / "control-modes.png", dpi=130)
    print(f"plain: {plain:.1f} tokens/s")
    for band in (1, 5, 20):
        at = bands.index(band)
        print(f"{band} MHz:", *(f"{rule} {each[at]:.0f} %" for rule, each in zip(RULES, share, strict=True)))


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    search_figure()
    policies_figure()
    modes_figure()
