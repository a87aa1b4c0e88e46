"""What detectors share: training images, FGSM images of them, Gaussians of features, a regression, logits."""

from __future__ import annotations

import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, frozen
from siegebench.data import ImageSet, stratified
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import batches

SMALLEST = 1e-6  # directions with a smaller fraction of the largest variance are left out


def some(data: ImageSet, most: int, draws: Draws, purpose: str = "fit") -> tuple[Tensor, Tensor]:
    """(images in [0, 1], labels) of at most `most` images, in the proportions of the classes, in random order."""
    seed = int(draws.integers(2**31, purpose=purpose)[0])
    index = torch.arange(len(data)) if most >= len(data) else stratified(data, most, seed, purpose)
    index = index[Draws(seed, data.ids[index]).order(purpose)]
    return data.pixels(index), data.labels[index]


def one_step(model: Classifier, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """FGSM images on the CPU, for detectors that learn from attacked training images."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    out = []
    with frozen(model):
        for i in batches(x, device):
            leaf = x[i].to(device, dtype).requires_grad_(True)
            draws = Draws(0, i.to(device)) if model.randomized else None
            loss = ops.cross_entropy(model.backward_model(leaf, draws), y[i].to(device)).sum()
            (g,) = torch.autograd.grad(loss, leaf)
            out.append((leaf + eps * g.sign()).clamp(0, 1).detach().cpu().to(x.dtype))
    return torch.cat(out)


def whitening(centred: Tensor) -> Tensor:
    """W [d, k] with |W^T v|^2 the squared Mahalanobis distance, from features [n, d] that are centred.

    Covariance by Ledoit & Wolf (2004), whose shrinkage keeps it invertible with few images; directions without variance
    are left out.

    Raises:
        NotApplicable: with fewer than two images, or when no feature varies.
    """
    if len(centred) < 2 or float(centred.abs().max()) == 0:
        raise NotApplicable(f"{len(centred)} images with features that vary; 2 are needed: give more images")
    covariance = torch.from_numpy(ledoit_wolf(centred.numpy(), assume_centered=True)[0])
    value, vector = torch.linalg.eigh(covariance)
    kept = value > SMALLEST * value[-1]
    return vector[:, kept] / value[kept].sqrt()


def regression(*, positive: Tensor, negative: Tensor) -> Tensor:
    """Weights [d] of a logistic regression for the positives, of standardised values [n, d]; no intercept."""
    values = torch.cat([positive, negative])
    scale = values.std(dim=0).clamp(min=1e-12)
    truth = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    centred = (values - values.mean(dim=0)) / scale
    fitted = LogisticRegression(max_iter=1000).fit(centred.numpy(), truth.numpy())
    return torch.from_numpy(fitted.coef_[0]) / scale


def logits(model: Classifier, x: Tensor, draws: Draws, step: int = 0) -> Tensor:
    """Logits of a batch; a randomised model takes other noise from the draws in each step."""
    z: Tensor = model(x, draws.at(step) if model.randomized else None)
    return z
