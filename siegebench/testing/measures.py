"""The contract of measures, one function per clause."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from siegebench.cells import canonical
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.metrics import is_measure
from siegebench.oracle import Oracle
from siegebench.testing.specimens import (
    EPS,
    Case,
    lesson_of,
    other_global_numbers,
    require,
    state_of,
    victim,
)
from siegebench.threat import Norm, ThreatModel


def _measured(case: Case, model: Classifier, x: Tensor, y: Tensor) -> dict[str, Any]:
    norm: Norm = case.entry.norms[0]
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(len(x)))
    lesson = lesson_of(case.quick, model, threat, x.shape[-1])
    found: dict[str, Any] = case.quick(Oracle(model, threat, draws), x, y, threat, draws, lesson)
    return found


def returns_finite_metrics_and_well_formed_flags(case: Case) -> None:
    found = case.kept["found"] = _measured(case, *victim())
    named = {"metrics", "flags"} <= set(found) <= {"metrics", "flags", "arrays", "pictures"}
    require(named, f"returned {sorted(found)}, expected flags and metrics, and perhaps arrays and pictures")
    bad = [k for k, v in found["metrics"].items() if not math.isfinite(float(v))]
    require(not bad, f"metric {bad[:1]} is not finite")
    for flag in found["flags"]:
        require(set(flag) == {"id", "severity", "evidence"}, f"flag {flag} needs id, severity, evidence")
        require(flag["severity"] in ("info", "flag", "fail"), f"flag severity {flag['severity']!r}")
    canonical(_numbers(found))


def keeps_numbers_of_each_image_and_few_pictures(case: Case) -> None:
    found, n = case.kept["found"], len(victim()[1])
    for name, values in found.get("arrays", {}).items():
        require(is_measure(name), f"array {name!r} is not named in snake_case")
        require(len(values) == n, f"array {name} has {len(values)} numbers for {n} images")
    shown = found.get("pictures", torch.zeros(0, 3, 1, 1))
    require(shown.dim() == 4 and len(shown) <= 12 and shown.shape[1] in (1, 3),
            f"pictures are {tuple(shown.shape)}, expected at most 12 with 1 or 3 channels")  # fmt: skip
    require(((shown >= 0) & (shown <= 1)).all(), "pictures have values outside [0, 1]")


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What a measure returned, with tensors as lists."""
    beside = {name: values.tolist() for name, values in found.get("arrays", {}).items()}
    shown = found.get("pictures", torch.zeros(0))
    return {"metrics": found["metrics"], "flags": found["flags"], "arrays": beside, "pictures": shown.tolist()}


def measures_the_same_for_the_same_draws(case: Case) -> None:
    model, x, y = victim()
    before = state_of(model)
    with other_global_numbers(99):
        again = _measured(case, model, x, y)
    require(canonical(_numbers(again)) == canonical(_numbers(case.kept["found"])), "a second run gave other numbers")
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


CLAUSES = (
    returns_finite_metrics_and_well_formed_flags,
    keeps_numbers_of_each_image_and_few_pictures,
    measures_the_same_for_the_same_draws,
)
