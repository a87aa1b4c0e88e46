"""Generative variation: variations with the statistics of the originals, and what the new network is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import accuracy
from siegebench.types import Defense

from . import planted

MODULE: Any = __import__(registry.entry_class("defense", "generative_variation").__module__, fromlist=["x"])


class Blur(nn.Module):
    """A generator that returns the mean of its neighbourhood, so that small triggers fade."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(1))

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        return F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)


def entry(**parameters: Any) -> Any:
    generator = {"name": "diffpure", "t": 4, "steps": 2, "width": 4, "recipe": {"epochs": 1, "batch": 16}}
    return registry.build(Defense, {"name": "generative_variation_standin", "generator": generator, **parameters})


def test_variations_have_the_statistics_of_the_originals() -> None:
    data = planted.data()
    x = data.pixels()
    v = MODULE.matched(F.avg_pool2d(x, 3, 1, 1), x)
    torch.testing.assert_close(v.mean(dim=(2, 3)), x.mean(dim=(2, 3)))
    torch.testing.assert_close(v[:, :2].std(dim=(2, 3)), x[:, :2].std(dim=(2, 3)), rtol=1e-3, atol=1e-4)
    varied = entry(batch=7).vary(Blur(), data, 0)
    assert torch.equal(varied.labels, data.labels)
    assert torch.equal(varied.ids, data.ids)
    expected = data.kind.store(MODULE.matched(Blur()(x, Draws(0, data.ids)), x).clamp(0, 1))
    assert torch.equal(varied.images, expected)


def test_the_loss_of_distillation() -> None:
    z, theirs, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([0])
    p, q = F.softmax(z / 2, dim=1), F.softmax(theirs / 2, dim=1)
    expected = 0.3 * 4 * (q * (q / p).log()).sum() + 0.7 * F.cross_entropy(z / 5, y)
    torch.testing.assert_close(MODULE.distilled(z, theirs, y, 0.3, 2.0, 5.0), expected)


def test_the_new_network_learns_the_classes_from_the_variations(monkeypatch: pytest.MonkeyPatch) -> None:
    def rebuild() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )

    model, data = Network(rebuild(), num_classes=2, rebuild=rebuild).fresh(0), planted.data()
    recipe = {"epochs": 30, "batch": 20, "lr": 0.02, "augment": "none"}
    varying = entry(recipe=recipe, training="labels")
    monkeypatch.setattr(type(varying.generator), "shared", lambda self, made: Blur())
    monkeypatch.setattr(type(varying.generator), "fit", lambda self, made, data, draws: None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    repaired = varying.apply(model, planted.granted("train", "clean"), planted.ONE)
    assert accuracy(repaired, data) > 0.9 > accuracy(model, data)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_generator_of_ones_own_is_part_of_the_key(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.1 * x

    path = tmp_path / "net.pt"
    torch.jit.trace(Net(), (torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long))).save(str(path))
    given = registry.build(
        Defense, {"name": "generative_variation", "generator": {"name": "diffpure", "file": str(path)}}
    )
    assert len(given.identity()["generator"]["sha256"]) == 64
    assert "file" not in given.parameters()["generator"]
    assert entry().identity() == {}


def test_a_generator_is_needed() -> None:
    with pytest.raises(NotApplicable, match="no generator; give yours"):
        planted.repaired("generative_variation", "train", "clean")
