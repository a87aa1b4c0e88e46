"""What answers tell about how a network was made: a meta-model over a population of small networks on digits.

    python benchmarks/attributes.py                 96 networks, some minutes on one core
    python benchmarks/attributes.py --seeds 1       32 networks

After Oh, Augustin, Schiele, Fritz, "Towards Reverse-Engineering Black-Box Neural Networks", ICLR 2018 (kennen-o): every
network of a grid is trained with a seed of its own, asked the same 100 images that none has seen, and a logistic
regression on the answers of some networks tells the attributes of the others. Networks of less than 80 % accuracy are
left out. Printed: balanced accuracy over the networks that are told, with an exact binomial interval; chance is 50 %.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, predict, train
from siegebench.types import DataSource

GRID: dict[str, tuple[Any, Any]] = {
    "activation": (nn.ReLU, nn.Tanh), "pooling": (False, True), "kernel": (3, 5), "optimiser": ("adamw", "sgd"),
    "half of the data": (0, 1),
}  # fmt: skip
RATE = {"adamw": 0.005, "sgd": 0.05}
QUERIES, TOLD, LEAST = 100, 3, 0.8  # of the networks, one in TOLD is told; the others teach


def net(activation: type[nn.Module], pooling: bool, kernel: int) -> nn.Module:
    """Two convolutions with stride 2 or max-pooling, and a linear layer, on images of 16 pixels."""
    layers: list[nn.Module] = [nn.AvgPool2d(2)]
    for inside, outside in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(inside, outside, kernel, 1 if pooling else 2, kernel // 2), activation()]
        layers += [nn.MaxPool2d(2)] if pooling else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def population(seeds: int) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """(logits of the networks for the queries [nets, 100, 10], their attributes as 0 or 1 [nets, 5])"""
    source = registry.build(DataSource, {"name": "digits", "channels": 1})
    data, test = source.load("train"), source.load("test")
    order = Draws(0, data.ids).order("halves")
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    z, attributes = [], []
    for seed, values in product(range(seeds), product((0, 1), repeat=len(GRID))):
        activation, pooling, kernel, optimiser, half = (pair[v] for pair, v in zip(GRID.values(), values, strict=True))
        make = partial(net, activation, pooling, kernel)
        model = Network(make(), num_classes=10, mean=(0.5,), std=(0.5,), rebuild=make)
        own = derive_seed(seed, values)
        model = model.fresh(own)
        model.kind = data.kind
        train(
            model, data.select(halves[half]), Recipe(epochs=10, batch=64, optimiser=optimiser, lr=RATE[optimiser]), own
        )
        answers = predict(model, test)
        if float((answers.argmax(dim=1) == test.labels).double().mean()) >= LEAST:
            z.append(answers[:QUERIES])
            attributes.append(values)
    return torch.stack(z), np.array(attributes)


def seen(z: Tensor, released: str) -> np.ndarray[Any, Any]:
    """What an attacker gets of logits [nets, queries, classes], [nets, features]."""
    p = z.double().softmax(dim=2)
    if released == "labels":
        p = nn.functional.one_hot(z.argmax(dim=2), z.shape[2]).double()
    elif released == "one decimal":
        p = p.round(decimals=1)
    else:
        p = p.clamp(min=1e-6).log()
    return np.asarray(p.flatten(1).numpy())


def told(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], test: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """(balanced accuracy on the networks of `test`, lower and upper end of the interval of the plain accuracy)"""
    scale = StandardScaler().fit(x[~test])
    model = LogisticRegression(C=0.01, max_iter=2000).fit(scale.transform(x[~test]), y[~test])
    right = model.predict(scale.transform(x[test])) == y[test]
    interval = binomtest(int(right.sum()), len(right)).proportion_ci()
    return float(np.mean([right[y[test] == v].mean() for v in (0, 1)])), float(interval.low), float(interval.high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="networks for each point of the grid")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    z, attributes = population(seeds)
    test = np.zeros(len(z), dtype=bool)
    test[Draws(1, torch.arange(len(z))).order("told")[: len(z) // TOLD].numpy()] = True
    print(f"{len(z)} of {seeds * 2 ** len(GRID)} networks, {int(test.sum())} told, {QUERIES} queries")
    for released in ("scores", "one decimal", "labels"):
        for i, name in enumerate(GRID):
            balanced, low, high = told(seen(z, released), attributes[:, i], test)
            print(
                f"{released:>12} {name:>18} {100 * balanced:5.1f} %  ({100 * low:.0f} to {100 * high:.0f})", flush=True
            )


if __name__ == "__main__":
    main()
