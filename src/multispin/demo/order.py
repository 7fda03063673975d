"""What a demo is asked for."""

from dataclasses import dataclass, replace

from multispin.demo.crew import DeviceSpec
from multispin.speculation import Rule, SamplingParams


@dataclass(frozen=True)
class DemoOrder:
    """A demo, as its options name it.

    Attributes:
        crew: the devices.
        policy: how the edge plans rounds.
        target: reference of the target model.
        engine: name of the verification engine.
        dtype: numbers that the target computes in.
        engine_options: NAME=VALUE options of the engine.
        sampling: sampling parameters of every text; each device has a seed of its own.
        rule: acceptance rule.
        max_tokens: longest text [tokens].
        min_tokens: shortest text [tokens].
        stops: stop strings.
        serve: arguments of `multispin serve`, the port excepted.
        device: arguments of `multispin device` that all devices share.

    """

    crew: tuple[DeviceSpec, ...]
    policy: str
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

    def params(self, seed: int) -> SamplingParams:
        """The sampling parameters of a device with this seed."""
        return replace(self.sampling, seed=seed)
