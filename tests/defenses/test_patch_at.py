"""Adversarial training on patches: which images are attacked, and that a region a patch can cover is not relied on."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.train import Recipe, accuracy, train

from .grey_digits import ONE, granted

RECIPE = {"epochs": 8, "batch": 40, "lr": 0.1, "weight_decay": 0.0, "augment": "none"}


def patch_at(**parameters: Any) -> Any:
    return registry.build("defense", {"name": "patch_at", **parameters})


def spot_and_rest(n: int = 160) -> ImageSet:
    """Two classes, 4x4 grey pixels: one pixel tells them apart always and strongly, all others weakly.

    The other 15 pixels are 0.5 -+ 0.05 for 90 % of the images and the other way round for the rest.
    """
    labels, ids = torch.arange(n) % 2, torch.arange(n)
    sign = 2.0 * labels - 1
    kept = torch.where(ids % 20 < 18, sign, -sign)
    x = 0.5 + 0.05 * kept[:, None, None, None].expand(-1, 1, 4, 4).clone()
    x[:, 0, 1, 2] = 0.5 + 0.4 * sign
    return ImageSet((255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1), labels, ids, 2, "spot")


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


def model() -> Network:
    return Network(linear(), num_classes=2, mean=(0.5,) * 3, std=(0.25,) * 3, rebuild=linear).fresh(3)


def under_any_pixel(net: Classifier, data: ImageSet) -> float:
    """Accuracy when the worst pixel has the worst colour; of a linear network in closed form."""
    layer: Any = net.net[1]  # type: ignore[union-attr,index]
    x = data.pixels()
    w = (layer.weight[1] - layer.weight[0]).view(1, 3, 4, 4) * (2.0 * data.labels - 1)[:, None, None, None]
    lowest = torch.where(w > 0, torch.zeros_like(x), torch.ones_like(x))  # the colour that lowers the margin most
    drop = (w * (x - lowest)).sum(dim=1).flatten(1).amax(dim=1) / 0.25
    z = net(x)
    margin = (z[:, 1] - z[:, 0]) * (2.0 * data.labels - 1)
    return float((margin > drop).double().mean())


def test_it_does_not_rely_on_what_a_patch_can_cover() -> None:
    data = spot_and_rest()
    plain = model()
    train(plain, data, Recipe(**RECIPE), 0)
    assert accuracy(plain, data) == 1.0
    attack = {"name": "loap", "location": "greedy", "steps": 2, "step": 1.0, "early_stop": False}
    robust = patch_at(attack=attack, share=1.0, recipe=RECIPE).apply(model(), granted(train=data), ONE)
    assert under_any_pixel(plain, data) < 0.2
    assert under_any_pixel(robust, data) > 0.85


def test_a_part_of_each_batch_carries_a_patch_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = spot_and_rest(64), []

    def two_epochs(net: Classifier, whole: ImageSet, recipe: Recipe, seed: int, **hooks: Any) -> None:
        index = torch.arange(10)
        net.train()
        for epoch in range(2):
            seen.append(hooks["images"](whole.pixels(index), whole.labels[index], index, epoch))
            assert net.training
        assert all(p.requires_grad for p in net.parameters())

    entry = patch_at(share=0.4, area=0.3)  # squares of 2x2
    monkeypatch.setattr(sys.modules[type(entry).__module__], "train", two_epochs)
    entry.fit(entry.structure(model()), granted(train=data), ONE)
    changed = [(x - data.pixels(slice(0, 10))).abs().amax(dim=1) > 0 for x in seen]
    for c in changed:
        assert not bool(c[4:].any())
        rows, columns = c[:4].any(dim=2), c[:4].any(dim=1)
        assert bool((rows.sum(dim=1) == 2).all())
        assert bool((columns.sum(dim=1) == 2).all())
    assert not torch.equal(seen[0], seen[1])  # anew in each epoch


def test_the_seed_alone_decides() -> None:
    data = spot_and_rest(64)
    entry = patch_at(attack={"name": "loap", "steps": 2}, recipe={"epochs": 1, "batch": 32})

    def weights(seed: int) -> Tensor:
        draws = Draws(seed, torch.zeros(1, dtype=torch.long))
        return torch.cat([p.detach().flatten() for p in entry.apply(model(), granted(train=data), draws).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("attack", "told"), [("pgd", "handles linf, l2, not l0"), ("adversarial_patch", "learns from training images")]
)
def test_attacks_that_do_not_fit_are_refused(attack: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        patch_at(attack=attack)
