"""The site that a demo plays (edge, devices and links), and how much it is slowed down."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multispin.control import Device, Scenario, Verification, load_scenario
from multispin.data import bundled_sites
from multispin.demo.crew import DeviceSpec, asked_texts
from multispin.errors import InputError
from multispin.passes import Limits
from multispin.protocol import MAX_DRAFT_LENGTH
from multispin.speculation import derive_seed

SITE = "a100-7b"
"""The site that `multispin demo` plays by default, at which devices pay."""
MAX_SLOWER = 1000.0

SKILLS = ((0.65, "large"), (0.55, "medium"), (0.0, "small"))
"""Drafters for the embedded target, each with the least acceptance rate in the site file that it represents."""
OTHER_TARGET = "q8"
"""Drafter for any other target."""
DRAFT_S = {"large": 0.022, "medium": 0.018, "small": 0.007}
"""Processor time per drafted token of the package's own drafters in torch, on one server core [s]."""
LLAMA_CPP_DRAFT_S = {"large": 0.011, "medium": 0.0095, "small": 0.0047}
"""The same times in llama.cpp [s]."""
VERIFY_S = (0.05, 0.006)
"""Time of a pass of the embedded target on two such cores: fixed, and per token [s]."""
USUAL_DRAFT = 4
STREAMING = 0.7
"""Share of the time in which a device drafts in streams; in rounds devices and engine take turns."""
SLOWER_MARGIN = 1.1
TRIED_TOKENS = 8
"""Number of tokens that each device drafts to measure its speed."""
PROMPT_TOKENS = 4096
"""Most prompt tokens in a pass of a played site."""
_UNPLAYED = ("weight", "min_goodput_tokens_per_s", "min_draft_length", "max_draft_length", "edge_max_draft_length")
LONG_ANSWERS = ("code", "arithmetic", "dialogue")
"""Task families whose answers are long enough to measure tokens per second."""


@dataclass(frozen=True)
class DemoSite:
    """A site that a demo plays.

    Attributes:
        name: name of the site, or its file.
        scenario: the site to emulate: engine, band, devices and links.
        slower: factor by which the site is slowed down, 1 … `MAX_SLOWER`.

    """

    name: str
    scenario: Scenario
    slower: float

    def __post_init__(self) -> None:
        if not 1.0 <= self.slower <= MAX_SLOWER:
            raise InputError(f"slower = {self.slower}; it must be 1 to {MAX_SLOWER:g}")
        if self.scenario.verifier.padded:
            raise InputError(f"{self.name}: the demo cannot emulate verifier.padded: leave it out")
        if self.scenario.cell.multiple_access == "tdma":
            raise InputError(f"{self.name}: the demo cannot emulate multiple_access = 'tdma': leave it out")

    @property
    def pace(self) -> str:
        """How fast it is played, in words."""
        return "in real time" if self.slower == 1.0 else f"{self.slower:g} times slower than real time"

    @property
    def unplayed(self) -> tuple[str, ...]:
        """Keys of the site's devices that have no effect, since a running edge has no such settings."""
        devices, usual = self.scenario.devices, Device("any", 1.0, 1.0, 0.0)
        return tuple(
            key for key in _UNPLAYED if any(getattr(each, key) not in (getattr(usual, key), 0) for each in devices)
        )

    @property
    def verification(self) -> Verification:
        """Time model of a pass, slowed down."""
        real, slower = self.scenario.verifier, self.slower
        return Verification(real.fixed_s * slower, real.per_device_s * slower, real.per_token_s * slower)

    def serve(self, edge_drafts: bool) -> tuple[str, ...]:
        """Arguments of `multispin serve` for the slowed-down edge.

        Args:
            edge_drafts: whether the edge has a drafter of its own.

        """
        cell, engine, drafter = self.scenario.cell, self.verification, self.scenario.edge_drafter
        own: tuple[str, ...] = ()
        if edge_drafts and drafter is not None:
            times_s = (drafter.fixed_s * self.slower, drafter.per_device_s * self.slower)
            own = ("--emulated-edge-draft-s", *map(str, times_s))
        usual = Limits()
        return (
            *own,
            *("--bandwidth-hz", str(cell.bandwidth_hz / self.slower)),
            # The edge's waiting times are slowed down, too.
            *("--deadline-slack-s", str(usual.deadline_slack_s * self.slower)),
            *("--longest-wait-s", str(usual.longest_wait_s * self.slower)),
            # Read all prompts in a pass or two, so that all users begin together.
            *("--prefill-tokens-per-round", str(PROMPT_TOKENS), "--prefill-share", "100"),
            *("--max-draft-length", str(min(max(1, cell.max_draft_length), MAX_DRAFT_LENGTH))),
            *("--emulated-verification-s", str(engine.fixed_s), str(engine.per_device_s), str(engine.per_token_s)),
        )


def read_site(name: str) -> Scenario:
    """The scenario of a site: a bundled one by its name, or a file."""
    sites = bundled_sites()
    path = sites.get(name, Path(name))
    if not name or not path.exists():
        raise InputError(f"there is no site {name!r}: give one of {', '.join(sites)}, or a scenario file")
    return load_scenario(path)


def site_crew(
    scenario: Scenario, embedded: bool, drafters: Sequence[str], prompts: Sequence[str], seed: int
) -> tuple[DeviceSpec, ...]:
    """A site's devices with real drafters and prompts.

    Args:
        scenario: scenario of the site.
        embedded: whether the target is the embedded one, which has drafters of its own.
        drafters: drafters to use in turn; empty: chosen by the devices' acceptance rates. A device with a longest draft
            of 0 has none.
        prompts: prompts to use in turn; empty: the bundled ones.
        seed: seed of the choice among the bundled prompts and of the devices' noise.

    """
    crew = []
    for k, (device, (task, prompt)) in enumerate(
        zip(scenario.devices, asked_texts(len(scenario.devices), prompts, seed, LONG_ANSWERS), strict=True)
    ):
        if device.spectral_efficiency is None:
            raise InputError(f"device {device.name!r} needs the key spectral_efficiency for the demo")
        drafter = drafters[k % len(drafters)] if drafters else _drafter(device.acceptance_rate, embedded)
        if scenario.limits(device)[1] == 0:
            drafter = "none"
        crew.append(
            DeviceSpec(
                name=device.name,
                drafter=drafter,
                seconds_per_token=device.seconds_per_token,
                spectral_efficiency=device.spectral_efficiency,
                task=task,
                prompt=prompt,
                seed=derive_seed(seed, k),
                delay_s=device.delay_s,
            )
        )
    return tuple(crew)


def slow_enough(
    scenario: Scenario,
    crew: Sequence[DeviceSpec],
    drafting_s: Mapping[str, float],
    usual_draft_s: Mapping[str, float] = DRAFT_S,
    streams: bool = False,
) -> float:
    """Factor by which a site must be slowed down so that the real models keep pace on this machine, in halves.

    Args:
        scenario: scenario of the site.
        crew: its devices with their drafters.
        drafting_s: real time per drafted token while all devices draft, by device [s].
        usual_draft_s: processor time per drafted token on a free core, by drafter [s]; default `DRAFT_S`.
        streams: whether streams are played, in which devices draft while the engine verifies; default False.

    """
    drafting = max(drafting_s[spec.name] / spec.seconds_per_token for spec in crew)
    # The engine shares the machine, so it is slower than on two free cores by the same factor as the drafters.
    cores = min(2, os.cpu_count() or 1)
    known = [spec for spec in crew if spec.drafter in usual_draft_s]
    usual_s = sum(usual_draft_s[spec.drafter] for spec in known) / cores
    burden = max([1.0, *(drafting_s[spec.name] / max(usual_s, usual_draft_s[spec.drafter]) for spec in known)])
    lengths = [USUAL_DRAFT] * len(crew)
    engine_s = burden * (VERIFY_S[0] + VERIFY_S[1] * (sum(lengths) + len(lengths))) * 2 / cores
    pass_s = scenario.verifier.verify_s(lengths)
    slower = SLOWER_MARGIN * max(drafting, engine_s / pass_s)
    if streams:  # processor time of all cores for one second of the site
        drafters = sum(usual_draft_s[spec.drafter] / spec.seconds_per_token for spec in known)
        slower = max(
            slower, SLOWER_MARGIN * (engine_s / pass_s + STREAMING * burden * drafters / (os.cpu_count() or 1))
        )
    return min(MAX_SLOWER, max(1.0, math.ceil(2 * slower) / 2))


def _drafter(acceptance_rate: float | None, embedded: bool) -> str:
    if not embedded:
        return OTHER_TARGET
    return next(name for least, name in SKILLS if (acceptance_rate or 0.0) >= least)
