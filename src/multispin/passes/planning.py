"""Makes one plan from the beliefs at one moment. It changes nothing else, so it may run in another thread.

`passes.controller` decides when a plan is due and how it is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from multispin.control import (
    Cell,
    Device,
    DevicePlan,
    InfeasibleError,
    Plan,
    Scenario,
    plan,
    plan_for_lengths,
    policy_named,
)
from multispin.control.latency import verification_s
from multispin.control.policies import plans_for_lengths, rank
from multispin.passes.beliefs import Believed
from multispin.passes.plans import Member
from multispin.passes.settings import ControllerSettings

_USUAL_LENGTHS = (2, 8)
"""Guessed draft lengths over which a frame's fixed bits are spread, beside each device's last length [tokens]."""
_RELATIVE_GAP = 0.01
_MAX_EFFORT = 5e6
"""Greatest effort of a plan (see `plan`), about a tenth of a second on one core, which bounds the time of any plan."""
MOST_DRAFT_S = 20.0
"""Longest time of a draft that is asked for [s]: a device that needs longer would be disconnected before its end."""
LEAST_PERIOD_S = 0.25
_PERIOD_PER_SESSION_S = 0.02
FIRST_PERIODS = (0.125, 0.25, 0.5)
"""Shares of that time after which the first decisions and prices are renewed, since they follow from guesses."""
_WORTH = 0.95
"""A device drafts nothing if the plan with it has less than this share of the goodput of the plan without it …"""
_SLOW = 2.0
"""… and if its draft takes longer than most others' by this factor. A merely slower device takes part."""
_LEFT_OUT = 8
"""Most devices (the slowest ones) that are left out for that reason."""
LEAST_BAND = 0.1
"""Least band of a device that drafts, as a share of an even split."""
_NEGLIGIBLE = 0.01
"""Least share of fixed bits in a one-token draft for which several guesses are tried."""


def least_period_s(sessions: int, found: int) -> float:
    """Shortest time between two decisions, or two prices, for a number of sessions [s]: each takes about a millisecond.

    Args:
        sessions: number of sessions.
        found: number of earlier decisions or prices.
    """
    share = FIRST_PERIODS[max(0, found - 1)] if found <= len(FIRST_PERIODS) else 1.0
    return share * (LEAST_PERIOD_S + _PERIOD_PER_SESSION_S * sessions)


@dataclass(frozen=True)
class Planning:
    """Makes plans from beliefs.

    Args:
        settings: the operator's settings.
        beliefs: beliefs about sessions and verifier.
        reserved_hz: band still in use by drafts that are late [Hz].

    """

    settings: ControllerSettings
    beliefs: Believed
    reserved_hz: float
    _devices: dict[tuple[Member, int], Device] = field(default_factory=dict, init=False, repr=False, compare=False)

    def from_scratch(self, members: Sequence[Member], last: Sequence[int], warm: Plan | None, *, usual: bool) -> Plan:
        """Plan with each frame's fixed bits spread over a guessed length, then charge them over the planned one.

        The paper's payload has no fixed part (eq. 9), but a frame has one. Spread over too short a length, it makes
        longer drafts look too expensive. So several lengths may be tried, and the best plan by true cost is taken.

        Devices whose drafts are not worth waiting for draft nothing, under any policy, if beliefs allow it. If least
        goodputs cannot be met, the plan that comes nearest to them is made.

        Args:
            members: sessions to plan for.
            last: draft length of each member in the last plan [tokens], the first guess.
            warm: an earlier plan to begin with; None: none.
            usual: whether the usual lengths are tried, too, if fixed bits matter.

        """
        if self.beliefs.leaves_out:
            members = [
                m if self.alone_s(m, min(1, m.room), len(members)) <= MOST_DRAFT_S else _silent(m) for m in members
            ]
        scenario, made = self._best(members, last, warm, usual=usual)
        if self.beliefs.leaves_out:
            slow = self._not_worth_waiting_for(members, scenario, made)
            if slow:
                members = [_silent(member) if member.session in slow else member for member in members]
                _, made = self._best(members, last, warm, usual=usual)
        return made

    def alone_s(self, member: Member, length: int, sharing: int) -> float:
        """Time from a grant of `length` tokens to the arrival of the draft [s], over one of `sharing` even bands."""
        if not length:
            return 0.0
        _, token_s, token_hz_s = self.beliefs.view(member.session, length)
        air_s = token_hz_s * sharing / self.band_hz
        return 2.0 * self.beliefs.delay_s(member.session) + length * (token_s + air_s)

    def _not_worth_waiting_for(self, members: Sequence[Member], scenario: Scenario, made: Plan) -> set[int]:
        """Devices, by session, whose drafts are believed to cost all others more than they bring.

        Sets of the slowest ones are tried, one larger at a time, since leaving out one of two equally slow devices
        brings nothing. No device is left out if its least goodput would be missed.
        """
        lengths = [device.draft_length for device in made.devices]
        drafting = [index for index, length in enumerate(lengths) if length]
        taken_s = {k: self.alone_s(members[k], lengths[k], len(drafting)) for k in drafting}
        drafting.sort(key=lambda k: -taken_s[k])
        usual_s = taken_s[drafting[-(len(drafting) // 2)]] if len(drafting) > 1 else math.inf
        slow = [k for k in drafting if taken_s[k] > _SLOW * usual_s][:_LEFT_OUT]
        if not slow:
            return set()
        (met, best), left_out = self._rank(scenario, made), set[int]()
        choices = list[list[int]]()
        for k in slow:
            lengths[k] = 0
            choices.append(lengths.copy())
        policy = self.settings.policy
        plans = plans_for_lengths(scenario, choices, policy=policy, equal_bands=policy_named(policy).equal_bands)
        for count, without in enumerate(plans, 1):
            would_meet, value = self._rank(scenario, self._with_least_bands(scenario, without))
            if would_meet >= met and self._ratio(best, value) < _WORTH:
                best, left_out = value, {members[k].session for k in slow[:count]}
        return left_out

    def _ratio(self, one: float, other: float) -> float:
        """The ratio of two plan values as goodputs [1]; the values of `fair` are sums of logarithms."""
        if policy_named(self.settings.policy).fair:
            return math.exp(min(0.0, one - other))
        return one / other

    def _best(
        self, members: Sequence[Member], last: Sequence[int], warm: Plan | None, *, usual: bool
    ) -> tuple[Scenario, Plan]:
        guesses: list[Sequence[int]] = [last]
        if usual and max(self.beliefs.fixed_share(member.session) for member in members) > _NEGLIGIBLE:
            guesses += [[length] * len(members) for length in _USUAL_LENGTHS]
        return max((self._try(members, spread, warm) for spread in guesses), key=lambda tried: self._rank(*tried))

    def _try(self, members: Sequence[Member], spread: Sequence[int], warm: Plan | None) -> tuple[Scenario, Plan]:
        scenario = self.scenario(members, spread)
        policy = self.settings.policy
        try:
            planned = plan(scenario, policy, relative_gap=_RELATIVE_GAP, warm_start=warm, max_effort=_MAX_EFFORT)
        except InfeasibleError as error:
            planned = error.best
        return self.with_lengths(members, [device.draft_length for device in planned.devices])

    def with_lengths(self, members: Sequence[Member], lengths: Sequence[int]) -> tuple[Scenario, Plan]:
        """The scenario and the plan for given draft lengths. This is cheap, since only the band is split.

        Nobody waits for a device with a length of 0. Its room becomes 0, too; otherwise the plan would raise its length
        to the least draft length.
        """
        policy = self.settings.policy
        if self.beliefs.leaves_out:
            members = [m if length else _silent(m) for m, length in zip(members, lengths, strict=True)]
        scenario = self.scenario(members, lengths)
        made = plan_for_lengths(scenario, lengths, policy=policy, equal_bands=policy_named(policy).equal_bands)
        return scenario, self._with_least_bands(scenario, made) if self.beliefs.leaves_out else made

    def _with_least_bands(self, scenario: Scenario, made: Plan) -> Plan:
        """The plan in which no device has less than `LEAST_BAND` of an even share; the others give up some of theirs.

        Measurements of a link may be wrong. If its band does not limit it, each narrower band makes it look more
        efficient, and the next plan would give it even less.
        """
        drafting = [k for k, device in enumerate(made.devices) if device.draft_length]
        bands_hz = [made.devices[k].bandwidth_hz for k in drafting]
        least_hz = LEAST_BAND * self.band_hz / max(1, len(drafting))
        missing_hz = sum(max(0.0, least_hz - band_hz) for band_hz in bands_hz)
        if self.settings.in_turns or not missing_hz:
            return made
        more_hz = [max(0.0, band_hz - least_hz) for band_hz in bands_hz]
        kept = 1.0 - missing_hz / sum(more_hz)
        devices, later_s = list(made.devices), 0.0
        for k, before_hz, more in zip(drafting, bands_hz, more_hz, strict=True):
            band_hz, planned, device = least_hz + kept * more, made.devices[k], scenario.devices[k]
            devices[k] = DevicePlan(planned.name, planned.draft_length, band_hz, planned.expected_tokens, planned.mode)
            bits = planned.draft_length * (device.bits_per_token or 0.0)
            now_s, before_s = bits / device.rate_bits_per_s(band_hz), bits / device.rate_bits_per_s(before_hz)
            later_s = max(later_s, now_s - before_s)
        round_s = made.round_s + later_s
        return replace(
            made,
            goodput_tokens_per_s=made.goodput_tokens_per_s * made.round_s / round_s,
            round_s=round_s,
            devices=tuple(devices),
        )

    def scenario(self, members: Sequence[Member], lengths: Sequence[int]) -> Scenario:
        """The beliefs, with each frame's fixed bits spread over a draft of the given length."""
        settings = self.settings
        return Scenario(
            cell=Cell(
                bandwidth_hz=self.band_hz,
                bits_per_token=settings.bits_per_id,
                max_draft_length=settings.max_draft_length,
                min_draft_length=0,
                multiple_access=settings.multiple_access,
            ),
            verifier=self.beliefs.verifier(),
            devices=tuple(self._device(member, length) for member, length in zip(members, lengths, strict=True)),
            edge_drafter=self.beliefs.edge_drafter() if settings.edge_drafts else None,
        )

    def _device(self, member: Member, length: int) -> Device:
        """The planner's device of a member, cached, since it is needed several times and costly to check."""
        known = self._devices.get((member, length))
        if known is None:
            known = self.beliefs.device(member.session, member.room, length, member.edge_room)
            self._devices[member, length] = known
        return known

    @property
    def band_hz(self) -> float:
        """Band to share [Hz]. Late drafts may hold nearly all of it, but some is always left.

        Under TDMA a late draft holds no band, since it waits for its turn again.
        """
        whole_hz = self.settings.bandwidth_hz
        return whole_hz if self.settings.in_turns else max(whole_hz - self.reserved_hz, 1e-3 * whole_hz)

    def verify_s(self, lengths: dict[int, int]) -> float:
        """Believed time to verify drafts of these lengths, by session [s]."""
        verifier = self.beliefs.verifier()
        tokens = sum(lengths.values()) + len(lengths)
        return verification_s(verifier.fixed_s, verifier.per_device_s, verifier.per_token_s, len(lengths), tokens)

    def _rank(self, scenario: Scenario, candidate: Plan) -> tuple[float, float]:
        """How far least goodputs are met, and the policy's objective (`control.policies.rank`)."""
        rates = [device.expected_tokens / candidate.round_s for device in candidate.devices]
        return rank(scenario, policy_named(self.settings.policy), rates)


def _silent(member: Member) -> Member:
    """The member, without drafts of its device."""
    return member._replace(room=0)
