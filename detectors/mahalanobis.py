"""Mahalanobis: distance of the features of each layer to the nearest class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.layers import BATCH, Layers, batches
from siegebench.stats import auroc
from siegebench.types import Count, InputDetector, Number, Positive, Scorer

from ._fitting import one_step, regression, some, whitening

ETAS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)  # of the authors' code
CHOOSING = 500  # images of each sort that choose among them


@dataclass(frozen=True, kw_only=True)
class Mahalanobis(InputDetector):
    """M_l(x) = max_c -(f_l(x) - mu_{l,c})^T Sigma_l^{-1} (f_l(x) - mu_{l,c}), combined over the layers l.

    Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
    NeurIPS 2018, arXiv 1807.03888. f_l: spatial means of the maps of layer l; mu_{l,c}: mean of class c; Sigma_l: the
    covariance of all images around the mean of their class. `sum`: score = -sum of M_l in units of its standard
    deviation on half of the training images, which the Gaussians have not seen. `fgsm`: logistic regression of M_l on
    FGSM images of that half against the clean and the equally noisy images.

    Random: the training images, and the noise of `fgsm`. Cost: one forward pass per image; with `eta` one for each
    layer, and as many backward passes. Choosing eta takes these passes for 1,500 images and each of seven values.

    Attributes:
        weights: how layers are combined; neither way uses the images that are to be detected.
        eta: size of the step x + eta sign(grad M_l) / std that is taken before M_l is computed; 0 for none. `fgsm`: the
            one of {0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01} whose regression tells FGSM images of training images
            best from clean and noisy ones, on images that the regression has not seen.
        eps: step of FGSM, and the largest noise.
        images: training images that are used.

    Differs from the paper: weights and eta are never chosen on images that are to be detected, which the published
    protocol does for each data set (its repository fits them on 500 + 500 images of the test sets). Covariances by
    Ledoit & Wolf. The strength of the regression's penalty is not cross-validated.
    """

    weights: Literal["sum", "fgsm"] = "sum"
    eta: Literal["fgsm"] | Number = 0.0
    eps: Positive = 8 / 255
    images: Count = 4000

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        x, y = some(data.train, self.images, draws)
        half = torch.arange(len(x)) % 2 == 0
        if len(x) < 4:
            raise NotApplicable(f"{len(x)} training images, 4 are needed: give more images")
        device = next(model.parameters()).device
        layers = Layers(model, x[:2].to(device))
        gaussians = [_Gaussian(f, y[half]) for f in layers.of(x[half])]
        held = [x[~half]]  # clean, FGSM and noisy images
        if "fgsm" in (self.weights, self.eta):
            noise = self.eps * (2 * Draws(draws.seed, torch.arange(len(x)))[~half].uniform(tuple(x.shape[1:])) - 1)
            held += [one_step(model, x[~half], y[~half], self.eps), (x[~half] + noise).clamp(0, 1)]
        eta = self._chosen(layers, gaussians, [z[:CHOOSING] for z in held]) if self.eta == "fgsm" else self.eta
        clean = self._distances(layers, gaussians, held[0], eta)
        if self.weights == "sum":
            weight = 1 / clean.std(dim=0).clamp(min=1e-12)
        else:
            moved = [self._distances(layers, gaussians, z, eta) for z in held[1:]]
            weight = -regression(positive=moved[0], negative=torch.cat([clean, moved[1]]))
        centre = clean.mean(dim=0)

        def combined(m: Tensor) -> Tensor:
            return -((m - centre.to(m)) * weight.to(m)).sum(dim=1)

        def score(x: Tensor, draws: Draws) -> Tensor:
            return combined(self._confidence(layers, gaussians, x, draws, eta))

        return Scorer(score)

    def _chosen(self, layers: Layers, gaussians: Sequence[_Gaussian], held: Sequence[Tensor]) -> float:
        """The step after which a regression on half of the clean, FGSM and noisy images does best on the others."""
        found = {}
        for eta in ETAS:
            m = [self._distances(layers, gaussians, z, eta) for z in held]
            half = torch.arange(len(m[0])) % 2 == 0
            weight = regression(positive=m[1][half], negative=torch.cat([m[0][half], m[2][half]]))
            score = [z[~half] @ weight for z in m]
            found[eta] = auroc(positive=score[1].numpy(), negative=torch.cat([score[0], score[2]]).numpy())
        return max(found, key=lambda eta: found[eta])

    def _distances(self, layers: Layers, gaussians: Sequence[_Gaussian], x: Tensor, eta: float) -> Tensor:
        """M_l of many images [n, layers] on the CPU."""
        if not eta:
            pairs = zip(gaussians, layers.of(x), strict=True)
            return torch.stack([torch.cat([g(part) for part in f.split(BATCH)]) for g, f in pairs], dim=1)
        p = next(layers.model.parameters())
        parts = [
            self._confidence(layers, gaussians, x[i].to(p), Draws(0, i.to(p.device)), eta).double().cpu()
            for i in batches(x, p.device)
        ]
        return torch.cat(parts)

    def _confidence(
        self, layers: Layers, gaussians: Sequence[_Gaussian], x: Tensor, draws: Draws, eta: float
    ) -> Tensor:
        """M_l of a batch [n, layers], each after its own step towards a larger M_l."""
        if not eta:
            return torch.stack([g(f) for g, f in zip(gaussians, layers(x, draws), strict=True)], dim=1)
        std = getattr(layers.model, "std", torch.ones(1, device=x.device))
        out = []
        for i, gaussian in enumerate(gaussians):
            with torch.enable_grad(), frozen(layers.model):
                leaf = x.detach().requires_grad_(True)
                (g,) = torch.autograd.grad(gaussian(layers(leaf, draws)[i]).sum(), leaf)
            out.append(gaussian(layers(x + eta * g.sign() / std, draws)[i]))
        return torch.stack(out, dim=1)


class _Gaussian:
    """Class means and the shared covariance of the features of one layer."""

    def __init__(self, f: Tensor, y: Tensor) -> None:
        classes = y.unique()
        self.means = torch.stack([f[y == c].mean(dim=0) for c in classes])
        own = self.means[torch.searchsorted(classes, y)]
        self.white = whitening(f - own)

    def __call__(self, f: Tensor) -> Tensor:
        """M of features [n, d]: minus the squared distance to the nearest class, [n]."""
        white, means = self.white.to(f), self.means.to(f)
        apart = (f @ white)[:, None] - (means @ white)[None]
        return -apart.square().sum(dim=2).amin(dim=1)
