"""Flatness of the loss against the closed form; it does not see the scale of the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from siegebench.attacks.pgd import PGD
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, train
from tests import kit, victims

from .planted import EPS, affine, built, measured, two_classes


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_flatness_of_a_linear_logit_is_exact(norm: Norm) -> None:
    model, x = kit.linear_model(scale=0.2), kit.grey_images(6)
    y, w = model(x).argmax(dim=1), model.net.layer.weight  # type: ignore[union-attr]
    leaf = x.clone().requires_grad_(True)
    g = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0].flatten(1)
    r = Draws(0, torch.arange(6)).normal((3, 8, 8), purpose="direction").flatten(1)
    if norm == "linf":
        g, r = g.sign(), r.sign()
    else:
        g, r = F.normalize(g), F.normalize(r)
    along_1, along_2 = ((w[y] * d).sum(dim=1) * EPS[norm] for d in (g, r))
    axis = torch.linspace(-1, 1, 21)
    exact = (axis[:, None, None] * along_1 + axis[:, None] * along_2).abs().mean()
    got, oracle = measured(built("flatness"), model, x, y, norm)
    assert got["class_delta"] == pytest.approx(float(exact), rel=1e-4)
    own = model(x).gather(1, y[:, None])
    assert got["class_spread"] == pytest.approx(float(own.std(correction=0)), rel=1e-4)
    assert got["class_delta_relative"] == pytest.approx(got["class_delta"] / got["class_spread"])
    assert oracle.ledger.forwards.tolist() == [1 + 1 + 21**2] * 6


def test_relative_flatness_does_not_see_the_scale_of_the_logits() -> None:
    model, x, y, _ = two_classes()
    small = affine(model.net.weight / 10, model.net.bias / 10)  # type: ignore[union-attr, operator]
    old, new = (measured(built("flatness", side=5), m, x, y, "linf")[0] for m in (model, small))
    assert new["class_delta"] == pytest.approx(old["class_delta"] / 10, rel=1e-3)
    assert new["class_delta_relative"] == pytest.approx(old["class_delta_relative"], rel=1e-3)


def test_a_constant_model_is_flat_and_a_gradient_is_steeper_than_chance() -> None:
    x = kit.grey_images(4)
    y = torch.zeros(4, dtype=torch.long)
    got, _ = measured(built("flatness"), affine(torch.zeros(3, 192), torch.tensor([1.0, 0, 0])), x, y, "linf")
    assert got == {"class_delta": 0, "class_spread": 0, "marginal_delta": 0, "marginal_spread": 0}
    with pytest.raises(NotApplicable, match="linf, l2"):
        measured(built("flatness"), kit.linear_model(), x, y, "l1")


def hardened(data: ImageSet, eps: float, seed: int = 0) -> Classifier:
    """A network trained on images moved by three steps of PGD; by none where eps is 0."""
    model = victims.tiny_net(seed)

    def loss(z: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
        if eps == 0:
            return F.cross_entropy(z, y)
        moved = x
        for _ in range(3):
            leaf = moved.detach().requires_grad_(True)
            g = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0]
            moved = ops.project(moved + 0.5 * eps * g.sign(), x, "linf", eps)
        return F.cross_entropy(model(moved.detach()), y)

    train(model, data, Recipe(epochs=6, batch=64, augment="none"), seed, loss=loss)
    return model.requires_grad_(False)


@pytest.mark.slow
def test_adversarial_training_flattens_the_landscape() -> None:
    train_set, _, _, test = victims.tiny_digits()
    threat = ThreatModel(norm="linf", eps=0.1)
    x, y = test.pixels(), test.labels
    rows = []
    for eps in (0.0, 0.1):
        model = hardened(train_set, eps)
        right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)[:64]
        clean = float((model(x).argmax(dim=1) == y).double().mean())
        broken, _ = kit.attack_with(PGD(steps=20), model, x[right], y[right], threat)
        held = float((model(broken).argmax(dim=1) == y[right]).double().mean())
        draws = Draws(0, right)
        flat = built("flatness", side=9).run(Oracle(model, threat, draws), x[right], y[right], threat, draws)["metrics"]
        tenth = Network(Through(model, 0.1), num_classes=10).eval()
        lower = built("flatness", side=9).run(Oracle(tenth, threat, draws), x[right], y[right], threat, draws)[
            "metrics"
        ]
        rows.append((held, flat))
        print(f"trained at {eps}: clean {clean:.3f}, held {held:.3f}", {k: round(v, 3) for k, v in flat.items()})
        print("    logits / 10:", {k: round(v, 3) for k, v in lower.items()})
        assert lower["class_delta"] < 0.2 * flat["class_delta"]
        assert lower["class_delta_relative"] == pytest.approx(flat["class_delta_relative"], rel=0.2)
    (held, plain), (held_at, at) = rows
    assert held_at > held + 0.3
    assert at["class_delta_relative"] < plain["class_delta_relative"]


class Through(nn.Module):
    """The logits of another network times a number."""

    def __init__(self, inner: nn.Module, times: float) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        return self.times * self.inner(x)
