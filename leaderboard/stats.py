"""Statistics of the leaderboard: paired tests, multiple-test correction, rank groups, intervals. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr

Vector = np.ndarray[Any, Any]
ALPHA = 0.05
RESAMPLES = 2000


def mcnemar(a: Vector, b: Vector) -> float:
    """Two-sided p-value of the exact McNemar test for two 0/1 outcomes on the same samples.

    Under the null hypothesis, a sample that only one of the two gets right is equally likely to be either's.
    """
    if len(a) != len(b):
        raise ValueError(f"paired outcomes need the same samples, found {len(a)} and {len(b)}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    # twice the smaller tail of Binomial(n, 1/2); scipy.stats.binomtest gives the same, about a hundred times slower
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, each to be compared with alpha."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, running = [1.0] * len(p), 0.0
    for step, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - step) * p[i]))
        out[i] = running
    return out


def rank_groups(count: int, compare: Callable[[int, int], tuple[float, float]]) -> list[tuple[int, int]]:
    """(best, worst) possible rank of each of `count` entries.

    An entry ranks below every entry that is significantly better and above every entry that is significantly worse.
    Without a significant difference either order is possible. All pairs are Holm-corrected together.

    Args:
        compare: maps `(i, j)` to (how much better i is, p-value).
    """
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    compared = [compare(i, j) for i, j in pairs]
    best, worst = [1] * count, [count] * count
    for (i, j), (difference, _), p in zip(pairs, compared, holm([p for _, p in compared]), strict=True):
        if p <= ALPHA and difference != 0:
            above, below = (i, j) if difference > 0 else (j, i)
            best[below] += 1
            worst[above] -= 1
    return list(zip(best, worst, strict=True))


Estimate = tuple[float, float | None]  # a value and its standard error, if known


def difference_of_means(a: Mapping[Any, Estimate], b: Mapping[Any, Estimate]) -> tuple[float, float]:
    """(mean of a - mean of b over their common keys, two-sided p-value).

    With standard errors: a z-test with the sampling error of the images, for these units. Without: the exact sign-flip
    test over the units, which needs six units to reach 5 %.
    """
    both = sorted(set(a) & set(b))
    if not both:
        return 0.0, 1.0
    gaps = np.array([a[k][0] - b[k][0] for k in both])
    mean = float(gaps.mean())
    errors = [e for k in both for e in (a[k][1], b[k][1])]
    known = [e for e in errors if e is not None]
    if len(known) == len(errors):
        error = math.sqrt(sum(e * e for e in known)) / len(both)
        if error == 0:
            return mean, 1.0 if mean == 0 else 0.0
        return mean, math.erfc(abs(mean) / error / math.sqrt(2))
    return mean, sign_flips(gaps)


def paired_means(a: Vector, b: Vector) -> tuple[float, float]:
    """(mean of a - mean of b, two-sided p-value of a z-test on the paired differences)."""
    if len(a) != len(b):
        raise ValueError(f"paired outcomes need the same samples, found {len(a)} and {len(b)}")
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, error = float(gaps.mean()), float(gaps.std()) / math.sqrt(len(gaps))
    if error == 0:
        return mean, 1.0 if mean == 0 else 0.0
    return mean, math.erfc(abs(mean) / error / math.sqrt(2))


def sign_flips(gaps: Vector) -> float:
    """Two-sided p-value of the sign-flip test for zero mean difference; above 12 pairs with random sign patterns."""
    k = len(gaps)
    if k <= 12:
        patterns = (np.arange(2**k)[:, None] >> np.arange(k) & 1) * 2 - 1
    else:
        patterns = np.random.default_rng(0).integers(2, size=(4095, k)) * 2 - 1
        patterns = np.concatenate([np.ones((1, k), dtype=patterns.dtype), patterns])
    return float((np.abs(patterns @ gaps) >= abs(gaps.sum()) - 1e-12).mean())


def standard_error(low: float | None, high: float | None) -> float | None:
    """Standard error from a 95 % interval. With a Wilson interval it is positive at rates of 0 and 1 too."""
    return None if low is None or high is None else (high - low) / (2 * 1.959963984540054)


def _resampled(n: int, rng: np.random.Generator) -> Vector:
    """Relative frequency of each of n items in each bootstrap sample, [RESAMPLES, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def _percentiles(found: Vector) -> tuple[float, float]:
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def average(values: Sequence[float]) -> float:
    """The mean, also of the largest numbers, whose sum would overflow."""
    return sum(v / len(values) for v in values)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean; None for fewer than three values.

    The seed is fixed: the same values give the same interval.
    """
    if len(values) < 3:
        return None
    return _percentiles(_resampled(len(values), np.random.default_rng(0)) @ np.asarray(values, dtype=float))


def auroc_interval(*, positive: Vector, negative: Vector) -> tuple[float, float] | None:
    """95 % bootstrap interval; negatives and positives resampled separately. None for fewer than three of either."""
    if min(len(negative), len(positive)) < 3:
        return None
    rng = np.random.default_rng(0)
    wins = (positive > negative[:, None]) + 0.5 * (positive == negative[:, None])
    return _percentiles(((_resampled(len(negative), rng) @ wins) * _resampled(len(positive), rng)).sum(axis=1))


def average_of_rates(*rates: tuple[float, float, float]) -> tuple[float, float, float]:
    """Mean of independent (rate, low, high) with Newcombe's hybrid interval."""
    k = len(rates)
    mean = sum(r for r, _, _ in rates) / k
    down = math.sqrt(sum((r - low) ** 2 for r, low, _ in rates)) / k
    up = math.sqrt(sum((high - r) ** 2 for r, _, high in rates)) / k
    return mean, max(0.0, mean - down), min(1.0, mean + up)


def tolerance(p: float, n: int) -> float:
    """Chance difference of two accuracies on n samples: two standard errors, at least half a point."""
    return max(0.005, 2 * math.sqrt(max(0.0, p * (1 - p)) / n)) if n else 1.0
