"""The accountant of DP-SGD: the epsilon of Opacus, and closed forms."""

from __future__ import annotations

import math
import warnings

import pytest

from siegebench.accountant import epsilon_of, multiplier_for, renyi
from siegebench.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import RDPAccountant

SETTINGS = [
    (0.697, 128 / 6000, 470, 1e-5), (1.0, 0.01, 1000, 1e-5), (0.5, 0.05, 200, 1e-5), (4.0, 0.2, 500, 1e-6),
    (1.1, 1.0, 10, 1e-5), (0.3, 0.001, 50, 1e-5), (2.0, 0.5, 100, 1e-5), (20.0, 0.01, 10_000, 1e-7),
]  # fmt: skip


@pytest.mark.parametrize(("multiplier", "rate", "steps", "delta"), SETTINGS)
def test_epsilon_is_that_of_opacus(multiplier: float, rate: float, steps: int, delta: float) -> None:
    other = RDPAccountant()
    other.history = [(multiplier, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = other.get_epsilon(delta)
    assert epsilon_of(multiplier, rate, steps, delta) == pytest.approx(expected, abs=1e-6)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    assert renyi(2.0, 1.0, 5.0) == 5.0 / 8
    assert epsilon_of(2.0, 0.0, 10, 1e-5) == epsilon_of(2.0, 0.1, 0, 1e-5) == 0.0


@pytest.mark.parametrize("order", [2.0, 3.0, 8.0])
def test_both_series_agree_at_whole_orders(order: float) -> None:
    near = renyi(1.3, 0.05, order + 1e-7)
    assert near == pytest.approx(renyi(1.3, 0.05, order), rel=1e-4)


def test_the_multiplier_is_the_smallest_that_keeps_the_promise() -> None:
    z = multiplier_for(8.0, 128 / 6000, 470, 1e-5)
    assert z == pytest.approx(0.698, abs=0.002)
    assert epsilon_of(z, 128 / 6000, 470, 1e-5) <= 8.0 < epsilon_of(z - 0.002, 128 / 6000, 470, 1e-5)


@pytest.mark.parametrize("values", [(0.0, 0.1, 1, 1e-5), (1.0, 1.5, 1, 1e-5), (1.0, 0.1, 1, 0.0)])
def test_numbers_out_of_range_are_refused(values: tuple[float, float, int, float]) -> None:
    with pytest.raises(ConfigError, match="expected a positive multiplier"):
        epsilon_of(*values)


def test_more_noise_and_fewer_steps_promise_more() -> None:
    assert epsilon_of(2.0, 0.01, 100, 1e-5) < epsilon_of(1.0, 0.01, 100, 1e-5) < epsilon_of(1.0, 0.01, 400, 1e-5)
    assert math.isfinite(epsilon_of(0.1, 0.5, 10, 1e-5))
