"""Precortical module: a few convolutions without subsampling in front of the network, trained with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, renew, train
from siegebench.types import Count, Defense, Share

RECIPE = Recipe()


class Retina(nn.Sequential):
    """Blocks of convolution, dropout and tanh that keep the shape of an image [n, C, H, W]."""

    def __init__(self, channels: int, depth: int, kernel: int, dropout: float) -> None:
        blocks: list[nn.Module] = []
        for _ in range(depth):  # skip_init draws no random numbers
            conv = nn.utils.skip_init(nn.Conv2d, channels, channels, kernel, padding=kernel // 2)
            blocks += [conv, nn.Dropout(dropout), nn.Tanh()]
        super().__init__(*blocks)

    @torch.no_grad()
    def start(self, draws: Draws) -> None:
        """New weights and biases, uniform within 1 / sqrt(inputs of a unit), the default of torch."""
        for name, parameter in self.named_parameters():
            conv = self.get_submodule(name.rpartition(".")[0])
            bound = 1 / math.sqrt(conv.weight[0].numel())  # type: ignore[index]
            u = draws.uniform(tuple(parameter.shape), purpose=name)[0].to(parameter)
            parameter.copy_(bound * (2 * u - 1))


class Precorticated(Wrapped):
    """A classifier behind a retina."""

    def __init__(self, inner: Classifier, retina: Retina) -> None:
        super().__init__(inner)
        self.retina = retina

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        logits: Tensor = self.inner(self.retina(x), draws)
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner.backward_model(self.retina(x), draws)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(self.retina(x))


@dataclass(frozen=True, kw_only=True)
class Precortical(Defense):
    """z(x) = f(R(x)), R = three blocks tanh(dropout(conv(x))) with as many channels as the image; f and R are trained.

    Fioresi, Petkovic, "A precortical module for robust CNNs to light variations", 2022, arXiv 2202.07432. The blocks
    stand for the bipolar cells, the ganglion cells and the lateral geniculate nucleus of the visual path. Training sees
    no changed light. The claim is about changes of light and contrast, not about adversarial images; gradients pass
    through R unchanged, and white-box attacks use them.

    Random: the initial weights, the order and augmentation of the images, dropout during training. Cost: three small
    convolutions more per pass.

    Differs from the paper: any network instead of a variant of LeNet-5. One cosine schedule instead of 20 epochs at
    1e-3 and 5 at 1e-5. Images are in [0, 1] and not normalised before R. The light is changed within [0, 1]
    (`light_shift`, `contrast_scale`).

    Attributes:
        depth, kernel: number of blocks, side of their filters in pixels.
        dropout: rate of the dropout in each block.
        recipe: how R and f are trained; `paper` is close to the authors'.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "pgd", "loss": "margin", "steps": 100},
        {"name": "apgd", "loss": "dlr"},
    )

    depth: Count = 3
    kernel: Count = 7
    dropout: Share = 0.2
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: filters have an odd side, found {self.kernel}")

    def wrap(self, model: Classifier) -> Classifier:
        channels = model.kind.channels
        return Precorticated(model.fresh(0), Retina(channels, self.depth, self.kernel, self.dropout))

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Precorticated)
        seed = derive_seed(draws.seed, "precortical")
        renew(defended.inner, seed)
        defended.retina.start(Draws(seed, torch.zeros(1, dtype=torch.long)))
        train(defended, data.train, self.recipe, seed)
