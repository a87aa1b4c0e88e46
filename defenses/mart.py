"""MART: adversarial training with more weight on images that the network misclassifies."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.types import Positive

from ._adversarial import BallTraining, MinMax, against, divergence


@dataclass(frozen=True, kw_only=True)
class MART(BallTraining):
    """min_theta E BCE(q, y) + beta (1 - p_y) KL(p || q), with p = softmax(z(x)) and q = softmax(z(x')).

    Wang, Zou, Yi, Bailey, Ma, Gu, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR
    2020.

        x' maximises CE(z(x'), y) in the ball, by K steps of PGD from x + 0.001 N(0, I)
        BCE(q, y) = -log q_y - log(1 - max_{k != y} q_k)

    The boosted cross-entropy BCE also pushes the strongest wrong class down. The second term keeps the prediction
    stable, with more weight where the clean image is misclassified. The deployed network is an ordinary one with
    useful gradients. Attacks on the cross-entropy overestimate its accuracy by more than that of `pgd_at`.

    Random: the initial weights, the order and augmentation of the images, and the start of the search.

    Cost: K more forward and backward passes per training step than standard training, and one more on the clean images.

    Differs from the paper: one cosine schedule instead of a piecewise constant one. The authors use eps 0.031; the
    default here is 8/255 = 0.0314. As in their code, 0.0001 is added inside the second logarithm.

    Attributes:
        beta: weight of the second term; the authors use 5 (ResNet-18) and 6 (WRN-34-10).
    """

    beta: Positive = 5.0

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            z = model(x)
            p, q = F.softmax(z, dim=1), F.softmax(z_adv, dim=1)
            p_y = p.gather(1, y[:, None]).squeeze(1)
            rival = q.scatter(1, y[:, None], 0.0).amax(dim=1)
            boosted = F.cross_entropy(z_adv, y, label_smoothing=self.recipe.smoothing) - (1.0001 - rival).log().mean()
            return boosted + self.beta * ((1 - p_y) * divergence(z, z_adv)).mean()

        return self.min_max(lambda model, x, y: against(y), outer, start="near")
