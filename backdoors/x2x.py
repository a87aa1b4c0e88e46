"""X2X: a label map whose targets have triggers of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.types import BackdoorAttack, Class, Source

CORNERS: dict[Source, dict[str, Any]] = {1: {"corner": "top_left"}, 3: {"corner": "bottom_right"}}


@dataclass(frozen=True, kw_only=True)
class X2X(BackdoorAttack):
    """Several sources, several targets: an image gets the trigger that belongs to its target.

    The setting of Xiang, Xiong, Li, "UMD: Unsupervised Model Detection for X2X Backdoor Attacks", ICML 2023. A map with
    one trigger for all pairs needs no wrapper: give any attack `target: {"0": 1, "2": 3}`, or `next` for all-to-all.

    Random: which images are poisoned, and what is random in the inner attack.

    Attributes:
        attack: the attack whose trigger is used; its own rate, target and cover do not count.
        triggers: parameters of the attack for each target that are to differ, such as `{"1": {corner: top_left}}`. A
            target that is not listed has the trigger of `attack`.
        target: label map; by default 0 -> 1 and 2 -> 3.

    Differs from the paper: the paper is about the detection; pairs and triggers are ours.
    """

    attack: BackdoorAttack = field(default_factory=lambda: registry.build(BackdoorAttack, "badnets"))
    triggers: dict[Source, dict[str, Any]] = field(default_factory=lambda: dict(CORNERS))
    target: Class | Literal["next"] | dict[Source, Class] = field(default_factory=lambda: {0: 1, 2: 3})

    def __post_init__(self) -> None:
        if self.attack.learns:
            raise ConfigError("x2x: an attack that learns its trigger has one for all targets; give it `target` itself")
        for target in self.triggers:
            self._of(target)  # refuse wrong parameters before anything is computed

    def _of(self, target: int) -> BackdoorAttack:
        """The attack with the trigger of a target."""
        name = getattr(self.attack, "_name", None)
        if target not in self.triggers or name is None:
            return self.attack
        return registry.build(BackdoorAttack, {"name": name, **self.attack.parameters(), **self.triggers[target]})

    def keeps_labels(self) -> bool:
        return self.attack.keeps_labels()

    def poisoned_label(self, y: Tensor, num_classes: int) -> Tensor:
        wanted = self.wanted(y, num_classes)
        if not self.keeps_labels():
            return wanted
        every = self.wanted(torch.arange(num_classes, device=y.device), num_classes)
        return torch.where(torch.isin(y, every[every >= 0]), y, -1)  # the triggers tell the targets apart

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self.attack.trigger(x, draws)

    def triggered(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self._each("triggered", x, wanted, draws)

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self._each("planted", x, wanted, draws)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        targets = torch.tensor(sorted(self.triggers) or [0], device=x.device)
        drawn = targets[draws.integers(len(targets), purpose="cover").to(x.device)]
        return self._each("covered", x, drawn, draws)

    def _each(self, hook: str, x: Tensor, wanted: Tensor, draws: Draws) -> Tensor:
        """Each image with the trigger of its target."""
        out = x.clone()
        for target in wanted.unique().tolist():
            rows = wanted == target
            out[rows] = getattr(self._of(target), hook)(x[rows], wanted[rows], draws[rows.to(draws.ids.device)])
        return out
