"""SignHunter: its chunks, and the sign of the gradient that it ends at."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from siegebench.attacks.signhunter import SignHunter, chunks

from siegebench.classifier import Network
from siegebench.threat import Norm
from tests import kit

from .planted import TwoClasses, both_norms, half_space, score


@pytest.mark.parametrize("n", [1, 2, 7, 12, 75, 192])
def test_chunks_cover_every_level_and_begin_again(n: int) -> None:
    levels = math.ceil(math.log2(n)) + 1
    seen: list[list[int]] = []
    parts = chunks(n)
    for level in range(2 * levels):
        length = math.ceil(n / 2 ** (level % levels))
        covered: list[int] = []
        for _ in range(math.ceil(n / length)):
            part = next(parts)
            covered += range(n)[part]
        assert covered == list(range(n))
        seen.append(covered)
    assert [p.stop - p.start for p in islice(chunks(12), 1, 3)] == [6, 6]


@both_norms
def test_signhunter_ends_at_the_sign_of_the_gradient(norm: Norm) -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    once = 1 + 1 + 2 + 4 + 8 + 16 + 32 + 64 + 96 + 192  # all chunks of 192 coordinates, after the first image
    eps = 0.05
    for queries, there in ((once, True), (once - 1, None), (once - 100, False), (once + 30, True)):
        x_adv, oracle = kit.attack_with(SignHunter(), model, x, y, score(norm, eps, queries))
        s = -w.sign() if norm == "linf" else -w.sign() / math.sqrt(192)
        if there is not None:
            assert torch.allclose(x_adv, x + eps * s, rtol=0, atol=1e-12) is there
        assert oracle.ledger.queries.tolist() == [queries] * 4


def test_signhunter_needs_one_query_where_its_first_image_is_wrong() -> None:
    x = kit.grey_images(8).double()
    bright = Network(TwoClasses(-torch.ones(192), float(x.flatten(1).sum(1).max()) + 1), num_classes=2).double().eval()
    y = bright(x).argmax(1)
    assert y.tolist() == [0] * 8
    x_adv, oracle = kit.attack_with(SignHunter(), bright, x, y, score("linf", 0.2))
    assert oracle.ledger.queries.tolist() == [1] * 8
    assert torch.equal(x_adv, x + 0.2)


def test_signhunter_stays_in_the_l2_ball_around_flat_images() -> None:
    """Rounding moves equal pixels the same way: it must not add up to more than the ball allows."""
    x = torch.cat([torch.full((1, 3, 32, 32), v) for v in torch.linspace(0.3, 0.7, 40).tolist()])
    model, _ = half_space((3, 32, 32), b=500.0)
    model = model.float()
    y = model(x).argmax(1)
    for eps in (0.1, 0.25, 0.5, 1.0):
        x_adv, _ = kit.attack_with(SignHunter(queries=3), model, x, y, score("l2", eps))  # refused if outside
        assert float((x_adv - x).flatten(1).norm(dim=1).max()) <= eps + 1e-6
