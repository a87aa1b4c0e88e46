"""BEYOND: a clean image and its augmented neighbours have the same label and similar representations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train
from siegebench.types import Count, ModelSource, Scorer, Share, TrainedDetector

from ._views import drawn, views

GRADIENTS = 10  # views in one gradient: the graph of each is kept until the backward pass
RECIPE = Recipe(epochs=2, batch=128, augment="none")


class Neighbours(nn.Module):
    """SimSiam's network with a linear head: encoder f, projector g, predictor h, head W.

    The features f(x) are the input of the last linear layer of the encoder.
    """

    def __init__(self, encoder: Classifier, width: int, sample: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.no_grad():
            d = encoder.eval().features(sample).shape[1]
        self.g = nn.Sequential(*_layer(d, width), *_layer(width, width), nn.Linear(width, width, bias=False),
                               nn.BatchNorm1d(width, affine=False))  # fmt: skip
        self.h = nn.Sequential(*_layer(width, max(1, width // 4)), nn.Linear(max(1, width // 4), width))
        self.head = nn.Linear(d, encoder.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(projections g(f(x)) [n, width], outputs of the head [n, classes]); the head does not train the encoder."""
        f = self.encoder.features(x)
        logits = self.head(f.detach() if self.training else f)
        return self.g(f), logits


def _layer(inside: int, outside: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.ReLU()


class _Training(Classifier):
    """The network as `train` sees it: the "logits" of an image are its loss of SimSiam, then those of the head."""

    def __init__(self, network: Neighbours, beyond: Beyond) -> None:
        super().__init__()
        self.network, self.beyond, self.randomized = network, beyond, True
        self.card, self.num_classes = ModelCard(name="beyond"), network.encoder.num_classes

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None
        (z, logits), (other, _) = (
            self.network(views(x, drawn(draws, i), self.beyond.smallest, self.beyond.flip)) for i in (0, 1)
        )
        apart = [-F.cosine_similarity(self.network.h(a), b.detach()) for a, b in ((z, other), (other, z))]
        return torch.cat([(apart[0] + apart[1])[:, None] / 2, logits], dim=1)


@dataclass(frozen=True, kw_only=True)
class Beyond(TrainedDetector):
    """Score = -(the K-th largest c_v of all views v): how well few neighbours of x agree with it.

        c_v = alpha cos(onehot(y), head(v)) + (1 - alpha) cos(g(x), g(v))

    He, Yang, Chen, Xu, Ho, "Be your own neighborhood: detecting adversarial examples by the neighborhood relations
    built on self-supervised learning", ICML 2024, arXiv 2209.00005. y is the label that the model under test predicts
    for x. The head and the projection g come from another network, which is trained without labels (SimSiam: two views
    of an image have similar projections) and gets a linear head on top. The views are the augmentations of that
    training. An image is suspicious if fewer than K of its views share its label and its representation.

    The views are drawn once and are the same for every image, as in the authors' code: the score is a function of the
    image, and an attacker knows it. Its gradient is that of the mean of c_v over 10 of the views, others for each image
    and pass.

    Random: the views; the initial weights, the order and the augmentations of the training.

    Cost: one training; then one pass through the encoder for each view and one of the judged model.

    Differs from the paper: the head is trained together with the encoder, without gradients to it, and not afterwards.
    The order of changes of colour is fixed, and hue turns in YIQ. By default a small encoder is trained for minutes on
    a CPU, which is too little: on traffic signs its head is right on 15 % of the test images (measured). `full` trains
    a ResNet-18 on a GPU for hours. The paper's second rule, with two thresholds, is not implemented.

    Attributes:
        encoder: the network that is trained; with published weights it starts from them.
        recipe: of its training, with `augment: none`.
        width: outputs of the projector.
        views: neighbours of an image.
        nearest: K.
        alpha: weight of the label; 1 - alpha is that of the representation.
        smallest: area of the smallest crop, as a fraction of the image.
        flip: probability that a view is mirrored; 0 where this changes the class, as for signs and digits.
    """

    encoder: ModelSource
    recipe: Recipe = RECIPE
    width: Count = 256
    views: Count = 50
    nearest: Count = 20
    alpha: Share = 0.8
    smallest: Share = 0.2
    flip: Share = 0.0

    def __post_init__(self) -> None:
        if self.nearest > self.views:
            raise ValueError(f"nearest: {self.nearest} of {self.views} views; give at most as many as there are views")
        if not self.smallest:
            raise ValueError("smallest: a crop needs an area above 0")

    def network(self, data: Granted) -> Neighbours:
        return self._fresh(data.train, 0)

    def _fresh(self, images: ImageSet, seed: int) -> Neighbours:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            encoder = self.encoder.build_for(images)
            if not self.encoder.pretrained():
                encoder = encoder.fresh(derive_seed(seed, "encoder"))
            return Neighbours(encoder, self.width, images.pixels(slice(0, 2)))

    def train(self, network: nn.Module, data: Granted, draws: Draws) -> None:
        assert isinstance(network, Neighbours)
        if len(data.train) < 2:
            raise NotApplicable("1 training image, 2 are needed: give more images")
        seed = derive_seed(draws.seed, "beyond")
        network.load_state_dict(self._fresh(data.train, seed).state_dict())

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return z[:, 0].mean() + F.cross_entropy(z[:, 1:], y)

        train(_Training(network, self), data.train, self.recipe, seed, loss=loss)

    def scorer(self, network: nn.Module, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        assert isinstance(network, Neighbours)
        network.eval().requires_grad_(False)
        fixed = drawn(Draws(derive_seed(draws.seed, "neighbours"), torch.arange(self.views)))

        def label(x: Tensor, draws: Draws) -> Tensor:
            with torch.no_grad():
                out: Tensor = model(x, draws if model.randomized else None).argmax(dim=1)
            return out

        def score(x: Tensor, draws: Draws) -> Tensor:
            every = fixed.expand(len(x), -1, -1)
            return -self._consistency(network, x, label(x, draws), every).topk(self.nearest, dim=1).values[:, -1]

        def mean(x: Tensor, draws: Draws) -> Tensor:
            chosen = draws.integers(self.views, (min(GRADIENTS, self.views),), purpose="views").cpu()
            return -self._consistency(network, x, label(x, draws), fixed[chosen]).mean(dim=1)

        return Scorer(score, mean)

    def _consistency(self, network: Neighbours, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """c_v of images x with the labels y [n], for the views that the numbers u [n, views, NUMBERS] describe."""
        own, _ = network(x)
        found = []
        for k in range(u.shape[1]):
            z, logits = network(views(x, u[:, k].to(x.device), self.smallest, self.flip))
            a = F.normalize(logits, dim=1).gather(1, y[:, None]).squeeze(1)
            found.append(self.alpha * a + (1 - self.alpha) * F.cosine_similarity(z, own))
        return torch.stack(found, dim=1)
