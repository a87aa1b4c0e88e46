"""ANP: the mask of the neuron that overturns predictions when it is perturbed becomes small."""

from __future__ import annotations

from typing import Any

import torch

from siegebench import registry
from siegebench.train import accuracy
from siegebench.types import Defense

from . import planted

QUICK: dict[str, Any] = {"iterations": 30, "batch": 20, "batch_norm": "eval"}


def test_the_planted_neuron_gets_the_smallest_mask() -> None:
    anp: Any = registry.build(Defense, {"name": "anp", **QUICK})
    model = planted.model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = anp.masks(model, {"net.1": model.net[1]}, planted.data(), 0)["net.1"]  # type: ignore[index]
    assert int(masks.argmin()) == planted.BAD
    assert float(masks[planted.BAD]) < 0.5 < float(masks[:2].min())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # the masks are apart
    assert not model.training


def test_pruning_removes_the_backdoor_and_keeps_the_accuracy() -> None:
    before, after = planted.repaired("anp", "clean", "val", **QUICK)
    assert planted.success(before) == 1
    assert planted.success(after) == 0
    assert accuracy(after, planted.data()) == 1


def test_the_threshold_is_the_largest_that_the_held_out_images_allow() -> None:
    anp: Any = registry.build(Defense, "anp")
    model = planted.model()
    layers: Any = {"net.1": model.net[1]}  # type: ignore[index]
    masks = torch.tensor([0.42, 0.9, 0.1, 1, 1, 1, 1, 1])  # channel 0 carries class 0: without it half is lost
    assert abs(anp.threshold(model, layers, {"net.1": masks}, planted.data()) - 0.4) < 1e-6
    assert bool((layers["net.1"].weight == 1).all())  # nothing is pruned yet
    masks = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1.0])
    assert anp.threshold(model, layers, {"net.1": masks}, planted.data()) == -1


def test_a_layer_keeps_the_channels_with_the_largest_masks() -> None:
    anp: Any = registry.build(Defense, {"name": "anp", "most": 0.25})
    model = planted.model()
    masks = torch.tensor([0.1, 0.2, 0.3, 0.05, 0.5, 0.6, 0.7, 0.8])
    anp.prune({"net.1": model.net[1]}, {"net.1": masks}, 0.95)  # type: ignore[index]
    assert (model.net[1].weight == 0).nonzero().flatten().tolist() == [0, 3]  # type: ignore[index, union-attr]
