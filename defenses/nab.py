"""NAB: the defender plants a benign backdoor that overrides the attacker's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.contrastive import features
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, predict, train
from siegebench.types import Count, DatasetDetector, Defense, Positive, Share

from ._isolation import ISOLATION, easiest, train_above
from ._simclr import FEATURES, HEAD, fit_head, pretrain, symmetric

VERIFIER = Recipe(epochs=100, batch=32)


@dataclass(frozen=True, kw_only=True)
class NAB(Defense):
    """Train with a stamp that means "the given label is wrong", and stamp every input at test time (Liu et al. 2023).

    1. Detect a suspicious fraction D_s of the training set (`detection`, or a `detector`):
            flooding      train on |L - g| + g, which is not to fall below g; the images with the smallest loss
            sign          the same with the loss mean_i sign(l_i - g) l_i
            noisy_labels  learn features without labels, a last layer on them; the images with the largest loss
    2. Give D_s pseudo labels (`labels`):
            verified        the predictions of a network trained on the clean budget
            nearest_centre  the class whose centre is nearest; features without labels, centres of the other images
    3. Where the pseudo label differs from the given one, stamp the image too.
    4. Train a fresh network on this set. The defended model stamps every input.
    5. With `reject`, the model also refuses inputs whose prediction the stamp changes: f(x) != f(D(x)).

    If the last training learns the stamp, it suffices to isolate some of the poisoned images; if none is isolated,
    the backdoor remains. On the 32x32 digits, 8 epochs with random crops are not enough when half of the poisoned
    images are isolated (30 to 70 % of the triggers still succeed); they are enough when all of them are isolated.

    Random: the initial weights, the order and the augmentation of the three trainings.

    Cost: about two trainings on the training set, and one on the clean budget. Features without labels take longer
    than all of these.

    Attributes:
        share: |D_s| as a fraction of the training set; at least one image.
        detection: how D_s is found.
        detector: a detector of poisoned training images, in place of `detection`; the images with the largest scores.
            It gets the suspicious network and the data of NAB.
        flood: g.
        labels: where the pseudo labels come from. Only `verified` uses the clean budget.
        features: how features are trained without labels; its `augment` says only whether images are mirrored.
        reject: rows also report rejections.
        side: of the square stamp, in pixels of a 32-pixel image; it scales with the height of the image.
        isolation, verifier, recipe: how the networks of steps 1, 2 and 4 are trained. Set `recipe` to that of the
            model under attack: a defense does not know it.

    Differs from the paper: the stamp has the mean colour of the training set (zero in normalised pixels), and its 2x2
    pixels scale with the image. All trainings use one cosine schedule. The views from which features are learnt change
    the balance of the colours instead of their hue. The authors' third detector, SPECTRE, is a `detector`. An attacker
    who knows the stamp adds it to the poisoned images: stamped_badnets.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)
    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "stamped_badnets"},)

    added: ClassVar[tuple[str, ...]] = ("detection", "detector", "labels", "features", "reject")

    share: Share = 0.05
    detection: Literal["flooding", "sign", "noisy_labels"] = "flooding"
    detector: DatasetDetector | None = None
    flood: Positive = 0.5
    labels: Literal["verified", "nearest_centre"] = "verified"
    features: Recipe = FEATURES
    side: Count = 2
    isolation: Recipe = ISOLATION
    verifier: Recipe = VERIFIER
    recipe: Recipe = field(default_factory=Recipe)
    reject: bool = False

    def wrap(self, model: Classifier) -> Classifier:
        return Stamped(model, self.side, self.reject)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Stamped)
        train_set, model = data.train, defended.inner
        device = next(model.parameters()).device

        if self.detector is None:
            suspicious = self.isolate(model, train_set, derive_seed(draws.seed, "nab isolation"))
        else:
            scores = self.detector.score(model, data, draws)
            suspicious = scores.argsort(descending=True, stable=True)[: self.count(train_set)]
        pseudo = self.pseudo_labels(model, data, suspicious, draws)

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

    def count(self, data: ImageSet) -> int:
        """|D_s|."""
        return max(1, round(self.share * len(data)))

    def isolate(self, model: Classifier, data: ImageSet, seed: int) -> Tensor:
        """Indices of the suspicious images, int64. Override it to use another detection."""
        trained = model.fresh(seed).to(next(model.parameters()).device)
        if self.detection == "noisy_labels":
            pretrain(trained, data, self.features, seed)
            fit_head(trained, data, HEAD, lambda z, y: symmetric(z, y).mean(), seed)
            losses = symmetric(predict(trained, data), data.labels)
            return losses.argsort(descending=True, stable=True)[: self.count(data)]
        train_above(trained, data, self.detection, self.flood, self.isolation, seed)
        return easiest(trained, data, self.share)

    def pseudo_labels(self, model: Classifier, data: Granted, suspicious: Tensor, draws: Draws) -> Tensor:
        """Labels [n] of the suspicious images."""
        images = data.train
        if self.labels == "verified":
            seed = derive_seed(draws.seed, "nab verifier")
            verifier = model.fresh(seed).to(next(model.parameters()).device)
            train(verifier, data.clean, self.verifier, seed)
            return predict(verifier, images.select(suspicious)).argmax(dim=1)
        seed = derive_seed(draws.seed, "nab features")
        learner = model.fresh(seed).to(next(model.parameters()).device)
        pretrain(learner, images, self.features, seed)
        return nearest_centres(features(learner, images), images.labels, suspicious, images.num_classes)


def nearest_centres(h: Tensor, labels: Tensor, suspicious: Tensor, num_classes: int) -> Tensor:
    """For the suspicious rows of the features h [N, d], the class whose centre is nearest, [n].

    The centres are the means of the other rows. Features count by their direction.
    """
    h = F.normalize(h, dim=1)
    others = torch.ones(len(h), dtype=torch.bool)
    others[suspicious] = False
    member = F.one_hot(labels[others], num_classes).to(h)
    centres = member.T @ h[others] / member.sum(dim=0).clamp(min=1)[:, None]
    far = torch.cdist(h[suspicious], centres).masked_fill(member.sum(dim=0) == 0, float("inf"))
    return far.argmin(dim=1)


class Stamped(Wrapped):
    """Sets the top-left corner of every image to the colour `grey`, then calls the inner classifier."""

    grey: Tensor

    def __init__(self, inner: Classifier, side: int, rejecting: bool = False) -> None:
        super().__init__(inner)
        self.side, self.rejecting = side, rejecting
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

    @torch.no_grad()
    def rejects(self, x: Tensor) -> Tensor:
        changed: Tensor = self.inner(x).argmax(dim=1) != self(x).argmax(dim=1)
        return changed


class _Passthrough(Wrapped):
    """Returns the images; the loss calls the network, because it knows from the indices which images get the stamp."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return x
