"""Detectors of poisoned training images beside those of ART, on the same features of one network.

    python benchmarks/training_images.py --rate 0.05 --seeds 0 1 2

A small network is trained on digits with BadNets. AUROC is over all training images; ART's activation defense gives
only flags, whose AUROC is (TPR + TNR) / 2. Seconds are CPU seconds of the detector without computing the features; both
get the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defences.detector.poison import ActivationDefence, SpectralSignatureDefense
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from siegebench import registry
from siegebench.data import Granted, ImageSet, split_clean
from siegebench.draws import Draws
from siegebench.train import train


class Fixed(nn.Module):
    """A model whose features are given; images are only counted."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h, self.at = nn.Parameter(h), 0

    def features(self, x: Tensor) -> Tensor:
        self.at += len(x)
        return self.h[self.at - len(x) : self.at]


class Activations:
    """What ActivationDefence asks of a classifier of ART."""

    layer_names, nb_classes = ("features",), 10

    def __init__(self, h: Tensor) -> None:
        self.h = h.numpy()

    def get_activations(self, x: Any, layer: int, batch_size: int = 0) -> np.ndarray:
        return self.h


def of_art(h: Tensor, labels: Tensor, name: str) -> Tensor:
    if name == "spectral_signatures":
        out = torch.zeros(len(h))
        for c in labels.unique():
            index = (labels == c).nonzero().squeeze(1)
            own = SpectralSignatureDefense.spectral_signature_scores(h[index].numpy())
            out[index] = torch.from_numpy(own[:, 0]).float()
        return out
    hot = nn.functional.one_hot(labels).numpy()
    defence = ActivationDefence(Activations(h), np.zeros((len(h), 1)), hot)
    _, clean = defence.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis="smaller")
    return 1 - torch.tensor(clean).float()


def timed(call: Callable[..., Tensor], *args: Any) -> tuple[Tensor, float]:
    start = time.process_time()
    return call(*args), time.process_time() - start


def victim(rate: float, seed: int) -> tuple[ImageSet, ImageSet, Tensor, Tensor, Tensor]:
    """(poisoned training set, clean set, features of both, which training images are poisoned)"""
    source: Any = registry.build("dataset", "digits")
    data, clean, _ = split_clean(source.load("train"))
    backdoor: Any = registry.build("backdoor", {"name": "badnets", "rate": rate})
    poisoned = backdoor.poison(data, seed)
    network: Any = registry.build("model", "byobnet_tiny")
    model = network.build_for(data).fresh(seed)
    train(model, poisoned.data, network.recipe, seed)
    truth = torch.zeros(len(data), dtype=torch.bool)
    truth[poisoned.index] = True
    with torch.no_grad():
        return poisoned.data, clean, model.features(poisoned.data.pixels()), model.features(clean.pixels()), truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    held: list[ImageSet] = []
    for seed in args.seeds:
        data, clean, h, known, truth = victim(args.rate, seed)
        held[:] = data, clean
        granted = Granted("benchmark", ("train", "clean"), train=lambda: held[0], clean=lambda: held[1])
        for name in ("activation_clustering", "spectral_signatures", "scan", "spectre"):
            detector: Any = registry.build("detector", name)
            given = Fixed(torch.cat([h, known]).double())
            score, seconds = timed(detector.score, given, granted, Draws(seed, torch.zeros(1).long()))
            line = f"seed {seed} {name:22} ours: AUROC {roc_auc_score(truth, score):.3f}, {seconds:.3f} s"
            if name in ("activation_clustering", "spectral_signatures"):
                theirs, other = timed(of_art, h.double(), data.labels, name)
                line += f"; ART: AUROC {roc_auc_score(truth, theirs):.3f}, {other:.3f} s; ratio {seconds / other:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
