"""Generative variation: train on images that a diffusion model made of the training images."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train
from siegebench.types import Count, Defense, Positive, Share

from .diffpure import DiffPure, Purifier


@dataclass(frozen=True, kw_only=True)
class GenerativeVariation(Defense):
    """Replace every training image by a variation of it, then train a new network on the variations.

    Struppek, Hentschel, Poth, Hintersdorf, Kersting, "Leveraging Diffusion-Based Image Variations for Robust Training
    on Poisoned Data", 2023, arXiv 2310.06372.

    1. A variation is what a diffusion model makes of the image with noise of level t, with the mean and the standard
       deviation of each channel of the original. A small trigger is unlikely to be made again.
    2. A new network is trained on the variations: on the given labels, or (`distil`) also on the answers of the
       suspicious network f to them, with p_T(z) = softmax(z / T),

            alpha T^2 KL(p_T(f(v)) || p_T(z(v))) + (1 - alpha) CE(z(v) / S, y)

       The network that was trained on triggers then only labels images without triggers.

    The images keep their labels, so a poisoned image becomes one with a wrong label.

    Random: the noise of the variations, the initial weights, the order and the augmentation of the images.

    Cost: `generator.steps` passes of the diffusion model for each training image, and one training.

    Differs from the paper: the authors use a large model that varies an image from its embedding (Versatile Diffusion,
    50 steps). Here noise is added to the image, up to the level t of `generator`, and removed again by a diffusion
    model, so the trigger must be small enough for the noise to hide it.

    Attributes:
        generator: the diffusion model, a `diffpure` with `file` (your own model in TorchScript), t and steps.
        training: `distil`, or `labels` only.
        alpha, temperature: alpha and T.
        label_temperature: S; the authors' code has 10, the same as T.
        recipe: how the network is trained.
        batch: images that are varied at a time.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    own: ClassVar[bool] = False  # whether it may train a generator

    generator: DiffPure
    training: Literal["distil", "labels"] = "distil"
    alpha: Share = 0.5
    temperature: Positive = 10.0
    label_temperature: Positive = 1.0
    recipe: Recipe = field(default_factory=Recipe)
    batch: Count = 128

    def identity(self) -> dict[str, Any]:
        weights = self.generator.identity()
        return {"generator": weights} if weights else {}

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        if self.generator.trains and not self.own:
            raise NotApplicable(
                "generative_variation: no generator; give yours, --set 'defense={name: generative_variation, "
                "generator: {name: diffpure, file: FILE, t: 500, steps: 50}}', or use generative_variation_standin"
            )
        images, seed = data.train, derive_seed(draws.seed, "generative variation")
        teacher = copy.deepcopy(defended).requires_grad_(False).eval()
        made = self.generator.structure(teacher)
        if self.generator.trains:
            budget = data.clean
            self.generator.fit(made, Granted("diffpure", ("train",), train=lambda: budget), Draws(seed, draws.ids))
        varied = self.vary(self.generator.shared(made).requires_grad_(False), images, seed)
        defended.load_state_dict(defended.fresh(derive_seed(seed, "weights")).state_dict())
        defended.requires_grad_(True)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            with torch.no_grad():
                theirs = teacher(x)
            return distilled(z, theirs, y, self.alpha, self.temperature, self.label_temperature)

        how = loss if self.training == "distil" else None
        train(defended, varied, self.recipe, derive_seed(seed, "training"), loss=how)

    @torch.no_grad()
    def vary(self, generator: Purifier, data: ImageSet, seed: int) -> ImageSet:
        """The variations of all images, with their labels."""
        like, parts = generator.kept, []
        draws = Draws(derive_seed(seed, "variations"), data.ids)
        for index in torch.arange(len(data)).split(self.batch):
            x = data.pixels(index).to(like.device, like.dtype)
            v = matched(generator(x, draws[index].to(like.device)), x).clamp(data.kind.low, data.kind.high)
            parts.append(data.kind.store(v.cpu()))
        return replace(data, source=torch.cat(parts), name=f"{data.name} varied")


@dataclass(frozen=True, kw_only=True)
class GenerativeVariationStandin(GenerativeVariation):
    """The same with a small diffusion model that is trained on the clean budget: a stand-in for published weights.

    Random: as in `generative_variation`, and the training of the diffusion model.

    Cost: that of the training of the diffusion model besides.

    Differs from the paper: the diffusion model has seen some dozens of images, so its variations are poor.

    Attributes:
        generator: the diffusion model, a `diffpure` without a file.
        training, alpha, temperature, label_temperature, recipe, batch: as in `generative_variation`.
    """

    own: ClassVar[bool] = True


def matched(v: Tensor, x: Tensor) -> Tensor:
    """Variations v [n, C, H, W] with the mean and the standard deviation of each channel of the originals x."""
    mean, std = v.mean(dim=(2, 3), keepdim=True), v.std(dim=(2, 3), keepdim=True)
    return (v - mean) / (std + 1e-6) * x.std(dim=(2, 3), keepdim=True) + x.mean(dim=(2, 3), keepdim=True)


def distilled(z: Tensor, theirs: Tensor, y: Tensor, alpha: float, T: float, S: float) -> Tensor:
    """alpha T^2 KL(softmax(theirs / T) || softmax(z / T)) + (1 - alpha) CE(z / S, y), a mean over the images."""
    p, q = F.log_softmax(z / T, dim=1), F.log_softmax(theirs / T, dim=1)
    divergence = F.kl_div(p, q, reduction="batchmean", log_target=True)
    return alpha * T**2 * divergence + (1 - alpha) * F.cross_entropy(z / S, y)
