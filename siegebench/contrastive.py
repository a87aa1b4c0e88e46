"""Features learnt without labels: random views of images, and losses that bring two views of one image together.

Three methods differ in what keeps all images from getting the same features:

    simclr   the other images of the batch: NT-Xent (Chen et al., ICML 2020, arXiv 2002.05709)
    simsiam  no gradient to one of the two views, and a predictor (Chen, He, CVPR 2021, arXiv 2011.10566)
    byol     as simsiam; a slow copy of the network sees that view (Grill et al., NeurIPS 2020, arXiv 2006.07733)

The features of an image are the input of the last linear layer of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped, copied
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, train

Method = Literal["simclr", "simsiam", "byol"]
BatchChange = Callable[[Tensor, Tensor], Tensor]  # (images, indices in the set) to the images that views are drawn of
GREY = (0.299, 0.587, 0.114)
WIDTH = 128  # of the projections
SLOW = 0.99  # share of the old weights that the copy of BYOL keeps in each step


def views(x: Tensor, draws: Draws, *, least: float = 0.2, flip: bool = False) -> Tensor:
    """Random views [n, C, H, W] of images in [0, 1]: a crop that is resized, colours changed, or grey.

    Gradients pass through. A view depends on the image and its stream alone.

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

    def each(value: Tensor) -> Tensor:
        return value.view(-1, 1, 1, 1)

    changed = out * each(0.6 + 0.8 * u[:, 6])  # brightness
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + each(0.6 + 0.8 * u[:, 7]) * (changed - mean)  # contrast
    if x.shape[1] == 3:
        changed = grey(changed) + each(0.6 + 0.8 * u[:, 8]) * (changed - grey(changed))  # saturation
        changed = changed * (0.9 + 0.2 * u[:, 9:12]).view(-1, 3, 1, 1)  # instead of a change of hue
    out = torch.where(each(u[:, 5] < 0.8), changed, out).clamp(0, 1)
    if x.shape[1] == 3:
        out = torch.where(each(draws.uniform((), purpose="grey").to(x) < 0.2), grey(out).expand_as(out), out)
    return out


def grey(x: Tensor) -> Tensor:
    """The luminance [n, 1, H, W] of RGB images."""
    return (x * torch.tensor(GREY, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def pair(x: Tensor, draws: Draws, *, flip: bool = False) -> Tensor:
    """Two views of each image, [2n, C, H, W]; rows i and n + i belong together."""
    return torch.cat([views(x, draws.child(which), flip=flip) for which in ("first", "second")])


# -------------------------------------------------------------------------------------------------------------- losses


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent of projections [2n, d]; rows i and n + i are views of one image.

    The mean over rows i of -log(exp(s_ij / T) / sum_{k != i} exp(s_ik / T)), with the cosine s and the partner j of i.
    """
    z = F.normalize(z, dim=1)
    s = z @ z.T / temperature
    s = s.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    return F.cross_entropy(s, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def crossed(p: Tensor, z: Tensor) -> Tensor:
    """Minus the mean cosine of the predictions p [2n, d] with the projections z of the other view, which stay fixed."""
    return -F.cosine_similarity(p, z.detach().roll(len(z) // 2, 0)).mean()


class SimCLR(nn.Module):
    """A projection of two layers, and NT-Xent."""

    def __init__(self, encoder: Classifier, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, WIDTH))

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """Of the features h [2n, width] of the views x."""
        return nt_xent(self.projection(h), self.temperature)


class SimSiam(nn.Module):
    """A projection with batch norms, and a narrow predictor between the two views; needs batches of 2 or more."""

    def __init__(self, encoder: Classifier, width: int, temperature: float) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, WIDTH, bias=False), nn.BatchNorm1d(WIDTH, affine=False),
        )  # fmt: skip
        self.predictor = nn.Sequential(
            nn.Linear(WIDTH, WIDTH // 4, bias=False), nn.BatchNorm1d(WIDTH // 4), nn.ReLU(),
            nn.Linear(WIDTH // 4, WIDTH),
        )  # fmt: skip

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """Of the features h [2n, width] of the views x."""
        z = self.projection(h)
        return crossed(self.predictor(z), z)


class BYOL(SimSiam):
    """SimSiam whose fixed view is seen by a copy of encoder and projection that follows them slowly."""

    def __init__(self, encoder: Classifier, width: int, temperature: float) -> None:
        super().__init__(encoder, width, temperature)
        self.follows = nn.ModuleList([encoder, self.projection])
        self.slow = copied(self.follows).requires_grad_(False)

    def loss(self, h: Tensor, x: Tensor) -> Tensor:
        """Of the features h [2n, width] of the views x; the copy moves towards the weights first."""
        encoder, projection = self.slow
        with torch.no_grad():
            for old, new in zip(self.slow.parameters(), self.follows.parameters(), strict=True):
                old.lerp_(new, 1 - SLOW)
            z = projection(encoder.features(x))  # type: ignore[operator]
        return crossed(self.predictor(self.projection(h)), z)


Head = SimCLR | SimSiam  # BYOL is a SimSiam
HEADS: dict[str, type[Head]] = {"simclr": SimCLR, "simsiam": SimSiam, "byol": BYOL}


# ------------------------------------------------------------------------------------------------------------ training


def last_linear(model: Classifier) -> nn.Linear:
    """The last linear layer, which makes logits of the features.

    Raises:
        NotApplicable: when there is none.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not found:
        raise NotApplicable(f"{model.card.name} has no linear layer behind its features; use a network that has one")
    return found[-1]


def head_of(model: Classifier, method: Method, seed: int, temperature: float = 0.5) -> Head:
    """What a method trains beside a network, with new weights.

    Raises:
        NotApplicable: when the network has no linear layer.
    """
    width, like = last_linear(model).in_features, next(model.parameters())
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        torch.manual_seed(derive_seed(seed, "projection"))
        return HEADS[method](model, width, temperature).to(like.device, like.dtype)


class _Features(Wrapped):
    """The features of a network in the place of logits, with the head beside it: what `train` sees."""

    def __init__(self, inner: Classifier, head: Head) -> None:
        super().__init__(inner)
        self.head = head

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.features(x)


def pretrain(
    model: Classifier, head: Head, data: ImageSet, recipe: Recipe, seed: int, *, images: BatchChange | None = None
) -> None:
    """Train the features of a network and a head in place, on pairs of views, without the labels.

    Random: the order of the images and the views.

    Args:
        head: of `head_of`, for this model.
        recipe: its `augment` says only whether images are mirrored.
        images: changes the images of a batch before their views are drawn; it must leave all in train mode.

    Raises:
        ModelError, NotApplicable: as `train` does.
    """
    flip = recipe.augment == "crop_flip"

    def two(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        x = x if images is None else images(x, index)
        return pair(x, Draws(derive_seed(seed, "views"), data.ids[index]).at(epoch), flip=flip)

    def loss(h: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        return head.loss(h, x)

    train(_Features(model, head), data, replace(recipe, augment="none"), seed, loss=loss, images=two)


@torch.no_grad()
def features(model: Classifier, data: ImageSet, batch: int = 256) -> Tensor:
    """Inputs of the last linear layer for all images, [N, d], on the CPU."""
    like = next(model.parameters())
    parts = torch.arange(len(data)).split(batch)
    return torch.cat([model.features(data.pixels(i, like.dtype).to(like.device)).cpu() for i in parts])
