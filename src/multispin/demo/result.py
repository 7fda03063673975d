"""What came of a demo: for `--json`, and for the table at its end."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from multispin.demo.order import DemoOrder
from multispin.demo.state import DemoState, DeviceState
from multispin.speculation import ID_RULES


@dataclass(frozen=True)
class DeviceResult:
    """One device's part; the fields are keys of `multispin demo --json`.

    Attributes:
        name: the device's name.
        drafter: what drafted for it.
        task: task family of its prompt.
        prompt: the user message.
        text: the text that came out.
        tokens: tokens of that text.
        drafted: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        acceptance_rate: the edge's last estimate, α in [0, 1].
        mean_draft_length: drafted tokens per verdict.
        uplink_bytes: bytes sent, framing included.
        uplink_bytes_per_drafted_token: bytes of drafts per drafted token; None if nothing was drafted.
        lost: why the device was lost; None if it was not.
        identical_to_target: whether the text is the target's own, token by token; None if they were not compared.

    """

    name: str
    drafter: str
    task: str
    prompt: str
    text: str
    tokens: int
    drafted: int
    accepted: int
    acceptance_rate: float | None
    mean_draft_length: float
    uplink_bytes: int
    uplink_bytes_per_drafted_token: float | None
    lost: str | None
    identical_to_target: bool | None = None


@dataclass(frozen=True)
class DemoResult:
    """The whole demo; the fields are keys of `multispin demo --json`.

    Attributes:
        policy: how the edge planned.
        target: reference of the target.
        rule: acceptance rule.
        not_compared: why the texts are not compared with the target's own; None if they are.
        goodput_tokens_per_s: tokens committed per second between the first grants and the last verdicts.
        predicted_goodput_tokens_per_s: what the plans promised for the same rounds.
        rounds: rounds verified.
        wall_s: time from the start signal to the end of the last text [s].
        devices: each device's part.
        round_log: what the edge told of each round.
        target_alone_tokens_per_s: speed of the target alone, all texts in one batch; None if it was not timed.

    """

    policy: str
    target: str
    rule: str
    not_compared: str | None
    goodput_tokens_per_s: float
    predicted_goodput_tokens_per_s: float
    rounds: int
    wall_s: float
    devices: tuple[DeviceResult, ...]
    round_log: tuple[dict[str, Any], ...] = field(repr=False)
    target_alone_tokens_per_s: float | None = None

    def document(self) -> dict[str, Any]:
        """What `multispin demo --json` prints."""
        return asdict(self)

    def timed(self, alone_tokens_per_s: float | None) -> "DemoResult":
        """The same with the speed of the target alone."""
        return replace(self, target_alone_tokens_per_s=alone_tokens_per_s)

    def compared(self, identical: dict[str, bool]) -> "DemoResult":
        """The same with what the comparison of each named device's text gave."""
        rows = tuple(replace(row, identical_to_target=identical.get(row.name)) for row in self.devices)
        return replace(self, devices=rows)


def result_of(order: DemoOrder, state: DemoState) -> DemoResult:
    """What came of a run, before any comparison."""
    why = f"under {order.rule} a text follows the target's distribution; which text it is depends on the drafts"
    return DemoResult(
        policy=order.policy,
        target=order.target,
        rule=str(order.rule),
        not_compared=None if order.rule in ID_RULES else why,
        goodput_tokens_per_s=state.goodput_tokens_per_s,
        predicted_goodput_tokens_per_s=state.predicted_goodput_tokens_per_s,
        rounds=state.rounds,
        wall_s=state.ended_s - state.began_s,
        devices=tuple(_device_result(device) for device in state.devices.values()),
        round_log=tuple(state.log),
    )


def _device_result(device: DeviceState) -> DeviceResult:
    done, drafted = device.done, device.drafted
    return DeviceResult(
        name=device.spec.name,
        drafter=device.spec.drafter,
        task=device.spec.task,
        prompt=device.spec.prompt,
        text=device.text,
        tokens=device.tokens,
        drafted=drafted,
        accepted=device.accepted,
        acceptance_rate=device.acceptance_rate,
        mean_draft_length=drafted / done.rounds if done and done.rounds else 0.0,
        uplink_bytes=done.uplink_bytes if done else 0,
        uplink_bytes_per_drafted_token=done.draft_bytes / drafted if done and drafted else None,
        lost=device.lost or None,
    )
