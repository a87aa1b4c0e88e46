"""BaDExpert: a copy that forgot the clean task but not the backdoor shows which predictions the backdoor causes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, copied
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Count, InputDetector, Positive, Scorer, Share

from ._fitting import logits


@dataclass(frozen=True, kw_only=True)
class BaDExpert(InputDetector):
    """Compare a backdoor expert B with a fine-tuned model M' (Xie, Qi, He, Li, Wang, Mittal, ICLR 2024).

    B: the model M fine-tuned on clean images with the label after the true one (Adam), until its accuracy on held-out
    clean images is below `stop`. M': M fine-tuned on clean images with their labels. With c = argmax M(x), and the
    probabilities p_B and p_A that B and M' give to c,

        score(x) = -log min( 2 p_A / p_B, (1 - p_B) / (1/2 - p_A) ),    the second term only where p_A < 1/2:

    an input is suspicious if B is confident and M' is not. Both learning rates are chosen without triggered images:
    that of B is the first of `rates` that reaches `stop` within `steps` steps, that of M' the first of
    `auxiliary_rates` that loses at most `loss` of the held-out accuracy. If none does, the one with the lowest, or
    highest, accuracy is taken.

    Random: the order of the images. Cost: the training steps of B and M' for each rate that is tried, three forward
    passes per image.

    Attributes:
        rates: learning rates of B, in the order in which they are tried.
        steps: largest number of training steps of B for each rate, at least one epoch.
        batch: of B.
        stop: accuracy below which B has forgotten the clean task.
        auxiliary_rates, auxiliary_steps, auxiliary_batch: of M' (SGD with Nesterov momentum 0.9).
        loss: of accuracy, allowed for M'.

    Differs from the paper: it gives one rate for each data set and architecture, here rules choose them. Stopping uses
    held-out clean images; the reference code uses the test set. It is checked at the end of each epoch of B, and the
    rates fall by a cosine. M' is trained for a number of steps (there ten epochs of 2,000 images), because ten epochs
    of a few images only destroy it. The logarithm does not change the order. In the published formula p_B = 1 is
    suspicious for any answer of M'; here it is not.
    """

    rates: tuple[Positive, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    steps: Count = 20
    batch: Count = 128
    stop: Share = 0.2
    auxiliary_rates: tuple[Positive, ...] = (0.1, 0.03, 0.01)
    auxiliary_steps: Count = 300
    auxiliary_batch: Count = 64
    loss: Share = 0.1

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        if not (self.rates and self.auxiliary_rates):
            raise NotApplicable("badexpert has no learning rates: give at least one in `rates` and `auxiliary_rates`")
        seed = derive_seed(draws.seed, "badexpert")
        expert = self.expert(model, data.clean, data.val, seed)
        aux = self.auxiliary(model, data.clean, data.val, seed)

        def score(x: Tensor, draws: Draws) -> Tensor:
            c = logits(model, x, draws).argmax(dim=1)
            return suspicion(logits(expert, x, draws), logits(aux, x, draws), c)

        return Scorer(score)

    def expert(self, model: Classifier, clean: ImageSet, val: ImageSet, seed: int) -> Classifier:
        """B, in eval mode."""
        wrong = replace(clean, labels=(clean.labels + 1) % model.num_classes)
        tried = []
        for lr in self.rates:
            b = copied(model).requires_grad_(True)

            def forgot(_epoch: int, b: Classifier = b) -> bool:
                b.eval()
                return accuracy(b, val) < self.stop

            train(b, wrong, _recipe("adamw", lr, 0.0, self.batch, self.steps, len(clean)), seed, after=forgot)
            tried.append((accuracy(b, val), b))
            if tried[-1][0] < self.stop:
                break
        return min(tried, key=lambda pair: pair[0])[1].requires_grad_(False)

    def auxiliary(self, model: Classifier, clean: ImageSet, val: ImageSet, seed: int) -> Classifier:
        """M', in eval mode."""
        least, tried = accuracy(model, val) - self.loss, []
        for lr in self.auxiliary_rates:
            a = copied(model).requires_grad_(True)
            train(a, clean, _recipe("sgd", lr, 1e-4, self.auxiliary_batch, self.auxiliary_steps, len(clean)), seed)
            tried.append((accuracy(a, val), a))
            if tried[-1][0] >= least:
                break
        return max(tried, key=lambda pair: pair[0])[1].requires_grad_(False)


def _recipe(optimiser: Literal["sgd", "adamw"], lr: float, decay: float, batch: int, steps: int, n: int) -> Recipe:
    """So many steps on n images."""
    return Recipe(
        epochs=max(1, steps // max(1, n // batch)), batch=batch, optimiser=optimiser, lr=lr, weight_decay=decay,
        warmup=0.0, augment="none",
    )  # fmt: skip


def suspicion(z_b: Tensor, z_a: Tensor, c: Tensor) -> Tensor:
    """The score [n] from the logits of B and M' and the labels that M predicts."""
    log_b, log_a = (z.log_softmax(dim=1).gather(1, c[:, None])[:, 0] for z in (z_b, z_a))
    others = z_b.masked_fill(F.one_hot(c, z_b.shape[1]).bool(), -torch.inf).logsumexp(dim=1)
    first = math.log(2) + log_a - log_b
    room = 0.5 - log_a.exp()
    second = others - z_b.logsumexp(dim=1) - room.clamp(min=1e-8).log()
    return -torch.where(room > 0, torch.minimum(first, second), first)
