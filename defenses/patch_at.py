"""Adversarial training against patches whose content and position are optimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, renew, train
from siegebench.types import Attack, Defense, Share

from ._attacked import attacked, check_attack

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class PatchAdversarialTraining(Defense):
    """min_theta E CE(z_theta(x'), y), x' = x with an adversarial patch for a part of each batch, x for the rest.

    Rao, Stutz, Schiele, "Adversarial training against location-optimized adversarial patches", ECCV Workshops 2020,
    arXiv 2005.02313. The patches are those of an attack such as `loap`, against the network as it is, anew in each
    step. Training starts from new weights. Patches of other shapes, sizes or places were not part of the training.

    Random: the initial weights, the order and augmentation of the images, what the attack draws. Cost: for each
    training image that is attacked, the passes of the attack; with `loap` and a full search, 6 forward and 1 backward
    pass per step.

    Differs from the paper: patches are made with batch norms in eval mode. One cosine schedule. By default no region is
    excluded; in the paper, patches stay outside the middle of the image (`paper`). The attack is ours and differs as
    its own docstring says.

    Attributes:
        attack: makes the patches. `location: fixed`, `random`, `random_search` and `full_search` of `loap` are the
            authors' four variants.
        area: the part of the image that a patch may cover, as in an l0 budget.
        share: the part of each batch that is attacked.
        recipe: how the network is trained; `paper` is close to the authors'.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "loap", "location": "greedy", "loss": "margin", "steps": 50, "attempts": 30},
        {"name": "loap", "location": "full_search", "steps": 100, "attempts": 2},
        {"name": "pgd", "loss": "margin", "steps": 50},  # for Linf and L2
    )

    attack: Attack
    area: Share = 1 / 16
    share: Share = 0.5
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        check_attack(self.attack, "l0")

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed, images = derive_seed(draws.seed, "patch_at"), data.train
        renew(defended, seed)
        threat = ThreatModel(norm="l0", eps=self.area)

        def patched(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            k = round(self.share * len(x))  # the order of the images is random
            own = Draws(seed, images.ids[index[:k]]).at(epoch)
            return torch.cat([attacked(defended, self.attack, threat, x[:k], y[:k], own), x[k:]])

        train(defended, images, self.recipe, seed, images=patched)
