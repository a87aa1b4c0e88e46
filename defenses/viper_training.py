"""Training on texts whose letters were replaced by others that look alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.text import text_classifier
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, renew, train
from siegebench.types import Attack, Defense, Share

RECIPE = Recipe(epochs=12, batch=64, lr=2e-3, weight_decay=0.0, augment="none")
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # p of a batch
UNSEEN = 0x10FFFF  # a character of no text and no vocabulary


@dataclass(frozen=True, kw_only=True)
class ViperTraining(Defense):
    """min_theta E CE(z_theta(x'), y), where half of the texts of a batch are x' = attack(x), with one p for the batch.

    The adversarial training of Eger et al., NAACL 2019, arXiv 1903.11508. p is one of 0.1, 0.2, 0.4, 0.6, 0.8 and 1.
    By default the characters are every second neighbour of a letter; attacked with `viper.odd`, the network meets
    characters that it was not trained on. The vocabulary is taken from the clean and the attacked training texts, so
    that every character of x' has a vector of its own, and the vector of unknown ones would never be trained: a part
    of the characters that the attack put in is therefore shown as unknown.

    Random: the initial weights, the order of the texts, which of them are attacked, the attack, and which of its
    characters are unknown.

    Differs from the paper: one p for a batch; a network that starts anew; unknown characters.

    Attributes:
        attack: how texts are changed; one without access to a model.
        unknown: the part of the characters put in that is shown as unknown.
        recipe: how the network is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "viper", "half": "odd"},)

    attack: Attack
    unknown: Share = 0.5
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed = derive_seed(draws.seed, "viper_training")
        texts = data.train
        streams = Draws(derive_seed(seed, "viper"), texts.ids)

        def attacked(x: Tensor, y: Tensor, own: Draws, p: float) -> Tensor:
            threat = ThreatModel(norm="l0", eps=p, access="none")
            return self.attack(Oracle(defended, threat, own), x, y, threat, own)

        def half(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            own = streams[index].at(epoch)
            p = SHARES[int(own[:1].integers(len(SHARES), purpose="p"))]
            chosen = own.uniform(purpose="half").to(x.device) < 0.5
            new = attacked(x, y, own, p)
            hidden = own.uniform(x.shape[1:], purpose="unknown").to(x.device) < self.unknown
            new = torch.where((new != x) & hidden, UNSEEN, new)
            return torch.where(chosen.view(-1, 1, 1, 1), new, x)

        renew(defended, seed)
        worst = attacked(texts.images, texts.labels, streams, 1.0)
        text_classifier(defended).read(texts, worst)
        train(defended, texts, self.recipe, seed, images=half)
