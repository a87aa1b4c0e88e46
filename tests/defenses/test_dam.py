"""DAM: merging in closed form, a mask that lowers the entropies, and where theta_0 and the members come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from siegebench.defenses import _merging
from siegebench.defenses.dam import DAM, Merging, Task, entropy
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.testing.specimens import planted_set
from siegebench.types import Defense

ONE = Draws(0, torch.zeros(1, dtype=torch.long))
EPOCH = {"epochs": 1, "batch": 20, "augment": "none"}


def dam(**parameters: Any) -> DAM:
    found = registry.build(Defense, {"name": "dam", "images": 60, "pretraining": EPOCH, "recipe": EPOCH, **parameters})
    assert isinstance(found, DAM)
    return found


def network(published: bool = False) -> Network:
    """A backbone with a batch norm; `published`: it starts from the same weights each time, and the head does not."""

    def rebuild() -> nn.Module:
        first = nn.Conv2d(3, 4, 3, 4, 1)
        if published:
            nn.init.constant_(first.weight, 0.1)
            nn.init.zeros_(first.bias)  # type: ignore[arg-type]
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))

    return Network(rebuild(), num_classes=10, rebuild=rebuild).fresh(0).eval()


def granted() -> Granted:
    data = planted_set()
    return Granted("test", ("train", "clean"), train=lambda: data, clean=lambda: data.select(torch.arange(40)))


def test_task_arithmetic_and_a_constant_mask_in_closed_form() -> None:
    start = {"w": torch.tensor([1.0, 2.0])}
    vectors = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 4.0])}]
    scales = torch.tensor([0.5, 0.25])
    plain = _merging.merged(start, vectors, scales, None)["w"]
    assert plain.tolist() == [1.5, 3.0]
    assert torch.equal(_merging.merged(start, vectors, scales, {"w": torch.full((2,), 0.3)})["w"], plain)
    masked = _merging.merged(start, vectors, scales, {"w": torch.tensor([0.0, 0.5])})["w"]
    assert masked.tolist() == [1.0, 4.0]  # m / mean(m) = (0, 2)


def test_the_mask_lowers_the_entropies_of_tasks_that_disturb_each_other() -> None:
    """Both tasks read one feature each; each task vector also turns the feature of the other task off."""

    def member(own: int) -> Task:
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
        with torch.no_grad():
            net[0].weight.zero_()
            net[0].bias.zero_()
            net[0].weight[own, own] = 8.0
            net[0].weight[1 - own, 1 - own] = -8.0
            net[3].weight.zero_()
            net[3].bias.zero_()
            net[3].weight[:, own] = torch.tensor([1.0, -1.0])
        images = torch.full((64, 3, 4, 4), 128, dtype=torch.uint8)
        data = ImageSet(images, torch.zeros(64, dtype=torch.long), torch.arange(64), 2, "one")
        return Task(Network(net, num_classes=2).eval(), data)

    tasks = [member(0), member(1)]
    start = {name: torch.zeros_like(p) for name, p in _merging.backbone(tasks[0].model).items()}
    tasks[1].model.net[0].weight.data[0, 0] = -4.0  # so that a mask can help: half of the first feature is left
    how = dam(adapt=False, steps=30, mask_lr=0.2, inner=0.0, scale=0.5)
    merging = Merging((start, tasks), 0, how)
    x = [task.images.pixels() for task in tasks]
    plain, masked = merging.at(merging.scales, None), merging.weights()
    with torch.no_grad():
        assert float(merging.entropy(masked, x)) < float(merging.entropy(plain, x)) - 0.05


def test_the_entropy() -> None:
    assert float(entropy(torch.zeros(3, 4))) == pytest.approx(1.3863, abs=1e-4)
    assert float(entropy(torch.tensor([[50.0, 0.0]]))) == pytest.approx(0, abs=1e-6)


def test_the_statistics_are_those_of_the_images() -> None:
    model, data = network(), planted_set()
    _merging.measure_statistics(model, data, len(data))
    with torch.no_grad():
        out: Tensor = model.net[0](data.pixels())
    torch.testing.assert_close(model.net[1].running_mean, out.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.net[1].running_var, out.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not any(m.training for m in model.modules())


def test_the_victim_is_a_member_if_its_start_is_known() -> None:
    victim = network(published=True)
    torch.nn.init.constant_(victim.net[0].bias, 0.5)
    how = replace(dam(mask=False, adapt=False, scale=1.0), pretraining=None)
    start, tasks = how.models(victim, granted(), 3)
    assert float(start["net.0.bias"].abs().max()) == 0
    vectors = Merging((start, tasks), 3, how).vectors
    assert float((vectors[0]["net.0.bias"] - 0.5).abs().max()) == 0
    made = how.apply(victim, granted(), ONE)
    assert torch.equal(made.net[4].weight, victim.net[4].weight)  # its head
    assert not torch.equal(made.net[0].weight, victim.net[0].weight)


def refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        make()


def test_what_cannot_be_merged_is_refused() -> None:
    refused(lambda: replace(dam(), pretraining=None).apply(network(), granted(), ONE), "starts from random weights")
    refused(lambda: dam(tasks=6).apply(network(), granted(), ONE), "too few for 6 tasks")
    same = replace(planted_set(), name="digits train/train")
    given = Granted("test", ("train",), train=lambda: same)
    refused(lambda: dam().apply(network(), given, ONE), "set another `other`")
