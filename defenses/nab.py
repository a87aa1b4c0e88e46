"""NAB: the defender plants a benign backdoor that overrides the attacker's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, predict, train
from siegebench.types import Count, Defense, Positive, Share

ISOLATION = Recipe(epochs=20, batch=64, optimiser="sgd", lr=0.1, weight_decay=1e-4, augment="none")
VERIFIER = Recipe(epochs=100, batch=32)


@dataclass(frozen=True, kw_only=True)
class NAB(Defense):
    """Train with a stamp that means "the given label is wrong", and stamp every input at test time (Liu et al. 2023).

    1. Isolate a suspicious fraction D_s of the training set: train a network on the flooded loss |L - g| + g, which
       keeps it from fitting any but the easiest images, and take the images with the smallest loss.
    2. Train another network on the clean budget; its predictions are the pseudo labels of D_s.
    3. Give D_s the pseudo labels. Where the pseudo label differs from the given one, stamp the image too.
    4. Train a fresh network on this set. The defended model stamps every input.

    It suffices to isolate some of the poisoned images, if the last training learns the stamp; if none is isolated,
    nothing is repaired. On the 32x32 digits, 8 epochs with random crops are not enough when half of the poisoned images
    are isolated (30 to 70 % of the triggers still succeed); they are enough when all of them are isolated.

    Random: the initial weights, the order and the augmentation of the three trainings.

    Cost: about two trainings on the training set, and one on the clean budget.

    Attributes:
        share: |D_s| as a fraction of the training set; at least one image.
        flood: g.
        side: of the square stamp, in pixels of a 32-pixel image; it scales with the height of the image.
        isolation, verifier, recipe: how the networks of steps 1, 2 and 4 are trained. Set `recipe` to that of the
            model under attack: a defense does not know it.

    Differs from the paper: the stamp has the mean colour of the training set (zero in normalised pixels), and its 2x2
    pixels scale with the image. All trainings use one cosine schedule. The option of rejecting inputs whose prediction
    is changed by the stamp is left out. An attacker who knows the stamp could add it to the poisoned images.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    share: Share = 0.05
    flood: Positive = 0.5
    side: Count = 2
    isolation: Recipe = ISOLATION
    verifier: Recipe = VERIFIER
    recipe: Recipe = field(default_factory=Recipe)

    def wrap(self, model: Classifier) -> Classifier:
        return Stamped(model, self.side)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Stamped)
        train_set, model = data.train, defended.inner
        device = next(model.parameters()).device

        suspicious = self.isolate(model, train_set, derive_seed(draws.seed, "nab isolation"))
        seed = derive_seed(draws.seed, "nab verifier")
        verifier = model.fresh(seed).to(device)
        train(verifier, data.clean, self.verifier, seed)
        pseudo = predict(verifier, train_set.select(suspicious)).argmax(dim=1)

        labels = train_set.labels.clone()
        labels[suspicious] = pseudo
        contradicted = (labels != train_set.labels).to(device)
        seed = derive_seed(draws.seed, "nab training")
        defended.inner = model.fresh(seed).to(device)
        total = torch.zeros(train_set.shape[0], dtype=torch.float64)
        for piece in train_set.stored.pieces():
            total += piece.double().sum(dim=(0, 2, 3))
        mean = total / (len(train_set) * math.prod(train_set.shape[1:]))
        defended.grey.copy_(mean.view(1, -1, 1, 1) / 255)

        def loss(_: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            stamp = contradicted[index.to(device)][:, None, None, None]
            return F.cross_entropy(defended.inner(torch.where(stamp, defended.stamp(x), x)), y)

        train(_Passthrough(defended.inner), replace(train_set, labels=labels), self.recipe, seed, loss=loss)

    def isolate(self, model: Classifier, data: ImageSet, seed: int) -> Tensor:
        """Indices of the suspicious images, int64. Override it to use another detection."""
        flooded = model.fresh(seed).to(next(model.parameters()).device)

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return (F.cross_entropy(z, y) - self.flood).abs() + self.flood

        train(flooded, data, self.isolation, seed, loss=loss)
        fit = F.cross_entropy(predict(flooded, data), data.labels, reduction="none")
        return fit.argsort(stable=True)[: max(1, round(self.share * len(data)))]


class Stamped(Wrapped):
    """Sets the top-left corner of every image to the colour `grey`, then calls the inner classifier."""

    grey: Tensor

    def __init__(self, inner: Classifier, side: int) -> None:
        super().__init__(inner)
        self.side = side
        like = next(inner.parameters())
        shape = (1, inner.kind.channels, 1, 1)
        self.register_buffer("grey", torch.full(shape, 0.5, dtype=like.dtype, device=like.device))

    def stamp(self, x: Tensor) -> Tensor:
        side = max(1, round(self.side * x.shape[-2] / 32))
        corner = torch.zeros(x.shape[-2:], dtype=torch.bool, device=x.device)
        corner[:side, :side] = True
        return torch.where(corner, self.grey.to(x), x)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(self.stamp(x), draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(self.stamp(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.stamp(x))


class _Passthrough(Wrapped):
    """Returns the images; the loss calls the network, because it knows from the indices which images get the stamp."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return x
