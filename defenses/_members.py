"""Several networks in one defended model: their votes are combined, or their features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Ensemble
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, renew, train

Vote = Literal["probabilities", "logits"]


class Voting(Ensemble):
    """Members that vote: the log of their mean softmax, or their mean logits.

    `backward_model` has the values of the vote and the gradient of the mean logits. In the mean softmax, the gradient
    of a confident member is small; in the mean logits, all members count alike.

    Args:
        members: networks with the same classes.
        vote: how they are combined.
    """

    def __init__(self, members: Sequence[Classifier], vote: Vote) -> None:
        super().__init__(members)
        self.vote = vote

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self._combined(torch.stack([member(x, draws) for member in self.members]))

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z = torch.stack([member.backward_model(x, draws) for member in networks(self)])
        mean = z.mean(dim=0)
        return self._combined(z.detach()) + (mean - mean.detach())

    def _combined(self, z: Tensor) -> Tensor:
        """Logits [M, n, classes] of the members to logits [n, classes]."""
        if self.vote == "logits":
            return z.mean(dim=0)
        return z.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(z))

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([member.features(x) for member in networks(self)], dim=1)


class Concatenated(Ensemble):
    """A linear layer on the concatenated features of its members, which are frozen. The layer starts at zero."""

    def __init__(self, members: Sequence[Classifier]) -> None:
        super().__init__(members)
        self.widths = [width(member) for member in members]
        self.head = nn.utils.skip_init(nn.Linear, sum(self.widths), self.num_classes)  # draws no random numbers
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        parts = [member.features(x) for member in networks(self)]
        return torch.cat(parts, dim=1).to(self.head.weight.dtype)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits.to(x.dtype)

    def train(self, mode: bool = True) -> Concatenated:
        super().train(mode)
        self.members.eval()  # batch norms and dropout of frozen members stay as they are deployed
        return self


def networks(model: Ensemble) -> list[Classifier]:
    """The members."""
    return [cast("Classifier", member) for member in model.members]


def width(model: Classifier) -> int:
    """Number of features: inputs of the last linear layer.

    Raises:
        NotApplicable: when there is none.
    """
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not last:
        raise NotApplicable(f"{model.card.name} has no linear layer to read features from")
    return last[-1].in_features


def train_members(model: Ensemble, data: ImageSet, recipe: Recipe, seed: int) -> None:
    """Train every member from new weights of its own, independently of the others."""
    for i, member in enumerate(networks(model)):
        own = derive_seed(seed, "member", i)
        renew(member, own)
        train(member, data, recipe, own)
