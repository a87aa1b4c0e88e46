"""Features without labels: the losses in closed form, views, and what a training changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from siegebench import contrastive
from siegebench.classifier import Network
from siegebench.contrastive import Method
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import Recipe
from tests import kit, victims

SHORT = Recipe(epochs=2, batch=32, lr=0.01)


def tiny_set(n: int = 96) -> Any:
    return victims.tiny_digits()[0].select(torch.arange(n))


def test_nt_xent() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])  # two pairs of equal views
    e = torch.exp(torch.tensor(1 / 0.2))
    torch.testing.assert_close(contrastive.nt_xent(z, 0.2), -torch.log(e / (e + 2)))
    wrong = z[[0, 2, 1, 3]]  # partners are orthogonal, and another row is equal
    torch.testing.assert_close(contrastive.nt_xent(wrong, 0.2), -torch.log(1 / (e + 2)))


def test_the_loss_without_negatives_compares_with_the_other_view_and_holds_it_fixed() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)  # two views of one image
    z = torch.tensor([[0.0, 5.0], [3.0, 4.0]], requires_grad=True)
    loss = contrastive.crossed(p, z)
    torch.testing.assert_close(loss, torch.tensor(-(0.6 + 1.0) / 2))  # cos(p0, z1) and cos(p1, z0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is None
    assert p.grad is not None


def test_the_copy_of_byol_follows_slowly_and_gets_no_gradient() -> None:
    model, x = kit.cnn_model().requires_grad_(True), kit.grey_images(8)
    head: Any = contrastive.head_of(model, "byol", 0)
    first = next(model.parameters())
    old = first.detach().clone()
    with torch.no_grad():
        first += 1.0
    loss = head.loss(model.features(x), x)
    torch.testing.assert_close(next(head.slow.parameters()), old + (1 - contrastive.SLOW))
    loss.backward()
    assert first.grad is not None
    assert all(p.grad is None for p in head.slow.parameters())


def test_views_depend_on_image_and_stream_alone_and_let_gradients_pass() -> None:
    x, draws = kit.grey_images(6).requires_grad_(True), Draws(3, torch.arange(6))
    both = contrastive.pair(x, draws, flip=True)
    assert both.shape == (12, 3, 8, 8)
    assert 0 <= float(both.detach().min()) <= float(both.detach().max()) <= 1
    assert not torch.equal(both[:6], both[6:])
    part = torch.tensor([4, 1])
    torch.testing.assert_close(contrastive.pair(x[part], draws[part], flip=True)[:2], both[part])
    (g,) = torch.autograd.grad(both.sum(), x)
    assert float(g.abs().flatten(1).sum(dim=1).min()) > 0


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol"])
def test_training_brings_views_together_and_leaves_the_last_layer(method: Method) -> None:
    def rebuild() -> torch.nn.Module:
        return kit.small_cnn()

    model, data = Network(rebuild(), num_classes=10, rebuild=rebuild), tiny_set()
    head: Any = contrastive.head_of(model, method, 0)
    x = contrastive.pair(data.pixels(), Draws(9, data.ids))

    def loss() -> float:
        with torch.no_grad():
            return float(head.loss(model.features(x), x))

    last = contrastive.last_linear(model).weight.detach().clone()
    before = loss()
    contrastive.pretrain(model, head, data, SHORT, 0)
    assert loss() < before - 0.1
    assert torch.equal(contrastive.last_linear(model).weight, last)
    assert not any(m.training for m in model.modules())


def test_a_batch_may_be_changed_before_its_views_are_drawn() -> None:
    model, data = Network(kit.small_cnn(), num_classes=10), tiny_set(16)
    seen: list[Tensor] = []

    def change(x: Tensor, index: Tensor) -> Tensor:
        seen.append(index)
        torch.testing.assert_close(x, data.pixels(index))
        return x * 0

    head: Any = contrastive.head_of(model, "simclr", 0)
    contrastive.pretrain(model, head, data, Recipe(epochs=1, batch=8), 0, images=change)
    assert torch.cat(seen).sort().values.tolist() == list(range(16))


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(NotApplicable, match="no linear layer"):
        contrastive.last_linear(Network(torch.nn.Flatten(), num_classes=10))
