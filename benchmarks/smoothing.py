"""Randomised smoothing: noisy images per second while certifying, beside the network's own passes at its best batch.

python benchmarks/smoothing.py [--turns 5] [--samples 512] [--threads 1] [MODEL ...]

Both are measured in turns in one process, in CPU time; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.prepare import prepare
from siegebench.types import Certifier, ModelSource

BATCHES = (32, 64, 128, 256)


def seconds(call: object) -> float:
    start = time.process_time()
    call()  # type: ignore[operator]
    return time.process_time() - start


@torch.no_grad()
def rates(model: Classifier, certifier: Certifier, turns: int, made: int) -> tuple[float, float]:
    """(images per second while certifying, in the network's own passes); medians over the turns."""
    images, draws = torch.rand(max(BATCHES), 3, 32, 32), Draws(0, torch.arange(2))
    own: dict[int, list[float]] = {b: [] for b in BATCHES}
    whole = []
    for turn in range(turns + 1):  # the first turn warms up
        for b in BATCHES:
            start = time.process_time()
            for _ in range(512 // b):
                model(images[:b])
            own[b] += [512 / (time.process_time() - start)] * (turn > 0)
        start = time.process_time()
        certifier(model, images[:2], "l2", [0.1], draws)
        whole += [made / (time.process_time() - start)] * (turn > 0)
    return statistics.median(whole), max(statistics.median(found) for found in own.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["cifar_resnet20", "byobnet_tiny", "plain_cnn"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.models:
        model = prepare(registry.build(ModelSource, name).build(num_classes=10, size=32), torch.rand(2, 3, 32, 32))
        certifier = registry.build(Certifier, {"name": "randomized_smoothing", "n0": 100, "n": given.samples})
        found, best = rates(model, certifier, given.turns, 2 * (100 + given.samples))
        print(f"{name}: certifying {found:.0f} images/s, passes {best:.0f} images/s, ratio {found / best:.2f}")


if __name__ == "__main__":
    main()
