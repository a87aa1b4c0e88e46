"""The scans and a network that learned them, trained once a process and left as it is."""

from __future__ import annotations

import pytest

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.train import train

from .grey_digits import RECIPE, digits, net


@pytest.fixture(scope="session")
def train_set() -> ImageSet:
    return digits("train")


@pytest.fixture(scope="session")
def test_set() -> ImageSet:
    return digits("test")


@pytest.fixture(scope="session")
def cnn16(train_set: ImageSet) -> Classifier:
    model = Network(net(), num_classes=10, rebuild=net).fresh(1)
    train(model, train_set, RECIPE, 0)
    return model.requires_grad_(False)
