"""Precortical module: its closed form, its initial weights, and that it is trained with the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from tests import kit

from .grey_digits import ONE, granted
from .test_pgd_at import two_features


def precortical(**parameters: Any) -> Any:
    return registry.build("defense", {"name": "precortical", **parameters})


def test_each_block_is_tanh_of_a_convolution_of_the_same_shape() -> None:
    inner, x = kit.cnn_model(), kit.grey_images(4)
    deployed = precortical(depth=2, kernel=3).structure(inner)
    for module in deployed.modules():
        if isinstance(module, nn.Conv2d) and module in list(deployed.retina):
            nn.init.dirac_(module.weight)
            nn.init.constant_(module.bias, 0.1)
    expected = torch.tanh(torch.tanh(x + 0.1) + 0.1)  # of a convolution that copies its input; no dropout in eval mode
    assert torch.allclose(deployed(x), deployed.inner(expected))
    assert torch.allclose(deployed.features(x), deployed.inner.features(expected))
    assert len([m for m in deployed.retina if isinstance(m, nn.Conv2d)]) == 2


def test_initial_weights_are_uniform_in_torchs_range_and_depend_on_the_draws() -> None:
    retina = precortical().structure(kit.cnn_model()).retina

    def started(seed: int) -> list[torch.Tensor]:
        retina.start(Draws(seed, torch.zeros(1, dtype=torch.long)))
        return [p.detach().clone() for p in retina.parameters()]

    first, again, other = started(0), started(0), started(1)
    bound = (3 * 7 * 7) ** -0.5
    assert [tuple(p.shape) for p in first] == [(3, 3, 7, 7), (3,)] * 3
    for p in first:
        assert float(p.abs().max()) <= bound
    assert float(first[0].abs().max()) > 0.9 * bound
    assert abs(float(first[0].mean())) < 0.1 * bound
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[2])


def test_retina_and_network_are_trained_together() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

    def trained(epochs: int) -> dict[str, torch.Tensor]:
        recipe = {"epochs": epochs, "batch": 32, "augment": "none", "lr": 1e-2}
        model = Network(net(), num_classes=2, rebuild=net)
        deployed = precortical(recipe=recipe).apply(model, granted(train=two_features(64)), ONE)
        return {k: v.clone() for k, v in deployed.state_dict().items() if k.endswith(("weight", "bias"))}

    one, three = trained(1), trained(3)
    assert len(one) == 8
    assert not any(torch.equal(one[k], three[k]) for k in one)


def test_filters_have_an_odd_side() -> None:
    with pytest.raises(ConfigError, match="odd side, found 4"):
        precortical(kernel=4)
