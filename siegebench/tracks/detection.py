"""The detection tracks: detectors of triggered inputs, poisoned training images and backdoored models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench import registry
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, rate
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet, Kind
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.inventory import Inventory, Named
from siegebench.metrics import ALARM_MARKS
from siegebench.oracle import Oracle
from siegebench.prepare import in_batches
from siegebench.stats import auroc
from siegebench.threat import TOLERANCE, ThreatModel
from siegebench.tracks.attacking import explored, lesson_of
from siegebench.tracks.backdoor import PoisonedBoard, answers, backdoor_metrics, succeeded, triggered
from siegebench.tracks.base import BoardSpec, Budget, Severity, Spec, Specs, Strict, ThreatSpec, refuse_repeats
from siegebench.tracks.judging import clean_outcome, correct
from siegebench.types import (
    Attack,
    BackdoorAttack,
    Corruption,
    DatasetDetector,
    Detector,
    InputDetector,
    ModelDetector,
    Poisoned,
)
from siegebench.workspace import Workspace


class AdversarialInputs(Strict):
    """Adversarial images of an attack on the clean model."""

    kind: Literal["adversarial"]
    attack: Spec
    threat: ThreatSpec


class CorruptedInputs(Strict):
    """Corrupted images."""

    kind: Literal["corrupted"]
    corruption: Spec
    severity: Severity = 3


Inputs = Annotated[AdversarialInputs | CorruptedInputs, Field(discriminator="kind")]


class InputDetectionBoard(PoisonedBoard):
    """How well detectors separate triggered inputs, poisoned training images or other inputs from clean ones.

    Attributes:
        backdoors: attacks whose triggered inputs are to be detected, in the backdoored model.
        inputs: other kinds of inputs to be detected, in the clean model.
    """

    track: Literal["input_detection"]
    backdoors: list[Spec] = Field(default=[])
    inputs: list[Inputs] = Field(default=[])
    detectors: Specs
    slots: ClassVar[dict[str, str]] = {"models": "model", "backdoors": "backdoor", "detectors": "detector"}
    late: ClassVar[int] = 3

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        refuse_other_detectors(self, inventory, of_models=False)
        if not (self.backdoors or self.inputs):
            raise inventory.document.error(self._where, "this input_detection board has no backdoors and no inputs")
        refuse_repeats(inventory, self.inputs, self.where("inputs"))
        self.changed(inventory)
        for detector in self.named(inventory, "detectors"):
            if not self.backdoors and isinstance(detector.entry, DatasetDetector):
                message = f"detector {detector.name!r} judges training images; this board has no backdoors"
                raise inventory.document.error(detector.where, message)

    def check_takes(self, inventory: Inventory, kind: Kind) -> None:
        super().check_takes(inventory, kind)
        for named, _ in self.changed(inventory):
            with inventory.blame(named.where):
                registry.check_takes(named.entry, kind.name)

    def changed(self, inventory: Inventory) -> list[tuple[Named[Any], dict[str, Any]]]:
        """The attack or corruption of each of `inputs`, and the cell slots that describe it.

        Raises:
            ConfigError: an unknown entry, or a threat that the attack does not handle.
        """
        out: list[tuple[Named[Any], dict[str, Any]]] = []
        for i, spec in enumerate(self.inputs):
            where = self.where("inputs", i)
            if isinstance(spec, CorruptedInputs):
                corruption = inventory.resolve(Corruption, spec.corruption, (*where, "corruption"))
                slots = {"corruption": inventory.identified(corruption), "severities": [spec.severity]}
                out.append((corruption, slots))
                continue
            attack = inventory.resolve(Attack, spec.attack, (*where, "attack"))
            with inventory.blame((*where, "threat")):
                threat = spec.threat.model("gradient", None)
                if threat.norm not in attack.entry.handles():
                    handles = ", ".join(attack.entry.handles())
                    raise ConfigError(f"attack {attack.name!r} handles {handles}, not {threat.norm}")
                if threat.target is not None:
                    raise ConfigError("inputs to be detected have no target class; leave target out")
            out.append((attack, {"attack": inventory.identified(attack), "threat": threat.describe()}))
        return out

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        self.check_poisons(inventory)
        for model in self.networks(inventory, data):
            for seed in self.seeds or ():
                for _, slots in self.changed(inventory):
                    for detector in self.named(inventory, "detectors"):
                        if isinstance(detector.entry, DatasetDetector):
                            continue  # judges the poisoned training sets of this board only
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), detector=detector.description,
                            model=model.seeded(0) if model.trained else model.description, seed=seed, **slots,
                        )  # fmt: skip
                for backdoor in self.named(inventory, "backdoors"):
                    for detector in self.named(inventory, "detectors"):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed),
                            backdoor=backdoor.description, detector=detector.description, seed=seed,
                        )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_input_detection(cell, ws)


class ModelDetectionBoard(PoisonedBoard):
    """How well detectors separate backdoored models from clean ones."""

    track: Literal["model_detection"]
    detectors: Specs
    clean: Budget = 1  # clean models per seed, to measure false alarms
    slots: ClassVar[dict[str, str]] = InputDetectionBoard.slots
    late: ClassVar[int] = 1

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        refuse_other_detectors(self, inventory, of_models=True)

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        self.check_poisons(inventory)
        for model in self.networks(inventory, data):
            for seed in self.seeds or ():
                clean = [(model.seeded(seed + 1000 * i), None) for i in range(1, self.clean + 1)]
                bad = [(model.seeded(seed), b.description) for b in self.named(inventory, "backdoors")]
                for detector in self.named(inventory, "detectors"):
                    for described, backdoor in (*clean, *bad):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=described, backdoor=backdoor,
                            detector=detector.description, seed=seed,
                        )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_model_detection(cell, ws)


def refuse_other_detectors(board: BoardSpec, inventory: Inventory, *, of_models: bool) -> None:
    """Refuse model detectors on an input board and vice versa."""
    for detector in board.named(inventory, "detectors"):
        judges_models = isinstance(detector.entry, ModelDetector)
        if judges_models != of_models:
            level = "models" if judges_models else "inputs"
            raise inventory.document.error(
                detector.where, f"detector {detector.name!r} judges {level}; it is not for {board.track}"
            )


def _finite(scores: Tensor, detector: object, expected: int) -> Tensor:
    scores = scores.detach().cpu().double()
    if scores.shape != (expected,) or not bool(torch.isfinite(scores).all()):
        raise ContractError(f"{detector!r} must return {expected} finite scores, found {tuple(scores.shape)}")
    return scores


def measure_input_detection(cell: Cell, ws: Workspace) -> Result:
    """One row of the input_detection track: a detector of triggered inputs or of poisoned training images."""
    if cell.backdoor is None:
        return measure_changed(cell, ws)
    data, backdoor = ws.evaluated(cell.data), ws.entry(BackdoorAttack, cell.backdoor)
    base, poisoned = ws.backdoored(cell)
    detector = ws.entry(Detector, cell.detector)
    granted = ws.granted("detector", cell, poisoned)
    draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
    weights = fingerprint(base)
    if isinstance(detector, DatasetDetector):
        metrics = _dataset_level(detector, base, poisoned, _finite(
            detector.score(base, granted, draws), detector, len(poisoned.data)
        ))  # fmt: skip
    elif isinstance(detector, InputDetector):
        score = _scorer(detector, base, granted, draws, cell, ws)
        x, _, wanted = triggered(backdoor, data, cell.seed)
        hit = answers(ws, base, x, cell.seed, "stamped") == wanted
        stamped, clean = score(x, "stamped"), score(data.pixels(), "clean")
        val = score(ws.splits(cell.data)[2].pixels(), "val")  # thresholds come from clean held-out images only
        metrics = {
            "auroc_all": {"value": auroc(positive=stamped.numpy(), negative=clean.numpy())},
            "asr": rate(int(hit.sum()), len(hit)),
        }
        if bool(hit.any()):
            metrics |= _found(stamped[hit], clean, val)
    else:
        raise ContractError(f"{detector!r} judges models, not inputs")
    if fingerprint(base) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    found, without = (backdoor_metrics(ws, m, backdoor, data, cell.seed) for m in (base, ws.model(cell)))
    metrics["attack_success"] = {"value": float(succeeded(found, without))}
    return Result(cell=cell, metrics=metrics, counts={"poisoned": len(poisoned.index)}, weights=weights)


def measure_changed(cell: Cell, ws: Workspace) -> Result:
    """A row of the input_detection track without a backdoor: adversarial or corrupted images, on the clean model.

    The positives of an attack are the images that it breaks. The negatives are all clean images, including
    misclassified ones. Thresholds come from held-out clean images, and nothing is fitted on positives.
    """
    data, base = ws.evaluated(cell.data), ws.model(cell)
    detector, weights = ws.entry(InputDetector, cell.detector), fingerprint(base)
    draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
    score = _scorer(detector, base, ws.granted("detector", cell), draws, cell, ws)
    if cell.corruption is not None:
        corruption, (severity,) = ws.entry(Corruption, cell.corruption), cell.severities or []
        x = corruption(data.pixels(), severity, Draws(derive_seed(cell.seed, "corruption"), data.ids))
        hit = torch.ones(len(data), dtype=torch.bool)
    else:
        x, hit = attacked(cell, ws, base, data)
    clean, val = score(data.pixels(), "clean"), score(ws.splits(cell.data)[2].pixels(), "val")
    metrics = {"asr": rate(int(hit.sum()), len(hit))} if cell.attack is not None else {}
    if bool(hit.any()):
        metrics |= _found(score(x[hit], "changed"), clean, val)
    if fingerprint(base) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    return Result(cell=cell, metrics=metrics, weights=weights)


def attacked(cell: Cell, ws: Workspace, model: Classifier, data: ImageSet) -> tuple[Tensor, Tensor]:
    """(adversarial versions of the correctly classified images, which of them are misclassified)."""
    attack, threat = ws.entry(Attack, cell.attack), ThreatModel(**(cell.threat or {}))
    rows = clean_outcome(ws, cell, model, data).nonzero().squeeze(1)
    if not len(rows):
        raise NotApplicable("no image is classified correctly")
    streams = Draws(derive_seed(cell.seed, "attack"), data.ids[rows])
    if attack.exploring():
        first = rows[: attack.explored()]
        x, y = ws.pixels(data, first), data.labels[first].to(ws.device)
        lesson, _ = explored(attack, model, threat, x, y, streams[: len(first)].to(ws.device))
    else:
        lesson, _ = lesson_of(attack, cell, ws, model, threat)

    def part(at: slice) -> Tensor:
        draws = streams[at].to(ws.device)
        x, y = ws.pixels(data, rows[at]), data.labels[rows[at]].to(ws.device)
        return attack(Oracle(model, threat, draws), x, y, threat, draws, lesson).cpu()

    x = torch.cat(in_batches(part, len(rows), ws.batch(data.stored)))
    survived = correct(ws, model, x, data.labels[rows], streams, "adversarial")
    inside = threat.size(x, data.pixels(rows, x.dtype)) <= threat.eps + TOLERANCE * max(1.0, threat.eps)
    return x, ~survived & inside


def _scorer(
    detector: InputDetector, base: Classifier, granted: Granted, draws: Draws, cell: Cell, ws: Workspace
) -> Callable[[Tensor, str], Tensor]:
    """Fit the detector and return its scoring function."""
    scorer = detector.fit(base, granted, draws)

    def score(x: Tensor, purpose: str) -> Tensor:
        streams = Draws(derive_seed(cell.seed, "scores", purpose), torch.arange(len(x)))
        parts = in_batches(
            lambda at: scorer(x[at].to(ws.device, ws.dtype), streams[at].to(ws.device)).cpu(),
            len(x),
            ws.batch(x),
        )
        return _finite(torch.cat(parts), detector, len(x))

    return score


def _found(positive: Tensor, clean: Tensor, val: Tensor) -> dict[str, dict[str, float]]:
    """AUROC against clean test images; rates at thresholds from held-out ones."""
    metrics = {"auroc": {"value": auroc(positive=positive.numpy(), negative=clean.numpy())}}
    for percent in ALARM_MARKS:
        threshold = torch.quantile(val, 1 - percent / 100)
        metrics[f"tpr@{percent}"] = rate(int((positive > threshold).sum()), len(positive))
        metrics[f"fpr@{percent}"] = rate(int((clean > threshold).sum()), len(clean))
    return metrics


def _dataset_level(
    detector: DatasetDetector, base: Classifier, poisoned: Poisoned, scores: Tensor
) -> dict[str, dict[str, float]]:
    truth = torch.zeros(len(scores), dtype=torch.bool)
    truth[poisoned.index] = True
    bad, good = scores[truth], scores[~truth]
    if not (len(bad) and len(good)):
        raise NotApplicable(
            f"{len(bad)} poisoned and {len(good)} other training images; a detector of training images needs both: "
            "change the rate of the backdoor or give more images"
        )
    metrics = {"auroc": {"value": auroc(positive=bad.numpy(), negative=good.numpy())}}
    for percent in ALARM_MARKS:
        threshold = torch.quantile(good, 1 - percent / 100)
        metrics[f"tpr@{percent}"] = rate(int((bad > threshold).sum()), len(bad))
    return metrics


def measure_model_detection(cell: Cell, ws: Workspace) -> Result:
    """One row of the model_detection track: the verdict on one model."""
    detector = ws.entry(ModelDetector, cell.detector)
    if cell.backdoor is None:
        model, target = ws.model(cell), None
        extra: dict[str, dict[str, float]] = {}
    else:
        backdoor = ws.entry(BackdoorAttack, cell.backdoor)
        model, _ = ws.backdoored(cell)
        found = backdoor_metrics(ws, model, backdoor, ws.evaluated(cell.data), cell.seed)
        extra = {"asr": found["asr"], "ca": found["ca"]}
        labels = torch.arange(cell.data["classes"])
        wanted = backdoor.wanted(labels, cell.data["classes"])
        target = set(wanted[(wanted >= 0) & (wanted != labels)].tolist())
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
