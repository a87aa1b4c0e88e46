"""What tests by property draw from."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from siegebench.threat import BALLS

quick = settings(max_examples=25, deadline=None)


norms = st.sampled_from(BALLS)


seeds = st.integers(0, 2**31)


SHAPE = (3, 4, 4)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
