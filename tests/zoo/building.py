"""Models and data sets by name, as a suite builds them."""

from __future__ import annotations

from typing import Any

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.types import ModelSource


def model(spec: Any) -> ModelSource:
    built = registry.build("model", spec)
    assert isinstance(built, ModelSource)
    return built


def built(spec: Any, num_classes: int = 10, size: int = 32) -> Network:
    net = model(spec).build(num_classes=num_classes, size=size)
    assert isinstance(net, Network)
    return net


def load(name: str, split: str) -> ImageSet:
    return registry.build("dataset", name).load(split)  # type: ignore[attr-defined]
