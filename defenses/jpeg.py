"""JPEG: compress the image before the network sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg

from siegebench.types import Classifier, Count, Defense

from .bit_depth import Preprocessed


@dataclass(frozen=True, kw_only=True)
class JPEG(Defense):
    """Encode as an 8-bit baseline JPEG with halved colour resolution (4:2:0), and decode.

    Dziugaite, Ghahramani, Roy, "A study of the effect of JPG compression on adversarial images", 2016; Guo et al.,
    "Countering Adversarial Images using Input Transformations", ICLR 2018. The gradient ends at the encoder; attacks
    that take it for the identity pass. Nothing is random.

    The codec is libjpeg-turbo on the CPU whatever the device, one image after the other.

    Attributes:
        quality: of the encoder, 1 to 100.
    """

    differentiable: ClassVar[bool] = False
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "bpda", "attack": {"name": "pgd", "loss": "margin", "steps": 50}},
        {"name": "bpda", "attack": {"name": "apgd", "loss": "ce"}},
    )

    quality: Annotated[Count, Field(le=100)] = 75

    def transform(self, x: Tensor) -> Tensor:
        """Images after one pass through the codec; no gradient."""
        pixels = (x.detach() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        decoded = decode_jpeg(encode_jpeg(list(pixels), self.quality)) if len(pixels) else [*pixels]
        return torch.stack(decoded).to(x) / 255 if decoded else x.detach()

    def wrap(self, model: Classifier) -> Classifier:
        return Preprocessed(model, self.transform)
