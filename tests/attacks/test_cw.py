"""C&W against the closed form of a linear model and against other libraries."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from siegebench.attacks.cw import CW
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.threat import ThreatModel
from tests import kit

from .planted import nearest_boundary, two_classes, wrong


def test_cw_finds_the_smallest_perturbation_of_a_linear_model(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = nearest_boundary(linear, x, y, "l2")
    x_adv, oracle = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert bool(wrong(linear, x_adv, y).all())
    ratio = ops.size(x_adv - x, "l2") / radius
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.median()) < 1.02
    assert float(ratio.max()) < 1.05
    assert int(oracle.ledger.forwards.max()) <= 900
    assert torch.equal(oracle.ledger.forwards, oracle.ledger.backwards)


@pytest.mark.parametrize(("c0", "searches"), [(1e-4, 9), (1.0, 9), (100.0, 16)])
def test_cw_searches_its_constant_from_either_side(linear: Classifier, c0: float, searches: int) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(c0=c0, searches=searches), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert float((ops.size(x_adv - x, "l2") / nearest_boundary(linear, x, y, "l2")).median()) < 1.05


def test_cw_keeps_the_confidence_it_is_asked_for(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(kappa=2.0, searches=6), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    reached = ops.margin(linear(x_adv), y)
    assert float(reached.min()) >= 2.0 - 1e-3
    assert float(reached.median()) < 2.5


def test_cw_moves_pixels_at_the_edge_of_the_box_and_stays_inside(linear: Classifier) -> None:
    x = kit.grey_images(8).round()  # every pixel is 0 or 1
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(lr=0.1, steps=200), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert bool(wrong(linear, x_adv, y).all())
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    # half of the entries may not go where the unbounded optimum is
    assert float((ops.size(x_adv - x, "l2") / nearest_boundary(linear, x, y, "l2")).median()) < 2.0


def test_cw_returns_the_clean_image_where_it_finds_nothing() -> None:
    model, x = two_classes(), kit.grey_images(4)
    constant = Network(model.net, num_classes=2).eval()
    with torch.no_grad():
        constant.net.layer.weight.zero_()
    y = constant(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(searches=2, steps=10), constant, x, y, ThreatModel(norm="l2", eps=0.5))
    assert torch.equal(x_adv, x)


def test_cw_makes_progress_where_all_logits_are_negative(linear: Classifier) -> None:
    """The hinge must be masked with -inf: masked with 0 it vanishes on such a model."""
    x = kit.grey_images(8)
    with torch.no_grad():
        y = linear(x).argmax(1)
        linear.net.layer.bias -= 1000.0
    x_adv, _ = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert float((ops.size(x_adv - x, "l2") / nearest_boundary(linear, x, y, "l2")).median()) < 1.05


def median_l2(model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    """Median distance, infinite where an image is not misclassified."""
    far = ops.size(x_adv - x, "l2")
    return float(torch.where(wrong(model, x_adv, y), far, torch.inf).median())


def foreign_medians(model: Classifier, x: Tensor, y: Tensor) -> dict[str, float]:
    """C&W of the libraries on the bare model: 9 searches of 100 steps where they search, 900 steps where not."""
    torchattacks = pytest.importorskip("torchattacks")
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    class Bare(nn.Module):  # the library moves the model to training mode and back
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return model(x)

    out = {
        f"torchattacks {steps}": median_l2(model, x, torchattacks.CW(Bare().eval(), steps=steps)(x, y), y)
        for steps in (100, 900)
    }
    victim = PyTorchClassifier(
        model=Bare(), loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    attack = evasion.CarliniL2Method(victim, binary_search_steps=9, max_iter=100, batch_size=len(x), verbose=False)
    out["art"] = median_l2(model, x, torch.from_numpy(attack.generate(x.numpy(), y.numpy())), y)
    return out


def test_cw_is_not_above_the_libraries_on_a_linear_model(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    own = median_l2(linear, x, x_adv, y)
    for name, other in foreign_medians(linear, x, y).items():
        assert own <= other, (name, own, other)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_cw_is_not_above_the_libraries_on_resnet20() -> None:
    folder = os.environ.get("SIEGEBENCH_DATA", "")
    if not (Path(folder) / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the folder with real data and weights: set SIEGEBENCH_DATA")
    data = registry.build("dataset", "cifar10_jpeg").load("test")
    model = registry.build("model", "cifar_resnet20").build(num_classes=10, size=32).eval().requires_grad_(False)
    x, y = data.pixels(slice(100, 132)), data.labels[100:132]  # others than those that CW's defaults were chosen on
    keep = (~wrong(model, x, y)).nonzero().squeeze(1)[:16]
    x, y = x[keep], y[keep]
    x_adv, oracle = kit.attack_with(CW(), model, x, y, ThreatModel(norm="l2", eps=0.5))
    own = median_l2(model, x, x_adv, y)
    assert math.isfinite(own)
    assert int(oracle.ledger.forwards.max()) <= 900
    others = foreign_medians(model, x, y)
    print(f"median L2: own {own:.4f}", {k: round(v, 4) for k, v in others.items()})
    for name, other in others.items():
        assert own <= other, (name, own, other)
