"""DP-SGD: no batch norm is left, its noise is that of the accountant, and it learns when little noise is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from siegebench import registry
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.testing.specimens import network, one_draw, planted_set
from siegebench.train import accuracy
from siegebench.types import Defense, ModelSource

dp: Any = pytest.importorskip("siegebench.defenses.dp_sgd")
DATA = planted_set()


def granted() -> Granted:
    return Granted("dp_sgd", ("train",), train=lambda: DATA, clean=lambda: DATA, val=lambda: DATA)


@pytest.mark.parametrize("spec", ["byobnet_tiny", "timm/test_efficientnet", "cifar_resnet20"])
def test_no_batch_norm_is_left(spec: str) -> None:
    given: Any = {"name": spec, "checkpoint": None} if spec == "cifar_resnet20" else spec
    model = registry.build(ModelSource, given).build(num_classes=10, size=32)
    changed = dp.without_batch_norms(model.fresh(0))
    assert not [m for m in changed.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [m for m in changed.modules() if isinstance(m, nn.GroupNorm)]
    assert changed(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_with_little_noise_it_learns_and_with_much_it_does_not() -> None:
    spec = {"name": "dp_sgd", "epochs": 10, "batch": 40, "lr": 1.0}
    weak, strong = (
        registry.build(Defense, {**spec, "epsilon": e, "delta": 1e-3}).apply(network(), granted(), one_draw())
        for e in (1e6, 0.05)
    )
    assert accuracy(weak, DATA) > 0.5
    assert accuracy(strong, DATA) < 0.4


def test_the_sum_moves_by_at_most_the_norm_when_an_image_is_added() -> None:
    from siegebench.per_image import clipped, flat, per_image

    y = torch.nn.functional.one_hot(DATA.labels[:9], 10).float()
    each = clipped({k: g[None] for k, g in per_image(network(), DATA.pixels(slice(0, 9)), y).items()}, 0.5)
    sums = [flat({k: g[:, :n].sum(dim=1) for k, g in each.items()})[0] for n in (8, 9)]
    assert float((sums[1] - sums[0]).norm()) <= 0.5 + 1e-6


def test_only_published_weights_are_public() -> None:
    entry = registry.build(Defense, {"name": "dp_sgd", "public": True})
    with pytest.raises(NotApplicable, match="has no published weights"):
        entry.apply(network(), granted(), Draws(0, torch.zeros(1, dtype=torch.long)))
