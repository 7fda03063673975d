"""Quantiles of the beta distribution and of Student's t, which follows from it."""

import math

from multispin.checks import MOST, between, within

_TINY = 1e-300
_PRECISION = 1e-15
_TERMS = 10_000
"""Most terms of the continued fraction; it needs about √max(a, b)."""
_STEPS = 200
"""Most steps of an inversion; a bisection of all float64 between 0 and 1 needs fewer."""


def beta_share(a: float, b: float, x: float) -> float:
    """I_x(a, b): the share of a beta distribution below x.

    Formula: the continued fraction 8.17.22 of https://dlmf.nist.gov/8.17, evaluated by Lentz's method.

    Args:
        a: first parameter, positive.
        b: second parameter, positive.
        x: point of the distribution, 0 … 1.

    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1.0 - beta_share(b, a, 1.0 - x)
    ratio, inverse = 1.0, 1.0 / _kept(1.0 - (a + b) * x / (a + 1))
    fraction = inverse
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            inverse = 1.0 / _kept(1.0 + term * inverse)
            ratio = _kept(1.0 + term / ratio)
            fraction *= inverse * ratio
        if abs(inverse * ratio - 1.0) < _PRECISION:
            break
    return math.exp(_log_density(a, b, x)) * x * (1.0 - x) / a * fraction


def beta_quantile(a: float, b: float, share: float) -> float:
    """The x below which a share of a beta distribution lies: Newton's steps, kept inside a bisection.

    Args:
        a: first parameter, positive.
        b: second parameter, positive.
        share: probability, 0 … 1.

    """
    within("a", a, _TINY, MOST)
    within("b", b, _TINY, MOST)
    within("share", share, 0.0, 1.0)
    if share in (0.0, 1.0):
        return share
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_STEPS):
        over = beta_share(a, b, x) - share
        low, high = (low, x) if over > 0 else (x, high)
        density = math.exp(min(700.0, _log_density(a, b, x)))
        step = x - over / density if density > 0 else math.nan
        following = step if low < step < high else (low + high) / 2
        if abs(following - x) <= 4 * _PRECISION * x:
            return following
        x = following
    return x


def t_quantile(share: float, degrees: float) -> float:
    """The value below which a share of Student's t distribution lies.

    Formula: t² / (t² + ν) follows the beta distribution (1/2, ν/2).

    Args:
        share: between 0 and 1.
        degrees: ν, degrees of freedom, positive.

    """
    between("share", share, 0.0, 1.0)
    square = beta_quantile(0.5, degrees / 2, abs(2 * share - 1))
    return math.copysign(math.sqrt(degrees * square / (1.0 - square)), share - 0.5) if square else 0.0


def _log_density(a: float, b: float, x: float) -> float:
    if not 0.0 < x < 1.0:
        return -math.inf
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)


def _kept(value: float) -> float:
    """The value, or a tiny one instead of 0: Lentz's method divides by it."""
    return value if abs(value) > _TINY else _TINY
