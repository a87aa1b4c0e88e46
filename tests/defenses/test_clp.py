"""CLP: the bound in closed form, and the channel that stands out."""

from __future__ import annotations

import torch
from torch import nn

from siegebench import registry
from siegebench.train import accuracy

from . import planted


def test_the_bound_is_the_largest_gain_of_a_channel() -> None:
    module = __import__(registry.entry_class("defense", "clp").__module__, fromlist=["x"])
    conv, norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -3.0]))
        norm.running_var.copy_(torch.tensor([3.5, 0.5]))  # type: ignore[union-attr]
    singular = [float(torch.linalg.svdvals(w.flatten(1))[0]) for w in conv.weight.detach()]
    expected = torch.tensor([2 / 2 * singular[0], 3 / 1 * singular[1]])
    torch.testing.assert_close(module.bounds(conv, norm), expected)


def test_only_the_planted_channel_is_pruned() -> None:
    before, after = planted.repaired("clp", "clean", u=1.5)
    assert planted.success(before) == 1
    assert planted.success(after) == 0
    assert accuracy(after, planted.data()) == 1
    pruned = after.net[1].weight == 0  # type: ignore[union-attr, index]
    assert pruned.nonzero().flatten().tolist() == [planted.BAD]
    assert float(after.net[1].bias.detach()[planted.BAD]) == 0  # type: ignore[union-attr, index]


def test_a_large_u_prunes_nothing() -> None:
    _, after = planted.repaired("clp", "clean", u=10)
    assert planted.success(after) == 1
