"""Sign-Flip at a lower resolution."""

from __future__ import annotations

import torch
from siegebench.attacks.signflip import SignFlip

from siegebench.classifier import Classifier
from tests import kit

from .planted import label_threat


def test_signflip_at_a_lower_resolution(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    found = []
    for resize in (1, 2):
        attack = SignFlip(queries=600, resize=resize, stop_at_eps=False)
        x_adv, oracle = kit.attack_with(attack, linear, x, y, label_threat("linf"))
        assert bool((linear(x_adv).argmax(1) != y).all())
        assert oracle.ledger.queries.tolist() == [600] * 4
        found.append(x_adv)
    assert not torch.equal(found[0], found[1])


def test_signs_are_kept_longer_with_more_queries() -> None:
    granted = torch.tensor([1, 100, 2000, 10_000, 100_000])
    expected = torch.tensor([0.99, 0.99, 0.995, 0.999, 0.999], dtype=torch.float64)
    torch.testing.assert_close(SignFlip().keeping(granted), expected)
    assert SignFlip(p=0.9).keeping(granted).tolist() == [0.9] * 5
