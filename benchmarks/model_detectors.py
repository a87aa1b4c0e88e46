"""Passes of k_arm and neural_cleanse on one network of 43 classes with a planted trigger, and on its clean twin.

    python benchmarks/model_detectors.py

Logit t is the mean brightness of region t of the image. The regions have 12 to 17 pixels, that of the planted target
two. A pass is the forward and backward pass of one image.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.types import ModelDetector, Verdict

CLASSES, SIDE, PLANTED, BATCH = 43, 26, 17, 8


class Regions(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        weight = torch.zeros(len(widths), SIDE * SIDE)
        start = 0
        for t, width in enumerate(widths):
            weight[t, start : start + width] = 40 / width
            start += width
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1).flatten(1) @ self.weight.T


def dark(n: int = 129) -> ImageSet:
    x = torch.randint(0, 60, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(x, torch.arange(n) % CLASSES, torch.arange(n), CLASSES, "dark")


def judged(detector: dict[str, object], *, planted: bool) -> tuple[Verdict, int]:
    """(verdict, passes)"""
    widths = [2 if planted and t == PLANTED else 12 + (7 * t) % 6 for t in range(CLASSES)]
    net, clean, passes = Regions(widths), dark(), [0]

    def count(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        passes[0] += len(z) if z.requires_grad else 0

    net.register_forward_hook(count)
    entry = registry.build(ModelDetector, detector)
    granted = Granted("benchmark", ("clean",), clean=lambda: clean)
    draws = Draws(0, torch.zeros(1, dtype=torch.long))
    return entry.judge(Network(net, num_classes=CLASSES), granted, draws), passes[0]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cleanse = {"name": "neural_cleanse", "batch": BATCH}
    arms = {"name": "k_arm", "batch": BATCH, "least": 10, "bound": 0.2 / SIDE**2}  # a fifth of a pixel, all are dark
    for planted in (True, False):
        (one, dear), (other, cheap) = (judged(d, planted=planted) for d in (cleanse, arms))
        print(f"{'planted target ' + str(PLANTED) if planted else 'clean'}:")
        for name, verdict, passes in (("neural_cleanse", one, dear), ("k_arm", other, cheap)):
            found = f"backdoored, targets {verdict.targets}" if verdict.backdoored else "not backdoored"
            print(f"  {name:15} {found:30} score {verdict.score:6.2f}  {passes:6d} passes")
        print(f"  ratio {dear / cheap:.1f}")


if __name__ == "__main__":
    main()
