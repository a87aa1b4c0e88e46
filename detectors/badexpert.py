"""BaDExpert: a copy that forgot the clean task and kept the backdoor tells which predictions come from the backdoor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

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

    suspicious is what B is sure of and M' is not. The learning rate of B is the first of `rates` that reaches `stop`
    within `steps` steps, so it is chosen without triggered images. If none does, the one with the lowest accuracy is
    taken.

    Random: the order of the images. Cost: at most `steps` training steps for each rate, the training of M', three
    forward passes per image.

    Attributes:
        rates: learning rates of B, in increasing order.
        steps: largest number of training steps of B for each rate.
        batch: of B.
        stop: accuracy below which B has forgotten the clean task.
        auxiliary: how M' is trained.

    Differs from the paper: it gives one rate for each data set and architecture, here a rule chooses it. Stopping uses
    held-out clean images; the reference code uses the test set. It is checked at the end of each epoch of B, and the
    rates fall by a cosine. The logarithm changes no order. In the published formula p_B = 1 is suspicious whatever M'
    says; here it is not.
    """

    rates: tuple[Positive, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    steps: Count = 60
    batch: Count = 128
    stop: Share = 0.2
    auxiliary: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=10, batch=64, optimiser="sgd", lr=0.1, weight_decay=1e-4, warmup=0.0, augment="none"
        )
    )

    def fit(self, model: Classifier, data: Granted, draws: Draws) -> Scorer:
        if not self.rates:
            raise NotApplicable("badexpert has no learning rates: give at least one in `rates`")
        seed = derive_seed(draws.seed, "badexpert")
        expert = self.expert(model, data.clean, data.val, seed)
        aux = copied(model).requires_grad_(True)
        train(aux, data.clean, self.auxiliary, seed)
        aux.requires_grad_(False)

        def score(x: Tensor, draws: Draws) -> Tensor:
            c = logits(model, x, draws).argmax(dim=1)
            return suspicion(logits(expert, x, draws), logits(aux, x, draws), c)

        return Scorer(score)

    def expert(self, model: Classifier, clean: ImageSet, val: ImageSet, seed: int) -> Classifier:
        """B, in eval mode."""
        wrong = replace(clean, labels=(clean.labels + 1) % model.num_classes)
        per_epoch = max(1, len(clean) // self.batch)
        best: tuple[float, Classifier] | None = None
        for lr in sorted(self.rates):
            b = copied(model).requires_grad_(True)
            recipe = Recipe(
                epochs=max(1, self.steps // per_epoch), batch=self.batch, lr=lr, weight_decay=0.0, warmup=0.0,
                augment="none",
            )  # fmt: skip

            def forgot(_epoch: int, b: Classifier = b) -> bool:
                b.eval()
                return accuracy(b, val) < self.stop

            train(b, wrong, recipe, seed, after=forgot)
            left = accuracy(b, val)
            if best is None or left < best[0]:
                best = left, b
            if left < self.stop:
                break
        assert best is not None
        return best[1].requires_grad_(False)


def suspicion(z_b: Tensor, z_a: Tensor, c: Tensor) -> Tensor:
    """The score [n] from the logits of B and M' and the labels that M predicts."""
    log_b, log_a = (z.log_softmax(dim=1).gather(1, c[:, None])[:, 0] for z in (z_b, z_a))
    others = z_b.masked_fill(F.one_hot(c, z_b.shape[1]).bool(), -torch.inf).logsumexp(dim=1)
    first = math.log(2) + log_a - log_b
    room = 0.5 - log_a.exp()
    second = others - z_b.logsumexp(dim=1) - room.clamp(min=1e-8).log()
    return -torch.where(room > 0, torch.minimum(first, second), first)
