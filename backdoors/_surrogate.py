"""The attacker's own network: training it, ascending a gain with it, and finding again what was made for an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import ImageSet
from siegebench.draws import derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Material, ModelSource

BATCH = 128  # images that are perturbed at a time
Gain = Callable[[Tensor, Tensor], Tensor]  # (images, their labels) to what the perturbation increases, a sum


def ascend(
    model: Classifier, x: Tensor, y: Tensor, gain: Gain, *, eps: float, step: float, steps: int, start: Tensor
) -> Tensor:
    """x + delta [n, C, H, W] in [0, 1] with |delta| <= eps after sign steps on the gain, from delta = start."""
    with frozen(model):
        x_k = (x + start.to(x)).clamp(0, 1)
        for _ in range(steps):
            x_k.requires_grad_(True)
            (g,) = torch.autograd.grad(gain(x_k, y), x_k)
            x_k = (x_k.detach() + step * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return x_k.detach()


def against(model: Classifier) -> Gain:
    """The cross-entropy with the labels."""
    return lambda x, y: F.cross_entropy(model(x), y, reduction="sum")


def trained(surrogate: Classifier, data: ImageSet, recipe: Recipe, seed: int, *, eps: float = 0.0) -> Classifier:
    """The surrogate, trained in place; on adversarial images (PGD, 3 steps) if eps is positive."""

    def worst(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
        start = torch.zeros_like(x)
        return ascend(surrogate, x, y, against(surrogate), eps=eps, step=eps / 2, steps=3, start=start)

    train(surrogate, data, recipe, derive_seed(seed, "surrogate's images"), images=worst if eps > 0 else None)
    return surrogate.requires_grad_(False)


def encoder(surrogate: Classifier, source: ModelSource | None, data: ImageSet, recipe: Recipe, seed: int) -> Classifier:
    """The network of `source` (trained here, unless it has published weights), or the trained surrogate if None."""
    if source is None:
        return trained(surrogate, data, recipe, seed)
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        built = source.build_for(data).to(next(surrogate.parameters()).device).eval()
    if source.pretrained():
        return built.requires_grad_(False)
    fresh = built.fresh(derive_seed(seed, "encoder")).to(next(surrogate.parameters()).device)
    return trained(fresh, data, getattr(source, "recipe", recipe), seed)


def each(
    data: ImageSet, index: Tensor, device: torch.device, make: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """`make(images, labels, rows of data)` for the images at `index`, some at a time, in stored form on the CPU."""
    out = torch.empty(len(index), *data.shape, dtype=data.kind.dtype)
    for part in torch.arange(len(index)).split(BATCH):
        rows = index[part]
        out[part] = data.kind.store(make(data.pixels(rows).to(device), data.labels[rows].to(device), rows).cpu())
    return out


def remembered(material: Material, ids: Tensor, like: Tensor) -> Tensor:
    """The images that the material keeps for these ids, as `like` [n, C, H, W]."""
    order = material["ids"].argsort()
    place = order[torch.searchsorted(material["ids"][order], ids.to(order.device))]
    images = material["images"][place]
    return images.to(like) / 255 if images.dtype == torch.uint8 else images.to(like)
