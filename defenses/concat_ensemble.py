"""Concatenated ensemble: networks that differ in their seeds only, combined by their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, train
from siegebench.types import Count, Defense

from ._members import Concatenated, Voting, train_members

RECIPE = Recipe()
HEAD = Recipe(epochs=5)


@dataclass(frozen=True, kw_only=True)
class ConcatEnsemble(Defense):
    """z(x) = W [g_1(x), ..., g_M(x)] + b, with the features g_i of M networks trained from different seeds.

    Zhang, Bottou, "Learning useful representations for shifting tasks and distributions", ICML 2023, arXiv 2212.07346.
    g_i is the input of the last linear layer of network i. The networks are trained independently and then frozen; W
    and b are trained on their features. The paper claims richer features for new tasks, not robustness. Here it is the
    control of `dverge`: an ensemble of the same size without its training.

    Random: the initial weights, the order and augmentation of the images. W and b start at zero. Cost: M trainings, and
    M forward passes per image and epoch of `head`; M times the network at inference.

    Differs from the paper: single-label classification with the project's recipe. The variants with a fine-tuned, a
    two-stage and a distilled network are left out.

    Attributes:
        members: M.
        combine: `features` is the paper's. `probabilities` is the log of the mean softmax, as in `dverge`, and `logits`
            the mean; both without W.
        recipe: how each network is trained.
        head: how W and b are trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50},)

    members: Count = 3
    combine: Literal["features", "probabilities", "logits"] = "features"
    recipe: Recipe = RECIPE
    head: Recipe = HEAD

    def wrap(self, model: Classifier) -> Classifier:
        members = [model.fresh(i) for i in range(self.members)]  # the structure; `fit` trains the weights
        return Concatenated(members) if self.combine == "features" else Voting(members, self.combine)

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, (Concatenated, Voting))
        seed, images = derive_seed(draws.seed, "concat_ensemble"), data.train
        train_members(defended, images, self.recipe, seed)
        if isinstance(defended, Concatenated):
            defended.members.requires_grad_(False)
            train(defended, images, self.head, derive_seed(seed, "head"))
