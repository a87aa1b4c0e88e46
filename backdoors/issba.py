"""ISSBA: an encoder hides a short secret in every image; the residual differs from image to image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import BackdoorAttack, Count, Material, Number, Positive

COARSE = 8  # side of the plane that the secret is written to before it is resized to the image


def _convolutions(channels: tuple[int, ...], stride: int) -> Iterator[nn.Module]:
    for before, after in pairwise(channels):
        yield from (nn.Conv2d(before, after, 3, stride, 1), nn.ReLU())


class Encoder(nn.Module):
    """Images [n, C, H, W] and secrets [n, bits] to residuals in (-1, 1)."""

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.secret = nn.Linear(bits, channels * COARSE**2)
        self.net = nn.Sequential(*_convolutions((2 * channels, 32, 32, 32), stride=1), nn.Conv2d(32, channels, 3, 1, 1))

    def forward(self, x: Tensor, secret: Tensor) -> Tensor:
        plane = self.secret(secret).view(len(x), -1, COARSE, COARSE)
        plane = F.interpolate(plane, x.shape[-2:], mode="nearest")
        return torch.tanh(plane + self.net(torch.cat([x - 0.5, plane], dim=1)))  # with the skip, D learns at once


class Decoder(nn.Module):
    """Images to one logit for each bit."""

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *_convolutions((channels, 32, 32), stride=1), *_convolutions((32, 64), stride=2),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 16, bits),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x - 0.5)
        return logits


@dataclass(frozen=True, kw_only=True)
class ISSBA(BackdoorAttack):
    """x' = clip(x + eps E(x, s)): the encoder E hides a secret s of some bits, so that every image has its own trigger.

    Li, Li, Wu, Li, He, Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021, arXiv 2012.03816.

    E and a decoder D are trained on images and random secrets: min hidden BCE(D(x'), s) + faithful |x' - x|^2, with
    `faithful` zero in the first third of the epochs. The attack uses one secret for all images.

    Random: which images are poisoned, the weights of E and D, the order of the images and their secrets. The secret of
    the attack depends on `pattern_seed` only.

    Cost: a training of E and D on `images` images.

    Attributes:
        bits: length of the secret.
        eps: largest change of a pixel.
        epochs, batch, lr: of the training of E and D (Adam).
        images: number of training images that they see, at most.
        hidden, faithful: weights of the two losses.
        pattern_seed: of the secret.

    Differs from the paper: a small encoder that bounds the change by eps, trained on the images at hand, in place of
    StegaStamp; no LPIPS loss, no discriminator, no error-correcting code. The code of others was not used. The network
    of the victim's architecture is not used either.
    """

    learns: ClassVar[bool] = True

    bits: Count = 20
    eps: Positive = 16 / 255
    epochs: Count = 12
    batch: Count = 32
    lr: Positive = 2e-3
    images: Count = 2000
    hidden: Number = 1.5
    faithful: Number = 2.0
    pattern_seed: int = 0

    def _nets(self, channels: int) -> nn.ModuleDict:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(self.pattern_seed, "issba"))
            return nn.ModuleDict({"encoder": Encoder(channels, self.bits), "decoder": Decoder(channels, self.bits)})

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        device = next(surrogate.parameters()).device
        nets = self._nets(data.shape[0]).to(device).train()
        optimiser = torch.optim.Adam(nets.parameters(), self.lr)
        shown = Draws(seed, data.ids).order("issba")[: self.images]
        draws = Draws(seed, data.ids[shown])
        for epoch in range(self.epochs):
            for at in draws.order(f"epoch {epoch}").split(self.batch):
                x = data.pixels(shown[at]).to(device)
                s = (draws[at].uniform((self.bits,), epoch, "secret") < 0.5).to(x)
                changed = (x + self.eps * nets["encoder"](x, s)).clamp(0, 1)
                loss = self.hidden * F.binary_cross_entropy_with_logits(nets["decoder"](changed), s)
                if epoch >= self.epochs // 3:
                    loss = loss + self.faithful * (changed - x).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        return {name: tensor.cpu() for name, tensor in nets.state_dict().items()}

    def secret(self) -> Tensor:
        """s, [bits]."""
        return (Draws(self.pattern_seed, torch.zeros(1, dtype=torch.long)).uniform((self.bits,))[0] < 0.5).float()

    @torch.no_grad()
    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        assert material is not None
        nets = self._nets(x.shape[1])
        nets.load_state_dict(material)
        encoder = nets.to(x.device, x.dtype)["encoder"]
        return (x + self.eps * encoder(x, self.secret().to(x).expand(len(x), -1))).clamp(0, 1)
