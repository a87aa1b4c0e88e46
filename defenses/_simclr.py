"""SimCLR: features that are learnt from images without labels, for defenses that do not trust the labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train

FEATURES = Recipe(epochs=30, batch=128, optimiser="sgd", lr=0.2, weight_decay=1e-4)
HEAD = Recipe(epochs=10, batch=64, lr=2e-3, weight_decay=0.0, augment="none")
GREY = (0.299, 0.587, 0.114)
WIDTH = 128  # of the projections


def views(x: Tensor, draws: Draws, *, least: float = 0.2, flip: bool = False) -> Tensor:
    """Random views [n, C, H, W] of images in [0, 1]: a crop that is resized, colours changed, or grey.

    Args:
        least: smallest area of a crop, as a fraction of the image.
        flip: mirror half of the images; not for digits and signs.
    """
    u = draws.uniform((12,)).to(x)
    side = (least + (1 - least) * u[:, 0]).sqrt()
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3) / 2)
    width, height = (side * ratio).clamp(max=1), (side / ratio).clamp(max=1)
    theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    mirrored = torch.where(u[:, 2] < 0.5, -1.0, 1.0) if flip else torch.ones_like(width)
    theta[:, 0, 0], theta[:, 1, 1] = mirrored * width, height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * u[:, 3] - 1), (1 - height) * (2 * u[:, 4] - 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    jitter = (u[:, 5] < 0.8).view(-1, 1, 1, 1)
    changed = out * (0.6 + 0.8 * u[:, 6]).view(-1, 1, 1, 1)  # brightness
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + (0.6 + 0.8 * u[:, 7]).view(-1, 1, 1, 1) * (changed - mean)  # contrast
    if x.shape[1] == 3:
        grey = (changed * torch.tensor(GREY, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        changed = grey + (0.6 + 0.8 * u[:, 8]).view(-1, 1, 1, 1) * (changed - grey)  # saturation
        changed = changed * (0.9 + 0.2 * u[:, 9:12]).view(-1, 3, 1, 1)  # instead of a change of hue
    out = torch.where(jitter, changed, out).clamp(0, 1)
    if x.shape[1] == 3:
        weights = torch.tensor(GREY, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
        without = (draws.uniform((), purpose="grey").to(x) < 0.2).view(-1, 1, 1, 1)
        out = torch.where(without, (out * weights).sum(dim=1, keepdim=True).expand_as(out), out)
    return out


def contrast(h: Tensor, temperature: float) -> Tensor:
    """NT-Xent of projections [2n, d]; rows i and n + i are views of one image."""
    h = F.normalize(h, dim=1)
    similar = h @ h.T / temperature
    similar = similar.masked_fill(torch.eye(len(h), dtype=torch.bool, device=h.device), float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(h), device=h.device).roll(len(h) // 2))


class Projected(Wrapped):
    """The projections of the features of a network, in the place of logits."""

    def __init__(self, inner: Classifier, width: int, seed: int) -> None:
        super().__init__(inner)
        like = next(inner.parameters())
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WIDTH))
        self.projection = layers.to(like.device, like.dtype)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        out: Tensor = self.projection(self.inner.features(x))
        return out


def last_linear(model: Classifier) -> nn.Linear:
    """The last linear layer, which makes logits of the features.

    Raises:
        NotApplicable: when there is none.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not found:
        raise NotApplicable(f"{model.card.name} has no linear layer behind its features; use a network that has one")
    return found[-1]


def pretrain(model: Classifier, data: ImageSet, recipe: Recipe, seed: int, temperature: float = 0.5) -> None:
    """Train the features of a network in place, without the labels.

    Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML
    2020. The views are drawn here: `recipe.augment` says only whether images are mirrored.
    """
    flip = recipe.augment == "crop_flip"
    wrapped = Projected(model, last_linear(model).in_features, derive_seed(seed, "projection"))

    def two(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        draws = Draws(derive_seed(seed, "views"), data.ids[index]).at(epoch)
        return torch.cat([views(x, draws.child(k), flip=flip) for k in ("first", "second")])

    def loss(h: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        return contrast(h, temperature)

    train(wrapped, data, replace(recipe, augment="none"), seed, loss=loss, images=two)


@torch.no_grad()
def features(model: Classifier, data: ImageSet, batch: int = 256) -> Tensor:
    """Inputs of the last linear layer for all images, [N, d], on the CPU."""
    like = next(model.parameters())
    parts = torch.arange(len(data)).split(batch)
    return torch.cat([model.features(data.pixels(i, like.dtype).to(like.device)).cpu() for i in parts])


class Probe(Wrapped):
    """A network of which only the last linear layer is trained; the rest stays in eval mode."""

    def train(self, mode: bool = True) -> Probe:
        super().train(False)
        return self


def fit_head(
    model: Classifier, data: ImageSet, recipe: Recipe, loss: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    """Train the last linear layer of a network in place, on loss(logits, labels)."""
    model.requires_grad_(False)
    last_linear(model).requires_grad_(True)
    train(Probe(model), data, recipe, seed, loss=lambda z, y, x, index: loss(z, y))
    model.requires_grad_(True)


def symmetric(z: Tensor, y: Tensor, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """alpha CE(p, y) + beta CE(y, p) for each image, [n]; Wang et al., "Symmetric Cross Entropy ...", ICCV 2019."""
    p = F.softmax(z, dim=1).clamp(1e-7, 1)
    target = F.one_hot(y, z.shape[1]).to(z).clamp(1e-4, 1)
    return alpha * F.cross_entropy(z, y, reduction="none") - beta * (p * target.log()).sum(dim=1)
