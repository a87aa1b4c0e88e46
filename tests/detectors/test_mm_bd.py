"""MM-BD: the p-value on known numbers, the largest margin of a network in closed form, the planted class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import gamma
from torch import Tensor

from siegebench.classifier import Network
from siegebench.errors import NotApplicable
from siegebench.types import Verdict
from tests import victims

from .planted import detector, images, only
from .test_neural_cleanse import Regions

mm_bd = pytest.importorskip("siegebench.detectors.mm_bd")
EVEN = [8, 9, 10, 11, 12, 10, 9, 8, 11, 12]


class Steep(Regions):
    """Logit t rises by `slopes[t]` from the darkest to the brightest region t."""

    def __init__(self, slopes: list[float]) -> None:
        super().__init__(EVEN)
        with torch.no_grad():
            self.weight.mul_(torch.tensor(slopes)[:, None] / 40)


def judged(slopes: list[float], **parameters: Any) -> Verdict:
    model = Network(Steep(slopes), num_classes=10)
    given = {"images": 3, "steps": 40, "lr": 2.0, **parameters}
    verdict = detector("mm_bd", **given).judge(model, only(clean=images(4, size=10)), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


HONEST = [10.0, 11, 9, 10.5, 9.5, 10.2, 10.9, 9.8, 11.4, 10.1]


def test_p_value_on_known_numbers() -> None:
    rest = torch.tensor(gamma.ppf([(i + 0.5) / 9 for i in range(9)], 3.0, loc=1.0, scale=2.0))
    for largest in (16.0, 20.0, 40.0):
        r = torch.cat([rest[:4], torch.tensor([largest]).double(), rest[4:]])
        shape, location, scale = gamma.fit(rest.numpy())
        p = 1 - gamma.cdf(largest, shape, loc=location, scale=scale) ** 10
        assert mm_bd.log_p_value(r) == pytest.approx(math.log(p), rel=1e-6)
    # the fitted distribution is close to the one that the numbers come from
    assert math.exp(mm_bd.log_p_value(torch.cat([rest, torch.tensor([20.0]).double()]))) < 0.2
    assert mm_bd.log_p_value(torch.cat([rest, rest[-1:] + 1e4])) >= math.log(1e-300)


def test_equal_margins_are_no_alarm() -> None:
    assert mm_bd.log_p_value(torch.ones(10).double()) == 0
    assert mm_bd.log_p_value(torch.cat([torch.ones(9), torch.tensor([5.0])]).double()) < -600


def test_margins_reach_the_closed_form() -> None:
    # region t white and all others black: the margin is the slope itself
    model = Network(Steep(HONEST), num_classes=10)
    r = detector("mm_bd", images=4, steps=100, lr=2.0).margins(model, (3, 10, 10), 0)
    torch.testing.assert_close(r, torch.tensor(HONEST).double(), rtol=0.02, atol=0.1)
    alone = detector("mm_bd", images=4, steps=100, lr=2.0, together=4).margins(model, (3, 10, 10), 0)
    torch.testing.assert_close(alone, r, rtol=1e-4, atol=1e-4)


def test_the_planted_class_is_found() -> None:
    verdict = judged([*HONEST[:6], 60.0, *HONEST[7:]])
    assert verdict.backdoored
    assert verdict.targets == (6,)
    clean = judged(HONEST)
    assert not clean.backdoored
    assert clean.targets == ()
    assert clean.score < verdict.score
    assert judged(HONEST).score == clean.score


def test_finished_classes_leave_the_batch() -> None:
    rows: list[int] = []

    class Counting(Steep):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    detector("mm_bd", images=4, steps=300, lr=5.0).margins(Network(Counting(HONEST), num_classes=10), (3, 10, 10), 0)
    assert sum(rows) < 0.5 * 300 * 40


def test_mm_bd_needs_four_classes() -> None:
    with pytest.raises(NotApplicable, match="at least 4"):
        detector("mm_bd").judge(Network(Regions([5, 6, 7]), num_classes=3), only(), victims.ONE)
