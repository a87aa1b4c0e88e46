"""Distances, gradient norms, flatness and tilting of a published network."""

from __future__ import annotations

from typing import Any

import pytest

from siegebench import registry
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel

from .planted import prepared_resnet20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_geometry_of_resnet20() -> None:
    model, train_set, test = prepared_resnet20()
    x, y = test.pixels(slice(64)), test.labels[:64]
    got: dict[str, dict[str, float]] = {}
    fmn = {"name": "fmn", "steps": 40}
    for norm, eps, spec in (("l2", 0.5, {"name": "gradient_norm"}), ("linf", 8 / 255, {"name": "gradient_norm"}),
                            ("linf", 8 / 255, {"name": "flatness", "side": 7}),
                            ("l2", 0.5, {"name": "distances", "attack": fmn}),
                            ("l2", 0.5, {"name": "boundary_tilting", "attack": fmn})):  # fmt: skip
        threat, draws, own = ThreatModel(norm=norm, eps=eps), Draws(0, test.ids[:64]), Draws(0, train_set.ids)
        entry: Any = registry.build("measure", spec)
        learns = entry.learning()
        lesson = entry.learn(Oracle(model, threat, own), train_set, threat, own) if learns else None
        oracle = Oracle(model, threat, draws)
        found = got[f"{spec['name']} {norm}"] = entry(oracle, x, y, threat, draws, lesson)["metrics"]
        print(spec["name"], norm, {k: round(v, 4) for k, v in found.items()}, flush=True)
    # a network that hides no gradients: what they promise is of the size of what is found
    found, promised = got["distances l2"], got["gradient_norm l2"]
    assert found["not_found"] == got["boundary_tilting l2"]["not_found"] == 0
    assert 0.5 < promised["first_order_distance_median"] / found["distance_q50"] < 5
    assert 60 < got["boundary_tilting l2"]["angle_median"] <= 100
    assert got["boundary_tilting l2"]["strength_median"] > 5
