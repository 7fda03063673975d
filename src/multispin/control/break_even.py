"""Break-evens: at which value of one quantity of a site would devices begin to pay, if all else stayed the same?

Pure functions of a scenario, by the planner's model and in rounds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from multispin.control.frames import decide_with_frames
from multispin.control.scenario import Device, Scenario
from multispin.control.who import DEVICE

PAYING_SHARE = 0.01
"""Devices are said to pay if they add at least this share to the goodput of the edge alone."""
MAX_USERS = 200
"""Most users that are tried for the break-even, unless the site has more."""
USER_COUNTS = (1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 85, 113, 150, MAX_USERS)
"""Numbers of users that are tried first."""
_HALVINGS = 14
"""Halvings of the range of a border: a factor up to 30 is found within 0.05 %, a round trip within 0.2 ms."""


@dataclass(frozen=True)
class BreakEven:
    """The value of one quantity of the site at which devices begin to pay, if all else stayed the same.

    Args:
        quantity: "seconds_per_token", "acceptance_rate", "round_trip_s" or "users".
        pays: "below" or "above" `value`, "always" or "never" within what was tried.
        value: the border; None for "always" and "never".
        here: the site's own value, a mean over its devices.
    """

    quantity: str
    pays: str
    value: float | None
    here: float


def pays(scenario: Scenario) -> bool:
    """Whether devices add at least `PAYING_SHARE` to what the edge can do alone, by the weighted goodput."""
    made = decide_with_frames(scenario)
    alone = max(goodput for kind, goodput in made.alternatives if kind in ("plain", "edge"))
    helping = any(choice.drafter == DEVICE for choice in made.sessions)
    return helping and made.goodput_tokens_per_s >= alone * (1.0 + PAYING_SHARE)


def with_users(scenario: Scenario, users: int) -> Scenario:
    """The site with this many users: its devices again and again, or the first of them.

    Args:
        scenario: the site whose break-even point is sought.
        users: number of users, at least 1; devices get new names where there are more than the site has.
    """
    devices = scenario.devices
    chosen = [devices[k % len(devices)] for k in range(users)]
    if users > len(devices):
        chosen = [replace(device, name=f"user-{k + 1}") for k, device in enumerate(chosen)]
    return replace(scenario, devices=tuple(chosen))


def slowed(scenario: Scenario, factor: float) -> Scenario:
    """The site with all devices drafting slower by a factor.

    Args:
        scenario: the site whose break-even point is sought.
        factor: what each device's `seconds_per_token` is multiplied by, above 0.
    """
    return _each(scenario, lambda d: replace(d, seconds_per_token=factor * d.seconds_per_token))


def _each(scenario: Scenario, change: Callable[[Device], Device]) -> Scenario:
    return replace(scenario, devices=tuple(change(device) for device in scenario.devices))


def drafting(scenario: Scenario) -> list[Device]:
    """Devices that have a drafter; all if none has."""
    return [d for d in scenario.devices if scenario.limits(d)[1] > 0] or list(scenario.devices)


def mean_of(values: Sequence[float]) -> float:
    """The mean of some numbers."""
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


def _found(quantity: str, here: float, value: float | None, side: str, best: Scenario) -> BreakEven:
    """A border; or, if there is none, whether devices pay at the best site that was tried."""
    return BreakEven(quantity, side if value is not None else "always" if pays(best) else "never", value, here)


def _speed(scenario: Scenario) -> BreakEven:
    """All devices faster or slower by a factor, up to 30."""
    here = mean_of([device.seconds_per_token for device in drafting(scenario)])
    border = _border(1 / 30, 30.0, lambda factor: pays(slowed(scenario, factor)))
    value = None if border is None else border * here
    return _found("seconds_per_token", here, value, "below", slowed(scenario, 1 / 30))


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
        first = [device.ways[0] for device in drafting(powered(power))]
        return mean_of([w.acceptance_profile[0] if w.acceptance_profile else w.acceptance_rate or 0.0 for w in first])

    border = _border(0.1, 10.0, lambda power: pays(powered(power)))
    value = None if border is None else mean(border)
    return _found("acceptance_rate", mean(1.0), value, "above", powered(0.1))


def _round_trip(scenario: Scenario) -> BreakEven:
    """All devices at the same distance, up to a round trip of 2 s."""

    def at(round_trip_s: float) -> Scenario:
        return _each(scenario, lambda device: replace(device, delay_s=0.5 * round_trip_s))

    here = mean_of([2.0 * device.delay_s for device in drafting(scenario)])
    if scenario.cell.multiple_access == "tdma":
        return BreakEven("round_trip_s", "always" if pays(scenario) else "never", None, here)
    border = _border(0.0, 2.0, lambda s: pays(at(s)), ratio=False)
    return _found("round_trip_s", here, border, "below", at(0.0))


def _users(scenario: Scenario) -> BreakEven:
    """The number of users, from one to `MAX_USERS`, with devices like those of the site."""
    here = len(scenario.devices)
    counts = [n for n in USER_COUNTS if n <= max(MAX_USERS, here)]
    good = [pays(with_users(scenario, n)) for n in counts]
    if all(good) or not any(good):
        return BreakEven("users", "always" if good[0] else "never", None, here)
    # Of several borders the one nearest to the site's own number is reported.
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


BREAK_EVENS: Mapping[str, Callable[[Scenario], BreakEven]] = {
    "speed": _speed,
    "acceptance": _acceptance,
    "round trip": _round_trip,
    "users": _users,
}
"""Finds the break-even of each quantity."""

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
        "In rounds devices pay with {} or",
        f"In rounds devices pay with any number of users up to {MAX_USERS}",
        f"In rounds devices do not pay with any number of users up to {MAX_USERS}",
    ),
}


def in_words(found: BreakEven) -> str:
    """One break-even as a sentence."""
    border, always, never = _WORDS[found.quantity]
    show: Callable[[float], str] = time_text
    if found.quantity == "acceptance_rate":
        show = _percent
    elif found.quantity == "users":
        show = _users_text
        border += " more" if found.pays == "above" else " fewer"
    here = f"{found.here:.0f}" if found.quantity == "users" else f"{show(found.here)} on average"
    said = never if found.pays == "never" else always if found.value is None else border.format(show(found.value))
    return f"{said} (now {here})."


def _users_text(users: float) -> str:
    return counted(round(users), "user")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 user", "2 users"."""
    return f"{number} {what}{'s' * (number != 1)}"


def time_text(seconds: float) -> str:
    """A time with its unit, s or ms."""
    return f"{seconds:.3g} s" if seconds >= 1.0 else f"{1e3 * seconds:.3g} ms"
