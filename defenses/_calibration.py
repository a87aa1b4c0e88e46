"""The level of noise that costs a given part of the clean accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet, stratified
from siegebench.draws import Draws
from siegebench.train import predict

PASSES, ROUNDS = 5, 12  # in the search for nu: noisy passes for one accuracy, and bisection steps
HELD_OUT = 1000  # images of each held-out split, at most, for measuring the accuracy
LEAST, MOST, CLOSE = 1e-4, 1e4, 1e-3  # interval of nu, and tolerance of the accuracy at which the search stops


@torch.no_grad()
def calibrate(model: Classifier, nu: Tensor, data: Granted, seed: int, drop: float) -> None:
    """Set `nu`, a buffer of the model, to the largest level that lowers the accuracy on held-out images by `drop`.

    The search bisects the logarithm of nu; each accuracy is the mean of several noisy passes.
    """
    held_out = [part.select(stratified(part, min(len(part), HELD_OUT), 0)) for part in (data.clean, data.val)]

    def accuracy(level: float, passes: int) -> float:
        nu.fill_(level)
        correct = [_correct(model, part, seed, k) for part in held_out for k in range(passes)]
        return sum(correct) / (passes * sum(len(part) for part in held_out))

    clean = accuracy(0.0, 1)
    low, high = LEAST, MOST
    for _ in range(ROUNDS):
        level = (low * high) ** 0.5
        lost = clean - accuracy(level, PASSES)
        if abs(lost - drop) <= CLOSE:
            break
        low, high = (level, high) if lost < drop else (low, level)
    else:
        level = low  # the largest level measured to cost less than `drop`
    nu.fill_(level)


def _correct(model: Classifier, data: ImageSet, seed: int, k: int) -> float:
    logits = predict(model, data, draws=Draws(seed, data.ids).at(k))
    return float((logits.argmax(dim=1) == data.labels).sum())
