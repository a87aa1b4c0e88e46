"""Repairs of backdoored networks that other people published: clean accuracy, attack success and recovered accuracy.

    SIEGEBENCH_DATA=FOLDER python benchmarks/repairs.py --network gtsrb_badnets --images 500 --clean 625 \
        --defenses '["clp", {"name": "ibau", "lr": 0.001}]'

The networks are those of Zeng et al. (ICLR 2022, github.com/YiZeng623/I-BAU, MIT): put the files of its folders
`checkpoint` and `triggers` into `weights/I-BAU` of the data folder. They take pixels without normalisation. Those for
traffic signs expect tight crops, so 5 pixels of each border are cut. Four fifths of the clean images, which come from
the training split, are for optimisation and one fifth is held out.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from siegebench import registry
from siegebench.checkpoints import load_checkpoint
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.train import predict
from siegebench.types import DataSource, Defense

FOLDER = Path(os.environ.get("SIEGEBENCH_DATA", ".")) / "weights" / "I-BAU"
BORDER = 5


class SmallVGG(nn.Module):
    """The authors' small VGG: three stages of two convolutions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width, drop in ((3, 32, 0.3), (32, 64, 0.4), (64, 128, 0.4)):
            for channels in (inputs, width):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU(inplace=True)]
            layers += [nn.MaxPool2d(2), nn.Dropout(drop)]
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def square(x: Tensor) -> Tensor:
    out = x.clone()
    out[..., 27:31, 27:31] = 1
    return out


def added(name: str) -> Callable[[Tensor], Tensor]:
    def trigger(x: Tensor) -> Tensor:
        picture = torch.from_numpy(np.array(Image.open(FOLDER / f"{name}.png").convert("RGB")))
        mask = torch.from_numpy(np.load(FOLDER / "mask.npy")).float() if name == "l0_inv" else 0.0
        return (x * (1 - mask) + picture.permute(2, 0, 1).float() / 255).clamp(0, 1)

    return trigger


@dataclass(frozen=True)
class Published:
    """A file with weights, its attack, and the data set it was trained on."""

    file: str
    data: str
    target: int
    trigger: Callable[[Tensor], Tensor]


NETWORKS = {
    "cifar_badnets": Published("badnets_8_02_ckpt.pth", "cifar10_jpeg", 8, square),
    "cifar_l0": Published("l0_inv_0_02_ckpt.pth", "cifar10_jpeg", 0, added("l0_inv")),
    "cifar_l2": Published("l2_inv_0_02_ckpt.pth", "cifar10_jpeg", 0, added("l2_inv")),
    "gtsrb_badnets": Published("gtsrbbadnets_8_02_ckpt.pth", "gtsrb", 8, square),
    "gtsrb_wm": Published("gtsrbtrojan_wm_2_02_ckpt.pth", "gtsrb", 2, added("trojan_wm")),
}


def images(name: str, split: str, n: int) -> ImageSet:
    """n images of a split, drawn with the seed 0."""
    data = registry.build(DataSource, name).load(split)
    data = data.select(Draws(0, data.ids).order("t" if split == "test" else "c")[:n].sort().values)
    if name != "gtsrb":
        return data
    x = data.pixels()[:, :, BORDER:-BORDER, BORDER:-BORDER]
    x = nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    return replace(data, source=data.kind.store(x.clamp(0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="gtsrb_badnets", choices=list(NETWORKS))
    parser.add_argument("--defenses", type=json.loads, default=["clp"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--clean", type=int, default=625)
    args = parser.parse_args()
    torch.set_num_threads(1)
    published = NETWORKS[args.network]
    test, budget = images(published.data, "test", args.images), images(published.data, "train", args.clean)
    order, fit = Draws(1, budget.ids).order("v"), int(0.8 * len(budget))
    clean, val = budget.select(order[:fit]), budget.select(order[fit:])
    model = load_checkpoint(SmallVGG(test.num_classes), FOLDER / published.file)
    others = test.select((test.labels != published.target).nonzero().squeeze(1))
    triggered = replace(others, source=others.kind.store(published.trigger(others.pixels())))

    def tell(what: str, classifier: Classifier) -> None:
        label, stamped = predict(classifier, test).argmax(dim=1), predict(classifier, triggered).argmax(dim=1)
        rates = label == test.labels, stamped == published.target, stamped == others.labels
        ca, asr, ra = (100 * float(r.double().mean()) for r in rates)
        print(f"{args.network}  {what}  clean {ca:.1f}  ASR {asr:.1f}  RA {ra:.1f}", flush=True)

    tell("undefended", model)
    for spec in args.defenses:
        granted = Granted("repairs", ("clean", "val"), clean=lambda: clean, val=lambda: val)
        one = Draws(0, torch.zeros(1, dtype=torch.long))
        tell(json.dumps(spec), registry.build(Defense, spec).apply(model, granted, one))


if __name__ == "__main__":
    main()
