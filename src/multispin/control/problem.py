"""A scenario as arrays: the one place where dataclasses become numpy, and where a choice of options is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multispin.control.access import ACCESS, MultipleAccess
from multispin.control.goodput import Floats, Ints, expected_tokens_table
from multispin.control.latency import fed_tokens, verification_s
from multispin.control.rate import upload_time
from multispin.control.scenario import Device, Mode, Scenario


@dataclass(frozen=True, eq=False)
class Problem:
    """P2 in numbers. Bandwidth is counted in shares of B, so that only times remain.

    Args:
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k = Q_k / R_k(B), upload time of a token over the whole band [s], shape [K].
        tokens: E[N_k] of every option, [R, K]; see below.
        weight: weights of the devices, w_k, shape [K].
        shortest: least draft length, shape [K].
        longest: greatest draft length, shape [K].
        minimum_goodput: least E[N_k] / round time [tokens/s], 0 where nothing is asked, shape [K].
        acceptance_rate: α_k, or NaN for a device with a profile, shape [K].
        fixed_s: part of T_ver that no length changes: T_fix + K·T_lin [s].
        per_token_s: time of one verified token [s].
        padded: whether a batch costs K (max L + 1) tokens instead of Σ (L_k + 1).
        snr: σ_k = snr_hz / B, NaN where the rate is linear in the band, shape [K]; None if it is for all.
        after_s: expected time that an option takes after the verification, for what follows a refusal [s], [R, K];
            None if none does.
        access: how devices share the uplink.
        round_trip_s: time that a draft waits for its grant and its way up, 2 · delay_s, shape [K]; None if it is 0 for
            all.
        mode_upload_s: a_k in each mode, NaN where a device has no such mode, [M, K]; None if all have but one.

    Rows of tables are *options*. With a single mode for each device an option is a draft length, R = L_max + 1. With
    M modes R = M (L_max + 1), the lengths of the first mode first: option o is length o mod (L_max + 1) in mode
    o div (L_max + 1).
    """

    seconds_per_token: Floats
    upload_s: Floats
    tokens: Floats
    weight: Floats
    shortest: Ints
    longest: Ints
    minimum_goodput: Floats
    acceptance_rate: Floats
    fixed_s: float
    per_token_s: float
    padded: bool
    snr: Floats | None = None
    after_s: Floats | None = None
    access: MultipleAccess = ACCESS["fdma"]
    mode_upload_s: Floats | None = None
    round_trip_s: Floats | None = None

    @property
    def size(self) -> int:
        """K."""
        return len(self.seconds_per_token)

    @cached_property
    def reach(self) -> int:
        """L_max + 1, the options of one mode."""
        return len(self.tokens) // (1 if self.mode_upload_s is None else len(self.mode_upload_s))

    @cached_property
    def within(self) -> np.ndarray:
        """Which options exist and are within a device's limits, [R, K]."""
        length = self.drafted(np.arange(len(self.tokens)))[:, None]
        within = (length >= self.shortest) & (length <= self.longest)
        if self.mode_upload_s is not None:
            within &= np.repeat(~np.isnan(self.mode_upload_s), self.reach, axis=0)
        return np.asarray(within)

    @cached_property
    def constrained(self) -> bool:
        """Whether any device asks for a least goodput."""
        return bool(np.any(self.minimum_goodput > 0))

    @cached_property
    def concave(self) -> bool:
        """Whether options are draft lengths with concave gains and convex costs."""
        return self.mode_upload_s is None and self.after_s is None

    @cached_property
    def after_range(self) -> tuple[float, float]:
        """Least and greatest sum of `after_s` over devices [s]."""
        if self.after_s is None:
            return 0.0, 0.0
        least = np.where(self.within, self.after_s, np.inf).min(axis=0).sum()
        return float(least), float(np.where(self.within, self.after_s, 0.0).max(axis=0).sum())

    @cached_property
    def draft_range(self) -> tuple[float, float]:
        """Drafting times that no choice goes below or above [s]."""
        cheap, dear = self.upload_s, self.upload_s
        if self.mode_upload_s is not None:
            cheap, dear = np.nanmin(self.mode_upload_s, axis=0), np.nanmax(self.mode_upload_s, axis=0)
        least = self._draft_time(self.shortest, cheap)
        able = self.longest > 0
        if least == 0.0 and able.any():
            # Nobody need draft; a device that does takes at least this long.
            least = (self.busy_s(np.ones(self.size, dtype=np.int64)) + cheap)[able].min()
        return float(least), float(self._draft_time(self.longest, dear))

    def drafted(self, options: Ints) -> Ints:
        """Draft lengths of options, of the same shape [tokens]."""
        return options if self.mode_upload_s is None else options % self.reach

    def busy_s(self, drafted: Ints) -> Floats:
        """Time that drafts of these lengths [..., K] take but for their uploads: round trip and drafting [s]."""
        busy = drafted * self.seconds_per_token
        if self.round_trip_s is None:
            return np.asarray(busy)
        return np.asarray(busy + np.where(drafted > 0, self.round_trip_s, 0.0))

    def token_upload_s(self, options: Ints) -> Floats:
        """Upload time of a token over the whole band under options [..., K] [s]."""
        if self.mode_upload_s is None:
            return self.upload_s
        return np.asarray(self.mode_upload_s[options // self.reach, np.arange(self.size)])

    def everybody(self, lengths: Ints) -> Ints:
        """Options in which all draft the same lengths [N] as far as they can, in each mode that they have, [M N, K]."""
        plain = np.clip(lengths[:, None], self.shortest, self.longest)
        if self.mode_upload_s is None:
            return plain
        modes = np.where(np.isnan(self.mode_upload_s), 0, np.arange(len(self.mode_upload_s))[:, None])
        return np.concatenate([plain + self.reach * mode for mode in modes])

    def expected(self, options: Ints) -> Floats:
        """E[N_k] of options [..., K]."""
        return np.asarray(self.tokens[options, np.arange(self.size)])

    def verification_s(self, options: Ints) -> Floats:
        """T_ver of options [..., K], and what refusals take after it [s]."""
        time = np.full(options.shape[:-1], self.fixed_s)
        if self.after_s is not None:
            time += self.after_s[options, np.arange(self.size)].sum(axis=-1)
        if self.per_token_s == 0.0:
            return time
        return time + self.per_token_s * fed_tokens(self.drafted(options), self.padded)

    def draft_time(self, options: Ints) -> Floats:
        """φ of options [..., K] with the best bandwidth for them (Lemma 3), or in the best order (TDMA) [s]."""
        return self._draft_time(self.drafted(options), self.token_upload_s(options))

    def _draft_time(self, drafted: Ints, token_upload_s: Floats) -> Floats:
        return self.access.draft_time(drafted, self.seconds_per_token, token_upload_s, self.snr, self.round_trip_s)

    def shares(self, options: Ints) -> Floats:
        """The best bandwidth for options [..., K], in shares; under TDMA the whole band for everybody who sends."""
        return self.access.shares(
            self.drafted(options), self.seconds_per_token, self.token_upload_s(options), self.snr, self.round_trip_s
        )

    def upload_time(self, options: Ints, shares: Floats) -> Floats:
        """Upload times of drafts over given shares of the band [s], [..., K].

        Args:
            options: chosen options, [..., K].
            shares: share of the band of each device, [..., K]; 0 sends nothing.
        """
        return upload_time(self.drafted(options) * self.token_upload_s(options), shares, self.snr)

    def token_latency(self, share: float | None = None) -> Floats:
        """Drafting and upload time of a token with this share, or with the best split (Lemma 1), [K] [s].

        Without the round trip, which a draft pays once.

        Args:
            share: share of the band that each device has; None (default) for the best split.
        """
        if share is None:
            return np.full(self.size, self.access.token_latency(self.seconds_per_token, self.upload_s, self.snr))
        return self.seconds_per_token + upload_time(self.upload_s, np.full(self.size, share), self.snr)

    def quickest_s(self, shortest: Ints) -> float:
        """Least T_ver, and time after it, of options that draft no fewer than these lengths [K] [s]."""
        packed = self.size * (shortest.max() + 1) if self.padded else shortest.sum() + self.size
        return self.fixed_s + self.per_token_s * float(packed) + self.after_range[0]

    def round_s(self, options: Ints) -> Floats:
        """φ + T_ver of options [..., K] with the best bandwidth for them [s]."""
        return self.draft_time(options) + self.verification_s(options)

    def goodput(self, options: Ints) -> Floats:
        """Weighted sum goodput of options [..., K] with the best bandwidth for them [tokens/s]."""
        result: Floats = (self.expected(options) @ self.weight) / self.round_s(options)
        return result

    def meets_minimum(self, options: Ints, round_s: Floats) -> np.ndarray:
        """Whether options give every device the least goodput that it asks for, [...].

        Args:
            options: chosen options, [..., K].
            round_s: duration of the round [s], [...].
        """
        need = self.minimum_goodput * np.asarray(round_s)[..., None] * (1.0 - 1e-12)
        return np.asarray((self.expected(options) >= need).all(axis=-1))


def as_problem(scenario: Scenario) -> Problem:
    """The arrays of a scenario."""
    cell, verifier, devices = scenario.cell, scenario.verifier, scenario.devices
    limits = np.array([scenario.limits(device) for device in devices], dtype=np.int64)
    shortest, longest = limits[:, 0], limits[:, 1]
    rows = max(int(longest.max()), 1)
    bits_per_s = np.array([d.rate_bits_per_s(cell.bandwidth_hz) for d in devices], dtype=np.float64)
    round_trip_s = 2.0 * np.array([d.delay_s for d in devices], dtype=np.float64)
    snr = np.array([np.nan if d.snr_hz is None else d.snr_hz / cell.bandwidth_hz for d in devices], dtype=np.float64)
    access = ACCESS[cell.multiple_access]
    ways = [device.ways for device in devices]
    tables, upload, after = [], [], []
    for mode in range(max(map(len, ways))):
        # A device without this mode stands in with its first one; NaN bits say so.
        chosen = [each[mode] if mode < len(each) else each[0] for each in ways]
        bits = [cell.bits_per_token if way.bits_per_token is None else way.bits_per_token for way in chosen]
        upload.append(
            np.where([mode < len(each) for each in ways], np.array(bits, dtype=np.float64), np.nan) / bits_per_s
        )
        conditional = _conditional(chosen, rows)
        tables.append(expected_tokens_table(conditional))
        refusal_s = np.array([way.bits_per_rejection for way in chosen]) / bits_per_s
        refusal_s += np.array([way.seconds_per_rejection for way in chosen])
        # The gain of one more token is the probability that the whole draft is accepted.
        refused = 1.0 - np.diff(tables[-1], axis=0, prepend=0.0) if refusal_s.any() else np.zeros_like(tables[-1])
        after.append(refused * refusal_s)
    return Problem(
        seconds_per_token=np.array([d.seconds_per_token for d in devices], dtype=np.float64),
        upload_s=upload[0],
        tokens=np.concatenate(tables),
        weight=np.array([d.weight for d in devices], dtype=np.float64),
        shortest=shortest,
        longest=longest,
        minimum_goodput=np.array([d.min_goodput_tokens_per_s or 0.0 for d in devices], dtype=np.float64),
        acceptance_rate=np.array(
            [np.nan if way[0].acceptance_rate is None else way[0].acceptance_rate for way in ways], dtype=np.float64
        ),
        fixed_s=verification_s(verifier.fixed_s, verifier.per_device_s, 0.0, len(devices), 0.0),
        per_token_s=verifier.per_token_s,
        padded=verifier.padded,
        snr=snr if access.splits_band and not np.isnan(snr).all() else None,
        access=access,
        after_s=np.concatenate(after) if any(table.any() for table in after) else None,
        mode_upload_s=np.stack(upload) if len(upload) > 1 else None,
        round_trip_s=round_trip_s if round_trip_s.any() else None,
    )


def _conditional(ways: Sequence[Mode | Device], rows: int) -> Floats:
    """Probability that position j + 1 is accepted given those before it, [rows, K]."""
    rate = np.array([np.nan if way.acceptance_rate is None else way.acceptance_rate for way in ways], dtype=np.float64)
    conditional = np.broadcast_to(rate, (rows, len(ways)))
    if np.isnan(rate).any():
        conditional = conditional.copy()
        for k, way in enumerate(ways):
            if way.acceptance_profile is not None:
                profile = way.acceptance_profile[:rows]
                conditional[: len(profile), k] = profile
                conditional[len(profile) :, k] = way.acceptance_profile[-1]
    return conditional
