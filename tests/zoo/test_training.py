"""Small networks learn the digits."""

from __future__ import annotations

import pytest

from siegebench.classifier import Network
from siegebench.data import stratified
from siegebench.draws import derive_seed
from siegebench.train import Recipe, accuracy, train
from siegebench.weights import weights_hash

from .building import load, model


def after_training(
    name: str, data: str, seed: int = 0, recipe: Recipe | None = None, count: int | None = None
) -> tuple[Network, float]:
    source = model(name)
    train_set, test_set = load(data, "train"), load(data, "test")
    if count is not None:
        train_set = train_set.select(stratified(train_set, count, 0))
    net = source.build(num_classes=train_set.num_classes, size=train_set.images.shape[-1])
    net = net.fresh(derive_seed(seed, "weights"))  # type: ignore[assignment]
    train(net, train_set, recipe or source.recipe, derive_seed(seed, "train"))  # type: ignore[attr-defined]
    return net, accuracy(net, test_set)  # type: ignore[return-value]


def test_a_small_network_learns_digits_and_repeats_itself() -> None:
    short = Recipe(epochs=4, batch=32, lr=5e-3)
    (one, right), (two, again) = (after_training("byobnet_tiny", "digits", recipe=short, count=640) for _ in range(2))
    assert right == again > 0.6
    assert weights_hash(one.state_dict()) == weights_hash(two.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byobnet_tiny", "convnext_tiny32", "efficientnet_tiny"])
def test_small_networks_reach_their_accuracy_on_digits(name: str) -> None:
    assert after_training(name, "digits")[1] > 0.95
