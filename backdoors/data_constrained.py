"""Backdoors with few data: poisons whose clean features are suppressed, and triggers with strong features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Classifier, frozen
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.train import Recipe
from siegebench.types import BackdoorAttack, Class, Count, Material, ModelSource, Positive, Share

from . import _surrogate

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class DataConstrained(BackdoorAttack):
    """Clean feature suppression and poisoning feature augmentation, for an attacker who has few images.

    Sun et al., "Efficient Backdoor Attacks for Deep Neural Networks in Real-world Scenarios", ICLR 2024, arXiv
    2306.08386.

    With an encoder I and its class probabilities q over K classes:

        suppress        x' = T(x + d),   min_{|d| <= eps} |q(x + d) - 1/K|^2        one d for each poisoned image
        augment: uap    T(x) = x + delta,  min_{|delta| <= eps} mean_x CE(q(x + delta), t)
        augment: cfa    T(x) = x + delta,  min_{|delta| <= eps} mean_ij 1 - cos(I(x_i + delta), I(x_j + delta))
        augment: none   T is the trigger of `attack`

    A test image gets T only.

    Random: which images are poisoned, the training of the encoder, the starts of d and delta.

    Cost: one training of the encoder, if it has no published weights; `steps` passes for each poisoned image, and
    `epochs` passes on `images` images for delta.

    Attributes:
        rate: fraction of the training set that is poisoned.
        attack: the attack whose trigger is used with `augment: none`.
        suppress: whether the features of the poisoned images are suppressed.
        augment: where the trigger comes from.
        source: poison images of this class only (the regime of one class); of all classes if None.
        eps: bound of d and of delta.
        steps, step: of the optimisation of d.
        epochs, augment_step: of the optimisation of delta.
        images: number of training images that delta is optimised on.
        encoder: a model spec, such as one with published weights, that is used as I and q; by default a network of the
            victim's architecture, trained on the training set.
        recipe: how the encoder is trained.

    Differs from the paper: the authors use CLIP and its text encoder for q; here q are the probabilities of the
    encoder's own classes, which must be those of the data for `uap`. An encoder that is trained on the training set
    knows more data than the paper's attacker has. Poisons replace images and are not appended. Foreign images (the
    regime of another domain) are left out. Plain projected steps, without resampling to 224 pixels inside the loop.
    """

    learns: ClassVar[bool] = True

    rate: Share = 0.015
    attack: BackdoorAttack = field(
        default_factory=lambda: registry.build(BackdoorAttack, {"name": "blended", "alpha": 0.15})
    )
    suppress: bool = True
    augment: Literal["none", "uap", "cfa"] = "uap"
    source: Class | None = None
    eps: Positive = 8 / 255
    steps: Count = 50
    step: Positive = 1 / 255
    epochs: Count = 100
    augment_step: Positive = 0.3 / 255
    images: Count = 256
    encoder: ModelSource | None = None
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if self.attack.learns:
            raise ConfigError("data_constrained: the attack must have a fixed trigger, such as badnets or blended")
        if self.augment == "uap" and not isinstance(self.target, int):
            raise ConfigError("data_constrained: `augment: uap` aims at one class; give a class as target, or use cfa")

    def identity(self) -> dict[str, Any]:
        weights = self.encoder.identity() if self.encoder is not None else {}
        return {"encoder_weights": weights} if weights else {}

    def poisoned_label(self, y: Tensor, num_classes: int) -> Tensor:
        wanted = super().poisoned_label(y, num_classes)
        return wanted if self.source is None else torch.where(y == self.source, wanted, -1)

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        model = _surrogate.encoder(surrogate, self.encoder, data, self.recipe, seed)
        device = next(model.parameters()).device
        made: dict[str, Tensor] = {"delta": torch.zeros(data.shape)}
        if self.augment != "none":
            made["delta"] = self._delta(model, data, seed, device).cpu()
        if self.suppress:
            index, _ = self.chosen(data, seed)

            def flat(x: Tensor, y: Tensor) -> Tensor:
                q = model(x).softmax(dim=1)
                return -(q - 1 / q.shape[1]).square().mean(dim=1).sum()

            def suppressed(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
                start = self.eps * (2 * Draws(seed, data.ids[rows]).uniform(data.shape, purpose="suppress") - 1)
                return _surrogate.ascend(model, x, y, flat, eps=self.eps, step=self.step, steps=self.steps, start=start)

            made |= {"ids": data.ids[index], "images": _surrogate.each(data, index, device, suppressed)}
        return made

    def _delta(self, model: Classifier, data: ImageSet, seed: int, device: torch.device) -> Tensor:
        """The universal perturbation, [C, H, W]."""
        x = data.pixels(Draws(seed, data.ids).order("augment")[: self.images]).to(device)
        start = Draws(seed, torch.zeros(1, dtype=torch.long)).uniform(data.shape, purpose="delta")
        delta = (self.eps * (2 * start - 1)).to(x)
        with frozen(model):
            for _ in range(self.epochs):
                for part in x.split(_surrogate.BATCH):
                    delta.requires_grad_(True)
                    moved = (part + delta).clamp(0, 1)
                    if self.augment == "uap":
                        goal = torch.full((len(part),), int(self.target), device=device)  # type: ignore[arg-type]
                        loss = F.cross_entropy(model(moved), goal)
                    else:
                        f, half = model.features(moved), max(1, len(part) // 2)
                        loss = 1 - F.cosine_similarity(f[:half], f[-half:]).mean()
                    (g,) = torch.autograd.grad(loss, delta)
                    delta = (delta.detach() - self.augment_step * g.sign()).clamp(-self.eps, self.eps)
        return delta[0].detach()

    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        assert material is not None
        if self.augment == "none":
            return self.attack.trigger(x, draws)
        return (x + material["delta"].to(x)).clamp(0, 1)

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        own = _surrogate.remembered(material["material"], draws.ids, x) if self.suppress else x
        return self.trigger(own, draws, **material)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.trigger(x, draws, **material)
