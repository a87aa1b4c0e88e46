"""Backdoors beside those of ART: the same images are poisoned and triggered, and the same network is trained.

    python benchmarks/poisonings.py --rate 0.05 --seeds 0 1 2

`badnets` stands beside ART's `add_pattern_bd`, and `blended` beside `insert_image`, which inserts the same pattern with
the same weight. Success is the fraction of test images of other classes that the trigger sends to class 0. Seconds are
CPU seconds that poisoning the training images takes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from art.attacks.poisoning import PoisoningAttackBackdoor
from art.attacks.poisoning.perturbations import add_pattern_bd, insert_image
from siegebench.backdoors.blended import Blended
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from siegebench import registry
from siegebench.data import ImageSet, split_clean
from siegebench.draws import Draws
from siegebench.train import train

TARGET = 0
Trigger = Callable[[Tensor], Tensor]  # images [n, C, H, W] in [0, 1]


def of_art(backdoor: Any, shape: tuple[int, int, int], folder: str) -> Trigger:
    """What ART has for `badnets`, or for `blended`, whose pattern it reads from a file in the folder."""
    change = partial(add_pattern_bd, distance=1, pixel_value=1)
    if isinstance(backdoor, Blended):
        path = Path(folder) / "pattern.png"
        to_pil_image(backdoor.pattern(*shape[1:], shape[0])[0]).save(path)
        blend = {"size": shape[1:], "mode": "RGB", "blend": backdoor.alpha}
        change = partial(insert_image, backdoor_path=str(path), random=False, **blend)
    attack = PoisoningAttackBackdoor(change)

    def trigger(x: Tensor) -> Tensor:
        images, _ = attack.poison(x.permute(0, 2, 3, 1).numpy().copy(), torch.zeros(len(x), 10).numpy())
        return torch.as_tensor(images).permute(0, 3, 1, 2).float().clamp(0, 1)

    return trigger


def outcome(data: ImageSet, test: ImageSet, index: Tensor, trigger: Trigger, seed: int) -> tuple[float, float, float]:
    """(clean accuracy, success, seconds of poisoning) of a network that is trained on images with the trigger."""
    network: Any = registry.build("model", "byobnet_tiny")
    model = network.build_for(data).fresh(seed)
    start = time.process_time()
    x, y = data.pixels(), data.labels.clone()
    x[index], y[index] = trigger(x[index]), TARGET
    seconds = time.process_time() - start
    poisoned = ImageSet((255 * x).round().byte(), y, data.ids, data.num_classes, data.name)
    train(model, poisoned, network.recipe, seed)
    others = test.labels != TARGET
    with torch.no_grad():
        clean = float((model(test.pixels()).argmax(dim=1) == test.labels).float().mean())
        success = float((model(trigger(test.pixels()[others])).argmax(dim=1) == TARGET).float().mean())
    return clean, success, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    source: Any = registry.build("dataset", "digits")
    data, _, _ = split_clean(source.load("train"))
    test = source.load("test")
    folder = tempfile.TemporaryDirectory()
    for seed, name in product(args.seeds, ("badnets", "blended")):
        backdoor: Any = registry.build("backdoor", {"name": name, "rate": args.rate, "target": TARGET})
        index = backdoor.poison(data, seed).index

        def own(x: Tensor, backdoor: Any = backdoor) -> Tensor:
            out: Tensor = backdoor.trigger(x, Draws(0, torch.arange(len(x))))
            return out

        for who, trigger in (("ours", own), ("ART", of_art(backdoor, data.shape, folder.name))):
            clean, success, seconds = outcome(data, test, index, trigger, seed)
            print(
                f"seed {seed} {name:8} {who:5} poisoned {len(index):4}  clean {100 * clean:5.1f} %  "
                f"success {100 * success:5.1f} %  poisoning {seconds:.3f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
