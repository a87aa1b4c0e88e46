"""Spiking networks: a small one that is trained here, on images or films of events, and a published one for MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.draws import Draws
from siegebench.errors import ModelError
from siegebench.spikes import Neurons, Rule
from siegebench.train import Recipe
from siegebench.types import Count

from ._checkpoint import Checkpointed

RECIPE = Recipe(epochs=12, batch=64, lr=4e-3, augment="none")
WIDTHS = (16, 32, 32)


def each(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer without memory, on all steps at once: [T, n, ...]."""
    out: Tensor = layer(x.flatten(0, 1))
    return out.unflatten(0, x.shape[:2])


class Spiking(nn.Module):
    """Three stages of convolution, batch norm, neurons and average pooling; means over space and time are read out.

    Args:
        steps: T; of a film, its frames, which are cut from the strip. An image is the current of all steps.
        film: whether inputs are strips [n, 1, 2 T H, W] of events.
    """

    def __init__(self, classes: int, channels: int, steps: int, film: bool, rule: Rule) -> None:
        super().__init__()
        self.steps, self.film = steps, film
        stages, inside = list[nn.Module](), 2 if film else channels
        for outside in WIDTHS:
            convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(outside)))
            inside = outside
        self.stages = nn.ModuleList(stages)
        self.neurons = nn.ModuleList(Neurons(rule=rule) for _ in WIDTHS)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.film:
            n, _, rows, columns = x.shape
            frames = x.view(n, self.steps, 2, rows // (2 * self.steps), columns).transpose(0, 1)
            currents = each(self.stages[0], frames)
        else:  # the same current in every step
            first: Tensor = self.stages[0](x)
            currents = first.expand(self.steps, *first.shape)
        for i, neurons in enumerate(self.neurons):
            currents = currents if i == 0 else each(self.stages[i], currents)
            currents = each(self.pool, neurons(currents))
        logits: Tensor = self.linear(currents.mean(dim=(0, 3, 4)))
        return logits


@dataclass(frozen=True, kw_only=True)
class SpikingNet(Checkpointed):
    """A small convolutional network of leaky integrate-and-fire neurons (tau 2, threshold 1, hard reset), trained here.

    Spikes have no derivative; training and attacks use the one of a rule (siegebench/spikes.py). The answer is exact in
    every pass: only gradients depend on the rule.

    Random: the initial weights; the harness seeds them.

    Attributes:
        steps: T. An image is shown in all of them; a film has this many frames.
        film: whether inputs are films of events (`takes: [events]`) instead of images.
        rule: derivative of a spike in training, and of attacks that choose none.
        recipe: for training.
    """

    steps: Count = 4
    film: bool = False
    rule: Literal["pdsg", "pdsg_centred", "atan", "triangle", "rect", "sigmoid", "ste", "zero"] = "atan"
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        rows = size if isinstance(size, int) else size[0]
        if self.film and rows % (2 * self.steps):
            raise ModelError(
                f"a strip of {rows} rows is no film of {self.steps} frames with two polarities each; set `steps` of "
                "the model to the `frames` of the data"
            )
        make = partial(Spiking, num_classes, channels, self.steps, self.film, self.rule)
        net = make()
        mean, std = ((0.0,), (1.0,)) if self.film else ((0.5,) * channels, (0.25,) * channels)
        mean, std, source, digest = self.loaded(net, mean, std)
        card = ModelCard(
            name="spiking network", architecture=f"LIF, widths {WIDTHS}, {self.steps} steps", source=source,
            weights=digest, preprocessing={"mean": mean, "std": std},
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()


class IntegrateAndFire(nn.Module):
    """The layers of sinabs' MNIST example; their numbers are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        neurons = partial(Neurons, None, hard=False, several=True, floor=-1.0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 20, 5, bias=False), neurons(), nn.AvgPool2d(2),
            nn.Conv2d(20, 32, 5, bias=False), neurons(), nn.AvgPool2d(2),
            nn.Conv2d(32, 128, 3, bias=False), neurons(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(128, 500, bias=False), neurons(), nn.Linear(500, 10, bias=False),
        )  # fmt: skip

    def forward(self, currents: Tensor) -> Tensor:
        for layer in self.layers:
            currents = layer(currents) if isinstance(layer, Neurons) else each(layer, currents)
        return currents.sum(dim=0)


class RateCoded(Network):
    """A network on T steps: the image as a current in each, or random spikes whose rate is the brightness."""

    def __init__(self, net: nn.Module, steps: int, bernoulli: bool, card: ModelCard) -> None:
        super().__init__(net, num_classes=10, card=card, rebuild=IntegrateAndFire)
        self.steps, self.randomized = steps, bernoulli

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        currents = x.expand(self.steps, *x.shape)
        if self.randomized:
            drawn = Draws.fresh(len(x), x.device) if draws is None else draws
            u = drawn.uniform((self.steps, *x.shape[1:]), purpose="spikes").transpose(0, 1).to(x)
            currents = currents + ((u < x).to(x.dtype) - currents).detach()  # the slope of the mean
        logits: Tensor = self.net(currents)
        return logits


@dataclass(frozen=True, kw_only=True)
class SinabsMNIST(Checkpointed):
    """The spiking MNIST network of the examples of sinabs, with its published weights; it is not trained here.

    Three convolutions and two linear layers without biases, integrate-and-fire neurons (threshold 1, subtractive reset,
    several spikes in a step, potential at least -1). The logits are the sums over the steps of the currents of the last
    layer.

    Random, with `bernoulli`: the input spikes of every pass.

    Attributes:
        steps: T.
        bernoulli: random input spikes with the brightness as their rate, as in the example; else a constant current.
    """

    checkpoint: str | None = "sinabs/mnist_params.pt"
    steps: Count = 50
    bernoulli: bool = False

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        if (num_classes, channels) != (10, 1) or size not in (28, (28, 28)):
            raise ModelError(
                f"sinabs_mnist takes grey images of 28x28 pixels in 10 classes, these have {channels} channels, size "
                f"{size} and {num_classes} classes"
            )
        if self.checkpoint is None:
            raise ModelError("sinabs_mnist has no recipe: give `checkpoint: FILE` with its published weights")
        net = IntegrateAndFire()
        _, _, source, digest = self.loaded(net, (0.0,), (1.0,))
        card = ModelCard(
            name="sinabs_mnist", architecture=f"integrate-and-fire CNN, {self.steps} steps", source=source,
            weights=digest, dataset="MNIST", licence="Apache-2.0",
        )  # fmt: skip
        return RateCoded(net, self.steps, self.bernoulli, card).eval()
