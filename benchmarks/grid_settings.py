"""What grid.py measures: budgets, and for each query attack the settings that its default is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from siegebench.threat import Access, Norm


@dataclass(frozen=True)
class Spot:
    """A network and a budget."""

    network: str
    norm: Norm
    eps: str
    queries: int


@dataclass(frozen=True)
class Grid:
    """The settings of one attack: parameters that differ from the default."""

    settings: list[dict[str, Any]] = field(default_factory=list)
    norms: tuple[Norm, ...] = ("linf", "l2")
    access: Access = "score"

    def specs(self, name: str) -> list[dict[str, Any]]:
        """The default first."""
        return [{"name": name}, *({"name": name, **setting} for setting in self.settings)]


# two values of eps for each network, norm and number of queries, between which the attacks differ
EPS: dict[str, dict[Norm, dict[int, tuple[str, ...]]]] = {
    "resnet20": {
        "linf": {100: ("2/255", "4/255"), 1000: ("1/255", "2/255"), 10_000: ("0.5/255", "1/255")},
        "l2": {100: ("0.5", "1"), 1000: ("0.25", "0.5"), 10_000: ("0.1", "0.25")},
    },
    "cnn_a": {
        "linf": {100: ("8/255", "16/255"), 1000: ("4/255", "8/255"), 10_000: ("4/255", "8/255")},
        "l2": {100: ("1", "2"), 1000: ("0.5", "1"), 10_000: ("0.25", "0.5")},
    },
    "marabou": {
        "linf": {100: ("2/255", "4/255"), 1000: ("1/255", "2/255"), 10_000: ("1/255", "2/255")},
        "l2": {100: ("0.25", "0.5"), 1000: ("0.1", "0.25"), 10_000: ("0.1", "0.25")},
    },
}
SCENES = [
    Spot(network, norm, eps, queries)
    for network, norms in EPS.items()
    for norm, counts in norms.items()
    for queries, values in counts.items()
    for eps in values
]
SETTINGS: dict[str, Grid] = {
    "square": Grid([{"rescale": False}, {"rescale": True}, {"p": 0.3}, {"p": 0.05}]),
    "nes": Grid([
        {"pairs": 5}, {"pairs": 25},
        {"pairs": 5, "sigma": 0.01, "step": 0.2, "momentum": 0.9},
        {"pairs": 25, "sigma": 0.01, "step": 0.2, "momentum": 0.9},
    ]),
    "bandits": Grid(
        [
            {"tile": 2},
            {"tile": 2, "rate": 1.0, "step": 0.5},
            {"rate": 1.0, "step": 0.2},
            {"rate": 1.0, "step": 0.5},
            {"tile": 2, "rate": 100.0},
            {"step": 0.5},
        ]
    ),
    "simba": Grid([{"basis": "dct"}, {"basis": "pixel"}, {"step": 0.2}, {"low": 0.25}]),
    "signhunter": Grid(),
}  # fmt: skip
