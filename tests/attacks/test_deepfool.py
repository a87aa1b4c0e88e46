"""DeepFool goes to the nearest hyperplane."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.deepfool import DeepFool
from siegebench.attacks.fmn import FMN

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.threat import Norm
from tests import kit

from .planted import convolutional, frozen, nearest, run, wrong


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_goes_straight_to_the_nearest_hyperplane(linear: Classifier, norm: Norm) -> None:
    model, x = linear.double(), kit.grey_images(16).double()
    y = model(x).argmax(1)
    x_adv, oracle = run(DeepFool(), model, x, y, norm)
    assert bool(wrong(model, x_adv, y).all())
    torch.testing.assert_close(ops.size(x_adv - x, norm), 1.02 * nearest(model, x, y, norm), rtol=1e-9, atol=0)
    assert oracle.ledger.forwards.tolist() == [1 + 1 + 1] * 16
    assert oracle.ledger.backwards.tolist() == [9] * 16


def test_deepfool_prefers_the_nearest_class_to_the_likeliest() -> None:
    """Class 1 has the higher logit and a flat boundary far away, class 2 a steep one near by."""
    net = kit.Linear(classes=3, size=4)
    with torch.no_grad():
        net.layer.weight.zero_()
        net.layer.weight[1, 0], net.layer.weight[2, 1] = 1.0, 10.0
        net.layer.bias.copy_(torch.tensor([0.0, -1.0 - 0.5, -2.0 - 5.0]))
    model, x = frozen(net, 3), torch.full((1, 3, 4, 4), 0.5)
    y = torch.zeros(1, dtype=torch.long)
    assert model(x).tolist() == [[0.0, -1.0, -2.0]]
    near, _ = run(DeepFool(), model, x, y)
    assert float(ops.size(near - x, "l2")) == pytest.approx(0.2 * 1.02, rel=1e-4)
    assert model(near).argmax(1).tolist() == [2]
    alone, _ = run(DeepFool(targets=1), model, x, y)  # only class 1 is tried: half a unit of room, one is needed
    assert torch.equal(alone, x)


def test_deepfool_curves_towards_a_bent_boundary() -> None:
    model, x, y = convolutional(8)
    x_adv, oracle = run(DeepFool(), model, x, y)
    assert bool(wrong(model, x_adv, y).all())
    assert int(oracle.ledger.forwards.max()) > 3  # some take several steps
    again, _ = run(FMN(), model, x, y)
    assert float((ops.size(x_adv - x, "l2") / ops.size(again - x, "l2")).median()) < 1.5
