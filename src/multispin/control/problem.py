"""A scenario as arrays: the one place where dataclasses become numpy, and where a choice of lengths is scored."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multispin.control.bandwidth import bandwidth_shares, draft_time, token_latency
from multispin.control.goodput import Floats, Ints, token_table
from multispin.control.rate import upload_time
from multispin.control.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Problem:
    """P2 in numbers. Bandwidth is counted in shares of B, so that only times remain.

    Args:
        seconds_per_token: T_k [s], shape [K].
        upload_s: a_k = Q_k / R_k(B), upload time of a token over the whole band [s], shape [K].
        conditional: probability that position j + 1 is accepted given those before it, [L_max, K].
        weight: w_k, shape [K].
        shortest: least draft length, shape [K].
        longest: greatest draft length, shape [K].
        minimum_goodput: least E[N_k] / round time [tokens/s], 0 where nothing is asked, shape [K].
        acceptance_rate: α_k, or NaN for a device with a profile, shape [K].
        fixed_s: part of T_ver that no length changes: T_fix + K·T_lin [s].
        per_token_s: time of one verified token [s].
        padded: whether a batch costs K (max L + 1) tokens instead of Σ (L_k + 1).
        snr: σ_k = snr_hz / B, NaN where the rate is linear in the band, shape [K]; None if it is for all.
    """

    seconds_per_token: Floats
    upload_s: Floats
    conditional: Floats
    weight: Floats
    shortest: Ints
    longest: Ints
    minimum_goodput: Floats
    acceptance_rate: Floats
    fixed_s: float
    per_token_s: float
    padded: bool
    snr: Floats | None = None

    @property
    def size(self) -> int:
        """K."""
        return len(self.seconds_per_token)

    @cached_property
    def tokens(self) -> Floats:
        """E[N_k] for every length, [L_max + 1, K]."""
        return token_table(self.conditional)

    @cached_property
    def constrained(self) -> bool:
        """Whether any device asks for a least goodput."""
        return bool(np.any(self.minimum_goodput > 0))

    def expected(self, lengths: Ints) -> Floats:
        """E[N_k] of lengths [..., K]."""
        return np.asarray(self.tokens[lengths, np.arange(self.size)])

    def verification_s(self, lengths: Ints) -> Floats:
        """T_ver of lengths [..., K] [s]."""
        if self.per_token_s == 0.0:
            return np.full(lengths.shape[:-1], self.fixed_s)
        verified = self.size * (lengths.max(axis=-1) + 1) if self.padded else lengths.sum(axis=-1) + self.size
        return np.asarray(self.fixed_s + self.per_token_s * verified)

    def draft_time(self, lengths: Ints) -> Floats:
        """φ of lengths [..., K] with the best bandwidth for them (Lemma 3) [s]."""
        return draft_time(lengths, self.seconds_per_token, self.upload_s, self.snr)

    def shares(self, lengths: Ints) -> Floats:
        """The best bandwidth for lengths [..., K], in shares."""
        return bandwidth_shares(lengths, self.seconds_per_token, self.upload_s, self.snr)

    def upload_time(self, lengths: Ints, shares: Floats) -> Floats:
        """Upload times of lengths [..., K] over these shares of the band [s]."""
        return upload_time(lengths * self.upload_s, shares, self.snr)

    def token_latency(self, share: float | None = None) -> Floats:
        """Drafting and upload time of a token with this share, or with the best split (Lemma 1), [K] [s]."""
        if share is None:
            return np.full(self.size, token_latency(self.seconds_per_token, self.upload_s, self.snr))
        return self.seconds_per_token + upload_time(self.upload_s, np.full(self.size, share), self.snr)

    def round_s(self, lengths: Ints) -> Floats:
        """φ + T_ver of lengths [..., K] with the best bandwidth for them [s]."""
        return self.draft_time(lengths) + self.verification_s(lengths)

    def goodput(self, lengths: Ints) -> Floats:
        """Weighted sum goodput of lengths [..., K] with the best bandwidth for them [tokens/s]."""
        result: Floats = (self.expected(lengths) @ self.weight) / self.round_s(lengths)
        return result

    def meets_minimum(self, lengths: Ints, round_s: Floats) -> np.ndarray:
        """Whether lengths [..., K] in rounds of this duration give every device what it asks for."""
        need = self.minimum_goodput * np.asarray(round_s)[..., None] * (1.0 - 1e-12)
        return np.asarray((self.expected(lengths) >= need).all(axis=-1))


def as_problem(scenario: Scenario) -> Problem:
    """The arrays of a scenario."""
    cell, verifier, devices = scenario.cell, scenario.verifier, scenario.devices
    limits = np.array([scenario.limits(device) for device in devices], dtype=np.int64)
    shortest, longest = limits[:, 0], limits[:, 1]
    rows = max(int(longest.max()), 1)
    rate = np.array([np.nan if d.acceptance_rate is None else d.acceptance_rate for d in devices], dtype=np.float64)
    conditional = np.broadcast_to(rate, (rows, len(devices)))
    if np.isnan(rate).any():
        conditional = conditional.copy()
        for k, device in enumerate(devices):
            if device.acceptance_profile is not None:
                profile = device.acceptance_profile[:rows]
                conditional[: len(profile), k] = profile
                conditional[len(profile) :, k] = device.acceptance_profile[-1]
    bits = np.array(
        [cell.bits_per_token if d.bits_per_token is None else d.bits_per_token for d in devices], dtype=float
    )
    snr = np.array([np.nan if d.snr_hz is None else d.snr_hz / cell.bandwidth_hz for d in devices], dtype=np.float64)
    return Problem(
        seconds_per_token=np.array([d.seconds_per_token for d in devices], dtype=np.float64),
        upload_s=bits / np.array([d.rate_bits_per_s(cell.bandwidth_hz) for d in devices], dtype=np.float64),
        conditional=conditional,
        weight=np.array([d.weight for d in devices], dtype=np.float64),
        shortest=shortest,
        longest=longest,
        minimum_goodput=np.array([d.min_goodput_tokens_per_s or 0.0 for d in devices], dtype=np.float64),
        acceptance_rate=rate,
        fixed_s=verifier.fixed_s + len(devices) * verifier.per_device_s,
        per_token_s=verifier.per_token_s,
        padded=verifier.padded,
        snr=None if np.isnan(snr).all() else snr,
    )
