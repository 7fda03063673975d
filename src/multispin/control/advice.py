"""Will it help here? Every way to serve a site side by side, and how far the site is from where devices begin to pay.

A pure function of a scenario. It knows no language model: what it says is as good as the times and acceptance rates in
the scenario, and as the planner's model (docs/control.md): no jitter, no stragglers, everything known. Streams have no
formula that is near what they make, only a bound. Whoever asks brings a function that simulates them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from multispin.control.exact.fluid import fluid
from multispin.control.policies import RUNTIME_POLICIES, policy_named
from multispin.control.scenario import Device, Scenario
from multispin.control.who import DEVICE, EDGE, MODES, Decision, decide
from multispin.errors import InputError

MATTERS = 0.01
"""Devices are said to pay if they add at least this share to the goodput of the edge alone."""
STREAMS_MATTER = 0.05
"""The same for streams, whose goodput is simulated: chance moves it by some percent, and a real edge has to learn."""
MAX_USERS = 200
"""Most users that are tried for the break-even, unless the site has more."""
_USERS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 85, 113, 150, MAX_USERS)
_SEEDS = 2
"""A site is simulated with this many seeds, a point of a curve with one."""
_STREAMED_USERS = 64
"""Most users with whom streams are simulated for a curve, beside the site's own number."""
_HALVINGS = 14
"""Halvings of the range of a border: a factor up to 30 is found within 0.05 %, a round trip within 0.2 ms."""
_MAX_EFFORT = 5e6
"""Bounds each plan, see `plan`."""


@dataclass(frozen=True)
class Streamed:
    """What a site makes in streams, as it was simulated.

    Args:
        goodput_tokens_per_s: tokens/s of all users together.
        slowest_tokens_per_s: tokens/s of the slowest user.
    """

    goodput_tokens_per_s: float
    slowest_tokens_per_s: float


Streams = Callable[[Scenario, int], Streamed]
"""Simulates a site in streams with a number of seeds, the edge knowing the truth."""


@dataclass(frozen=True)
class Option:
    """One way to serve the site.

    Args:
        mode: "plain", "edge", "rounds" or "mixture", as in `decide`; or "streams".
        policy: how lengths and bands are chosen.
        goodput_tokens_per_s: tokens/s of all users together, unweighted.
        slowest_tokens_per_s: tokens/s of the slowest user.
        gain_over_plain: goodput over that of plain decoding, minus 1.
        gain_over_edge: the same over the edge's own drafts; None if the edge has no drafter.
        users: number of users.
        decision: what everybody does; None in streams, where that changes from pass to pass.
        upper_bound_tokens_per_s: goodput that no schedule exceeds; None but in streams (`exact.fluid`).
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
        """Where the figures come from: "planned" by the model, or "simulated"."""
        return "simulated" if self.decision is None else "planned"


@dataclass(frozen=True)
class BreakEven:
    """From where on devices pay, if one quantity of the site changed and all else stayed.

    Args:
        quantity: "seconds_per_token", "acceptance_rate", "round_trip_s" or "users".
        pays: "below" or "above" `value`, "always" or "never" within what was tried.
        value: the border; None for "always" and "never".
        here: what the site has, a mean over its devices.
    """

    quantity: str
    pays: str
    value: float | None
    here: float


@dataclass(frozen=True)
class Advice:
    """What to expect of a site.

    Args:
        options: plain, the edge's drafts if it has a drafter, rounds by each policy, streams if they were asked for,
            and the best mixture of all but streams.
        break_evens: one for each quantity; from where on devices pay in rounds, or in a mixture of rounds and others.
        devices_pay: whether devices add at least `MATTERS` to the goodput of the edge alone, or `STREAMS_MATTER` in
            streams.
        skipped: policies that do not fit the site, "streams" among them, with the reason.
    """

    options: tuple[Option, ...]
    break_evens: tuple[BreakEven, ...]
    devices_pay: bool
    skipped: tuple[tuple[str, str], ...] = ()

    def option(self, mode: str) -> Option | None:
        """The best option of a mode, or None if there is none."""
        return max((o for o in self.options if o.mode == mode), key=lambda o: o.goodput_tokens_per_s, default=None)


def advise(
    scenario: Scenario,
    policies: Sequence[str] = RUNTIME_POLICIES,
    told: Callable[[str, float], None] = lambda _stage, _done: None,
    streams: Streams | None = None,
) -> Advice:
    """All options for a site, and its break-evens.

    Args:
        scenario: the site; `edge_drafter` None means that the edge cannot draft.
        policies: policies whose rounds are compared; one that plans from what happened is skipped.
        told: hears what is worked on, and how much of everything is done, 0 … 1.
        streams: simulates the site in streams; None leaves streams out.
    """
    decisions: list[tuple[str, str, Decision]] = []
    skipped: list[tuple[str, str]] = []
    decisions.append(("plain", "plain", decide(scenario, mode="plain")))
    if scenario.edge_drafter is not None:
        decisions.append(("edge", "edge-drafts", decide(scenario, mode="edge")))
    for index, policy in enumerate(policies):
        told(f"rounds: {policy}", 0.4 * index / len(policies))
        if policy_named(policy).choose is None:
            skipped.append((policy, "it plans from what came of the last round"))
            continue
        try:
            decisions.append(("rounds", policy, decide(scenario, policy, mode="rounds", max_effort=_MAX_EFFORT)))
        except InputError as error:
            skipped.append((policy, str(error)))
    told("the best mixture", 0.4)
    decisions.append(("mixture", "heterogeneous", decide(scenario, max_effort=_MAX_EFFORT)))
    plain = _total(decisions[0][2])
    edge = next((_total(decision) for mode, _, decision in decisions if mode == "edge"), None)

    def option(mode: str, policy: str, goodput: float, slowest: float, decision: Decision | None) -> Option:
        over_edge = None if edge is None else goodput / edge - 1.0
        return Option(mode, policy, goodput, slowest, goodput / plain - 1.0, over_edge, users, decision)

    users = len(scenario.devices)
    options = [option(mode, policy, _total(made), _least(made), made) for mode, policy, made in decisions]
    if streams is not None:
        told("streams", 0.45)
        try:
            bound, made = fluid(scenario).upper_bound_tokens_per_s, streams(scenario, _SEEDS)
        except InputError as error:
            skipped.append(("streams", str(error)))
        else:
            found = option("streams", "streams", made.goodput_tokens_per_s, made.slowest_tokens_per_s, None)
            options.insert(-1, replace(found, upper_bound_tokens_per_s=bound))
    break_evens = []
    for index, find in enumerate((_speed, _acceptance, _round_trip, _users)):
        told(find.__name__.strip("_").replace("_", " ") + ": where devices begin to pay", 0.5 + 0.125 * index)
        break_evens.append(find(scenario))
    alone = plain if edge is None else max(plain, edge)
    streamed = max((each.goodput_tokens_per_s for each in options if each.mode == "streams"), default=0.0)
    useful = pays(scenario) or streamed >= alone * (1.0 + STREAMS_MATTER)
    return Advice(tuple(options), tuple(break_evens), useful, tuple(skipped))


def pays(scenario: Scenario) -> bool:
    """Whether devices add at least `MATTERS` to what the edge can do alone, by the weighted goodput."""
    made = decide(scenario, max_effort=_MAX_EFFORT)
    alone = max(goodput for kind, goodput in made.alternatives if kind in ("plain", "edge"))
    drafting = any(choice.drafter == DEVICE for choice in made.sessions)
    return drafting and made.goodput_tokens_per_s >= alone * (1.0 + MATTERS)


def with_users(scenario: Scenario, users: int) -> Scenario:
    """The site with this many users: its devices again and again, or the first of them."""
    devices = scenario.devices
    chosen = [devices[k % len(devices)] for k in range(users)]
    if users > len(devices):
        chosen = [replace(device, name=f"user-{k + 1}") for k, device in enumerate(chosen)]
    return replace(scenario, devices=tuple(chosen))


def slowed(scenario: Scenario, factor: float) -> Scenario:
    """The site with all devices drafting slower by a factor."""
    return _each(scenario, lambda d: replace(d, seconds_per_token=factor * d.seconds_per_token))


@dataclass(frozen=True)
class Curve:
    """Goodput of each mode while one quantity changes.

    Args:
        quantity: "seconds_per_token" or "users".
        values: values of the quantity, in seconds or users.
        goodputs: tokens/s of all users together by mode, one for each value.
        here: what the site has.
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
    streams: Streams | None = None,
) -> tuple[Curve, Curve]:
    """Goodput over the devices' drafting time, and over the number of users; arguments as for `advise`."""
    here = _mean([device.seconds_per_token for device in _drafting(scenario)])
    factors = [10 ** (k / 6) for k in range(-6, 7)]
    counts = sorted({*_USERS, len(scenario.devices)})
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
            for mode in MODES:
                if mode != "edge" or scenario.edge_drafter is not None:
                    goodputs.setdefault(mode, []).append(_total(decide(site, mode=mode, max_effort=_MAX_EFFORT)))
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
    ahead = streams is not None and streams.goodput_tokens_per_s > (1.0 + MATTERS) * best.goodput_tokens_per_s
    if advice.devices_pay and ahead and streams is not None:
        others = f"{best.goodput_tokens_per_s:.4g} with the best mixture without streams"
        said.append(
            f"Devices pay here: {streams.goodput_tokens_per_s:.4g} tokens/s in streams, "
            f"{', '.join([others, *figures[1:]])}."
        )
    elif advice.devices_pay:
        said.append(f"Devices pay here: {figures[0]} with their drafts, {', '.join(figures[1:])}.")
    elif edge is not None and edge.gain_over_plain >= MATTERS:
        said.append(f"Devices do not pay here, the edge's own drafter does: {', '.join(figures[1:])}.")
    else:
        said.append(f"Devices do not pay here: plain decoding makes {plain.goodput_tokens_per_s:.4g} tokens/s.")
    said.append(_mix(best.decision, "Best without streams" if advice.devices_pay and ahead else "Best here"))
    if streams is not None:
        said.append(
            f"In streams, simulated with all known, devices and edge make {streams.goodput_tokens_per_s:.4g} tokens/s; "
            f"no schedule of streams can make more than {streams.upper_bound_tokens_per_s:.4g}."
        )
    if rounds is not None and rounds.goodput_tokens_per_s < 0.99 * best.goodput_tokens_per_s:
        said.append(
            f"Rounds of devices alone would make {rounds.goodput_tokens_per_s:.4g} tokens/s at best ({rounds.policy})."
        )
    said += [_in_words(found) for found in advice.break_evens]
    return said


def _mix(made: Decision, best: str) -> str:
    by = {who: [c.draft_length for c in made.sessions if c.drafter == who] for who in (DEVICE, EDGE)}
    rest = len(made.sessions) - len(by[DEVICE]) - len(by[EDGE])
    parts = []
    for who, name in ((DEVICE, "the device drafts"), (EDGE, "the edge drafts")):
        if by[who]:
            low, high = min(by[who]), max(by[who])
            parts.append(f"{name} {low if low == high else f'{low} to {high}'} tokens for {len(by[who])} of the users")
    if rest:
        parts.append(f"nobody drafts for {rest}")
    passes = "1 more pass" if made.extra_passes == 1 else f"{made.extra_passes} more passes"
    extra = f", and the edge makes {passes} while the devices draft" if made.extra_passes else ""
    return f"{best}: {', '.join(parts)}{extra}. That takes {_milliseconds(made.period_s)}, and begins again."


_WORDS = {
    # quantity: what a border says, and what is said where devices always or never pay
    "seconds_per_token": (
        "In rounds devices pay when they draft a token in less than {}",
        "In rounds devices pay even if they draft 30 times more slowly",
        "In rounds devices do not pay even if they draft 30 times faster",
    ),
    "acceptance_rate": (
        "In rounds devices pay when more than {} of their tokens are accepted",
        "In rounds devices pay even if very few of their tokens are accepted",
        "In rounds devices do not pay even if nearly all of their tokens are accepted",
    ),
    "round_trip_s": (
        "In rounds devices pay with a round trip of less than {}",
        "In rounds devices pay with any round trip up to 2 s",
        "In rounds devices do not pay even without a round trip",
    ),
    "users": (
        "In rounds devices pay with {} users or",
        f"In rounds devices pay with any number of users up to {MAX_USERS}",
        f"In rounds devices do not pay with any number of users up to {MAX_USERS}",
    ),
}


def _in_words(found: BreakEven) -> str:
    """One break-even as a sentence."""
    border, always, never = _WORDS[found.quantity]
    show: Callable[[float], str] = _milliseconds
    if found.quantity == "acceptance_rate":
        show = _percent
    elif found.quantity == "users":
        show = "{:.0f}".format
        border += " more" if found.pays == "above" else " fewer"
    here = show(found.here) + ("" if found.quantity == "users" else " on average")
    said = never if found.pays == "never" else always if found.value is None else border.format(show(found.value))
    return f"{said} (now {here})."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{1e3 * seconds:.3g} ms"


def _total(decision: Decision) -> float:
    return sum(choice.tokens_per_s for choice in decision.sessions)


def _least(decision: Decision) -> float:
    return min(choice.tokens_per_s for choice in decision.sessions)


def _each(scenario: Scenario, change: Callable[[Device], Device]) -> Scenario:
    return replace(scenario, devices=tuple(change(device) for device in scenario.devices))


def _drafting(scenario: Scenario) -> list[Device]:
    """Devices that have a drafter; all if none has."""
    return [d for d in scenario.devices if scenario.limits(d)[1] > 0] or list(scenario.devices)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _border(good: float, bad: float, tried: Callable[[float], bool], *, ratio: bool = True) -> float | None:
    """The value at which `tried` turns from true (at `good`) to false (at `bad`); None if both ends are the same."""
    if tried(good) == tried(bad):
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(good * bad) if ratio else 0.5 * (good + bad)
        if tried(middle):
            good = middle
        else:
            bad = middle
    return math.sqrt(good * bad) if ratio else 0.5 * (good + bad)


def _found(quantity: str, here: float, value: float | None, side: str, best: bool) -> BreakEven:
    """A border, or whether devices pay at the best end of what was tried where there is none."""
    return BreakEven(quantity, side if value is not None else "always" if best else "never", value, here)


def _speed(scenario: Scenario) -> BreakEven:
    """All devices faster or slower by a factor, up to 30."""
    here = _mean([device.seconds_per_token for device in _drafting(scenario)])
    border = _border(1 / 30, 30.0, lambda factor: pays(slowed(scenario, factor)))
    value = None if border is None else border * here
    return _found("seconds_per_token", here, value, "below", pays(slowed(scenario, 1 / 30)))


def _acceptance(scenario: Scenario) -> BreakEven:
    """All acceptance rates raised to a power, from a tenth to ten."""

    def powered(power: float) -> Scenario:
        def change(device: Device) -> Device:
            if device.modes:
                return device
            if device.acceptance_profile is not None:
                return replace(device, acceptance_profile=tuple(rate**power for rate in device.acceptance_profile))
            assert device.acceptance_rate is not None
            return replace(device, acceptance_rate=device.acceptance_rate**power)

        return _each(scenario, change)

    def mean(power: float) -> float:
        first = [device.ways[0] for device in _drafting(powered(power))]
        return _mean([w.acceptance_profile[0] if w.acceptance_profile else w.acceptance_rate or 0.0 for w in first])

    border = _border(0.1, 10.0, lambda power: pays(powered(power)))
    value = None if border is None else mean(border)
    return _found("acceptance_rate", mean(1.0), value, "above", pays(powered(0.1)))


def _round_trip(scenario: Scenario) -> BreakEven:
    """All devices at the same distance, up to a round trip of 2 s."""

    def at(round_trip_s: float) -> Scenario:
        return _each(scenario, lambda device: replace(device, delay_s=0.5 * round_trip_s))

    here = _mean([2.0 * device.delay_s for device in _drafting(scenario)])
    if scenario.cell.multiple_access == "tdma":
        return BreakEven("round_trip_s", "always" if pays(scenario) else "never", None, here)
    border = _border(0.0, 2.0, lambda s: pays(at(s)), ratio=False)
    return _found("round_trip_s", here, border, "below", pays(at(0.0)))


def _users(scenario: Scenario) -> BreakEven:
    """From one user to `MAX_USERS`, with devices like those of the site."""
    here = len(scenario.devices)
    counts = [n for n in _USERS if n <= max(MAX_USERS, here)]
    good = [pays(with_users(scenario, n)) for n in counts]
    if all(good) or not any(good):
        return BreakEven("users", "always" if good[0] else "never", None, here)
    # What is told is the border beside the site's own number, should there be several.
    borders = [i for i in range(len(counts) - 1) if good[i] != good[i + 1]]
    index = min(borders, key=lambda i: abs(math.log(counts[i] * counts[i + 1]) / 2 - math.log(here)))
    low, high, begins = counts[index], counts[index + 1], good[index + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if pays(with_users(scenario, middle)) == begins:
            high = middle
        else:
            low = middle
    return BreakEven("users", "above" if begins else "below", float(high if begins else low), here)
