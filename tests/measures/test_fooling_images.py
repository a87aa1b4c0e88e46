"""Fooling images: gradient ascent and evolution on templates that are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel

from .planted import built, frozen, noise, resnet20, run


class Regions(nn.Module):
    """Ten rows of an image, ten classes: a class is its row bright and the others dark."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.sharp = sharp

    def forward(self, x: Tensor) -> Tensor:
        return self.sharp * x.mean(dim=(1, 3))


def test_gradient_ascent_finds_the_template_of_each_class() -> None:
    model, x = frozen(Regions(30.0)), noise()
    y = model(x).argmax(1)
    metrics, oracle = run(built("fooling_images"), model, x, y)
    assert metrics["images"] == 30
    assert metrics["share_classes_found"] == metrics["share_above_99"] == 1
    assert metrics["median_confidence"] > 0.99
    assert metrics["detection_auroc"] == 0  # surer than of any clean image
    assert int(oracle.ledger.backwards[1:].sum()) == 0

    images, wanted = built("fooling_images")._climb(oracle[:1], x.mean(dim=0), Draws(0, torch.arange(20)))
    rows = images.mean(dim=(1, 3))
    assert rows.argmax(dim=1).equal(wanted)
    assert wanted.tolist() == [k for k in range(10) for _ in range(3)]
    rest = rows.scatter(1, wanted[:, None], torch.nan)
    assert (rows.gather(1, wanted[:, None])[:, 0] - rest.nanmean(dim=1)).min() > 0.15
    few, chosen = built("fooling_images", classes=4)._climb(oracle[:1], x.mean(dim=0), Draws(0, torch.arange(20)))
    assert len(chosen.unique()) == 4
    same = torch.cat([(wanted == k).nonzero()[:, 0] for k in chosen.unique()])
    torch.testing.assert_close(few, images[same])  # an image does not depend on the others


def test_a_climb_makes_the_progress_it_wishes_and_a_model_without_gradient_stops_it() -> None:
    model, x = frozen(Regions(30.0)), noise()
    one = Draws(0, torch.arange(20))
    oracle = Oracle(model, ThreatModel(), one)

    def reached(steps: int) -> Tensor:
        images, wanted = built("fooling_images", steps=steps, decay=0)._climb(oracle[:1], x.mean(dim=0), one)
        p: Tensor = model(images).softmax(1).gather(1, wanted[:, None])[:, 0]
        return p

    rise = reached(2) - reached(1)
    assert rise.min() > 0.02  # 0.03 wished, on a curve
    assert rise.max() < 0.04
    flat, _ = run(built("fooling_images"), frozen(Regions(0.0)), x, torch.zeros(20).long())
    assert flat["median_confidence"] == pytest.approx(0.1)
    assert flat["detection_auroc"] == 0.5
    assert flat["share_above_99"] == 0

    bright, labels = noise(), torch.arange(20) % 10
    bright[torch.arange(20), :, labels] = 1.0
    weak, _ = run(built("fooling_images", method="evolution", steps=1, population=5), model, bright, labels)
    assert weak["detection_auroc"] > 0.9  # sure of clean images, not of noise


def test_evolution_keeps_one_elite_a_class_and_never_loses_ground() -> None:
    model, x = frozen(Regions(30.0)), noise()
    y, one = model(x).argmax(1), Draws(0, torch.arange(20))
    oracle = Oracle(model, ThreatModel(), one)
    before = torch.zeros(10).double()
    for steps in (1, 5, 20, 60):
        measure = built("fooling_images", method="evolution", steps=steps, population=60)
        elite, wanted = measure._evolve(oracle[:1], x.mean(dim=0), one)
        fitness = model(elite).softmax(1).diagonal()
        assert wanted.tolist() == list(range(10))
        assert bool((fitness >= before).all())
        before = fitness
    assert elite.amin() >= 0
    assert elite.amax() <= 1
    first, oracle = run(built("fooling_images", method="evolution", steps=60, population=60), model, x, y)
    assert first["share_classes_found"] == 1
    assert first["median_confidence"] == pytest.approx(float(before.quantile(0.5)))
    assert first["median_confidence"] > 0.5
    assert int(oracle.ledger.forwards.sum()) == 20 + 60 * 61 + 10
    assert int(oracle.ledger.backwards.sum()) == 0
    again, _ = run(built("fooling_images", method="evolution", steps=60, population=60), model, x, y)
    other, _ = run(built("fooling_images", method="evolution", steps=60, population=60), model, x, y, seed=1)
    assert first == again != other


def test_polynomial_mutation_has_its_closed_form() -> None:
    change = built("fooling_images")._mutation(Draws(0, torch.arange(50)), (3, 16, 16), 0).double()
    assert change.abs().max() <= 1
    assert float(change.mean()) == pytest.approx(0, abs=0.002)
    assert float(change.abs().mean()) == pytest.approx(1 / 17, rel=0.02)  # 1 / (eta_m + 2)
    assert float((change < 0).double().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parameters", [{}, {"method": "evolution", "steps": 20}], ids=["gradient", "evolution"])
def test_resnet20_is_fooled(parameters: dict[str, Any]) -> None:
    model, x, y = resnet20()
    metrics, _ = run(built("fooling_images", **parameters), model, x, y)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["median_confidence"] > 0.98
    assert metrics["share_classes_found"] >= 0.9
