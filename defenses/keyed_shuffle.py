"""Keyed shuffle: the camera permutes the pixels by a secret key, and the network undoes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.types import Defense

from ._wrapped import Transformed


def permutation(key: int, pixels: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which a camera with this key writes its pixels, int64 [pixels]."""
    return Draws(key, torch.zeros(1, dtype=torch.long, device=device)).bits((pixels,), purpose="camera")[0].argsort()


def shuffled(x: Tensor, key: int) -> Tensor:
    """What a camera with this key records of x [n, C, H, W]: all channels of a pixel move together."""
    return x.flatten(2)[..., permutation(key, x[0, 0].numel(), x.device)].view(x.shape)


def gathered(s: Tensor, key: int) -> Tensor:
    """The image behind a recording [n, C, H, W], read with a key: what the network's first layer samples."""
    return s.flatten(2)[..., permutation(key, s[0, 0].numel(), s.device).argsort()].view(s.shape)


def read_off(camera: Callable[[Tensor], Tensor], shape: tuple[int, int, int]) -> Tensor:
    """The permutation of a camera that records what the attacker shows it (chosen plaintext), int64 [H W].

    The number of each pixel is written in base 256 into its channels; one image is enough for up to 256^C pixels.

    Args:
        shape: (C, H, W) of its images.
    """
    channels, height, width = shape
    pixels, digits = height * width, 1
    while 256**digits < pixels:
        digits += 1
    power = 256 ** torch.arange(-(-digits // channels) * channels)
    shown = torch.arange(pixels) // power[:, None] % 256
    seen = camera(shown.view(-1, channels, height, width) / 255)
    return ((seen.flatten(2) * 255).round().long().view(-1, pixels) * power[:, None]).sum(dim=0)


def matched(x: Tensor, s: Tensor) -> Tensor:
    """What images x and their recordings s [n, C, H, W] say of the permutation (known plaintext), int64 [H W].

    A pixel whose values, over all images, occur only once is found; -1 for the others.
    """
    pixels = x[0, 0].numel()
    values = torch.cat([(t * 255).round().flatten(2).permute(2, 0, 1).flatten(1) for t in (x, s)])
    _, code, count = values.unique(dim=0, return_inverse=True, return_counts=True)
    first = torch.zeros_like(count).scatter_(0, code[:pixels], torch.arange(pixels, device=x.device))
    return torch.where(count[code[pixels:]] == 2, first[code[pixels:]], -1)


@dataclass(frozen=True, kw_only=True)
class KeyedShuffle(Defense):
    """The camera permutes the pixels by a secret key; the first layer of the network samples them in the right order.

    Perez, Lopez, Arguello, "Privacy-preserving deep learning using deformable operators for secure task learning",
    ICASSP 2024.

    With the right key the network answers as without the camera: a perturbation that is added to the scene, before
    the camera, is not changed, and the robust accuracy is that of the undefended network (trait `identity`). The key
    protects the content of recordings, and restricts who can use the network. With a wrong key, or none, the accuracy
    is at chance. `read_off` and `matched` recover the key from recordings of known images.

    Nothing is random; the permutation is a function of `key`.

    Differs from the paper: written from its abstract and a summary. Their first layers are deformable, with offsets
    from the key; here the pixels are gathered before an ordinary first layer, which computes the same.

    Attributes:
        key: of the camera.
        holds: which key the network has: the right one, a wrong one (`key` + 1), or none.
    """

    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "apgd", "loss": "dlr"},
    )

    key: Annotated[int, Field(ge=0, strict=True)] = 1
    holds: Literal["right", "wrong", "none"] = "right"

    def transform(self, x: Tensor, draws: Draws) -> Tensor:
        """What the network sees of the scene x [n, C, H, W]; `draws` is not used."""
        s = shuffled(x, self.key)
        return s if self.holds == "none" else gathered(s, self.key + (self.holds == "wrong"))

    def wrap(self, model: Classifier) -> Classifier:
        return Transformed(model, self.transform, smooth=True)
