"""The result of a demo, for `--json` and for the tables at its end."""

from dataclasses import asdict, dataclass, field
from typing import Any

from multispin.demo.order import DemoOrder, Play
from multispin.demo.site import DemoSite
from multispin.demo.state import DemoState, DeviceState
from multispin.speculation import ID_RULES

LATE_FACTOR = 1.1
"""A pass or a drafted token is late if it takes longer than the site's time by more than this factor."""

Identical = dict[str, bool]
"""Whether the text is the target's own, for each device whose text was compared."""


@dataclass(frozen=True)
class DeviceResult:
    """One device's part in one play; the fields are keys of `multispin demo --json`.

    Attributes:
        name: name of the device.
        drafter: name of its drafter.
        task: task family of its prompt.
        prompt: the user message.
        text: generated text.
        tokens: tokens of that text.
        drafted: drafted tokens that were verified.
        accepted: drafted tokens that were accepted.
        acceptance_rate: the edge's last estimate, α in [0, 1]; None if there is none.
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
    identical_to_target: bool | None


@dataclass(frozen=True)
class UserResult:
    """The result of one user in one play.

    Attributes:
        name: name of the user's device.
        tokens_per_s: tokens per second of the site, from when all users' prompts were read to the last token.
        tokens: tokens of the text.
        drafted: tokens drafted for it, by its device or by the edge, that were verified.
        accepted: drafted tokens that were accepted.
        uplink_bytes: bytes sent, framing included.
        identical: whether the text is the target's own, token by token; None if they were not compared.

    """

    name: str
    tokens_per_s: float
    tokens: int
    drafted: int
    accepted: int
    uplink_bytes: int
    identical: bool | None


@dataclass(frozen=True)
class PlayResult:
    """The result of one play; the fields are keys of an entry of `comparison` in `multispin demo --json`.

    Attributes:
        mode: mode of the play, such as "plain" or "rounds".
        policy: how the edge planned; None if it planned no rounds.
        goodput_tokens_per_s: sum of the users' tokens per second of the site.
        per_user_tokens_per_s: mean of them [tokens/s].
        identical: whether every text is the target's own; None if they were not compared.
        late_passes: share of passes without prompts that took the real engine longer than the site's.
        slowest_drafting: largest ratio of a device's real time per drafted token to the site's; None if unknown.
        users: results of the users, without lost devices.

    """

    mode: str
    policy: str | None
    goodput_tokens_per_s: float
    per_user_tokens_per_s: float
    identical: bool | None
    late_passes: float
    slowest_drafting: float | None
    users: tuple[UserResult, ...]


@dataclass(frozen=True)
class DemoResult:
    """The result of the whole demo; the fields are keys of `multispin demo --json`. Some are of one play, `order.main`.

    Attributes:
        policy: how the edge planned.
        target: reference of the target.
        rule: acceptance rule.
        not_compared: why the texts are not compared with the target's own; None if they are.
        goodput_tokens_per_s: tokens of the site committed per second between the first grants and the last verdicts; in
            a play without plans, such as streams, the sum of its users' tokens per second.
        predicted_goodput_tokens_per_s: goodput that the plans expected for the same rounds [tokens/s].
        rounds: number of verified rounds; without plans, of passes in which tokens were committed.
        wall_s: real time from the start signal to the end of the last text [s].
        devices: result of each device.
        round_log: the edge's report of each round, with real times.
        target_alone_tokens_per_s: speed of the target alone on this machine, all texts in one batch [tokens/s]; None if
            it was not timed.
        mode: mode of the play, such as "plain" or "rounds".
        site: name of the site that was played; None if only devices and links were emulated.
        slower: factor by which the site was slowed down.
        comparison: all plays, in their order.

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
    target_alone_tokens_per_s: float | None
    mode: str
    site: str | None
    slower: float
    comparison: tuple[PlayResult, ...]

    def document(self) -> dict[str, Any]:
        """The document that `multispin demo --json` prints."""
        return asdict(self)

    @property
    def all_identical(self) -> bool:
        """Whether no compared text differs from the target's own."""
        return all(play.identical is not False for play in self.comparison)


def result_of(
    order: DemoOrder,
    site: DemoSite | None,
    states: list[DemoState],
    compared: list[Identical],
    alone_tokens_per_s: float | None,
) -> DemoResult:
    """The result of a run.

    Args:
        order: the order of the demo.
        site: the site as it was played; None if none was.
        states: the state of each play.
        compared: which texts are the target's own, for each play.
        alone_tokens_per_s: speed of the target alone [tokens/s]; None if it was not timed.

    """
    slower = 1.0 if site is None else site.slower
    play, state, identical = order.plays[order.main], states[order.main], compared[order.main]
    comparison = tuple(
        _play_result(site, each, known, same) for each, known, same in zip(order.plays, states, compared, strict=True)
    )
    goodput = state.goodput_tokens_per_s * slower if state.rounds else comparison[order.main].goodput_tokens_per_s
    why = f"under {order.rule} a text follows the target's distribution; which text you get depends on the drafts"
    return DemoResult(
        policy=play.policy,
        target=order.target,
        rule=str(order.rule),
        not_compared=None if order.rule in ID_RULES else why,
        goodput_tokens_per_s=goodput,
        predicted_goodput_tokens_per_s=state.predicted_goodput_tokens_per_s * slower,
        rounds=state.rounds or state.passes,
        wall_s=state.ended_s - state.began_s,
        devices=tuple(_device_result(device, identical) for device in state.devices.values()),
        round_log=tuple(state.log),
        target_alone_tokens_per_s=alone_tokens_per_s,
        mode=play.mode,
        site=None if site is None else site.name,
        slower=slower,
        comparison=comparison,
    )


def _play_result(site: DemoSite | None, play: Play, state: DemoState, identical: Identical) -> PlayResult:
    slower = 1.0 if site is None else site.slower
    users = tuple(
        UserResult(
            device.spec.name,
            device.tokens_per_s * slower,
            device.tokens,
            device.verified,
            device.kept,
            device.done.uplink_bytes,
            identical.get(device.spec.name),
        )
        for device in state.devices.values()
        if device.done is not None
    )
    total = sum(user.tokens_per_s for user in users)
    return PlayResult(
        mode=play.mode,
        policy=play.policy if play.mode in ("rounds", "mixture") else None,
        goodput_tokens_per_s=total,
        per_user_tokens_per_s=total / len(users) if users else 0.0,
        identical=all(identical.values()) if identical else None,
        late_passes=_late_passes(site, state),
        slowest_drafting=_slowest_drafting(state, slower),
        users=users,
    )


def _late_passes(site: DemoSite | None, state: DemoState) -> float:
    """Share of passes without prompts in which the real engine took longer than the emulated one."""
    timed = [entry for entry in state.log if not entry["prompt_tokens"]]
    if site is None or not timed:
        return 0.0
    late: int = sum(
        e["verify_s"] > LATE_FACTOR * site.verification.verify_s(list(e["drafted"].values())) for e in timed
    )
    return late / len(timed)


def _slowest_drafting(state: DemoState, slower: float) -> float | None:
    ratios = [
        device.slowest_draft_s / (slower * device.spec.seconds_per_token)
        for device in state.devices.values()
        if device.slowest_draft_s and device.spec.seconds_per_token
    ]
    return max(ratios, default=None)


def _device_result(device: DeviceState, identical: Identical) -> DeviceResult:
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
        identical_to_target=identical.get(device.spec.name),
    )
