"""DiffPure: add noise to the image and let a diffusion model remove it before the network sees it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ModelError
from siegebench.train import Recipe, train
from siegebench.types import Count, Defense

from ._unet import UNet, fresh
from ._wrapped import Transformed

RECIPE = Recipe(epochs=10, batch=64, augment="none")
TIMES = 1000  # noise levels of the diffusion


class Purifier(nn.Module):
    """x -> the image that the reverse diffusion reaches from x_t, for images [n, C, H, W] in [0, 1].

    Args:
        net: predicts the noise in images in [-1, 1], as net(x_t [n, C, H, W], s [n]) with s = t - 1 in 0..999; further
            output channels, such as a variance, are not used.
        t: the noise level.
        steps: of the way back.
    """

    kept: Tensor

    def __init__(self, net: nn.Module, t: int, steps: int) -> None:
        super().__init__()
        self.net, self.t = net, t
        self.levels = torch.linspace(t, 0, min(steps, t) + 1, dtype=torch.float64).round().long().tolist()
        beta = torch.linspace(0.1 / TIMES, 20 / TIMES, TIMES, dtype=torch.float64)
        kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
        self.register_buffer("kept", kept.float(), persistent=False)  # alpha bar at 0..1000

    def noise_in(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted noise in x_t [n, C, H, W] at levels t [n]."""
        out: Tensor = self.net(x, t - 1)
        return out[:, : x.shape[1]]

    def diffused(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of images in [-1, 1]: sqrt(abar_t) x + sqrt(1 - abar_t) n."""
        kept = self.kept[t].to(x.dtype).view(-1, 1, 1, 1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def forward(self, x: Tensor, draws: Draws) -> Tensor:
        shape = tuple(x.shape[1:])
        t = torch.full((len(x),), self.t, device=x.device)
        h = self.diffused(2 * x - 1, t, draws.normal(shape, purpose="diffusion").to(x.dtype))
        for i, (now, to) in enumerate(zip(self.levels[:-1], self.levels[1:], strict=True)):
            noise = draws.normal(shape, step=i, purpose="reverse diffusion").to(x.dtype)
            if torch.is_grad_enabled() and h.requires_grad:  # the activations of one step at a time are in memory
                h = checkpoint(self._back, h, now, to, noise, use_reentrant=False, preserve_rng_state=False)
            else:
                h = self._back(h, now, to, noise)
        return (h + 1) / 2

    def _back(self, h: Tensor, now: int, to: int, noise: Tensor) -> Tensor:
        """One step of the ancestral sampler, from level `now` to level `to`."""
        a, b = self.kept[now].to(h.dtype), self.kept[to].to(h.dtype)
        beta = 1 - a / b
        predicted = self.noise_in(h, torch.full((len(h),), now, device=h.device))
        mean = (h - beta / (1 - a).sqrt() * predicted) / (1 - beta).sqrt()
        return mean + (beta * (1 - b) / (1 - a)).sqrt() * noise


class _Losses(Classifier):
    """The diffusion model as `train` sees it: the "logits" of an image are its loss, [n, 1]."""

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.purifier, self.randomized = purifier, True
        self.card, self.num_classes = ModelCard(name="diffpure"), 1

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None
        t = 1 + draws.integers(self.purifier.t, purpose="level")
        noise = draws.normal(tuple(x.shape[1:]), purpose="diffusion").to(x.dtype)
        predicted = self.purifier.noise_in(self.purifier.diffused(2 * x - 1, t, noise), t)
        return (predicted - noise).square().flatten(1).mean(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class DiffPure(Defense):
    """x_t = sqrt(abar_t) (2x - 1) + sqrt(1 - abar_t) n, then the reverse diffusion from t to 0, then the classifier.

    Nie, Guo, Huang, Xiao, Vahdat, Anandkumar, "Diffusion Models for Adversarial Purification", ICML 2022.

    The noise drowns the perturbation, and the diffusion model restores an image of the distribution it was trained on.
    Everything is differentiable; each step is checkpointed, so that the exact gradient through all steps fits into
    memory. Attacks with approximate gradients overstate the robustness; the declared attacks use the exact gradient,
    averaged over the noise, in 200 steps of 20 passes, as published evaluations do. An image counts as robust by the
    majority of fresh passes; an attacker who may submit an image repeatedly needs only one.

    Random: the noise at t and in each step, anew in each pass; the initial weights, the order of the images, their
    noise levels and noise in training.

    Cost: `steps` passes of the diffusion model for each image and pass; a gradient costs about three times as much.

    Differs from the paper: the ancestral sampler on `steps` of the 1,000 levels instead of an SDE solver with one step
    for each level (`paper`); gradients through the sampler instead of the adjoint method. The authors use large
    published diffusion models: give one as `file`. By default a small one is trained here, on the training images and
    only for levels up to t; it serves every network.

    Attributes:
        t: noise level, of 1000. The authors use 100 for CIFAR-10 at Linf 8/255 and 150 for ImageNet at 4/255.
        steps: of the way back; at most t.
        file: your own model in TorchScript, net(x_t [n, C, H, W] in [-1, 1], s [n] in 0..999), which returns the noise;
            trained with beta from 1e-4 to 0.02.
        width: channels of the first level of the model that is trained here, a multiple of 4.
        recipe: of its training.
    """

    randomized: ClassVar[bool] = True
    local: ClassVar[tuple[str, ...]] = ("file",)
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 200}},
        {
            "name": "bpda",
            "attack": {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 200}},
        },
    )

    t: Annotated[Count, Field(le=TIMES)] = 100
    steps: Count = 5
    file: str | None = None
    width: Count = 32
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"width: {self.width} channels; a multiple of 4 is needed")

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Only without a file."""
        return self.file is None

    def identity(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        with self._path().open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def _path(self) -> Path:
        path = Path(str(self.file)).expanduser()
        if not path.is_file():
            raise ModelError(f"{path}: no such file; expected a diffusion model in TorchScript")
        return path

    def _network(self, channels: int, seed: int) -> nn.Module:
        if self.file is None:
            return fresh(lambda: UNet(channels, channels, self.width, timed=True), seed)
        try:
            return torch.jit.load(str(self._path()), map_location="cpu").eval()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"{self._path()}: not a TorchScript module ({first}); save yours with torch.jit") from None

    def wrap(self, model: Classifier) -> Classifier:
        like = next(model.parameters())
        purifier = Purifier(self._network(model.kind.channels, 0), self.t, self.steps)
        return Transformed(model, purifier.to(like.device, like.dtype), smooth=True)

    def shared(self, defended: Classifier) -> Purifier:
        assert isinstance(defended, Transformed)
        assert isinstance(defended.transform, Purifier)
        return defended.transform

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        purifier, seed = self.shared(defended), derive_seed(draws.seed, "diffpure")
        channels = defended.kind.channels
        purifier.net.load_state_dict(self._network(channels, derive_seed(seed, "weights")).state_dict())
        train(_Losses(purifier), data.train, self.recipe, seed, loss=lambda z, y, x, index: z.mean())
