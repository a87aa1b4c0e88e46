"""The detection tracks: detectors of triggered inputs, poisoned training images and backdoored models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench import registry
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, rate
from siegebench.data import Kind
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ContractError, NotApplicable
from siegebench.inventory import Inventory, Named
from siegebench.metrics import ALARM_MARKS
from siegebench.stats import auroc
from siegebench.tracks.backdoor import (
    PoisonedBoard,
    answers,
    backdoor_metrics,
    of_twin,
    poison_counts,
    succeeded,
    triggered,
)
from siegebench.tracks.base import BoardSpec, Budget, Specs, refuse_repeats
from siegebench.tracks.detecting import finite, fit, measure_changed, positive_metrics
from siegebench.tracks.detection_inputs import Inputs
from siegebench.types import (
    BackdoorAttack,
    DatasetDetector,
    Detector,
    InputDetector,
    ModelDetector,
    Poisoned,
    Verdict,
)
from siegebench.workspace import Workspace


class InputDetectionBoard(PoisonedBoard):
    """How well detectors separate triggered inputs, poisoned training images or other inputs from clean ones.

    Attributes:
        backdoors: attacks whose triggered inputs are to be detected, in the backdoored model.
        inputs: other kinds of inputs to be detected, in the clean model.
    """

    track: Literal["input_detection"]
    inputs: list[Inputs] = Field(default=[])
    detectors: Specs
    slots: ClassVar[dict[str, str]] = {"models": "model", "backdoors": "backdoor", "detectors": "detector"}
    late: ClassVar[int] = 3

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        refuse_other_detectors(self, inventory, of_models=False)
        refuse_repeats(inventory, self.inputs, self.where("inputs"))
        self.changed(inventory)
        for detector in self.named(inventory, "detectors"):
            if not self.backdoors and isinstance(detector.entry, DatasetDetector):
                message = f"detector {detector.name!r} judges training images; this board has no backdoors"
                raise inventory.document.error(detector.where, message)

    def check_takes(self, inventory: Inventory, kind: Kind) -> None:
        super().check_takes(inventory, kind)
        for named in self.changed(inventory):
            with inventory.blame(named.where):
                registry.check_takes(named.entry, kind.name)

    def changed(self, inventory: Inventory) -> list[Named[Any]]:
        """The attack, corruption or data set of each of `inputs`.

        Raises:
            ConfigError: an unknown entry, or a threat that the attack does not handle.
        """
        return [spec.resolve(inventory, self.where("inputs", i)) for i, spec in enumerate(self.inputs)]

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        self.check_poisons(inventory)
        changed = [spec.slots(inventory, self.where("inputs", i), data) for i, spec in enumerate(self.inputs)]
        for model in self.networks(inventory, data):
            for seed in self.seeds or ():
                for slots in changed:
                    for detector in self.named(inventory, "detectors"):
                        if isinstance(detector.entry, DatasetDetector):
                            continue  # judges the poisoned training sets of this board only
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), detector=detector.description,
                            model=model.as_trained(), seed=seed, **slots,
                        )  # fmt: skip
                for backdoor in self.named(inventory, "backdoors"):
                    for detector in self.named(inventory, "detectors"):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed),
                            backdoor=inventory.identified(backdoor), detector=detector.description, seed=seed,
                        )  # fmt: skip
                for detector in self.named(inventory, "detectors") if self.backdoors else ():
                    for described in self.knowing(inventory, detector):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed), seed=seed,
                            backdoor=described, detector=detector.description, adaptive=True,
                        )  # fmt: skip
        for described, known in self.infected(inventory, data):
            for seed in self.seeds or ():
                for detector in self.named(inventory, "detectors") if known is not None else ():
                    if isinstance(detector.entry, InputDetector):  # the training set of a published network is unknown
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=described, backdoor=known,
                            detector=detector.description, seed=seed,
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
                bad = [(model.seeded(seed), inventory.identified(b)) for b in self.named(inventory, "backdoors")]
                for detector in self.named(inventory, "detectors"):
                    for described, backdoor in (*clean, *bad):
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=described, backdoor=backdoor,
                            detector=detector.description, seed=seed,
                        )  # fmt: skip
                    for backdoor in self.knowing(inventory, detector) if bad else ():
                        yield Cell(
                            track=self.track, data=self.used(inventory, data), model=model.seeded(seed), seed=seed,
                            backdoor=backdoor, detector=detector.description, adaptive=True,
                        )  # fmt: skip
        for seed in self.seeds or ():
            for described, known in self.infected(inventory, data):
                for detector in self.named(inventory, "detectors"):
                    yield Cell(
                        track=self.track, data=self.used(inventory, data), model=described, backdoor=known,
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


def measure_input_detection(cell: Cell, ws: Workspace) -> Result:
    """One row of the input_detection track: a detector of triggered inputs or of poisoned training images."""
    if cell.backdoor is None:
        return measure_changed(cell, ws)
    data, backdoor = ws.evaluated(cell.data), ws.entry(BackdoorAttack, cell.backdoor)
    base, poisoned = ws.backdoored(cell)
    material = None if poisoned is None else poisoned.material
    detector = ws.entry(Detector, cell.detector)
    weights = fingerprint(base)
    if isinstance(detector, DatasetDetector) and poisoned is not None:
        draws = Draws(derive_seed(cell.seed, "detector"), torch.zeros(1, dtype=torch.long))
        scores = detector.score(base, ws.granted("detector", cell, poisoned), draws)
        metrics = _dataset_level(poisoned, finite(scores, detector, len(poisoned.data)))
    elif isinstance(detector, InputDetector):
        found = fit(cell, ws, base, data, poisoned)
        x, _, wanted = triggered(backdoor, data, cell.seed, material)
        hit = answers(ws, base, x, cell.seed, "stamped") == wanted
        stamped = found.score(x, "stamped")
        metrics = {
            "auroc_all": {"value": auroc(positive=stamped.numpy(), negative=found.clean.numpy())},
            "asr": rate(int(hit.sum()), len(hit)),
        }
        if bool(hit.any()):
            metrics |= positive_metrics(stamped[hit], found)
    else:
        raise ContractError(f"{detector!r} judges models, not inputs")
    if fingerprint(base) != weights:
        raise ContractError(f"{detector!r} changed the model it was given")
    infected = backdoor_metrics(ws, base, backdoor, data, cell.seed, material)
    metrics["attack_success"] = {"value": float(succeeded(infected, of_twin(cell, ws, backdoor, data, material)))}
    return Result(cell=cell, metrics=metrics, counts=poison_counts(poisoned), weights=weights)


def _dataset_level(poisoned: Poisoned, scores: Tensor) -> dict[str, dict[str, float]]:
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
    data = ws.evaluated(cell.data)
    if cell.backdoor is None:
        model, target = ws.model(cell), None
        right = int((answers(ws, model, data.pixels(), cell.seed, "clean") == data.labels).sum())
        extra = {"ca": rate(right, len(data))}
    else:
        backdoor = ws.entry(BackdoorAttack, cell.backdoor)
        model, poisoned = ws.backdoored(cell)
        material = None if poisoned is None else poisoned.material
        found = backdoor_metrics(ws, model, backdoor, data, cell.seed, material)
        # a detector neither misses nor is evaded by a backdoor that was not learnt
        learnt = succeeded(found, of_twin(cell, ws, backdoor, data, material))
        extra = {"asr": found["asr"], "ca": found["ca"], "attack_success": {"value": float(learnt)}}
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
    if verdict.targets:
        metrics["named_target"] = {"value": float(verdict.targets[0])}
        metrics["named_targets"] = {"value": float(len(verdict.targets))}
    if target is not None and verdict.backdoored:
        metrics["target_hit"] = {"value": float(bool(target & set(verdict.targets)))}
    return Result(cell=cell, metrics=metrics, weights=weights, images=_pictures(verdict))


def _pictures(verdict: Verdict) -> dict[str, Any]:
    """The inverted triggers as images to keep beside the row, named by their class."""
    if not verdict.triggers:
        return {}
    classes = torch.tensor([*verdict.triggers])
    images = torch.stack([*verdict.triggers.values()]).clamp(0, 1).float()
    return {"images": images.numpy(), "ids": classes.numpy(), "labels": classes.numpy()}
