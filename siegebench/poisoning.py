"""Measure backdoors: what a defense leaves of them, and who notices them in inputs, in training sets and in models."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.cells import Cell, Result, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError
from siegebench.evasion import looks
from siegebench.prepare import in_batches
from siegebench.stats import auroc
from siegebench.types import BackdoorAttack, DatasetDetector, InputDetector, ModelDetector, Poisoned
from siegebench.workspace import Workspace, fingerprint

# a run counts as a successful attack only within these; the last: of the ASR, what the trigger does to a clean model
MIN_ASR, MAX_CLEAN_LOSS, MAX_WITHOUT = 0.5, 0.03, 0.5


def answers(ws: Workspace, model: Classifier, x: Tensor, seed: int, purpose: str) -> Tensor:
    """Predicted labels [n] on the CPU; the most frequent of nine for a randomised model."""
    draws = Draws(derive_seed(seed, "answers"), torch.arange(len(x)))

    def part(at: slice) -> Tensor:
        z = looks(model, x[at].to(ws.device, ws.dtype), draws[at].to(ws.device), purpose)
        return z.argmax(dim=2).mode(dim=0).values.cpu()

    return torch.cat(in_batches(part, len(x), ws.batch(x)))


def triggered(backdoor: BackdoorAttack, data: ImageSet, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(stamped images rounded to 8 bits, true labels, wanted labels) where the attacker wants another label."""
    wanted = backdoor.wanted(data.labels, data.num_classes)
    places = ((wanted >= 0) & (wanted != data.labels)).nonzero().squeeze(1)
    draws = Draws(derive_seed(seed, "trigger"), data.ids[places])
    x = backdoor.stamp(data.pixels(places), draws)
    return (x * 255).round() / 255, data.labels[places], wanted[places]


def backdoor_metrics(
    ws: Workspace, model: Classifier, backdoor: BackdoorAttack, data: ImageSet, seed: int
) -> dict[str, dict[str, float]]:
    """CA over all images; ASR, RA and the clean rate of wanted labels over those the attacker wants changed."""
    x, y, wanted = triggered(backdoor, data, seed)
    clean = answers(ws, model, data.pixels(), seed, "clean")
    stamped = answers(ws, model, x, seed, "stamped")
    eta = backdoor.wanted(data.labels, data.num_classes)
    attacked = (eta >= 0) & (eta != data.labels)
    without = clean[attacked]
    n = len(y)
    return {
        "ca": rate(int((clean == data.labels).sum()), len(data)),
        "asr": rate(int((stamped == wanted).sum()), n),
        "ra": rate(int((stamped == y).sum()), n),
        "clean_rate": rate(int((without == wanted).sum()), n),
        "lift": {"value": float((stamped == wanted).double().mean() - (without == wanted).double().mean())},
    }


def fidelity(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Signed fidelity: share of the attack that is gone, times share of the clean accuracy that is left; in [-1, 1]."""
    gone = min(1.0, max(-1.0, (asr_bd - asr) / asr_bd)) if asr_bd > 0 else 0.0
    return gone * min(1.0, max(0.0, ca / ca_bd)) if ca_bd > 0 else 0.0


def der(asr_bd: float, asr: float, ca_bd: float, ca: float) -> float:
    """Defense effectiveness rating, printed for comparison only: a model at chance scores above 0.5."""
    return (max(0.0, asr_bd - asr) - max(0.0, ca_bd - ca) + 1) / 2


def measure_backdoor(cell: Cell, ws: Workspace) -> Result:
    """One row of the backdoor track: a defense against a backdoor attack."""
    data, backdoor = ws.evaluated(cell.data), ws.backdoor(cell)
    base, poisoned = ws.backdoored(cell)
    clean_model = ws.model(cell)  # same recipe and seed, clean data: what the attack cost in clean accuracy
    defended = ws.defended(cell, base, poisoned)
    before = backdoor_metrics(ws, base, backdoor, data, cell.seed)
    metrics = before if defended is base else backdoor_metrics(ws, defended, backdoor, data, cell.seed)
    without = backdoor_metrics(ws, clean_model, backdoor, data, cell.seed)
    reference, natural = without["ca"]["value"], without["asr"]["value"]
    asr_bd, ca_bd = before["asr"]["value"], before["ca"]["value"]
    asr, ca = metrics["asr"]["value"], metrics["ca"]["value"]
    rir = (max(0.0, metrics["ra"]["value"] - before["ra"]["value"]) - max(0.0, ca_bd - ca) + 1) / 2
    learnt = asr_bd >= MIN_ASR and natural <= MAX_WITHOUT * asr_bd  # a trigger that fools anybody is no backdoor
    success = learnt and reference - ca_bd <= MAX_CLEAN_LOSS
    metrics = {
        **metrics,
        "ca_clean_model": {"value": reference},
        "asr_clean_model": without["asr"],
        "ca_undefended": before["ca"],
        "asr_undefended": before["asr"],
        "ra_undefended": before["ra"],
        "fidelity": {"value": fidelity(asr_bd, asr, ca_bd, ca)},
        "der": {"value": der(asr_bd, asr, ca_bd, ca)},
        "rir": {"value": rir},
        "attack_success": {"value": float(success)},
    }
    return Result(
        cell=cell,
        metrics=metrics,
        counts={"poisoned": len(poisoned.index), "train": len(poisoned.data)},
        weights=fingerprint(defended),
    )


def _finite(scores: Tensor, detector: object, expected: int) -> Tensor:
    scores = scores.detach().cpu().double()
    if scores.shape != (expected,) or not bool(torch.isfinite(scores).all()):
        raise ContractError(f"{detector!r} must return {expected} finite scores, found {tuple(scores.shape)}")
    return scores


def measure_input_detection(cell: Cell, ws: Workspace) -> Result:
    """One row of the input_detection track: a detector of triggered inputs or of poisoned training images."""
    data, backdoor = ws.evaluated(cell.data), ws.backdoor(cell)
    base, poisoned = ws.backdoored(cell)
    detector = ws.entry("detector", cell.detector or {})
    granted = ws.granted("detector", cell, poisoned)
    draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
    weights = fingerprint(base)
    if isinstance(detector, DatasetDetector):
        metrics = _dataset_level(detector, base, poisoned, _finite(
            detector.score(base, granted, draws), detector, len(poisoned.data)
        ))  # fmt: skip
    elif isinstance(detector, InputDetector):
        scorer = detector.fit(base, granted, draws)

        def score(x: Tensor, purpose: str) -> Tensor:
            streams = Draws(derive_seed(cell.seed, "scores", purpose), torch.arange(len(x)))
            parts = in_batches(
                lambda at: scorer(x[at].to(ws.device, ws.dtype), streams[at].to(ws.device)).cpu(),
                len(x),
                ws.batch(x),
            )
            return _finite(torch.cat(parts), detector, len(x))

        x, _, wanted = triggered(backdoor, data, cell.seed)
        hit = answers(ws, base, x, cell.seed, "stamped") == wanted
        stamped, clean = score(x, "stamped"), score(data.pixels(), "clean")
        val = score(ws.splits(cell.data)[2].pixels(), "val")  # thresholds come from clean held-out images only
        metrics = {
            "auroc_all": {"value": auroc(positive=stamped.numpy(), negative=clean.numpy())},
            "asr": rate(int(hit.sum()), len(hit)),
        }
        if bool(hit.any()):
            metrics["auroc"] = {"value": auroc(positive=stamped[hit].numpy(), negative=clean.numpy())}
            for percent in (1, 5):
                threshold = torch.quantile(val, 1 - percent / 100)
                caught = stamped[hit] > threshold
                metrics[f"tpr@{percent}"] = rate(int(caught.sum()), len(caught))
                metrics[f"fpr@{percent}"] = rate(int((clean > threshold).sum()), len(clean))
    else:
        raise ContractError(f"{detector!r} judges models, not inputs")
    if fingerprint(base) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    return Result(cell=cell, metrics=metrics, counts={"poisoned": len(poisoned.index)}, weights=weights)


def _dataset_level(
    detector: DatasetDetector, base: Classifier, poisoned: Poisoned, scores: Tensor
) -> dict[str, dict[str, float]]:
    truth = torch.zeros(len(scores), dtype=torch.bool)
    truth[poisoned.index] = True
    bad, good = scores[truth], scores[~truth]
    metrics = {"auroc": {"value": auroc(positive=bad.numpy(), negative=good.numpy())}}
    for percent in (1, 5):
        threshold = torch.quantile(good, 1 - percent / 100)
        metrics[f"tpr@{percent}"] = rate(int((bad > threshold).sum()), len(bad))
    return metrics


def measure_model_detection(cell: Cell, ws: Workspace) -> Result:
    """One row of the model_detection track: a verdict on one member of the population."""
    detector = ws.entry("detector", cell.detector or {})
    assert isinstance(detector, ModelDetector)
    if cell.backdoor is None:
        model, target = ws.model(cell), None
        extra: dict[str, dict[str, float]] = {}
    else:
        backdoor = ws.backdoor(cell)
        model, _ = ws.backdoored(cell)
        found = backdoor_metrics(ws, model, backdoor, ws.evaluated(cell.data), cell.seed)
        extra = {"asr": found["asr"], "ca": found["ca"]}
        labels = torch.arange(cell.data["classes"])
        eta = backdoor.wanted(labels, cell.data["classes"])
        target = set(eta[(eta >= 0) & (eta != labels)].tolist())
    weights = fingerprint(model)
    draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
    verdict = detector.judge(model, ws.granted("detector", cell), draws)
    if fingerprint(model) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    metrics = {
        **extra,
        "score": {"value": verdict.score},
        "flagged": {"value": float(verdict.backdoored)},
        "truth": {"value": float(target is not None)},
    }
    if target is not None and verdict.backdoored:
        metrics["target_hit"] = {"value": float(bool(target & set(verdict.targets)))}
    return Result(cell=cell, metrics=metrics, weights=weights)
