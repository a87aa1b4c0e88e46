"""Corruption: changes of an image without an attacker."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.metrics import SEVERITIES
from siegebench.threat import TOLERANCE
from siegebench.types.base import Entry


class Corruption(Entry):
    """Changes images like weather, sensors and codecs do. It has no access to a model.

    Class attributes:
        group: noise, blur, weather, digital or light.
    """

    group: ClassVar[str] = ""

    @abstractmethod
    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        """Images [n, 3, H, W] in [0, 1] at severity 1..5, same shape and dtype. Must not change x."""

    @final
    def __call__(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        """Run, then check the contract: shape, dtype, finite, in [0, 1], x unchanged.

        Raises:
            ContractError: naming the corruption and what is wrong.
        """
        if severity not in SEVERITIES:
            raise ContractError(f"{self!r}: severity is {severity!r}; expected 1, 2, 3, 4 or 5")
        before = x.clone()
        out = self.run(x, severity, draws)
        if not torch.equal(before, x):
            raise ContractError(f"{self!r} changed its input in place")
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ContractError(f"{self!r} returned {out.dtype} {tuple(out.shape)} for {x.dtype} {tuple(x.shape)}")
        if not bool(torch.isfinite(out).all()):
            raise ContractError(f"{self!r} returned NaN or infinite pixels")
        if bool(((out < -TOLERANCE) | (out > 1 + TOLERANCE)).any()):
            raise ContractError(f"{self!r} returned pixels in [{out.amin():.4f}, {out.amax():.4f}], not in [0, 1]")
        return out
