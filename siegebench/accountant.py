"""The privacy accountant of DP-SGD: Renyi differential privacy of the subsampled Gaussian mechanism. Needs no torch.

Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", arXiv 1908.10530; the conversion
to (epsilon, delta) is that of Balle, Barthe, Gaboardi, Hsu, Sato, AISTATS 2020, theorem 21. Neighbouring data sets
differ by one record that is added or removed; each record is in each batch with probability q, independently.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import gammaln, gammasgn, log_ndtr, logsumexp

from siegebench.errors import ConfigError

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *(float(k) for k in range(12, 64)))
NEGLIGIBLE = 32.0  # terms of a series below exp(-32) of its first one are left out
MOST = 40_000  # terms of a series


def renyi(multiplier: float, rate: float, order: float) -> float:
    """Renyi divergence of one step, for noise of `multiplier` times the clipping norm and sampling rate `rate`."""
    if rate == 0:
        return 0.0
    if rate == 1:
        return order / (2 * multiplier**2)
    log_a = _whole(multiplier, rate, int(order)) if order == int(order) else _fractional(multiplier, rate, order)
    return log_a / (order - 1)


def _whole(s: float, q: float, alpha: int) -> float:
    """log sum_i C(alpha, i) q^i (1-q)^(alpha-i) exp((i^2 - i) / 2 s^2), exact."""
    i = np.arange(alpha + 1.0)
    binomial = gammaln(alpha + 1) - gammaln(i + 1) - gammaln(alpha - i + 1)
    return float(logsumexp(binomial + i * math.log(q) + (alpha - i) * math.log1p(-q) + (i * i - i) / (2 * s * s)))


def _fractional(s: float, q: float, alpha: float) -> float:
    """The same for orders that are not whole: two series, one on each side of z0, where both densities are equal."""
    count = min(MOST, max(64, 2 * int(alpha), math.ceil(math.exp(NEGLIGIBLE / (alpha + 2)))))
    i = np.arange(float(count))
    j = alpha - i
    z0 = s * s * math.log(1 / q - 1) + 0.5
    binomial, sign = gammaln(alpha + 1) - gammaln(i + 1) - gammaln(j + 1), gammasgn(j + 1)
    low = i * math.log(q) + j * math.log1p(-q) + (i * i - i) / (2 * s * s) + log_ndtr((z0 - i) / s)
    high = j * math.log(q) + i * math.log1p(-q) + (j * j - j) / (2 * s * s) + log_ndtr((j - z0) / s)
    return float(logsumexp(np.concatenate([binomial + low, binomial + high]), b=np.concatenate([sign, sign])))


def epsilon_of(multiplier: float, rate: float, steps: int, delta: float) -> float:
    """The smallest epsilon for which DP-SGD is (epsilon, delta)-differentially private, over ORDERS.

    Args:
        multiplier: standard deviation of the noise in units of the clipping norm.
        rate: probability with which a record is in a batch.
        steps: number of batches.

    Raises:
        ConfigError: for numbers that are out of range.
    """
    if not (multiplier > 0 and 0 <= rate <= 1 and steps >= 0 and 0 < delta < 1):
        told = f"multiplier {multiplier:g}, rate {rate:g}, steps {steps}, delta {delta:g}"
        raise ConfigError(f"{told}: expected a positive multiplier, a rate in [0, 1], and delta in (0, 1)")
    if steps == 0 or rate == 0:
        return 0.0
    found = _curve(multiplier, rate)
    of = [
        r * steps - (math.log(delta) + math.log(a)) / (a - 1) + math.log1p(-1 / a)
        for a, r in zip(ORDERS, found, strict=True)
    ]
    return max(0.0, min(of))


@lru_cache(maxsize=256)
def _curve(multiplier: float, rate: float) -> tuple[float, ...]:
    return tuple(renyi(multiplier, rate, order) for order in ORDERS)


def multiplier_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The smallest multiplier, to 0.001, that keeps a training within epsilon.

    Raises:
        ConfigError: when none up to 10,000 does.
    """
    low, high = 0.0, 1.0
    while epsilon_of(high, rate, steps, delta) > epsilon:
        low, high = high, 2 * high
        if high > 10_000:
            raise ConfigError(f"no noise gives epsilon {epsilon:g} at delta {delta:g} in {steps} steps")
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, rate, steps, delta) > epsilon else (low, middle)
    return high
