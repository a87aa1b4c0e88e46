"""Top-k activation: only the k largest activations of each token pass, in training and afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped, copied
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, renew, train
from siegebench.types import Defense, Share

RECIPE = Recipe()
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.ReLU6)


class TopK(nn.Module):
    """act(h) with all but the k largest magnitudes along a dimension set to zero, k a share of its size."""

    def __init__(self, act: nn.Module, share: float, dim: int | None) -> None:
        super().__init__()
        self.act, self.share, self.dim = act, share, dim

    def forward(self, h: Tensor) -> Tensor:
        h = self.act(h)
        dim = (1 if h.dim() == 4 else -1) if self.dim is None else self.dim  # [n, C, H, W], or features last
        k = max(1, round(self.share * h.shape[dim]))
        if k >= h.shape[dim]:
            return h
        kept = h.abs().topk(k, dim=dim).indices
        return h * torch.zeros_like(h).scatter(dim, kept, 1.0)


def sparsify(model: Classifier, share: float, relu: bool) -> None:
    """Replace the activations of a network by top-k ones, in place.

    Raises:
        NotApplicable: when no activation of the network is a module.
    """
    found: list[tuple[nn.Module, str, int | None]] = [
        (m, "act", 1 if isinstance(m.fc1, nn.Conv2d) else -1) for m in model.modules() if _is_mlp(m)
    ]
    if not found:  # not a transformer: every activation, over the channels at each position
        found = [
            (m, name, None) for m in model.modules() for name, c in m.named_children() if isinstance(c, ACTIVATIONS)
        ]
    if not found:
        raise NotApplicable(f"{model.card.name}: no MLP of a transformer and no activation module was found")
    for module, name, dim in found:
        setattr(module, name, TopK(nn.ReLU() if relu else getattr(module, name), share, dim))


def _is_mlp(module: nn.Module) -> bool:
    """Whether a module is the MLP of a transformer block. Squeeze-and-excitation has the same parts, and a gate."""
    parts = (getattr(module, name, None) for name in ("fc1", "act", "fc2"))
    return all(isinstance(part, nn.Module) for part in parts) and not hasattr(module, "gate")


class Sparse(Wrapped):
    """A network with top-k activations."""

    def __init__(self, inner: Classifier, share: float, relu: bool) -> None:
        sparsify(inner, share, relu)
        super().__init__(inner)
        self.share, self.relu = share, relu

    def fresh(self, seed: int) -> Classifier:
        return Sparse(self.inner.fresh(seed), self.share, self.relu)


@dataclass(frozen=True, kw_only=True)
class TopKActivation(Defense):
    """In the MLP of each transformer block, h = act(fc1(x)) keeps its k largest values per token; the rest becomes 0.

    Li, You, Bhojanapalli et al., "The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers",
    ICLR 2023.

    Trained transformers have few non-zero activations. The authors enforce this. They claim less sensitivity to label
    noise and corruptions, and better calibration; they make no adversarial claim. Selecting the largest values makes
    the network discontinuous, so gradient attacks may look weaker than they are: compare them with a query attack.

    Random: the initial weights, the order and the augmentation of the images.

    Cost: one training, and one selection in each block.

    Differs from the paper: k is a share of the width, as the authors' k was not found. Networks without such MLPs get
    the selection over the channels at each position, after every activation that is a module.

    Attributes:
        share: k divided by the number of hidden units; at least one unit is kept.
        activation: `relu` replaces the activation of the network, as in the paper; `own` keeps it, and then the largest
            magnitudes are kept.
        retrain: train from new weights. Otherwise the weights of the model are used as they are, a variant that the
            authors do not study.
        recipe: of the training.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100, "restarts": 5},
        {"name": "apgd", "loss": "dlr"},
        {"name": "square", "queries": 5000},
    )

    share: Share = 0.125
    activation: Literal["relu", "own"] = "relu"
    retrain: bool = True
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        inner = model.fresh(0) if self.retrain else copied(model)
        return Sparse(inner, self.share, self.activation == "relu")

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        if not self.retrain:
            return
        seed = derive_seed(draws.seed, "topk_activation")
        renew(defended, seed)
        train(defended, data.train, self.recipe, seed)
