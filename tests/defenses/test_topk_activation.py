"""Top-k activation: where it acts, how much it keeps, and that it is trained so."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, accuracy
from siegebench.types import ModelSource
from tests import kit

from .grey_digits import ONE, defense, granted

module = sys.modules[type(defense("topk_activation")).__module__]


@pytest.mark.parametrize(
    ("dim", "shape"), [(-1, (2, 5, 16)), (1, (2, 16, 3, 3)), (None, (2, 16, 3, 3)), (None, (2, 16))]
)
def test_the_largest_values_pass_unchanged(dim: int | None, shape: tuple[int, ...]) -> None:
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = module.TopK(nn.Identity(), 0.25, dim)(h)
    before, after = ((t.movedim(1, -1) if t.dim() == 4 else t).reshape(-1, 16) for t in (h, out))
    largest = before.abs().sort(dim=1, descending=True).values[:, 3:4]
    assert torch.equal(after, torch.where(before.abs() >= largest, before, 0.0))


def seen_in(model: Classifier, x: Tensor) -> list[Tensor]:
    out: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda _m, _a, h: out.append(h)) for m in model.modules() if isinstance(m, module.TopK)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return out


def test_every_mlp_of_a_transformer_keeps_an_eighth_of_its_units() -> None:
    vit = registry.build(ModelSource, {"name": "timm/test_vit", "input_size": 32}).build(num_classes=10, size=32)
    model = defense("topk_activation").wrap(vit).eval()
    hidden = seen_in(model, kit.grey_images(2, 32))
    assert len(hidden) == len([m for m in vit.modules() if hasattr(m, "fc1")]) > 0
    for h in hidden:
        kept = (h != 0).sum(dim=-1)
        assert int(kept.max()) <= round(h.shape[-1] / 8)
        assert bool((h >= 0).all())


def test_squeeze_and_excitation_is_no_mlp() -> None:
    class Gated(nn.Module):  # as in timm
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2, self.gate = nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid()

        def forward(self, h: Tensor) -> Tensor:
            g: Tensor = self.gate(self.fc2(self.act(self.fc1(h.mean((2, 3), keepdim=True)))))
            return h * g

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Gated(), nn.Flatten(), nn.Linear(8 * 36, 10))

    model = defense("topk_activation").wrap(Network(net(), num_classes=10, rebuild=net)).eval()
    assert [tuple(h.shape[2:]) for h in seen_in(model, kit.grey_images(2))] == [(6, 6), (1, 1)]


def test_share_one_and_post_hoc_have_the_logits_of_the_network(cnn16: Classifier, test_set: ImageSet) -> None:
    x = test_set.pixels(slice(0, 8))
    whole = defense("topk_activation", share=1.0, retrain=False).apply(cnn16, granted("none"), ONE)
    assert torch.equal(whole(x), cnn16(x))
    few = defense("topk_activation", share=0.25, retrain=False).apply(cnn16, granted("none"), ONE)
    assert [int((h != 0).sum(dim=1).max()) for h in seen_in(few, x)] == [3, 6]  # of 12 and 24 channels
    assert not torch.equal(few(x), cnn16(x))


def test_training_with_it_recovers_what_the_selection_costs(
    cnn16: Classifier, train_set: ImageSet, test_set: ImageSet
) -> None:
    recipe = Recipe(epochs=6, batch=64, lr=5e-3, augment="none")
    post_hoc = defense("topk_activation", share=0.2, retrain=False).apply(cnn16, granted("none"), ONE)
    trained = defense("topk_activation", share=0.2, recipe=vars(recipe)).apply(
        cnn16, granted("train", train=train_set), ONE
    )
    assert accuracy(trained, test_set) > accuracy(post_hoc, test_set) + 0.1
    assert max(int((h != 0).sum(dim=1).max()) for h in seen_in(trained, test_set.pixels(slice(0, 8)))) <= 5


def test_networks_without_activation_modules_are_refused() -> None:
    model = Network(kit.Linear(), num_classes=10, rebuild=kit.Linear)
    with pytest.raises(NotApplicable, match="no activation module"):
        defense("topk_activation").wrap(model)
