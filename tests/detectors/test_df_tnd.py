"""DF-TND: the simplex, one step in closed form, the planted class whose logit one neuron raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.errors import NotApplicable
from siegebench.types import Verdict
from tests import victims

from .planted import detector, images, only

df_tnd = pytest.importorskip("siegebench.detectors.df_tnd")


class Neurons(nn.Module):
    """Neuron j is the brightness of column j; the last layer connects neuron j with class j."""

    strengths: Tensor

    def __init__(self, strengths: list[float]) -> None:
        super().__init__()
        self.last = nn.Linear(len(strengths), len(strengths), bias=False)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(len(strengths)))
        self.register_buffer("strengths", torch.tensor(strengths))

    def forward(self, x: Tensor) -> Tensor:
        h = x.mean(dim=(1, 2)) * self.strengths
        logits: Tensor = self.last(h)
        return logits


def network(strengths: list[float]) -> Network:
    return Network(Neurons(strengths), num_classes=len(strengths))


HONEST, PLANTED = [10.0, 11, 12, 9, 10, 11], [10.0, 11, 12, 300, 10, 11]


def judged(strengths: list[float], **parameters: Any) -> Verdict:
    clean = images(20, size=6, high=60, classes=6)
    given = {"images": 4, "steps": 30, **parameters}
    verdict = detector("df_tnd", **given).judge(network(strengths), only(clean=clean), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def test_projection_onto_the_simplex() -> None:
    torch.testing.assert_close(df_tnd.simplex(torch.tensor([0.2, 0.3, 0.5])), torch.tensor([0.2, 0.3, 0.5]))
    torch.testing.assert_close(df_tnd.simplex(torch.tensor([1.0, 1, 1, 1])), torch.full((4,), 0.25))
    torch.testing.assert_close(df_tnd.simplex(torch.tensor([3.0, 0, 0])), torch.tensor([1.0, 0, 0]))
    v = torch.randn(50, generator=torch.Generator().manual_seed(0))
    p = df_tnd.simplex(v)
    assert float(p.min()) >= 0
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    inside = v[p > 0] - p[p > 0]
    torch.testing.assert_close(inside, inside[:1].expand_as(inside))  # all are lowered by the same number
    assert bool((v[p == 0] <= inside[0]).all())


@pytest.mark.parametrize("start", ["images", "noise"])
def test_the_planted_class_is_found(start: str) -> None:
    verdict = judged(PLANTED, start=start)
    assert verdict.backdoored
    assert verdict.targets == (3,)
    assert [*verdict.triggers] == [3]
    assert float(verdict.triggers[3][..., 3].min()) > 0.9  # the column of its neuron is bright
    clean = judged(HONEST, start=start)
    assert not clean.backdoored
    assert clean.score < 0.2 * verdict.score


def test_no_increase_exceeds_what_white_pixels_give() -> None:
    x = torch.full((3, 3, 6, 6), 0.25)
    r, d, m = detector("df_tnd", steps=60).increase(network(PLANTED), x)
    assert bool((r <= 0.75 * torch.tensor(PLANTED).double() + 1e-4).all())
    assert float(r[3]) > 0.9 * 0.75 * 300
    assert float(m.min()) >= 0
    assert float(m.max()) <= 1
    assert float(d.abs().max()) <= 2  # eps around the mean of the first phase, which is within eps of 0


def test_the_same_seed_gives_the_same_verdict() -> None:
    assert judged(PLANTED).score == judged(PLANTED).score


def test_df_tnd_needs_two_classes() -> None:
    with pytest.raises(NotApplicable, match="at least 2"):
        judged([3.0])
