"""Decisions in which the frame of each draft takes its part of the band, beside the drafted tokens."""

from dataclasses import replace

from multispin.control.scenario import Device, Scenario
from multispin.control.who import DEVICE, Decision, decide

FRAME_BITS = 176.0
"""Overhead of a frame beside its ids [bit], as measured. Streams send more frames than rounds do."""
PLAN_EFFORT = 5e6
"""Most work for each plan, `max_effort` of `plan`."""
_MOST_PLANS = 6
"""Most plans until the lengths stay the same; three were enough in trials."""


def decide_with_frames(scenario: Scenario, policy: str = "heterogeneous", mode: str = "mixture") -> Decision:
    """The choice of `decide` if each draft of a device sends `FRAME_BITS` more than its tokens.

    The model has bits per token only. So the frame's bits are spread over the tokens of the draft, as in a running
    edge: first over the longest draft, then over the chosen ones, until no draft is shorter than was assumed.

    Args:
        scenario: scenario of the site; `edge_drafter` None means that the edge cannot draft.
        policy: how lengths and bands follow when devices draft; default "heterogeneous".
        mode: one of `ROUND_MODES`; "mixture" (default) chooses among all.

    Raises:
        InputError: as `decide`.
    """
    lengths = [max(1, scenario.limits(device)[1]) for device in scenario.devices]
    for _ in range(_MOST_PLANS):
        devices = zip(scenario.devices, lengths, strict=True)
        charged = replace(scenario, devices=tuple(_charged(scenario, device, length) for device, length in devices))
        made = decide(charged, policy, mode=mode, max_effort=PLAN_EFFORT)
        drafted = [choice.draft_length if choice.drafter == DEVICE else 0 for choice in made.sessions]
        shorter = [min(was, now) if now else was for was, now in zip(lengths, drafted, strict=True)]
        if shorter == lengths:
            break
        lengths = shorter
    return made


def _charged(scenario: Scenario, device: Device, length: int) -> Device:
    """The device with its frame's bits spread over the tokens of a draft."""
    more = FRAME_BITS / length
    usual = scenario.cell.bits_per_token

    def bits(own: float | None) -> float:
        return (usual if own is None else own) + more

    if device.modes:
        modes = tuple(replace(each, bits_per_token=bits(each.bits_per_token)) for each in device.modes)
        return replace(device, modes=modes)
    return replace(device, bits_per_token=bits(device.bits_per_token))
