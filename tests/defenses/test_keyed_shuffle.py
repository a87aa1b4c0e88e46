"""Keyed shuffle: exact with the right key, chance without it, and a key that a few images give away."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.train import accuracy

from .grey_digits import defense

module = sys.modules[type(defense("keyed_shuffle")).__module__]


def test_the_right_key_changes_no_logit_and_no_gradient(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("keyed_shuffle", key=7).wrap(cnn16)
    x = test_set.pixels(slice(0, 8))
    assert torch.equal(model(x), cnn16(x))
    leaf, other = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(model(leaf).square().sum(), leaf)
    (expected,) = torch.autograd.grad(cnn16(other).square().sum(), other)
    assert torch.equal(g, expected)


@pytest.mark.parametrize("holds", ["wrong", "none"])
def test_without_the_key_the_network_is_at_chance(holds: str, cnn16: Classifier, test_set: ImageSet) -> None:
    assert accuracy(defense("keyed_shuffle", holds=holds).wrap(cnn16), test_set) < 0.25


def test_a_recording_is_a_permutation_of_pixels() -> None:
    x = torch.rand(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    s = module.shuffled(x, 3)
    assert not torch.equal(s, x)
    assert not torch.equal(s, module.shuffled(x, 4))
    assert torch.equal(s.flatten(2).sort(dim=2).values, x.flatten(2).sort(dim=2).values)
    assert torch.equal(module.gathered(s, 3), x)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 10, 10), (1, 300, 300)])
def test_one_chosen_image_gives_the_key_away(shape: tuple[int, int, int]) -> None:
    camera = partial(module.shuffled, key=5)
    found = module.read_off(camera, shape)
    assert torch.equal(found, module.permutation(5, shape[1] * shape[2]))


def test_a_few_known_images_give_most_of_it_away() -> None:
    x = (torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 15).round() / 255  # 16 levels
    whole = module.permutation(5, 256)
    shares = []
    for n in (1, 4):
        found = module.matched(x[:n], module.shuffled(x[:n], 5))
        known = found >= 0
        assert torch.equal(found[known], whole[known])
        shares.append(float(known.float().mean()))
    assert shares[0] > 0.8
    assert shares[1] == 1.0
    flat = module.matched(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert bool((flat == -1).all())
