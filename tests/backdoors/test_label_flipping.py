"""Label flipping: which labels become wrong, and to what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from siegebench import registry
from siegebench.data import ImageSet
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.types import Poisoning
from tests import victims

from .planted import random_set, small_net

RECIPE = {"epochs": 2, "batch": 64, "lr": 0.005, "augment": "none"}


def flipping(**parameters: Any) -> Poisoning:
    return registry.build(Poisoning, {"name": "label_flipping", **parameters})


@pytest.mark.parametrize("mode", ["uniform", "next"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_exactly_the_share_is_wrong_and_images_stay(mode: str, rate: float) -> None:
    data = random_set()
    poisoned = flipping(mode=mode, rate=rate).poison(data, 0)
    wrong = (poisoned.data.labels != data.labels).nonzero().squeeze(1)
    assert torch.equal(wrong, poisoned.index)
    assert len(wrong) == round(rate * 200)
    assert torch.equal(poisoned.data.images, data.images)
    assert torch.equal(data.labels, random_set().labels)
    if mode == "next":
        assert torch.equal(poisoned.data.labels[wrong], (data.labels[wrong] + 1) % 5)
    if rate == 0:
        assert poisoned.data.digest == data.digest


def test_uniform_labels_are_any_of_the_others() -> None:
    data = random_set(n=2000)
    labels = flipping(rate=1.0).poison(data, 0).data.labels
    counts = torch.bincount((labels - data.labels) % 5, minlength=5)
    assert counts[0] == 0
    assert bool((counts[1:] > 420).all())  # of 500


def test_pairs_are_targeted() -> None:
    data = random_set()
    poisoned = flipping(mode="pair", pairs={"0": 3, "1": 4}, rate=0.2).poison(data, 0)
    assert set(data.labels[poisoned.index].tolist()) == {0, 1}
    assert torch.equal(poisoned.data.labels[poisoned.index], data.labels[poisoned.index] + 3)
    with pytest.raises(NotApplicable, match=r"at most rate 0\.200"):
        flipping(mode="pair", pairs={"0": 3}, rate=0.21).poison(data, 0)
    with pytest.raises(ContractError, match="class 9 does not exist"):
        flipping(mode="pair", pairs={"0": 9}).check(5)
    with pytest.raises(ConfigError, match="belong together"):
        flipping(mode="pair")


def test_near_labels_are_the_second_guess_and_margin_takes_the_unsure_first() -> None:
    data: ImageSet = victims.tiny_digits()[0]
    near, margin = (flipping(mode=mode, rate=0.1, recipe=RECIPE) for mode in ("near", "margin"))
    material = near.learn(data, 0, small_net(7))
    back = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    for shuffled in (data, data.select(back)):  # values belong to images, not to places
        first, second = near.poison(shuffled, 0, material), margin.poison(shuffled, 0, material)
        place = torch.searchsorted(data.ids, shuffled.ids)  # ids of the scans are sorted
        assert torch.equal(first.data.labels[first.index], material["label"][place][first.index])
        sure = material["margin"][place]
        rest = torch.ones(len(data), dtype=torch.bool)
        rest[second.index] = False
        assert float(sure[second.index].max()) <= float(sure[rest].min())
    with pytest.raises(ContractError, match="call learn first"):
        near.poison(data, 0)
