"""Measure one detector of inputs: its scores of clean images, and of the images that it should detect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siegebench import registry
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Flag, Result, digest, pack, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError, NotApplicable
from siegebench.guarded import GuardedOracle
from siegebench.metrics import ALARM_MARKS
from siegebench.oracle import Oracle
from siegebench.prepare import in_batches
from siegebench.stats import auroc, auroc_interval, oscr
from siegebench.threat import ThreatModel
from siegebench.tracks.attacking import explored, lesson_of
from siegebench.tracks.detection_inputs import other_images
from siegebench.tracks.judging import clean_outcome, correct, gradient_flags
from siegebench.types import Attack, InputDetector, Poisoned
from siegebench.types.detectors import Score
from siegebench.workspace import Workspace, data_key

OPEN = ("ood", "near_ood")  # inputs of classes that the model does not know
GUARD = 5  # percentage of false alarms whose threshold is checked on test images
Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Fitted:
    """A fitted detector with its scores of clean images: of the test set, and held out for thresholds.

    Attributes:
        own: what the detector returned.
        score: (images, purpose) to finite scores, in batches.
    """

    own: Score
    score: Callable[[Tensor, str], Tensor]
    clean: Tensor
    val: Tensor

    def threshold(self, percent: float) -> Tensor:
        """The score that this percentage of the held-out clean images exceeds."""
        return torch.quantile(self.val, 1 - percent / 100)


def finite(scores: Tensor, detector: object, expected: int) -> Tensor:
    """The scores as float64 on the CPU.

    Raises:
        ContractError: when they are not finite, or not as many as expected.
    """
    scores = scores.detach().cpu().double()
    if scores.shape != (expected,) or not bool(torch.isfinite(scores).all()):
        raise ContractError(f"{detector!r} must return {expected} finite scores, found {tuple(scores.shape)}")
    return scores


def fit(cell: Cell, ws: Workspace, base: Classifier, data: ImageSet, poisoned: Poisoned | None = None) -> Fitted:
    """Fit the cell's detector to a model, and score the clean images."""
    detector, granted = ws.entry(InputDetector, cell.detector), ws.granted("detector", cell, poisoned)
    draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
    own = ws.scorer(cell, base, granted, draws, poisoned)

    def score(x: Tensor, purpose: str) -> Tensor:
        streams = Draws(derive_seed(cell.seed, "scores", purpose), torch.arange(len(x)))
        parts = in_batches(
            lambda at: own(x[at].to(ws.device, ws.dtype), streams[at].to(ws.device)).cpu(), len(x), ws.batch(x)
        )
        return finite(torch.cat(parts), detector, len(x))

    # thresholds come from clean held-out images only
    return Fitted(own, score, score(data.pixels(), "clean"), score(ws.splits(cell.data)[2].pixels(), "val"))


def measure_changed(cell: Cell, ws: Workspace) -> Result:
    """A row of the input_detection track without a backdoor: other inputs than clean images, on the clean model.

    The positives are all images, or with an attack the images that it makes misclassified. The negatives are all clean
    images, including misclassified ones. Thresholds come from held-out clean images, and nothing is fitted on
    positives.
    """
    data, base = ws.evaluated(cell.data), ws.model(cell)
    detector, weights = ws.entry(InputDetector, cell.detector), fingerprint(base)

    def make() -> Fitted:
        return fit(cell, ws, base, data)

    what = [cell.detector, cell.model, cell.data["digest"], data_key(cell.data), cell.seed]
    found: Fitted = ws.remember(("fitted", digest(what)), make)
    right = clean_outcome(ws, cell, base, data)
    metrics = {
        f"clean_acc_fpr@{p}": rate(int((right & (found.clean <= found.threshold(p))).sum()), len(data))
        for p in ALARM_MARKS
    }
    samples: dict[str, Any] = {}
    flags: list[Flag] = []
    if cell.attack is None:
        scores = found.score(other_images(cell, ws, data), "changed")
        metrics |= positive_metrics(scores, found)
        if cell.inputs is not None and cell.inputs["kind"] in OPEN:
            area = oscr(unknown=scores.numpy(), known=found.clean.numpy(), right=right.numpy())
            metrics["oscr"] = {"value": area}
    else:
        x, hit, flags = attacked(cell, ws, base, data, right, found)
        safe, rows = right.clone(), right.nonzero().squeeze(1)
        metrics["asr"] = rate(int(hit.sum()), len(hit))
        samples = {"n": len(data), "clean": pack(right)}
        scores = found.score(x[hit], "changed") if bool(hit.any()) else torch.zeros(0, dtype=torch.float64)
        for p in ALARM_MARKS:
            safe[rows[hit]] = scores > found.threshold(p)
            metrics[f"robust_acc_fpr@{p}"] = rate(int(safe.sum()), len(data))
            samples[f"safe@{p}"] = pack(safe)
        metrics |= positive_metrics(scores, found) if len(scores) else {}
    if fingerprint(base) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    flags = [*flags, *alarm_flags(found)]
    return Result(
        cell=cell, metrics=metrics, samples=samples, flags=[f.as_dict() for f in flags], weights=weights
    )  # fmt: skip


def alarm_flags(found: Fitted) -> list[Flag]:
    """A false alarm rate on test images that is significantly more than 2 points from the one asked for.

    With more false alarms, more adversarial images are rejected too, and figures at this rate overstate the detector.
    """
    alarms = rate(int((found.clean > found.threshold(GUARD)).sum()), len(found.clean))
    if alarms["low"] <= GUARD / 100 + 0.02 and alarms["high"] >= GUARD / 100 - 0.02:
        return []
    evidence = (
        f"{100 * alarms['value']:.1f} % of {len(found.clean)} clean test images are rejected at the threshold for "
        f"{GUARD} % of {len(found.val)} held-out ones. Was the network trained on those? Or are they too few?"
    )
    return [Flag("false_alarm_rate", "flag", evidence)]


def knows_detector(attack: Mapping[str, Any] | None) -> bool:
    """Whether an attack, or one inside it, evades the detector too."""
    if attack is None:
        return False
    inner = attack.get("attack")
    return "detector_aware" in registry.traits("attack", str(attack["name"])) or knows_detector(
        inner if isinstance(inner, Mapping) else None
    )


def attacked(
    cell: Cell, ws: Workspace, model: Classifier, data: ImageSet, right: Tensor, found: Fitted
) -> tuple[Tensor, Tensor, list[Flag]]:
    """(adversarial versions of the correctly classified images, which of them are misclassified, flags)."""
    attack, threat = ws.entry(Attack, cell.attack), ThreatModel(**(cell.threat or {}))
    rows = right.nonzero().squeeze(1)
    if not len(rows):
        raise NotApplicable("no image is classified correctly")
    streams = Draws(derive_seed(cell.seed, "attack"), data.ids[rows])
    if attack.exploring():
        first = rows[: attack.explored()]
        x, y = ws.pixels(data, first), data.labels[first].to(ws.device)
        lesson, _ = explored(attack, model, threat, x, y, streams[: len(first)].to(ws.device))
    else:
        lesson, _ = lesson_of(attack, cell, ws, model, threat)
    aware = knows_detector(cell.attack)
    spread = float(found.val.std(correction=0)) or 1.0

    def part(at: slice) -> tuple[Tensor, Tensor]:
        draws = streams[at].to(ws.device)
        x, y = ws.pixels(data, rows[at]), data.labels[rows[at]].to(ws.device)
        oracle: Oracle = Oracle(model, threat, draws)
        if aware:
            oracle = GuardedOracle(model, threat, draws, found.own, spread)
        x_adv = attack(oracle, x, y, threat, draws, lesson).cpu()
        ledger = oracle.ledger
        return x_adv, torch.stack([ledger.backwards.sum(), ledger.blind.sum(), ledger.undefined.sum()]).cpu()

    def make() -> tuple[Tensor, Tensor, list[Flag]]:
        parts = in_batches(part, len(rows), ws.batch(data.stored))
        x = torch.cat([x_adv for x_adv, _ in parts])
        survived = correct(ws, model, x, data.labels[rows], streams, "adversarial")
        inside = threat.size(x, data.pixels(rows, x.dtype)) <= threat.limit
        spent = torch.stack([counts for _, counts in parts]).sum(dim=0).tolist()
        return x, ~survived & inside, gradient_flags(cell.labels["model"], *spent)

    if aware:  # other images for each detector
        x, hit, flags = make()
        if not GuardedOracle(model, threat, streams[:0], found.own, spread).smooth:
            evidence = "the detector offers no gradient: it was attacked by images of large confidence only"
            flags = [*flags, Flag("detector_without_gradient", "flag", evidence)]
        return x, hit, flags
    what = [cell.attack, cell.threat, cell.model, cell.data["digest"], data_key(cell.data), cell.seed]
    known: tuple[Tensor, Tensor, list[Flag]] = ws.remember(("attacked", digest(what)), make)
    return known


def positive_metrics(positive: Tensor, found: Fitted) -> Metrics:
    """How well scores of positives stand out from those of clean test images; thresholds from held-out ones."""
    from sklearn.metrics import average_precision_score  # a third of the time that `siegebench run` takes to start

    p, n = positive.numpy(), found.clean.numpy()
    labels, scores = [1] * len(p) + [0] * len(n), [*p.tolist(), *n.tolist()]
    low, high = auroc_interval(positive=p, negative=n)
    lowest = torch.quantile(positive, 0.05, interpolation="lower")  # 95 % of the positives score at least this
    metrics: Metrics = {
        "auroc": {"value": auroc(positive=p, negative=n), "low": low, "high": high},
        "aupr": {"value": float(average_precision_score(labels, scores))},
        "aupr_clean": {"value": float(average_precision_score([1 - y for y in labels], [-s for s in scores]))},
        "fpr95": rate(int((found.clean >= lowest).sum()), len(n)),
    }
    for percent in ALARM_MARKS:
        threshold = found.threshold(percent)
        metrics[f"tpr@{percent}"] = rate(int((positive > threshold).sum()), len(p))
        metrics[f"fpr@{percent}"] = rate(int((found.clean > threshold).sum()), len(n))
    return metrics
