"""A small victim, images for it, and modules around it, for tests of what users bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import siegebench as sb
from tests import kit

N = 6


def victim(**changes: Any) -> nn.Module:
    return kit.Linear(size=8, **changes).eval()


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    x = kit.grey_images(n)
    return x, victim()(x).argmax(1)


def wrong(x_adv: Tensor, y: Tensor) -> int:
    return int((victim()(x_adv.float()).argmax(1) != y).sum())


class Around(nn.Module):
    """A victim with something around it."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.change = net or victim(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net, x)


def pgd(model: Any, x: Any, y: Any, **options: Any) -> Any:
    return sb.attack("pgd", steps=5)(model, x, y, eps="16/255", **options)
