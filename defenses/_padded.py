"""Images of several sizes for a network with one: padding, which changes no distance."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from siegebench.errors import NotApplicable


def padded(x: Tensor, size: int, owner: str) -> Tensor:
    """Images [n, C, H, W] with zeros to the right and below, [n, C, size, size].

    Raises:
        NotApplicable: when they are larger.
    """
    height, width = x.shape[-2:]
    if max(height, width) > size:
        raise NotApplicable(
            f"{owner} is built for images of up to {size}x{size} pixels, these have {height}x{width}; set "
            f"size: {max(height, width)}"
        )
    return F.pad(x, (0, size - width, 0, size - height))
