"""PGD adversarial training: train the network on the worst-case image of each ball."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted

from ._adversarial import BallTraining, MinMax, against


@dataclass(frozen=True, kw_only=True)
class PGDAdversarialTraining(BallTraining):
    """min_theta E max_{||delta|| <= eps} CE(z_theta(x + delta), y), with K steps of PGD for the inner maximum.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.

        delta_0 ~ U(ball),    delta_{k+1} = Pi(delta_k + a d(grad_delta CE(z(x + delta_k), y))),    k < K

    d is the sign for Linf and the unit vector for L2; Pi projects onto the ball and the box. Training starts from new
    weights and uses only the images x + delta_K. The deployed network is an ordinary one with useful gradients. A
    strong attacker runs AutoAttack, as on every white-box board, and PGD with restarts.

    Random: the initial weights, the order and augmentation of the images, and delta_0.

    Cost: K more forward and backward passes per training step than standard training.

    Differs from the paper: batch norms are in eval mode while delta is computed (`batch_norm`). So the perturbation is
    the worst case for the network as it will be deployed, and the running statistics count each image once; the authors
    use batch statistics. One cosine schedule instead of a piecewise constant one.

    Attributes:
        batch_norm: mode of the network while delta is computed. `train` is the authors' choice.
    """

    batch_norm: Literal["eval", "train"] = "eval"

    def problem(self, model: Classifier, data: Granted, seed: int) -> MinMax:
        def outer(model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, z_adv: Tensor) -> Tensor:
            return F.cross_entropy(z_adv, y, label_smoothing=self.recipe.smoothing)

        return replace(self.min_max(lambda model, x, y: against(y), outer, start="uniform"), batch_norm=self.batch_norm)
