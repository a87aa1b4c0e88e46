"""Statistics of the leaderboard against exact tests, closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from siegebench.leaderboard import stats
from sklearn.metrics import roc_auc_score

from siegebench.stats import auroc
from tests.rows import outcome


def test_mcnemar_is_the_exact_binomial_test_on_discordant_samples() -> None:
    a, b = outcome(60, 100), outcome(52, 100, start=5)  # a alone: 5 + 3, b alone: 0
    a[:5], b[:5] = True, False
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    by_hand = min(
        1.0, 2 * sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    )
    assert (only_a, only_b) == (8, 0)
    assert stats.mcnemar(a, b) == pytest.approx(by_hand) == pytest.approx(2 / 256)
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert stats.mcnemar(a, a) == 1.0
    mixed = outcome(60, 100, start=3)
    assert stats.mcnemar(a, mixed) == pytest.approx(binomtest(3, 6, 0.5).pvalue)
    with pytest.raises(ValueError, match="same samples"):
        stats.mcnemar(a, outcome(3, 50))


def test_holm_multiplies_by_the_tests_left_and_stays_monotone() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_rank_groups_span_what_cannot_be_told_apart() -> None:
    p = {(0, 1): 0.5, (1, 2): 0.5, (0, 2): 0.001}  # a chain: neighbours alike, ends apart
    groups = stats.rank_groups(3, lambda i, j: (j - i, p[i, j]))
    assert groups == [(1, 2), (1, 3), (2, 3)]
    assert stats.rank_groups(3, lambda i, j: (j - i, 0.0)) == [(1, 1), (2, 2), (3, 3)]
    assert stats.rank_groups(3, lambda i, j: (0.0, 1.0)) == [(1, 3)] * 3
    assert stats.rank_groups(1, lambda i, j: (0.0, 1.0)) == [(1, 1)]


def test_sign_flips_is_exact_and_needs_six_units_for_five_per_cent() -> None:
    assert stats.sign_flips(np.array([1.0] * 5)) == 2 / 32
    assert stats.sign_flips(np.array([1.0] * 6)) == 2 / 64
    assert stats.sign_flips(np.array([3.0])) == 1.0
    assert stats.sign_flips(np.zeros(4)) == 1.0
    assert stats.sign_flips(np.ones(30)) < 0.01


def test_difference_of_means_uses_errors_where_they_are_known() -> None:
    a, b = {"x": (0.9, 0.01), "y": (0.8, 0.01)}, {"x": (0.8, 0.01), "y": (0.8, 0.01), "z": (0.0, 0.01)}
    gap, p = stats.difference_of_means(a, b)
    assert gap == pytest.approx(0.05)  # over x and y only
    assert p == pytest.approx(math.erfc(0.05 / 0.01 / math.sqrt(2)))  # error of the difference: sqrt(4) * 0.01 / 2
    assert stats.difference_of_means({"x": (0.9, None)}, {"x": (0.1, None)}) == (pytest.approx(0.8), 1.0)
    assert stats.difference_of_means({}, a) == (0.0, 1.0)


def test_auroc_agrees_with_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(3)
    clean, bad = rng.integers(0, 6, 40) * 1.0, rng.integers(2, 8, 25) * 1.0
    expected = roc_auc_score([0] * 40 + [1] * 25, [*clean, *bad])
    assert auroc(positive=bad, negative=clean) == pytest.approx(expected)
    assert auroc(positive=clean, negative=bad) == pytest.approx(1 - expected)
    low, high = stats.auroc_interval(positive=bad, negative=clean) or (1.0, 0.0)
    assert low < expected < high
    assert stats.auroc_interval(positive=bad, negative=clean) == (low, high)  # no hidden state
    assert stats.auroc_interval(positive=bad, negative=clean[:2]) is None


def test_bootstrap_of_a_mean_matches_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    low, high = stats.mean_interval(list(values)) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.002),
        pytest.approx(values.mean() + half, abs=0.002),
    )
    assert stats.mean_interval([0.1, 0.2]) is None


def test_average_of_rates_squares_and_adds_the_arms() -> None:
    assert stats.average_of_rates((0.8, 0.5, 0.9), (0.6, 0.2, 0.7)) == (
        pytest.approx(0.7), pytest.approx(0.7 - 0.25), pytest.approx(0.7 + math.sqrt(0.02) / 2),
    )  # fmt: skip
