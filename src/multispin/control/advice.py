"""Will it help here? Every way to serve a site side by side, in figures and in words.

A pure function of a scenario. It knows no language model: what it says is as good as the times and acceptance rates in
the scenario, and as the planner's model with the frames of drafts (docs/control.md): no jitter, no stragglers,
everything known. Prompts and ends of texts take their share (`control.texts`). No formula says what streams make, there
is only a bound; the caller brings a function that simulates them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from multispin.control.break_even import (
    BREAK_EVENS,
    PAYING_SHARE,
    USER_COUNTS,
    BreakEven,
    counted,
    drafting,
    in_words,
    mean_of,
    pays,
    slowed,
    time_text,
    with_users,
)
from multispin.control.exact.fluid import fluid
from multispin.control.frames import decide_with_frames
from multispin.control.policies import RUNTIME_POLICIES, policy_named
from multispin.control.scenario import Scenario
from multispin.control.texts import Texts, rates_of
from multispin.control.who import DEVICE, EDGE, ROUND_MODES, Decision
from multispin.errors import InputError

STREAMS_MATTER = 0.05
"""Devices are said to pay in streams if they add this share to the goodput of the edge alone. It exceeds `PAYING_SHARE`
because chance moves simulated goodput by some percent and a real edge has to learn."""
_SEEDS = 2
"""Number of seeds with which a site is simulated; a point of a curve takes one."""
_STREAMED_USERS = 64
"""Most users with whom streams are simulated for a curve, beside the site's own number."""


@dataclass(frozen=True)
class Streamed:
    """A site's goodput in streams, as it was simulated.

    Args:
        goodput_tokens_per_s: goodput of all users together [tokens/s].
        slowest_tokens_per_s: rate of the slowest user [tokens/s].
    """

    goodput_tokens_per_s: float
    slowest_tokens_per_s: float


SimulateStreams = Callable[[Scenario, int], Streamed]
"""Simulates a site in streams with a number of seeds, the edge knowing the truth."""


@dataclass(frozen=True)
class Option:
    """One way to serve the site.

    Args:
        mode: "plain", "edge", "rounds" or "mixture", as in `decide`; or "streams".
        policy: how lengths and bands are chosen.
        goodput_tokens_per_s: goodput of all users together, unweighted [tokens/s].
        slowest_tokens_per_s: rate of the slowest user [tokens/s].
        gain_over_plain: goodput over that of plain decoding, minus 1.
        gain_over_edge: the same over the edge's own drafts; None if the edge has no drafter.
        users: number of users.
        decision: the decision for every session; None in streams, where it changes from pass to pass.
        upper_bound_tokens_per_s: goodput that no schedule exceeds [tokens/s]; None but in streams (`exact.fluid`).
    """

    mode: str
    policy: str
    goodput_tokens_per_s: float
    slowest_tokens_per_s: float
    gain_over_plain: float
    gain_over_edge: float | None
    users: int
    decision: Decision | None = None
    upper_bound_tokens_per_s: float | None = None

    @property
    def per_user_tokens_per_s(self) -> float:
        """Mean tokens/s of a user."""
        return self.goodput_tokens_per_s / self.users

    @property
    def basis(self) -> str:
        """Source of the figures: "planned" by the model, or "simulated"."""
        return "simulated" if self.decision is None else "planned"


@dataclass(frozen=True)
class Advice:
    """The goodputs to expect of a site.

    Args:
        options: plain, the edge's drafts if it has a drafter, rounds by each policy, streams if they were asked for,
            and the best mixture of all but streams.
        break_evens: for each quantity the value at which devices begin to pay in rounds, or in a mixture with rounds.
        devices_pay: whether devices add at least `PAYING_SHARE` to the goodput of the edge alone, or `STREAMS_MATTER`
            in streams.
        skipped: policies that do not fit the site, "streams" among them, with the reason.
        weighted: whether users have different weights. Decisions and break-evens count weighted tokens, the figures
            of `options` do not.
    """

    options: tuple[Option, ...]
    break_evens: tuple[BreakEven, ...]
    devices_pay: bool
    skipped: tuple[tuple[str, str], ...] = ()
    weighted: bool = False

    def option(self, mode: str) -> Option | None:
        """The option of a mode with the greatest goodput, or None if there is none.

        Args:
            mode: as in `Option`.
        """
        return max((o for o in self.options if o.mode == mode), key=lambda o: o.goodput_tokens_per_s, default=None)


def advise(
    scenario: Scenario,
    policies: Sequence[str] = RUNTIME_POLICIES,
    told: Callable[[str, float], None] = lambda _stage, _done: None,
    streams: SimulateStreams | None = None,
    texts: Texts | None = None,
) -> Advice:
    """All options for a site, and its break-evens.

    Args:
        scenario: the site; `edge_drafter` None means that the edge cannot draft.
        policies: policies whose rounds are compared; one that plans from what happened is skipped; default
            `RUNTIME_POLICIES`.
        told: function of the current stage and the share of everything that is done, 0 … 1; by default none.
        streams: simulates the site in streams; default None, which leaves streams out.
        texts: the site's texts and prompts, which `streams` must know too; default None: texts are endless.
    """
    decisions: list[tuple[str, str, Decision]] = []
    skipped: list[tuple[str, str]] = []
    decisions.append(("plain", "plain", decide_with_frames(scenario, mode="plain")))
    if scenario.edge_drafter is not None:
        decisions.append(("edge", "edge-drafts", decide_with_frames(scenario, mode="edge")))
    for index, policy in enumerate(policies):
        told(f"rounds: {policy}", 0.4 * index / len(policies))
        if policy_named(policy).choose is None:
            skipped.append((policy, "it plans from the result of the last round"))
            continue
        try:
            decisions.append(("rounds", policy, decide_with_frames(scenario, policy, "rounds")))
        except InputError as error:
            skipped.append((policy, str(error)))
    told("the best mixture", 0.4)
    decisions.append(("mixture", "heterogeneous", decide_with_frames(scenario)))
    rates = [rates_of(made, scenario, texts) for _, _, made in decisions]
    plain = sum(rates[0])
    edge = next((sum(each) for each, (mode, _, _) in zip(rates, decisions, strict=True) if mode == "edge"), None)

    def option(mode: str, policy: str, goodput: float, slowest: float, decision: Decision | None) -> Option:
        over_edge = None if edge is None else goodput / edge - 1.0
        return Option(mode, policy, goodput, slowest, goodput / plain - 1.0, over_edge, users, decision)

    users = len(scenario.devices)
    options = [
        option(mode, policy, sum(each), min(each), made)
        for each, (mode, policy, made) in zip(rates, decisions, strict=True)
    ]
    if streams is not None:
        told("streams", 0.45)
        try:
            bound = fluid(_each_alike(scenario)).upper_bound_tokens_per_s
            made = streams(scenario, _SEEDS)
        except InputError as error:
            skipped.append(("streams", str(error)))
        else:
            found = option("streams", "streams", made.goodput_tokens_per_s, made.slowest_tokens_per_s, None)
            options.insert(-1, replace(found, upper_bound_tokens_per_s=bound))
    break_evens = []
    for index, (name, find) in enumerate(BREAK_EVENS.items()):
        told(f"{name}: where devices begin to pay", 0.5 + 0.125 * index)
        break_evens.append(find(scenario))
    alone = plain if edge is None else max(plain, edge)
    streamed = max((each.goodput_tokens_per_s for each in options if each.mode == "streams"), default=0.0)
    useful = pays(scenario) or streamed >= alone * (1.0 + STREAMS_MATTER)
    weighted = len({device.weight for device in scenario.devices}) > 1
    return Advice(tuple(options), tuple(break_evens), useful, tuple(skipped), weighted)


def _each_alike(scenario: Scenario) -> Scenario:
    """The site with users of one weight, so that a bound of its goodput is one of tokens."""
    return replace(scenario, devices=tuple(replace(device, weight=1.0) for device in scenario.devices))


@dataclass(frozen=True)
class Curve:
    """Goodput of each mode while one quantity changes.

    Args:
        quantity: "seconds_per_token" or "users".
        values: values of the quantity, in seconds or users.
        goodputs: tokens/s of all users together by mode, one for each value.
        here: the site's own value.
        streamed: some of the values with what streams make there [tokens/s]; empty if they were not asked for.
    """

    quantity: str
    values: tuple[float, ...]
    goodputs: dict[str, tuple[float, ...]]
    here: float
    streamed: tuple[tuple[float, float], ...] = ()


def curves(
    scenario: Scenario,
    told: Callable[[str, float], None] = lambda _stage, _done: None,
    streams: SimulateStreams | None = None,
    texts: Texts | None = None,
) -> tuple[Curve, Curve]:
    """Goodput over the devices' drafting time, and over the number of users.

    Args:
        scenario: the site; without an edge drafter the curves have no mode "edge".
        told: function of the current stage and the share of everything that is done, 0 … 1; by default none.
        streams: simulates a site in streams, at some of the values; None (default) leaves streams out.
        texts: as in `advise`; default None.

    Returns: the curve over `seconds_per_token`, from a tenth to ten times the mean of the site's drafting devices, and
        that over `users`.
    """
    here = mean_of([device.seconds_per_token for device in drafting(scenario)])
    factors = [10 ** (k / 6) for k in range(-6, 7)]
    counts = sorted({*USER_COUNTS, len(scenario.devices)})
    swept = [
        ("seconds_per_token", [f * here for f in factors], [slowed(scenario, f) for f in factors], here),
        ("users", [float(n) for n in counts], [with_users(scenario, n) for n in counts], float(len(scenario.devices))),
    ]
    found = []
    for part, (quantity, values, sites, now) in enumerate(swept):
        goodputs: dict[str, list[float]] = {}
        streamed: list[tuple[float, float]] = []
        for index, site in enumerate(sites):
            told(f"curves: {quantity.replace('_', ' ')}", 0.5 * (part + index / len(sites)))
            at_home = values[index] == now  # as exact as in `advise`, so that both say the same
            if streams is not None and (at_home or _is_streamed(site, index)):
                streamed.append((values[index], streams(site, _SEEDS if at_home else 1).goodput_tokens_per_s))
            for mode in ROUND_MODES:
                if mode != "edge" or scenario.edge_drafter is not None:
                    made = decide_with_frames(site, mode=mode)
                    goodputs.setdefault(mode, []).append(sum(rates_of(made, site, texts)))
        by_mode = {mode: tuple(series) for mode, series in goodputs.items()}
        found.append(Curve(quantity, tuple(values), by_mode, now, tuple(streamed)))
    return found[0], found[1]


def _is_streamed(site: Scenario, index: int) -> bool:
    """Whether streams are simulated at this point of a curve: that takes a hundred times as long as a plan."""
    return index % 2 == 0 and len(site.devices) <= _STREAMED_USERS


def sentences(advice: Advice) -> list[str]:
    """The advice in words, the most important first."""
    plain, edge, rounds, best = (advice.option(mode) for mode in ("plain", "edge", "rounds", "mixture"))
    streams = advice.option("streams")
    assert plain is not None
    assert best is not None
    assert best.decision is not None
    figures = [f"{best.goodput_tokens_per_s:.4g} tokens/s"]
    if edge is not None:
        figures.append(f"{edge.goodput_tokens_per_s:.4g} with the edge's own drafts alone")
    figures.append(f"{plain.goodput_tokens_per_s:.4g} with plain decoding")
    said = []
    ahead = streams is not None and streams.goodput_tokens_per_s > (1.0 + PAYING_SHARE) * best.goodput_tokens_per_s
    if advice.devices_pay and ahead and streams is not None:
        others = f"{best.goodput_tokens_per_s:.4g} with the best mixture without streams"
        said.append(
            f"Devices pay here: {streams.goodput_tokens_per_s:.4g} tokens/s in streams, "
            f"{', '.join([others, *figures[1:]])}."
        )
    elif advice.devices_pay:
        said.append(f"Devices pay here: {figures[0]} with their drafts, {', '.join(figures[1:])}.")
    elif edge is not None and edge.gain_over_plain >= PAYING_SHARE:
        said.append(f"Devices do not pay here, the edge's own drafter does: {', '.join(figures[1:])}.")
    else:
        said.append(f"Devices do not pay here: plain decoding makes {plain.goodput_tokens_per_s:.4g} tokens/s.")
    if advice.weighted:
        said.append(
            "Users have weights here: weighted tokens decide what is best, and when devices pay in rounds. The figures "
            "count all tokens alike, so a row may have fewer than plain decoding."
        )
    said.append(_mix(best.decision, "Best without streams" if advice.devices_pay and ahead else "Best here"))
    if streams is not None:
        share = streams.slowest_tokens_per_s / plain.slowest_tokens_per_s
        said.append(
            f"In streams devices and edge make {streams.goodput_tokens_per_s:.4g} tokens/s (simulated, with everything "
            f"known). No schedule of streams makes more than {streams.upper_bound_tokens_per_s:.4g} if nobody may get "
            "less than with plain decoding or than the site asks for"
            + (f". In the simulation the slowest user has {share:.2f} of plain decoding." if share < 0.995 else ".")
        )
    if rounds is not None and rounds.goodput_tokens_per_s < 0.99 * best.goodput_tokens_per_s:
        said.append(
            f"Rounds of devices alone would make {rounds.goodput_tokens_per_s:.4g} tokens/s at best ({rounds.policy})."
        )
    said += [in_words(found) for found in advice.break_evens]
    return said


def _mix(made: Decision, best: str) -> str:
    by = {who: [c.draft_length for c in made.sessions if c.drafter == who] for who in (DEVICE, EDGE)}
    rest = len(made.sessions) - len(by[DEVICE]) - len(by[EDGE])
    parts = []
    for who, name in ((DEVICE, "the device drafts"), (EDGE, "the edge drafts")):
        if by[who]:
            low, high = min(by[who]), max(by[who])
            tokens = counted(low, "token") if low == high else f"{low} to {high} tokens"
            parts.append(f"{name} {tokens} for {len(by[who])} of the users")
    if rest:
        parts.append(f"nobody drafts for {rest}")
    passes = "1 more pass" if made.extra_passes == 1 else f"{made.extra_passes} more passes"
    extra = f", and the edge makes {passes} while the devices draft" if made.extra_passes else ""
    return f"{best}: {', '.join(parts)}{extra}. This takes {time_text(made.period_s)} and then repeats."
