"""Planted: a network, points, and for some of them a counterexample in the ball that plain PGD does not find."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from siegebench import artifacts
from siegebench.classifier import ModelCard, Network
from siegebench.data import GREY
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, ModelError
from siegebench.store import Store

VERSION = 1  # raised when the same description gives other networks
FLAT, SQUARE = (1, 1, 10), (1, 10, 10)
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


@dataclass(frozen=True, kw_only=True)
class Planting:
    """One network with planted counterexamples: its layers, its points and its training.

    Attributes:
        shape: (C, H, W) of the inputs in [0, 1].
        convolutions: channels of 3x3 convolutions, each with an activation.
        pool: 3x3 average pooling behind them.
        hidden: widths of the fully connected layers.
        activation: relu, tanh or sigmoid.
        scale: the network sees 2 scale (x - 1/2). The authors' inputs are in [-0.1, 0.1].
        points: with a planted counterexample, and as many clean ones.
        eps: radius of the Linf balls in [0, 1]; 0.1 is the authors' 0.2 of half the range.
        epochs, lr, batch: Adam; lr rises linearly until 40 % of the epochs, and falls to 0.
        steps, restarts: of PGD in each epoch, with steps of eps/10.
        window: the last so many perturbations of each point are trained on.
        near: iterates of PGD nearer to the counterexample than this fraction of eps are not trained on.
        away: weight of the loss that turns the gradient away from the counterexample; 0 for the authors' loss.
        every: epochs between counts of the hidden counterexamples, with 10 times the restarts; the last network that
            hides the most of them is kept.
        tries: restarts of the PGD with 75 steps that must not find a counterexample.
    """

    shape: tuple[int, int, int] = FLAT
    convolutions: tuple[int, ...] = ()
    pool: bool = False
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    scale: float = 3.0
    points: int = 5
    eps: float = 0.1
    epochs: int = 600
    lr: float = 5e-3
    batch: int = 512
    steps: int = 20
    restarts: int = 10
    window: int = 300
    near: float = 0.5
    away: float = 1.0
    every: int = 60
    tries: int = 1000

    def net(self) -> nn.Module:
        """The layers, untrained."""
        activation, (channels, height, width) = ACTIVATIONS[self.activation], self.shape
        layers: list[nn.Module] = []
        for out in self.convolutions:
            layers += [nn.Conv2d(channels, out, 3, padding=1), activation()]
            channels = out
        if self.pool:
            layers.append(nn.AvgPool2d(3, stride=1, padding=1))
        layers.append(nn.Flatten())
        size = channels * height * width
        for out in self.hidden:
            layers += [nn.Linear(size, out), activation()]
            size = out
        return nn.Sequential(*layers, nn.Linear(size, 2))

    def model(self, name: str, seed: int) -> Network:
        """The classifier with new weights."""
        std = 0.5 / self.scale
        model = Network(self.net(), num_classes=2, mean=(0.5,), std=(std,), card=ModelCard(name=name), rebuild=self.net)
        model.kind = GREY
        return model.fresh(derive_seed(seed, "weights")).eval()


@dataclass(frozen=True)
class Planted:
    """A trained network and its points.

    Attributes:
        name: of the network.
        x: the points [n, C, H, W], in [0, 1]; the network classifies them correctly.
        y: their labels, int64 [n].
        counterexample: [n, C, H, W], in the ball, of the other class; the point itself where there is none.
        hidden: bool [n], which points have a counterexample; the others are clean.
        eps: radius of the Linf balls.
    """

    name: str
    model: Network
    x: Tensor
    y: Tensor
    counterexample: Tensor
    hidden: Tensor
    eps: float

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lower and upper corner of each ball, within the box [0, 1]."""
        return bounds(self.x, self.eps)


def bounds(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The lower and upper corner of Linf balls, within the box [0, 1]."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def points(spec: Planting, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points [2 n, C, H, W] in disjoint balls, labels [2 n], and a corner of each of the first n balls.

    Raises:
        ConfigError: when so many balls do not fit.
    """
    n, size = 2 * spec.points, prod(spec.shape)
    draws = Draws(derive_seed(seed, "points"), torch.arange(8 * n))
    tried = draws.uniform((size,), purpose="x")
    kept: list[int] = []
    for i in range(len(tried)):
        if all(float((tried[i] - tried[j]).abs().max()) > 2 * spec.eps for j in kept):
            kept.append(i)
    if len(kept) < n:
        raise ConfigError(f"only {len(kept)} of {n} balls of radius {spec.eps:g} are disjoint; lower points or eps")
    chosen = torch.tensor(kept[:n])
    x, y = tried[chosen].view(n, *spec.shape), draws.integers(2, (), purpose="y")[chosen]
    up = draws.uniform(spec.shape, purpose="corner")[chosen[: spec.points]] < 0.5
    low, high = bounds(x[: spec.points], spec.eps)
    return x, y, torch.where(up, high, low)


def planted(name: str, spec: Planting, store: Store, seed: int = 0, device: str | torch.device = "cpu") -> Planted:
    """The network of a description with its points; trained first if it is not stored.

    Zhou et al., "SoundnessBench: A Soundness Benchmark for Neural Network Verifiers", arXiv 2412.03154.

    Random: points, labels, corners and weights, all from the seed.

    Differs from the paper: with `away` and `near` small networks hide their counterexamples after minutes; both are
    ours. Where all perturbations reach the planted corner itself, the network is asked for both classes at one point.

    Raises:
        ModelError: when no counterexample stays hidden; train longer, or with other widths.
    """
    from siegebench.soundness.training import train

    x, y, corner = points(spec, seed)
    model = spec.model(name, seed)
    described = {"soundness": VERSION, "spec": asdict(spec), "seed": seed}
    state = artifacts.made(store, described, lambda: train(spec, model.to(device), x, y, corner, seed))
    kept = state.pop("kept")
    model.load_state_dict(state)
    if not bool(kept[: spec.points].any()):
        raise ModelError(
            f"{name}: PGD finds all {spec.points} planted counterexamples; raise epochs ({spec.epochs}), or take "
            "another seed"
        )
    hidden = torch.arange(len(x)) < spec.points
    inside = torch.cat([corner, x[spec.points :]])
    return Planted(
        name, model.cpu().eval().requires_grad_(False), x[kept], y[kept], inside[kept], hidden[kept], spec.eps
    )


_PAPER = Planting(
    shape=SQUARE, scale=0.1, points=10, epochs=10_000, lr=1e-3, steps=75, restarts=75, near=0.0, away=0.0, every=200,
    hidden=(1000, 100, 20),
)  # fmt: skip
SETS: dict[str, dict[str, Planting]] = {
    "small": {"mlp_64_64": Planting(), "mlp_48_48_48": Planting(hidden=(48, 48, 48))},
    "paper": {  # the sizes of the authors' networks, as we read them, without their vision transformer
        "cnn_1": replace(_PAPER, convolutions=(10,)),
        "cnn_2": replace(_PAPER, convolutions=(5, 10)),
        "cnn_3": replace(_PAPER, convolutions=(5, 10, 20)),
        "cnn_avgpool": replace(_PAPER, convolutions=(10,), pool=True),
        "cnn_tanh": replace(_PAPER, convolutions=(10,), activation="tanh"),
        "cnn_sigmoid": replace(_PAPER, convolutions=(10,), activation="sigmoid"),
        "mlp_4": replace(_PAPER, shape=FLAT, hidden=(100, 1000, 1000, 1000, 20)),
        "mlp_5": replace(_PAPER, shape=FLAT, hidden=(100, 1000, 1000, 1000, 1000, 20)),
    },
}
