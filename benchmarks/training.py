"""Throughput of training beside a bare loop with the same inner attack, in images per second of CPU time.

    python benchmarks/training.py             adversarial training, `pgd_at`
    python benchmarks/training.py --steps 0   plain training, with the augmentation that the bare loop does without

Both train the same network on the same digits, in float32 on one thread: through `siegebench.train`, and by the loop
of a tutorial (PGD, then a step of AdamW), without augmentation, schedule or draws that can be repeated. They take
turns, a few batches each, so that what else the machine does slows both; the ratio of the medians is printed, and the
exit code is 1 if it is below --least. On a GPU (`--device cuda`) the time is that of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.registry import build
from siegebench.train import Recipe, train
from siegebench.types import DataSource, Defense, ModelSource

EPS, STEP, LR, BATCH = 8 / 255, 2 / 255, 2e-3, 64


def bare(model: Classifier, x_all: torch.Tensor, y_all: torch.Tensor, steps: int) -> None:
    """One epoch of training on what PGD finds in this many steps, written out; without steps, on the images."""
    optimiser = torch.optim.AdamW(model.parameters(), LR)
    for x, y in zip(x_all.split(BATCH), y_all.split(BATCH), strict=True):
        model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1) if steps else x
        for _ in range(steps):
            x_adv.requires_grad_(True)
            (g,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            x_adv = x_adv.detach() + STEP * g.sign()
            x_adv = (x + (x_adv - x).clamp(-EPS, EPS)).clamp(0, 1)
        model.train()
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(x_adv), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def ours(model: Classifier, data: ImageSet, steps: int) -> None:
    """One epoch of `pgd_at`; without steps, of the training of every network of the zoo."""
    recipe: dict[str, Any] = {"epochs": 1, "batch": BATCH, "lr": LR}
    if not steps:
        train(model, data, Recipe(**recipe), 0)
        return
    entry = build(Defense, {"name": "pgd_at", "eps": EPS, "step": STEP, "steps": steps, "recipe": recipe})
    entry.fit(model, Granted("benchmark", ("train",), train=lambda: data), Draws(0, torch.zeros(1, dtype=torch.long)))


def seconds(work: Callable[[], None], device: str) -> float:
    """Of CPU time; of the clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=3, help="of 64 images, in each turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of PGD; 0 trains on the images")
    parser.add_argument("--model", default="byobnet_tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--least", type=float, default=0.9, help="the smallest ratio that is accepted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = build(DataSource, "digits").load("train")
    data = data.select(torch.arange(BATCH * args.batches))
    model = build(ModelSource, args.model).build_for(data).to(args.device)
    x, y = data.pixels().to(args.device), data.labels.to(args.device)
    work = {
        "siegebench": partial(ours, model, data, args.steps),
        "bare loop": partial(bare, model, x, y, args.steps),
    }
    for once in work.values():
        once()
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.turns):
        for name, once in work.items():
            took[name].append(seconds(once, args.device))
    speed = {name: len(data) / statistics.median(found) for name, found in took.items()}
    for name, found in took.items():
        spread = ", ".join(f"{len(data) / s:.0f}" for s in sorted(found, reverse=True))
        print(f"{name:10} {speed[name]:7.1f} images/s ({spread})")
    ratio = speed["siegebench"] / speed["bare loop"]
    print(f"ratio      {ratio:7.2f} of the bare loop's; at least {args.least} is expected")
    return int(ratio < args.least)


if __name__ == "__main__":
    raise SystemExit(main())
