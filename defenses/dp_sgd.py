"""DP-SGD: training whose weights reveal little about any single image, with a stated epsilon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.accountant import multiplier_for
from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ModelError, NotApplicable
from siegebench.per_image import clipped, per_image
from siegebench.types import Count, Defense, Positive, Share

TOGETHER = 64  # images whose gradients are held at once


@dataclass(frozen=True, kw_only=True)
class DPSGD(Defense):
    """theta <- theta - eta (sum_i g_i min(1, C / |g_i|) + z C u) / B over batches in which each image is with rate q.

    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep Learning with Differential Privacy", CCS 2016,
    arXiv 1607.00133. The noise multiplier z is the smallest for which the whole training is (epsilon, delta)-private
    for adding or removing one image, by the accountant of `siegebench.accountant`. Batches are drawn image by image
    (Poisson sampling), as the accountant assumes; B is their expected size. Images are not augmented.

    Batch norms mix the images of a batch, and their statistics would be released without noise: they are replaced by
    group norms of up to 8 groups. A network with published weights (`public: true`) keeps its batch norms with
    their public statistics, and the training starts from those weights.

    It protects the training images, and no robustness to attacks at test time is claimed for it.

    Random: the initial weights, the batches, and the noise. They are counter-based, so that the run can be repeated:
    epsilon is valid only against attackers who do not know the seed.

    Differs from the paper: momentum; the accountant is that of Mironov, Talwar, Zhang (2019) instead of the moments
    accountant, whose integer orders it contains.

    Attributes:
        epsilon, delta: of differential privacy.
        norm: C.
        epochs, batch: expected passes over the images, and B.
        lr, momentum: of SGD.
        public: start from the published weights of the network.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "pgd", "loss": "margin", "steps": 50, "restarts": 5},)

    epsilon: Positive = 8.0
    delta: Positive = 1e-5
    norm: Positive = 1.0
    epochs: Count = 20
    batch: Count = 128
    lr: Positive = 0.5
    momentum: Share = 0.9
    public: bool = False

    def wrap(self, model: Classifier) -> Classifier:
        if not self.public:
            return without_batch_norms(model.fresh(0))  # the structure; `fit` trains the weights
        if not model.card.weights:
            raise NotApplicable(
                f"{model.card.name} has no published weights, and those trained here have seen the private images; "
                "give a checkpoint, or leave `public` out"
            )
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        seed, images = derive_seed(draws.seed, "dp_sgd"), data.train
        if not self.public:
            start = without_batch_norms(defended.fresh(derive_seed(seed, "weights")))
            defended.load_state_dict(start.state_dict())
        defended.eval()  # no dropout, and no image changes the gradient of another
        like = next(defended.parameters())
        rate = min(1.0, self.batch / len(images))
        steps = self.epochs * max(1, round(1 / rate))
        z = multiplier_for(self.epsilon, rate, steps, self.delta)
        velocity: dict[str, Tensor] = {}
        one = Draws(seed, torch.zeros(1, dtype=torch.long))
        for step in range(steps):
            chosen = (Draws(seed, images.ids).uniform((), step, "batch") < rate).nonzero().squeeze(1)
            total = {k: torch.zeros_like(p) for k, p in defended.named_parameters()}
            for index in chosen.split(TOGETHER):
                x = images.pixels(index, like.dtype).to(like.device)
                y = F.one_hot(images.labels[index], images.num_classes).to(like)
                each = clipped({k: g[None].detach() for k, g in per_image(defended, x, y).items()}, self.norm)
                total = {k: total[k] + each[k][0].sum(dim=0) for k in total}
            with torch.no_grad():
                for name, p in defended.named_parameters():
                    u = one.normal(tuple(p.shape), step, name)[0].to(like)
                    g = (total[name] + z * self.norm * u) / (rate * len(images))
                    velocity[name] = self.momentum * velocity.get(name, torch.zeros_like(g)) + g
                    p.sub_(self.lr * velocity[name])
            if not bool(torch.isfinite(like).all()):
                raise ModelError(f"dp_sgd: the weights are not finite after {step + 1} steps; lower lr ({self.lr:g})")


def without_batch_norms(model: Classifier) -> Classifier:
    """The model with its batch norms replaced by group norms, in place; those of timm keep their activation."""
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                norm: nn.Module = nn.GroupNorm(math.gcd(8, child.num_features), child.num_features)
                act = getattr(child, "act", None)
                parent._modules[name] = nn.Sequential(norm, act) if isinstance(act, nn.Module) else norm
    reference = next(model.parameters())
    return model.to(reference.device, reference.dtype)
