"""NAD: attention maps in closed form, and a student that attends where its teacher does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.train import Recipe, train
from siegebench.types import Defense

from . import planted

SHORT = {"epochs": 6, "batch": 32, "optimiser": "sgd", "lr": 0.03, "augment": "none"}


def test_attention_is_the_energy_over_the_channels() -> None:
    nad: Any = registry.build(Defense, "nad")
    f = torch.zeros(1, 2, 1, 3)
    f[0, :, 0] = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, 0.0]])
    torch.testing.assert_close(nad.attention(f), torch.tensor([[2.0, 0.0, 4.0]]) / 20**0.5)


def test_the_student_attends_where_its_teacher_does() -> None:
    module = __import__(registry.entry_class("defense", "nad").__module__, fromlist=["x"])

    def rebuild() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )

    model = Network(rebuild(), num_classes=2, rebuild=rebuild).fresh(0)
    teaching, studying = {**SHORT, "epochs": 30, "lr": 0.2}, {**SHORT, "lr": 0.005}

    def repaired(beta: float) -> Network:
        spec = {"name": "nad", "beta": [beta], "teacher": teaching, "student": studying}
        out: Any = registry.build(Defense, spec).apply(model, planted.granted("clean"), planted.ONE)
        return out

    teacher, student, without = copy.deepcopy(model), repaired(1000), repaired(0)
    seed = module.derive_seed(module.derive_seed(0, "nad"), "teacher")
    train(teacher, planted.data(), Recipe(**teaching), seed)  # type: ignore[arg-type]
    nad: Any = registry.build(Defense, "nad")

    @torch.no_grad()
    def attention(network: Network) -> Tensor:
        maps = module.Maps(network, ["net.1"])
        network(planted.data().pixels())
        maps.close()
        found: Tensor = nad.attention(maps.seen[0])
        return found

    target = attention(teacher)
    assert float((attention(student) - target).norm()) < 0.6 * float((attention(without) - target).norm())
    assert not any(m._forward_hooks for m in student.modules())


def test_maps_of_one_pixel_are_no_stages() -> None:
    nad: Any = registry.build(Defense, "nad")
    assert nad.stages(planted.model(), planted.data().pixels(slice(0, 2))) == ["net.2"]
