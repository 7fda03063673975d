"""The devices of a demo: emulated devices with real drafters, and their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from multispin.data import TASKS, load_prompts

CLASSES = (
    ("laptop", "large", "q8", 0.03, 6.0),
    ("tablet", "medium", "q6", 0.05, 4.0),
    ("phone", "small", "q5", 0.08, 2.0),
    ("watch", "lookup", "lookup", 0.10, 1.0),
)
"""Kinds of devices, from fast to slow: name, drafter for the embedded target, drafter for any other target,
seconds per drafted token, and spectral efficiency [bit/s/Hz]."""


@dataclass(frozen=True)
class DeviceSpec:
    """One device of the demo.

    Attributes:
        name: its name, unique in the demo.
        drafter: its drafter, a value of --draft of `multispin device`.
        seconds_per_token: emulated time per drafted token [s].
        spectral_efficiency: emulated uplink [bit/s/Hz].
        task: task family of its prompt, or "yours".
        prompt: its user message.
        seed: seed of its sampling noise.
        delay_s: emulated one-way delay of every message [s].

    """

    name: str
    drafter: str
    seconds_per_token: float
    spectral_efficiency: float
    task: str
    prompt: str
    seed: int
    delay_s: float = 0.0


def make_devices(
    count: int, embedded: bool, drafters: Sequence[str], prompts: Sequence[str], seed: int
) -> tuple[DeviceSpec, ...]:
    """The devices of a demo.

    Args:
        count: number of devices; their kinds are `CLASSES` in turn.
        embedded: whether the target is the embedded one, which has drafters of its own.
        drafters: drafters to use in turn; empty: those of the kinds.
        prompts: prompts to use in turn; empty: the bundled ones, one task family after another.
        seed: seed of the choice among the bundled prompts and of the devices' noise.

    """
    from multispin.speculation import derive_seed

    crew = []
    for k, (task, prompt) in enumerate(asked_texts(count, prompts, seed)):
        kind, distilled, rounded, seconds_per_token, efficiency = CLASSES[k % len(CLASSES)]
        drafter = drafters[k % len(drafters)] if drafters else distilled if embedded else rounded
        noise = derive_seed(seed, k)
        crew.append(DeviceSpec(f"{kind}-{k + 1}", drafter, seconds_per_token, efficiency, task, prompt, noise))
    return tuple(crew)


def asked_texts(count: int, prompts: Sequence[str], seed: int, tasks: Sequence[str] = TASKS) -> list[tuple[str, str]]:
    """Task and text of `count` prompts: `prompts` in turn, or bundled ones of one task family after another."""
    if prompts:
        return [("yours", prompts[k % len(prompts)]) for k in range(count)]
    bundled = load_prompts()
    families = [(task, [prompt.text for prompt in bundled if prompt.task == task]) for task in tasks]
    chosen = []
    for k in range(count):
        task, family = families[k % len(families)]
        chosen.append((task, family[(seed + k // len(families)) % len(family)]))
    return chosen
