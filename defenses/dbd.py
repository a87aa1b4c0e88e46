"""DBD: learn features without labels, then a linear layer, then all weights with the labels that are credible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Augment, Recipe, augmented, predict, train
from siegebench.types import Defense, Number, Positive, Share

from ._simclr import FEATURES, HEAD, fit_head, pretrain, symmetric

LAST = Recipe(epochs=10, batch=64, lr=2e-3, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class DecouplingBasedDefense(Defense):
    """Train on a poisoned set in three steps, so that features and triggered labels are not learnt together.

    Huang, Li, Wu, Qin, Ren, "Backdoor Defense via Decoupling the Training Process", ICLR 2022.

    1. Features by SimCLR, without labels: images with the trigger stay near images of their true class.
    2. The last linear layer on these features, with the symmetric cross-entropy.
    3. All weights by MixMatch. The fraction `credible` of the images with the smallest loss keeps its labels, the
       others are used without. This split is made anew before each epoch.

    MixMatch (Berthelot et al., NeurIPS 2019) guesses the label of an unlabelled image from the mean prediction for two
    augmentations of it, sharpened with temperature T, mixes all images in pairs, and minimises the cross-entropy on the
    labelled and lambda_u times the squared error on the others; lambda_u rises linearly over the epochs.

    Random: the initial weights, the order and the augmentation of the images, the partners and weights of mixing.

    Cost: the features dominate; the authors train them for 1,000 epochs.

    Differs from the paper: a batch of step 3 is drawn from the whole set and split into its labelled and unlabelled
    images; an epoch of it is one pass. The views of step 1 change the balance of the colours instead of their hue. One
    cosine schedule in each step; the last weights are deployed, where the authors choose an epoch on the test set.

    Attributes:
        features: how step 1 trains; its `augment` says only whether images are mirrored.
        temperature: of the contrastive loss.
        head, recipe: how steps 2 and 3 train.
        credible: fraction of the images that keep their labels in step 3.
        sharpen, mixing, unlabelled: T, the parameter of the Beta distribution of the weights of mixing, and lambda_u.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    features: Recipe = FEATURES
    temperature: Positive = 0.5
    head: Recipe = HEAD
    recipe: Recipe = LAST
    credible: Share = 0.5
    sharpen: Positive = 0.5
    mixing: Positive = 0.75
    unlabelled: Number = 15.0

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        images, seed = data.train, derive_seed(draws.seed, "dbd")
        defended.load_state_dict(defended.fresh(derive_seed(seed, "weights")).state_dict())
        pretrain(defended, images, self.features, derive_seed(seed, "features"), self.temperature)
        fit_head(defended, images, self.head, lambda z, y: symmetric(z, y).mean(), derive_seed(seed, "head"))
        self.mixmatch(defended, images, derive_seed(seed, "mixmatch"))

    def believed(self, model: Classifier, data: ImageSet) -> Tensor:
        """Which of the images keep their labels, bool [N]: those with the smallest symmetric cross-entropy."""
        losses = symmetric(predict(model.eval(), data), data.labels)
        kept = torch.zeros(len(data), dtype=torch.bool)
        kept[losses.argsort(stable=True)[: max(1, round(self.credible * len(data)))]] = True
        return kept

    def mixmatch(self, model: Classifier, data: ImageSet, seed: int) -> None:
        """Step 3."""
        believed = self.believed(model, data)
        mixed = torch.empty(0), torch.empty(0)  # the targets of a batch, and which of its images are labelled
        ramp = 0.0

        def images(x: Tensor, y: Tensor, index: Tensor, epoch: int) -> Tensor:
            nonlocal mixed, ramp
            ramp = self.unlabelled * (epoch + 1) / self.recipe.epochs
            again = self.second(data, index, self.recipe.augment, seed, epoch).to(x)
            has = believed[index].to(x.device)
            known = F.one_hot(y[has], data.num_classes).to(x)
            guess = known[:0]
            if not bool(has.all()):
                model.eval()
                with torch.no_grad():
                    mean = (F.softmax(model(x[~has]), dim=1) + F.softmax(model(again[~has]), dim=1)) / 2
                model.train()
                guess = sharpened(mean, self.sharpen)
            x_all, q_all = torch.cat([x[has], x[~has], again[~has]]), torch.cat([known, guess, guess])
            labelled = torch.arange(len(x_all), device=x.device) < int(has.sum())
            random = np.random.default_rng(derive_seed(seed, "mix", epoch, int(index[0])))
            weight = float(random.beta(self.mixing, self.mixing))
            weight = max(weight, 1 - weight)
            partner = torch.from_numpy(random.permutation(len(x_all))).to(x.device)
            mixed = weight * q_all + (1 - weight) * q_all[partner], labelled
            return weight * x_all + (1 - weight) * x_all[partner]

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return mixmatch_loss(z, *mixed, ramp)

        def refresh(epoch: int) -> None:
            believed.copy_(self.believed(model, data))

        train(model, data, self.recipe, seed, loss=loss, images=images, after=refresh)

    @staticmethod
    def second(data: ImageSet, index: Tensor, how: Augment, seed: int, epoch: int) -> Tensor:
        """Another augmentation of the images."""
        draws = Draws(derive_seed(seed, "second"), data.ids[index])
        return augmented(data.pixels(index), how, draws, epoch, data.kind)


def sharpened(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T), normalised, for probabilities [n, K]."""
    q = p.pow(1 / temperature)
    return q / q.sum(dim=1, keepdim=True)


def mixmatch_loss(z: Tensor, target: Tensor, labelled: Tensor, weight: float) -> Tensor:
    """CE(z, target) over the labelled images + weight times the squared error of softmax(z) over the others."""
    total = z.new_zeros(())
    if bool(labelled.any()):
        total = total + F.cross_entropy(z[labelled], target[labelled])
    if not bool(labelled.all()):
        total = total + weight * F.mse_loss(F.softmax(z[~labelled], dim=1), target[~labelled])
    return total
