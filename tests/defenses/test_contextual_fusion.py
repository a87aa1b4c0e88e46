"""Contextual fusion: frozen branches, the penalty on one of them, and that its files enter the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.config import load_suite
from siegebench.data import Size
from siegebench.plan import plan
from siegebench.train import Recipe
from siegebench.types import Defense, ModelSource
from siegebench.weights import save_weights
from siegebench.workspace import Settings, Workspace

from .grey_digits import ONE, granted
from .test_pgd_at import two_features

RECIPE = Recipe(epochs=1, batch=32, augment="none")
SHORT = {"epochs": 20, "batch": 32, "augment": "none", "lr": 0.05}


def net(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 2))


@dataclass(frozen=True, kw_only=True)
class Other(ModelSource):
    """A network that is trained on the data."""

    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size) -> Network:
        return Network(net(7), num_classes=num_classes, rebuild=lambda: net(7))


def fused(penalty: float) -> tuple[Any, dict[str, Tensor]]:
    model = Network(net(), num_classes=2, rebuild=net).fresh(0)
    entry: Any = registry.entry_class("defense", "contextual_fusion")
    given = {k: v.clone() for k, v in model.state_dict().items()}
    entry = entry(background=Other(), penalty=penalty, recipe=Recipe(**SHORT))
    return entry.apply(model, granted(train=two_features(64)), ONE), given


def test_the_model_stays_as_given_and_the_penalty_shrinks_its_part_of_the_layer() -> None:
    free, given = fused(0.0)
    held, _ = fused(10.0)
    for deployed in (free, held):
        own = deployed.members[0].state_dict()
        assert all(torch.equal(own[k], v) for k, v in given.items())
    d = free.widths[0]
    assert (d, free.head.in_features) == (5, 12)
    norm = [float(deployed.head.weight[:, :d].detach().norm()) for deployed in (free, held)]
    assert norm[1] < 0.2 * norm[0]
    background = [deployed.members[1].state_dict() for deployed in (free, held)]
    assert all(torch.equal(v, background[1][k]) for k, v in background[0].items())  # trained once, then frozen


def test_gradients_are_those_of_both_branches() -> None:
    deployed, _ = fused(0.0)
    x = two_features(8).pixels().requires_grad_(True)
    z = deployed(x)
    parts = [member.features(x) @ w.T for member, w in zip(deployed.members, _halves(deployed), strict=True)]
    assert torch.allclose(z, parts[0] + parts[1] + deployed.head.bias, atol=1e-5)
    (both,) = torch.autograd.grad(z[:, 0].sum(), x, retain_graph=True)
    (foreground,) = torch.autograd.grad(parts[0][:, 0].sum(), x, retain_graph=True)
    (background,) = torch.autograd.grad(parts[1][:, 0].sum(), x)
    assert torch.allclose(both, foreground + background, atol=1e-6)
    assert float(background.abs().sum()) > 0


def _halves(deployed: Any) -> tuple[Tensor, Tensor]:
    d = deployed.widths[0]
    return deployed.head.weight[:, :d], deployed.head.weight[:, d:]


def test_weights_of_the_background_enter_the_key_and_their_folder_does_not(tmp_path: Path) -> None:
    built = registry.build(ModelSource, {"name": "cifar_resnet20", "checkpoint": None}).build(num_classes=7, size=32)
    keys = set()
    for i, name in enumerate(("a.safetensors", "b.safetensors", "c.safetensors")):
        state = dict(built.net.state_dict())
        state["linear.bias"] = torch.full((7,), float(i > 1))
        save_weights(tmp_path / name, state)
        background = {"name": "cifar_resnet20", "checkpoint": str(tmp_path / name)}
        suite = tmp_path / "suite.yaml"
        suite.write_text(
            "suite: s\nsummary: S.\ndata: {set: digits, count: 10}\n"
            "models: [{name: cifar_resnet20, checkpoint: null}]\nboards:\n"
            "  - track: corruption\n    corruptions: [contrast_scale]\n    defenses:\n"
            f"      - {{name: contextual_fusion, background_classes: 7, background: {background}}}\n",
            encoding="utf-8",
        )
        planned = plan(load_suite(str(suite)))
        (cell,) = planned.cells
        keys.add(cell.key)
        assert str(tmp_path) not in str(cell.defense)
        workspace = Workspace(Settings(root=str(tmp_path / "store"), specs=planned.specs))
        entry = workspace.entry(Defense, cell.defense)
        assert entry.background.checkpoint == str(tmp_path / name)  # type: ignore[attr-defined]
    assert len(keys) == 2  # a and b have the same weights, c has others
