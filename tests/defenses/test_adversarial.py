"""What the adversarial trainings share: the search in the ball, and a loop that equals one written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from siegebench.defenses import _adversarial
from siegebench.defenses._adversarial import Ball, against, away_from, divergence, right
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from tests import kit

from .two_features import EPS, ONE, RECIPE, against_the_other_class, build, granted, model, two_features


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_maximum_of_a_linear_network_is_its_closed_form(norm: str) -> None:
    x = kit.grey_images(6)
    two = Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), num_classes=2)
    y, eps = torch.arange(6) % 2, 0.05
    ball = Ball(norm=norm, eps=eps, step=eps / 2, steps=10)  # type: ignore[arg-type]
    x_adv = ball.maximise(two, x, against(y), Draws(0, torch.arange(6)))
    w = two.net[1].weight  # type: ignore[index]
    ascent = (w[1 - y] - w[y]).view_as(x)  # two classes: the gradient of the cross-entropy always points here
    expected = x + eps * ops.normalise(ascent, norm)
    assert torch.allclose(x_adv, expected, atol=1e-5 if norm == "linf" else 2e-3)
    assert bool((ops.size(x_adv - x, norm) <= eps + 1e-6).all())


def test_the_divergence_is_that_of_the_library_and_its_maximum_is_not_the_clean_image() -> None:
    x, net, draws = kit.grey_images(6), kit.cnn_model(), Draws(0, torch.arange(6))
    gain = away_from(net, x)
    p, q = (torch.distributions.Categorical(logits=net(v)) for v in (x, 1 - x))
    kl = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(divergence(net(x), net(1 - x)), kl, atol=1e-6)
    assert torch.allclose(gain(net(1 - x)), kl.sum(), atol=1e-5)
    ball = Ball(norm="linf", eps=0.1, step=0.03, steps=8, start="near")
    found = gain(net(ball.maximise(net, x, gain, draws)))
    corners = [x + 0.1 * draws.sign(tuple(x.shape[1:]), k) for k in range(20)]
    assert float(found) > 2 * max(float(gain(net(c))) for c in corners)


def test_the_divergence_of_saturated_logits_has_a_finite_gradient() -> None:
    z = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)  # probabilities of exactly 1 and 0
    (g,) = torch.autograd.grad(divergence(z, torch.zeros(1, 3)).sum(), z)
    assert bool(torch.isfinite(g).all())


def test_training_is_that_of_a_loop_written_out() -> None:
    """Every bit of the weights: results of earlier versions stay valid."""

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))

    data, recipe = two_features(192), {"epochs": 2, "batch": 64, "augment": "none"}
    given = Network(net(), num_classes=2, rebuild=net)
    trained = build("pgd_at", eps=0.2, step=0.1, steps=3, recipe=recipe).apply(given, granted(data), ONE)

    seed = derive_seed(0, "pgd_at")
    other = given.fresh(derive_seed(seed, "weights"))

    def pgd(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        other.eval()
        draws = Draws(seed, data.ids[index]).at(epoch)
        x_k = (x + 0.2 * (2 * draws.uniform((3, 2, 2), purpose="start") - 1)).clamp(0, 1)
        for _ in range(3):
            x_k.requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(other(x_k), y, reduction="sum"), x_k)
            delta = (x_k.detach() + 0.1 * g.sign() - x).clamp(-0.2, 0.2)
            x_k = (x + delta).clamp(0, 1)
        other.train()
        return x_k

    train(other, data, Recipe(**recipe), seed, images=pgd)  # type: ignore[arg-type]
    for name, value in trained.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_accuracy_under_pgd_is_counted_in_batches() -> None:
    data, ball = two_features(100), Ball(norm="linf", eps=EPS, step=EPS / 4, steps=8)
    plain = model()
    train(plain, data, Recipe(**RECIPE), 0)
    assert right(ball, plain, data, 0, batch=32) == round(len(data) * against_the_other_class(plain, data, EPS))


def test_training_repeats_batches_changes_gradients_and_ends_early() -> None:
    data, net, seen, epochs = two_features(64), model(), [], []

    def images(x: Tensor, y: Tensor, places: Tensor, epoch: int) -> Tensor:
        seen.append(places)
        return x

    def gradients() -> None:
        for p in net.parameters():
            assert p.grad is not None
            p.grad.zero_()

    def after(epoch: int) -> bool:
        epochs.append(epoch)
        return epoch == 1

    before = {k: v.clone() for k, v in net.state_dict().items()}
    recipe = Recipe(epochs=5, batch=32, optimiser="sgd", weight_decay=0.0)
    train(net, data, recipe, 0, images=images, gradients=gradients, after=after, replays=3)
    assert epochs == [0, 1]
    assert len(seen) == 2 * 2 * 3
    assert all(torch.equal(seen[3 * k], seen[3 * k + j]) for k in range(4) for j in range(3))
    assert not torch.equal(seen[0], seen[3])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_variants_start_from_the_same_weights_and_see_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, Tensor]] = []

    def recorded(net: Network, data: ImageSet, recipe: Recipe, seed: int, **hooks: object) -> None:
        calls.append((seed, torch.cat([p.detach().flatten() for p in net.parameters()])))

    monkeypatch.setattr(_adversarial, "train", recorded)
    data = granted(two_features(64), "train", "clean", "val")
    for name in ("pgd_at", "trades", "mart", "awp", "fast_at"):
        build(name).apply(model(), data, ONE)
    assert all(seed == calls[0][0] and torch.equal(w, calls[0][1]) for seed, w in calls)
