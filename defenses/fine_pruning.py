"""Fine-pruning: remove the channels that clean images do not use, then fine-tune."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, accuracy, predict, train
from siegebench.types import Defense, Share
from siegebench.types.base import lowered

from ._repair import TUNING, head, sample


@dataclass(frozen=True, kw_only=True)
class FinePruning(Defense):
    """Prune the channels of the last feature maps that are least active on clean images, then train the rest on them.

    Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018.

    1. a_c = mean activation of channel c over the clean images, where the maps enter the linear layer behind them.
    2. In ascending order of a_c, remove channels, a fraction `step` of them at a time, while the accuracy on the
    held-out clean images is at least (1 - drop) times its initial value. 3. Fine-tune all other weights on the clean
    images.

    A channel that only the trigger activates is among the first. A backdoor that uses the channels of clean images is
    not removed by step 2, and step 3 is then the same as `fine_tuning`.

    Random: the order of the images and their augmentation in step 3.

    Cost: at most 1 / step passes on the held-out images, and the fine-tuning.

    Differs from the paper: a channel is removed where the linear layer reads it (its weights become zero, and stay zero
    in step 3), as in other implementations. In a residual network the last convolution is not all that reaches the
    linear layer. The stopping rule looks at held-out clean images; public implementations look at the test set.

    Attributes:
        drop: accuracy on the held-out images that pruning may cost, as a fraction of its initial value.
        step: fraction of the channels that is removed at a time; at least one.
        most: fraction of the channels that may be removed in all.
        tuning: how the rest is trained.
    """

    trains: ClassVar[bool] = True
    tracks: ClassVar[tuple[str, ...]] = ("backdoor",)

    drop: Share = 0.1
    step: Share = 0.01
    most: Share = 0.9
    tuning: Recipe = TUNING

    def quick(self) -> Self:
        return replace(lowered(self), most=0.5)  # the accuracy of an untrained network allows any pruning

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        layer, channels = head(defended, sample(defended, data.clean))
        order = activity(defended, data.clean, layer, channels).argsort(stable=True)
        gone = self.prune(defended, data.val, layer, order)

        def keep_pruned() -> None:
            if layer.weight.grad is not None:
                _channels(layer.weight.grad, channels)[:, gone] = 0

        defended.requires_grad_(True)
        seed = derive_seed(draws.seed, "fine-pruning")
        train(defended, data.clean, self.tuning, seed, gradients=keep_pruned)

    def prune(self, model: Classifier, held_out: ImageSet, layer: nn.Linear, order: Tensor) -> Tensor:
        """Remove channels in the given order while the accuracy allows it; the channels that were removed."""
        least, together = (1 - self.drop) * accuracy(model, held_out), max(1, round(self.step * len(order)))
        columns, count = _channels(layer.weight.data, len(order)), 0
        while count + together <= self.most * len(order):
            part = order[count : count + together]
            kept = columns[:, part].clone()
            columns[:, part] = 0
            if accuracy(model, held_out) < least:
                columns[:, part] = kept
                break
            count += together
        return order[:count]


def activity(model: Classifier, data: ImageSet, layer: nn.Linear, channels: int) -> Tensor:
    """Mean activation [C] of each channel where the linear layer reads it."""
    total = torch.zeros(layer.in_features, dtype=torch.float64)

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.add_(args[0].double().sum(dim=0).cpu())

    handle = layer.register_forward_pre_hook(add)
    try:
        predict(model, data)
    finally:
        handle.remove()
    mean: Tensor = (total / len(data)).view(channels, -1).mean(dim=1)
    return mean.to(layer.weight.device)


def _channels(weight: Tensor, channels: int) -> Tensor:
    """A view [outputs, C, inputs / C] of the weights [outputs, inputs] of a linear layer."""
    return weight.view(len(weight), channels, -1)
