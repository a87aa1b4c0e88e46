"""Unit shift: planted units that an attack must move, and what setting them back undoes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure

unit_shift: Any = pytest.importorskip("siegebench.measures.unit_shift")
CLASSES, EACH = 4, 2


class Planted(nn.Module):
    """Eight channels of 1x1 convolution see a pixel pattern each; two belong to each class, and the classes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, CLASSES * EACH, 4, bias=False)
        with torch.no_grad():
            q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
            self.maps.weight.copy_(q[: CLASSES * EACH].view(-1, 1, 4, 4))
        self.head = nn.Parameter(8 * torch.eye(CLASSES).repeat_interleave(EACH, dim=1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.maps(x - 0.5).relu().flatten(1)) @ self.head.T


def victim() -> tuple[Classifier, Tensor, Tensor]:
    """(the network, images that show the pattern of their class, labels)"""
    net = Planted()
    model = Network(net, num_classes=CLASSES).eval().requires_grad_(False)
    y = torch.arange(40) % CLASSES
    pattern = net.maps.weight.detach()[:, 0].view(CLASSES, EACH, 4, 4).sum(dim=1)
    x = 0.5 + 0.2 * pattern[y][:, None] + 0.01 * Draws(0, torch.arange(40)).normal((1, 4, 4))
    assert bool((model(x).argmax(dim=1) == y).all())
    return model, x, y


def measured(eps: float, **parameters: Any) -> dict[str, float]:
    model, x, y = victim()
    entry = registry.build(Measure, {"name": "unit_shift", "units": EACH, **parameters})
    threat, draws = ThreatModel(norm="l2", eps=eps), Draws(0, torch.arange(40))
    found: dict[str, float] = entry(Oracle(model, threat, draws), x, y, threat, draws)["metrics"]
    return found


def test_the_units_of_the_target_are_those_that_are_moved() -> None:
    found = measured(1.0)
    assert found["reached"] > 0.8
    assert (found["channels"], found["units"]) == (8, EACH)
    assert found["overlap_expected"] == EACH / 8
    assert found["overlap"] > 0.8
    # without the units of the target, the image has its own class again, or none
    assert found["undone_important"] > found["undone_random"]
    assert found["undone"] > found["undone_random"]


def test_what_never_reaches_its_target_has_no_overlap() -> None:
    found = measured(0.01)
    assert found["reached"] == 0
    assert "overlap" not in found


def test_importance_is_the_fall_of_the_probability() -> None:
    model, x, y = victim()
    asked = Oracle(model, ThreatModel(), Draws(0, torch.arange(40)))
    a = unit_shift.maps(asked, x)
    assert a.shape == (40, 8, 1, 1)
    fall = unit_shift.importance(asked, x, a)
    for c in range(CLASSES):
        top = fall[y == c].mean(dim=0).topk(EACH).indices.sort().values
        assert top.tolist() == [EACH * c, EACH * c + 1]


def test_attacks_that_cannot_aim_or_have_another_norm_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot aim"):
        measured(1.0, attack="deepfool")
    model, x, y = victim()
    entry, draws = registry.build(Measure, "unit_shift.paper"), Draws(0, torch.arange(40))
    with pytest.raises(NotApplicable, match="l2"):
        entry(Oracle(model, ThreatModel(), draws), x, y, ThreatModel(), draws)
