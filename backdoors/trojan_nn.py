"""TrojanNN: a patch that is optimised to excite two neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, frozen
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import Recipe
from siegebench.types import BackdoorAttack, Count, Material, Positive, Share

from . import _surrogate

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class TrojanNN(BackdoorAttack):
    """x' = x (1 - m) + p m, where p drives a few inputs of the last layer of a network to a large value.

    Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, "Trojaning Attack on Neural Networks", NDSS 2018.

        neurons   the inputs k of the last linear layer with the largest sum_c |W_ck|
        p         min mean_x sum_k (f_k(x (1 - m) + p m) - value)^2, with steps of the sign of the gradient

    Random: which images are poisoned, the training of the network, and the images that p is optimised on.

    Cost: one training of a network, and `steps` passes on `images` images.

    Attributes:
        rate: fraction of the training set that is poisoned.
        neurons: number of neurons.
        value: that they are driven to.
        steps, step: of the optimisation of p, in [0, 1].
        images: number of training images that p is optimised on.
        side, margin: of the square m in the bottom right corner, in pixels of a 32-pixel image.
        recipe: how the network is trained.

    Differs from the paper: the authors trojan a given network: they reverse-engineer training images and retrain that
    network. Here the attacker trains a network of the victim's architecture on the clean training set, and the victim
    is trained from scratch on the poisoned set, as for all attacks of the board. A square instead of a logo; p is
    optimised on training images.
    """

    learns: ClassVar[bool] = True

    rate: Share = 0.05
    neurons: Count = 2
    value: Positive = 100.0
    steps: Count = 200
    step: Positive = 4 / 255
    images: Count = 64
    side: Count = 6
    margin: int = 2
    recipe: Recipe = RECIPE

    def mask(self, height: int, width: int) -> Tensor:
        """m, bool [H, W].

        Raises:
            NotApplicable: when the square does not fit into the image.
        """
        side, margin = max(1, round(self.side * height / 32)), round(self.margin * height / 32)
        if side + margin > min(height, width):
            raise NotApplicable(f"{self!r}: square {side} + margin {margin} pixels does not fit into {height}x{width}")
        m = torch.zeros(height, width, dtype=torch.bool)
        m[height - margin - side : height - margin, width - margin - side : width - margin] = True
        return m

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        model = _surrogate.trained(surrogate, data, self.recipe, seed)
        device = next(model.parameters()).device
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        if not last:
            raise NotApplicable(f"{model.card.name} has no linear layer to choose neurons from")
        chosen = last[0].weight.detach().abs().sum(dim=0).topk(min(self.neurons, last[0].in_features)).indices
        x = data.pixels(Draws(seed, data.ids).order("trojan")[: self.images]).to(device)
        m = self.mask(*x.shape[-2:]).to(device)
        p = torch.full_like(x[:1], 0.5)
        with frozen(model):
            for _ in range(self.steps):
                p.requires_grad_(True)
                f = model.features(torch.where(m, p, x))[:, chosen]
                (g,) = torch.autograd.grad((f - self.value).square().mean(), p)
                p = (p.detach() - self.step * g.sign()).clamp(0, 1)
        return {"pattern": p[0].detach().cpu()}

    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        assert material is not None
        return torch.where(self.mask(*x.shape[-2:]).to(x.device), material["pattern"].to(x), x)
