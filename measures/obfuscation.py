"""Obfuscation (AVIH): unrecognisable images that the victim classifies correctly and that a key network decodes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Count, Lesson, Measure, Positive, Share

BLOCK = 4  # side of the blocks whose values a cipher shuffles
PATIENCE, SHRINK, MOMENTUM = 8, 0.8, 0.3  # the step size is multiplied by SHRINK after PATIENCE rises of the loss


@dataclass(frozen=True, kw_only=True)
class Obfuscation(Measure):
    """Finds an image x' unlike x that the victim labels as x (Type-I) and that a key network G maps back to x.

    Su, Zhou, Wang, Liu, Wang, Gao, "Hiding Visual Information via Obfuscating Adversarial Perturbations" (AVIH), ICCV
    2023, arXiv 2209.15304, its variant for classification. Gradient descent from noise on
        2 mean (G(x') - x)^2 + 0.005 V(x') - 0.001 z_y / classes
    with V the sum over the channels of the variance of the 4x4 box sums. The gradient is divided by its mean absolute
    entry and accumulated with momentum 0.3. The step size (0.02) is multiplied by 0.8 after every 8 rises of the loss.

    The key network is a substitute. The paper's is a pix2pix generator; the authors' code does not show its training,
    and its weights are not part of the code. Here G is a small encoder-decoder, trained on training images during the
    run. It learns to invert a cipher of its own (in each 4x4 block the values are shuffled and a random half is
    inverted). A second key, with another cipher and other weights, is the control. The results do not show how secure
    the paper's keys are.

    accuracy                                    fraction of the x' classified as y, on a fresh pass; larger means that
                                                the victim is less sensitive
    accuracy_start                              the same for the start of the descent
    accuracy_cipher                             the same for x under the cipher of the key alone
    psnr_to_image, rmse_to_image                of x' to x
    decode_psnr, decode_psnr_wrong_key          of G(x') to x; with the second key
    key_psnr                                    of G(cipher(x)) to x: the best that the key can do

    Random: the keys' ciphers, weights and batches, and the noise at the start.

    Cost: steps + 3 forward passes and steps backward passes per sample. A key is trained without the victim.

    Differs from the paper: the key is ours. Step size, count of rises and V are per image, not per batch. The noise
    at the start is uniform in [0, 1]. SSIM is left out: no core dependency implements it.

    Attributes:
        steps: of the descent.
        step: step size at the start.
        start: uniform noise, or x itself.
        decode: weight of the decoding error.
        flat: weight of V.
        keep: weight of the logit.
        images: number of training images for the keys, at most.
        epochs: of the training of the keys.
        code: numbers that a key keeps of the 48 (16 if grey) in a 4x4 block; x' is free in the other dimensions.
        width: channels of the keys.
        averaged: forward passes averaged for each gradient of a randomised model.
    """

    learns: ClassVar[bool] = True

    steps: Count = 200
    step: Positive = 0.02
    start: Literal["noise", "image"] = "noise"
    decode: Positive = 2.0
    flat: Share = 0.005
    keep: Share = 0.001
    images: Count = 4096
    epochs: Count = 5
    code: Count = 16
    width: Count = 64
    averaged: Count = 4

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> tuple[_Key, _Key]:
        """The key, and the second key."""
        return self._key(data, draws, 0), self._key(data, draws, 1)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        key, wrong = (copy.deepcopy(k).to(x) for k in lesson)
        noise = draws.uniform(tuple(x.shape[1:]), purpose="start").to(x)
        first = noise if self.start == "noise" else x
        x_adv = self._descend(oracle, first, x, y, key)

        def accuracy(image: Tensor) -> float:
            return float((oracle.labels(image) == y).double().mean())

        with torch.no_grad():
            metrics = {
                "accuracy": accuracy(x_adv),
                "accuracy_start": accuracy(first),
                "accuracy_cipher": accuracy(key.encrypt(x)),
                "rmse_to_image": float((ops.size(x_adv - x, "l2") / x[0].numel() ** 0.5).double().mean()),
                "psnr_to_image": _psnr(x_adv, x),
                "decode_psnr": _psnr(key(x_adv), x),
                "decode_psnr_wrong_key": _psnr(wrong(x_adv), x),
                "key_psnr": _psnr(key(key.encrypt(x)), x),
            }
        return {"metrics": metrics, "flags": []}

    def _key(self, data: ImageSet, draws: Draws, number: int) -> _Key:
        """A key network, trained to invert its own cipher."""
        key = _Key(self.code, self.width, draws.seed, number, data.shape[0]).to(draws.ids.device)
        optimiser = torch.optim.Adam(key.parameters(), 2e-3)
        chosen = draws.order("images")[: self.images]
        for epoch in range(self.epochs):
            for batch in chosen[draws[chosen].order(f"key {number} epoch {epoch}")].split(64):
                x = _padded(data.pixels(batch.cpu()).to(draws.ids.device))
                error = F.mse_loss(key.net(key.cipher(x)), x)
                optimiser.zero_grad(set_to_none=True)
                error.backward()
                optimiser.step()
        return key.eval().requires_grad_(False)

    def _descend(self, oracle: Oracle, x_adv: Tensor, x: Tensor, y: Tensor, key: _Key) -> Tensor:
        adaptive = oracle.as_attacked(self.averaged)
        velocity, step = torch.zeros_like(x), torch.full_like(x[:, 0, 0, 0], self.step)
        rises, before = torch.zeros_like(y), torch.full_like(step, torch.inf)
        for _ in range(self.steps):
            g_victim, _, kept = adaptive.gradient(x_adv, partial(self._kept, y=y))
            leaf = x_adv.detach().requires_grad_(True)
            with torch.enable_grad():
                hidden = self.decode * ops.flat(key(leaf) - x).square().mean(dim=1) + self.flat * _variance(leaf)
                (g_key,) = torch.autograd.grad(hidden.sum(), leaf)
            g = g_victim + g_key
            velocity = MOMENTUM * velocity + g / ops.over(ops.flat(g).abs().mean(dim=1).clamp(min=1e-30), g)
            x_adv = (x_adv - ops.over(step, x) * velocity).clamp(0, 1)

            loss = hidden.detach() + kept
            rises = rises + (loss > before)
            step = torch.where(rises == PATIENCE, SHRINK * step, step)
            rises, before = rises % PATIENCE, loss
        return x_adv

    def _kept(self, z: Tensor, y: Tensor) -> Tensor:
        return -self.keep * z.gather(1, y[:, None]).squeeze(1) / z.shape[1]


class _Key(nn.Module):
    """Encoder and decoder on 4x4 blocks, and the cipher that they learn to invert."""

    def __init__(self, code: int, width: int, seed: int, number: int, channels: int) -> None:
        super().__init__()
        values = channels * BLOCK * BLOCK
        one = Draws(seed, torch.zeros(1, dtype=torch.long)).child("key", number)
        self.register_buffer("order", one.uniform((values,), purpose="shuffle")[0].argsort())
        self.register_buffer("sign", one.sign((1, values, 1, 1), purpose="invert")[0])
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(derive_seed(seed, "key", number))
            self.net = nn.Sequential(
                nn.Conv2d(channels, code, BLOCK, BLOCK), nn.Conv2d(code, width, 1), _Residual(width), _Residual(width),
                nn.ConvTranspose2d(width, channels, BLOCK, BLOCK),
            )  # fmt: skip

    order: Tensor
    sign: Tensor

    def cipher(self, x: Tensor) -> Tensor:
        """Shuffle the values of each 4x4 block and invert some of them; sides must be multiples of 4."""
        blocks = F.pixel_unshuffle(x, BLOCK)[:, self.order]
        return F.pixel_shuffle(0.5 + self.sign * (blocks - 0.5), BLOCK)

    def encrypt(self, x: Tensor) -> Tensor:
        return self.cipher(_padded(x))[..., : x.shape[-2], : x.shape[-1]]

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.net(_padded(x))[..., : x.shape[-2], : x.shape[-1]]
        return image.clamp(0, 1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.net(x)
        return out


def _padded(x: Tensor) -> Tensor:
    """Pad the sides to multiples of 4."""
    return F.pad(x, (0, -x.shape[-1] % BLOCK, 0, -x.shape[-2] % BLOCK), mode="replicate")


def _variance(x: Tensor) -> Tensor:
    """Sum over the channels of the variance of the 4x4 box sums, [n]."""
    boxes = F.avg_pool2d(x, BLOCK, 1) * BLOCK**2
    return boxes.flatten(2).var(dim=2).sum(dim=1)


def _psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over the images; at most 100."""
    error = ops.flat(a - b).double().square().mean(dim=1).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())
