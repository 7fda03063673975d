"""The options of a demo."""

from dataclasses import dataclass, replace

from multispin.control import Scenario
from multispin.demo.crew import DeviceSpec
from multispin.speculation import Rule, SamplingParams

DEVICES_DRAFT = ("rounds", "mixture", "streams", "auto")
"""Modes in which devices may draft."""


@dataclass(frozen=True)
class Play:
    """One way to play the prompts.

    Attributes:
        mode: mode of the edge, one of `passes.settings.MODES`.
        policy: how the edge plans rounds.
        edge_drafter: the edge's own drafter; None if there is none in this mode.

    """

    mode: str
    policy: str
    edge_drafter: str | None = None

    @property
    def serve(self) -> tuple[str, ...]:
        """Arguments of `multispin serve` for this play."""
        own = () if self.edge_drafter is None else ("--edge-draft", self.edge_drafter)
        return ("--mode", self.mode, "--policy", self.policy, *own)

    @property
    def label(self) -> str:
        """Name of the play, for people."""
        return f"{self.mode}, {self.policy}" if self.mode in ("rounds", "mixture") else self.mode


@dataclass(frozen=True)
class DemoOrder:
    """A demo's options, checked.

    Attributes:
        crew: the devices, at full speed.
        plays: the ways to play the prompts, at least one.
        site: name and scenario of the site whose engine, devices and links are emulated; None: only devices and their
            links are emulated.
        slower: factor by which the site is slowed down; None: as much as this machine needs.
        target: reference of the target model.
        engine: name of the verification engine.
        dtype: number type that the target computes in.
        engine_options: NAME=VALUE options of the engine.
        sampling: sampling parameters of every text; each device has a seed of its own.
        rule: acceptance rule.
        max_tokens: longest text [tokens].
        min_tokens: shortest text [tokens].
        stops: stop strings.
        serve: arguments of `multispin serve`, without the port and those of a play.
        device: arguments of `multispin device` that all devices share.
        place: where the target computes: "cpu" (default), or a GPU such as "cuda:0".

    """

    crew: tuple[DeviceSpec, ...]
    plays: tuple[Play, ...]
    site: tuple[str, Scenario] | None
    slower: float | None
    target: str
    engine: str
    dtype: str
    engine_options: tuple[str, ...]
    sampling: SamplingParams
    rule: Rule
    max_tokens: int
    min_tokens: int
    stops: tuple[str, ...]
    serve: tuple[str, ...]
    device: tuple[str, ...]
    place: str = "cpu"

    @property
    def main(self) -> int:
        """Index of the play whose devices are reported singly: the first in which devices may draft, or the first."""
        return next((index for index, play in enumerate(self.plays) if play.mode in DEVICES_DRAFT), 0)

    def params(self, seed: int) -> SamplingParams:
        """The sampling parameters of a device with this seed."""
        return replace(self.sampling, seed=seed)
