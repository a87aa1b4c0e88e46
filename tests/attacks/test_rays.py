"""RayS: its blocks, and the signs that it finds."""

from __future__ import annotations

import itertools

import pytest
import torch
from siegebench.attacks.rays import RayS, blocks

from siegebench import ops
from siegebench.classifier import Classifier
from tests import kit

from .planted import Recording, brightness, label_threat, nearest_boundary, two_of


def test_rays_finds_every_sign_of_a_linear_model(linear: Classifier) -> None:
    model = two_of(linear).double()
    x = kit.grey_images(6).double()
    y = model(x).argmax(1)
    nearest = nearest_boundary(model, x, y, "linf")
    attack = RayS(queries=4000, tolerance=1e-5, stop_at_eps=False)
    x_adv, _ = kit.attack_with(attack, model, x, y, label_threat("linf"))
    torch.testing.assert_close(ops.size(x_adv - x, "linf"), nearest, rtol=1e-3, atol=0)


def test_a_search_is_as_coarse_as_its_block() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    y = torch.zeros(1, dtype=torch.long)
    # the whole image: not searched; the halves: not nearer; the first quarter: four queries bisect [0, 1]
    for queries, far in ((1, 0.5), (4, 0.5), (5, 0.5), (6, 0.25), (7, 0.25), (8, 0.25)):
        attack = RayS(queries=queries, stop_at_eps=False)
        x_adv, _ = kit.attack_with(attack, brightness(0.1), x, y, label_threat("linf"))
        assert float(ops.size(x_adv - x, "linf")) == pytest.approx(far, rel=2.1e-4)
    # the next query flips the second quarter
    model = Recording(brightness(0.1))
    kit.attack_with(RayS(queries=9, stop_at_eps=False), model, x, y, label_threat("linf"))
    assert (model.seen[-1] - x).flatten().tolist() == [0.25] * 24 + [-0.25] * 24


def test_blocks_cover_the_image_level_by_level() -> None:
    first = list(itertools.islice(blocks(10), 1 + 2 + 4 + 5 + 10 + 10))
    for level, size in ((slice(0, 1), 10), (slice(1, 3), 5), (slice(3, 7), 3), (slice(7, 12), 2), (slice(12, 22), 1)):
        covered = [i for block in first[level] for i in range(10)[block]]
        assert covered == list(range(10))
        assert first[level][0].stop == size
    assert first[12:22] == first[22:]
