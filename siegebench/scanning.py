"""`siegebench scan`: whether one network has a backdoor, by every model detector, beside clean networks trained here.

The scan is a suite with one model_detection board, made here; its rows and trained networks are stored like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from siegebench import api, registry
from siegebench.cells import Result
from siegebench.config import Suite, parse_suite
from siegebench.errors import ConfigError
from siegebench.store import PICTURES, Store
from siegebench.types import Detector, ModelDetector, ModelSource
from siegebench.workspace import Settings
from siegebench.yamlmarks import Document


@dataclass(frozen=True)
class Finding:
    """What one detector says about the network.

    Attributes:
        status: `ok`, or why there is no verdict: `not_applicable`, `error`, `crashed`.
        backdoored: at the detector's published threshold.
        target: the class that the backdoor is believed to lead to, of several the most suspicious one.
        targets: number of such classes.
        clean: number of clean networks of the same architecture that it judged.
        false_alarms: how many of them it called backdoored.
        above: how many of them have at least the score of the network.
        trigger: file of the inverted trigger of that class.
        message: of the error.
    """

    detector: str
    status: str
    backdoored: bool = False
    score: float | None = None
    target: int | None = None
    targets: int = 0
    clean: int = 0
    false_alarms: int = 0
    above: int = 0
    trigger: str = ""
    message: str = ""


@dataclass(frozen=True)
class Scan:
    """The findings of all detectors, and the clean accuracy of the network: far below what is expected, the images do
    not have the form that the network was trained on, and the findings mean nothing.
    """

    accuracy: float | None
    findings: tuple[Finding, ...]


def model_detectors() -> list[str]:
    """The names of the detectors of whole models, without planted controls."""
    cards = registry.cards()
    return [
        name for name in registry.names("detector")
        if not cards["detector", name].card.control and isinstance(registry.build(Detector, name), ModelDetector)
    ]  # fmt: skip


def suite_of(
    checkpoint: str, model: Any, data: Any, *, count: int | None, detectors: Sequence[Any], clean: int, seed: int
) -> Suite:
    """The suite of a scan.

    Args:
        checkpoint: file with the weights.
        model: an entry of the zoo, as in a suite.
        data: a data set, as in a suite.
        count: number of test images for the clean accuracy.
        clean: number of clean networks to train, for the false alarms.

    Raises:
        ConfigError, DataError, ModelError: unknown names; weights that do not fit.
    """
    bare = registry.normal(model)
    if "checkpoint" in bare:
        raise ConfigError("--model has a checkpoint of its own; give the file as the argument only")
    untrained = {**bare, "checkpoint": None}  # some entries have published weights by default
    if clean and registry.build(ModelSource, untrained).pretrained():
        raise ConfigError(
            f"--model {bare['name']} has published weights, so no clean network can be trained beside yours; name the "
            "architecture alone, or set --clean 0"
        )
    board = {
        "track": "model_detection",
        "models": [untrained] if clean else [],
        "clean": max(clean, 1),
        "published": [{"model": {**bare, "checkpoint": checkpoint}}],
        "detectors": list(detectors),
    }
    images = {"set": data, **({} if count is None else {"count": count})}
    content = {"suite": "scan", "data": images, "seeds": [seed], "boards": [board]}
    return parse_suite(Document(yaml.safe_dump(content, sort_keys=False), "scan"))


def scan(suite: Suite, settings: Settings, report: Callable[..., None] | None = None, **options: Any) -> Scan:
    """Compute what is not stored yet of the suite of a scan, and read the findings.

    Args:
        report: as of `siegebench.run`.
        options: of `siegebench.run`, such as `how` and `slots`.
    """
    outcome = api.run(suite, settings, report=report, **options)
    store = Store(settings.root)
    own = [r for r in outcome.results if r.cell.model.get("published")]
    twins = [r for r in outcome.results if not r.cell.model.get("published") and r.status == "ok"]
    accuracy = next((v for r in own if (v := r.value("ca")) is not None), None)
    return Scan(
        accuracy, tuple(_finding(r, [t for t in twins if t.cell.detector == r.cell.detector], store) for r in own)
    )


def _finding(row: Result, twins: list[Result], store: Store) -> Finding:
    name = row.cell.labels["detector"]
    if row.status != "ok":
        return Finding(name, row.status, message=str((row.error or {}).get("message", "")))
    score = row.value("score") or 0.0
    target = None if (named := row.value("named_target")) is None else int(named)
    picture = store.path(row.cell).with_suffix(PICTURES) / f"{target}.png"
    return Finding(
        name, row.status, row.value("flagged") == 1, score, target, int(row.value("named_targets") or 0), len(twins),
        sum(t.value("flagged") == 1 for t in twins), sum((t.value("score") or 0.0) >= score for t in twins),
        str(picture) if picture.exists() else "",
    )  # fmt: skip
