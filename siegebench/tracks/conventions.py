"""Whether a network gets its inputs and its labels in the form that it was trained with.

A network that is given BGR images, or is normalised twice, still returns logits. Its clean accuracy is low, and every
robust accuracy below it is meaningless. A few other forms are tried on some clean images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from siegebench.cells import Cell, Flag, digest, label, rate
from siegebench.classifier import Classifier
from siegebench.data import IMAGE, ImageSet, stratified
from siegebench.draws import Draws, derive_seed
from siegebench.prepare import in_batches
from siegebench.tracks.judging import fresh_passes
from siegebench.workspace import Workspace

TRIED = 64  # clean images that every form is tried on
ALPHA = 0.01  # of the sign test of each form
DECIDED = 512  # clean images for the best form, if TRIED do not decide
RISE = 0.05  # smallest rise of the accuracy that is reported
PER_CLASS = 6  # images of a class that an order of the classes is fitted on and tested on
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Trial:
    """The outcome of one other form of the images or of the labels.

    Attributes:
        name: for the evidence of a flag.
        base, right: which of the tried images are correctly classified as they are and in this form, bool [n].
    """

    name: str
    base: Tensor
    right: Tensor

    @property
    def rise(self) -> int:
        """How many more images are correctly classified in this form."""
        return int(self.right.sum()) - int(self.base.sum())

    @property
    def significant(self) -> bool:
        won, lost = int((self.right & ~self.base).sum()), int((self.base & ~self.right).sum())
        return self.rise >= RISE * len(self.base) and _sign_test(won, lost) <= ALPHA

    @property
    def evidence(self) -> str:
        n = len(self.base)
        return f"{self.name}: {int(self.base.sum())} of {n} -> {int(self.right.sum())} of {n} correct"


Form = Callable[[Tensor], Tensor]  # indices into the slice to the predictions in this form, both int64 [n]


def convention_flags(ws: Workspace, cell: Cell, victim: Classifier, data: ImageSet, clean: Tensor) -> list[Flag]:
    """Flags of an undefended network: clean accuracy at chance, and forms of input or labels that would raise it.

    Every form is tried on 64 images of the slice; the best one on up to 512, if 64 do not decide. Nothing is tried for
    defended or certified networks, for other kinds of data than images, and where too few images are misclassified for
    a significant rise.

    Args:
        clean: which images of the slice are correctly classified, bool [N].
    """
    if label(cell.defense) != "none" or cell.certifier is not None or data.kind.name != IMAGE.name:
        return []

    def make() -> list[Flag]:
        index = stratified(data, min(TRIED, len(data)), 0, "conventions")
        trials: list[Trial] = []
        if _worth_trying(clean[index]):
            forms = _forms(ws, victim, data, index)
            trials = [trial for name, form in forms.items() if (trial := _tried(name, form, index, data, clean))]
            best = max(trials, key=lambda trial: trial.rise, default=None)
            if best is not None and best.rise > 0 and not best.significant and len(data) > len(index):
                more = stratified(data, min(DECIDED, len(data)), 0, "conventions")
                again = _tried(best.name, forms[best.name], more, data, clean)
                trials = [*(trial for trial in trials if trial is not best), again or best]
        return [*_at_chance(clean, data.labels, trials), *_better(trials, data.labels)]

    key = ("conventions", digest([cell.model, cell.defense]), cell.data["digest"], cell.seed)
    found: list[Flag] = ws.remember(key, make)
    return found


def _worth_trying(base: Tensor) -> bool:
    """Whether enough images are misclassified for a rise to be significant."""
    wrong = int((~base).sum())
    return wrong >= RISE * len(base) and _sign_test(wrong, 0) <= ALPHA


def _tried(name: str, form: Form, index: Tensor, data: ImageSet, clean: Tensor) -> Trial | None:
    try:
        return Trial(name, clean[index], form(index) == data.labels[index])
    except Exception:  # a network may refuse such inputs
        return None


# ---------------------------------------------------------------------------------------------------------- the trials


def _forms(ws: Workspace, victim: Classifier, data: ImageSet, index: Tensor) -> dict[str, Form]:
    """Every form by name.

    Args:
        index: images for the statistics of the data.
    """
    classes = data.num_classes

    def predicted(change: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
        draws = Draws(derive_seed(0, "conventions"), data.ids[index])

        def part(at: slice) -> Tensor:
            x = change(ws.pixels(data, index[at]))
            z = fresh_passes(victim, x, draws[at].to(ws.device), "conventions")
            return torch.where(torch.isfinite(z).all(dim=2), z.argmax(dim=2), -1).mode(dim=0).values.cpu()

        return torch.cat(in_batches(part, len(index), ws.batch(data.stored)))

    usual = cache(lambda places: predicted(lambda x: x, torch.tensor(places)))

    def relabelled(index: Tensor, order: Tensor) -> Tensor:
        found = usual(tuple(index.tolist()))
        return torch.where(found >= 0, order[found], -1)

    out: dict[str, Form] = {
        name: partial(predicted, change) for name, change in input_forms(data.pixels(index, ws.dtype)).items()
    }
    out |= {name: partial(relabelled, order=order) for name, order in label_orders(classes).items()}
    if len(index) >= PER_CLASS * classes and classes > 1:
        out["another order of the classes"] = lambda index: refitted(
            usual(tuple(index.tolist())), data.labels[index], classes
        )
    return out


def input_forms(x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Forms in which a network may expect images, by name, each as a function of images in [0, 1].

    Args:
        x: images [n, 3, H, W], for their own mean and standard deviation.
    """
    own = (tuple(x.mean(dim=(0, 2, 3)).tolist()), tuple(x.std(dim=(0, 2, 3)).clamp(min=1e-3).tolist()))
    out: dict[str, Callable[[Tensor], Tensor]] = {
        "channel order BGR": lambda x: x.flip(1),
        "pixels in [-1, 1]": lambda x: 2 * x - 1,
        "pixels in [0, 255]": lambda x: 255 * x,
        "pixels scaled to [-1, 1] once less": lambda x: (x + 1) / 2,
        "pixels scaled to [0, 255] once less": lambda x: x / 255,
    }
    for whose, statistics in (("ImageNet", IMAGENET), ("CIFAR-10", CIFAR10), ("these images", own)):
        out[f"normalised with the mean/std of {whose}"] = partial(_normalised, statistics=statistics)
        out[f"normalised once less, with the mean/std of {whose}"] = partial(_denormalised, statistics=statistics)
    return out


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def _columns(x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for values in statistics)
    return mean, std


def _normalised(x: Tensor, statistics: Statistics) -> Tensor:
    mean, std = _columns(x, statistics)
    return (x - mean) / std


def _denormalised(x: Tensor, statistics: Statistics) -> Tensor:
    mean, std = _columns(x, statistics)
    return x * std + mean


def label_orders(classes: int) -> dict[str, Tensor]:
    """Other orders of the classes by name, each as the label of every output, int64 [classes]."""
    every = torch.arange(classes)
    out = {}
    if classes > 1:
        out["labels one higher than the outputs"] = (every + 1) % classes
    if classes > 2:
        out["labels one lower than the outputs"] = (every - 1) % classes
    if classes > 10:
        text = torch.tensor(sorted(range(classes), key=str))
        out["outputs sorted as text (0, 1, 10, ...)"] = text
        out["labels sorted as text (0, 1, 10, ...)"] = text.argsort()
    return out


def refitted(predicted: Tensor, y: Tensor, classes: int) -> Tensor:
    """Predictions after the order of the classes that fits best, int64 [n].

    Each half of the images is relabelled by the order that is fitted on the other half, so that the fit gives no
    advantage.
    """
    from scipy.optimize import linear_sum_assignment

    out = torch.full_like(predicted, -1)
    half = torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique():  # every second image of each class
        half[(y == c).nonzero().squeeze(1)[::2]] = True
    for fit in (half, ~half):
        seen = fit & (predicted >= 0)
        counts = torch.zeros(classes, classes).index_put_(
            (predicted[seen], y[seen]), torch.ones(int(seen.sum())), accumulate=True
        )
        _, order = linear_sum_assignment(-counts.numpy())
        used = ~fit & (predicted >= 0)
        out[used] = torch.from_numpy(order)[predicted[used]]
    return out


# ----------------------------------------------------------------------------------------------------------- the flags


def _at_chance(clean: Tensor, labels: Tensor, trials: list[Trial]) -> list[Flag]:
    """Flag if the clean accuracy is not significantly above chance, the fraction of the largest class.

    Its interval must also end below the middle between chance and 1: a few images prove nothing.
    """
    n, right = len(clean), int(clean.sum())
    chance = _chance(labels)
    found = rate(right, n)
    if found["low"] > chance or found["high"] >= (1 + chance) / 2:
        return []
    told = f"{right} of {n} clean images are correct, {100 * found['value']:.1f} %; chance is {100 * chance:.1f} %"
    if trials:
        best = max(trials, key=lambda trial: trial.rise / len(trial.base))
        told += f". Of {len(trials)} other forms of input and labels, "
        told += f"the best is {best.evidence}" if best.rise > 0 else f"tried on {len(best.base)} images, none is better"
    return [Flag("chance_accuracy", "flag", told)]


def _better(trials: list[Trial], labels: Tensor) -> list[Flag]:
    """Flag the forms that raise the accuracy significantly, the best ones first."""
    # the outputs of a network at chance may be shuffled at will: the form must be better than chance
    chance = _chance(labels)
    found = [t for t in trials if t.significant and rate(int(t.right.sum()), len(t.right))["low"] > chance]
    if not found:
        return []
    told = "; ".join(trial.evidence for trial in sorted(found, key=lambda t: -t.rise / len(t.base))[:3])
    return [Flag("input_convention", "flag", f"clean accuracy is higher with another form of input or labels. {told}")]


def _chance(labels: Tensor) -> float:
    return float(labels.bincount().max()) / len(labels)


@cache
def _sign_test(won: int, lost: int) -> float:
    """One-sided p-value of the sign test: the probability of at least `won` of `won + lost` under a fair coin."""
    n = won + lost
    return sum(math.comb(n, k) for k in range(won, n + 1)) / 2**n
