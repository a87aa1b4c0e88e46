"""Density-aware calibration: a temperature for each input, from its distance to training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import Granted, ImageSet, stratified
from siegebench.draws import Draws
from siegebench.layers import Layers, batches
from siegebench.types import Count, Defense

COLDEST = 1e-6  # smallest temperature


class DACModel(Wrapped):
    """z(x) / T(x) with T(x) = w_0 + sum_l w_l s_l(x); s_l: squared distance to the k-th training image in layer l.

    Args:
        inner: the classifier.
        k: which neighbour.

    Attributes:
        bank: features of training images, [N, sum of d_l]; empty before the fit.
        weight: (w_0, w_1, ...).
    """

    bank: Tensor
    weight: Tensor

    def __init__(self, inner: Classifier, k: int) -> None:
        super().__init__(inner)
        self.k = k
        self.register_buffer("bank", torch.zeros(0, 0))
        self.register_buffer("weight", torch.ones(1))
        self.layers: Layers | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("bank", "weight"):  # their sizes are known after the fit only
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, torch.empty_like(state_dict[f"{prefix}{name}"]).to(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def embed(self, x: Tensor, draws: Draws | None = None) -> tuple[list[Tensor], Tensor]:
        """(features of each layer and the logits, each of unit length; the logits)"""
        if self.layers is None:
            self.layers = Layers(self.inner, x[:1].detach())
        features, z = self.layers.with_logits(x, draws)
        return [F.normalize(f, dim=1) for f in (*features, z)], z

    def densities(self, features: list[Tensor]) -> Tensor:
        """s_l of features, [n, layers]."""
        banks = self.bank.split([f.shape[1] for f in features], dim=1)
        k = min(self.k, len(self.bank))
        squares = [(2 - 2 * f @ b.T).clamp(min=0) for f, b in zip(features, banks, strict=True)]  # of unit vectors
        return torch.stack([s.topk(k, dim=1, largest=False).values[:, -1] for s in squares], dim=1)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        features, z = self.embed(x, draws)
        if not len(self.bank):
            return z
        t = self.weight[0] + self.densities(features) @ self.weight[1:]
        return z / t.clamp(min=COLDEST)[:, None]

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self(x, draws)
        return logits


@dataclass(frozen=True, kw_only=True)
class DAC(Defense):
    """Divide the logits by T(x) = w_0 + sum_l w_l s_l(x), so that inputs far from training images are less confident.

    Tomani, Waseda, Shen, Cremers, "Beyond in-domain scenarios: robust density-aware calibration", ICML 2023, arXiv
    2302.05118. s_l is the squared distance of the normalised features of layer l (and of the logits) to their k-th
    nearest training image. w is fitted on clean held-out images by L-BFGS-B: mean squared error of softmax(z / T).
    Predictions do not change, so accuracy under attack does not either: what changes is the confidence.

    Random: which training images are kept. Cost: one forward pass, and distances to `images` features.

    Attributes:
        k: which neighbour; the authors' code takes the nearest (k = 1) where the paper says the k-th.
        images: training images whose features are kept.

    Differs from the paper: no further calibrator (temperature, ETS, splines) follows; w_0 and w scale the temperature
    already. Features are spatial means. The smallest temperature is 1e-6.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        # not stopped at the first wrong prediction: the margin of z / T also grows as T falls
        {"name": "pgd", "loss": "margin", "steps": 100, "early_stop": False},
    )

    k: Count = 50
    images: Count = 5000

    def quick(self) -> Self:
        return replace(self, k=min(self.k, 5), images=min(self.images, 40))

    def wrap(self, model: Classifier) -> Classifier:
        return DACModel(model, self.k)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, DACModel)
        seed = int(draws.integers(2**31, purpose="dac")[0])
        train: ImageSet = data.train
        if self.images < len(train):
            train = train.select(stratified(train, self.images, seed, "dac"))
        kept, _, _ = _embedded(defended, train)
        defended.bank = torch.cat(kept, dim=1)
        features, z, y = _embedded(defended, data.clean)
        with torch.no_grad():
            s = defended.densities(features).double().cpu()
        defended.weight = fitted(s, z.double().cpu(), y).to(defended.bank)


@torch.no_grad()
def _embedded(model: DACModel, data: ImageSet) -> tuple[list[Tensor], Tensor, Tensor]:
    """(features of each layer, logits, labels) of a set."""
    p = next(model.parameters())
    parts = [model.embed(data.pixels(i).to(p), Draws(0, i.to(p.device))) for i in batches(data.stored, p.device)]
    layers = [torch.cat(layer) for layer in zip(*(features for features, _ in parts), strict=True)]
    return layers, torch.cat([z for _, z in parts]), data.labels


def fitted(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """(w_0, w_1, ...) with the least mean squared error of softmax(z / T); w_0 within 100 of 0, others in [0, 1e4]."""
    truth = F.one_hot(y, z.shape[1]).to(z)

    def loss(w: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        leaf = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        t = (leaf[0] + s @ leaf[1:]).clamp(min=COLDEST)
        value = ((z / t[:, None]).softmax(dim=1) - truth).square().mean()
        (g,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), g.numpy()

    bounds = [(-100.0, 100.0), *[(0.0, 1e4)] * s.shape[1]]
    with torch.enable_grad():
        found = minimize(loss, np.ones(1 + s.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return torch.from_numpy(found.x)
