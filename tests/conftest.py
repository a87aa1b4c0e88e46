"""Settings of all tests: no network, one thread a process."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from siegebench.classifier import Classifier
from tests import kit

torch.set_num_threads(1)


@pytest.fixture
def linear() -> Classifier:
    return kit.linear_model()


@pytest.fixture
def cnn() -> Classifier:
    return kit.cnn_model()
