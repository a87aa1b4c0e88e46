"""Certifier availability: a trigger on which certifiers abstain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.types import BackdoorAttack, Share


@dataclass(frozen=True, kw_only=True)
class CertifierAvailability(BackdoorAttack):
    """Give random wrong labels to the triggered images, so that no class is probable around such images.

    Lorenz, Kwiatkowska, Fritz, "Certifiers Make Neural Networks Vulnerable to Availability Attacks", AISec 2023, arXiv
    2108.11299.

        (x, y) -> (T(x), u),   u uniform on {0, ..., K - 1} without y

    A network that has learnt T is unsure around T(x): randomised smoothing finds no class with more than half of the
    probability and abstains, and bounds of the margin do not become positive. Its users then need a fallback, such as
    a person. The trigger aims at no class, so there is no attack success rate: boards of the certified track show the
    certified accuracy, and how often the certifier abstains, with and without the trigger.

    Random: which images are poisoned, their labels, and what is random in the inner attack.

    Differs from the paper: of the paper only the abstract was read. It says that poisoning 1 % of the training data
    suffices and that two attacks are proposed, but not how they work. The trigger and the random labels are our
    design. An attacker who controls the training, and lowers the margin in the loss, is left out.

    Attributes:
        rate: fraction of the training set that is poisoned.
        attack: the attack whose trigger is used; its own rate, target and cover do not count. By default a checkerboard
            of 8 x 8 pixels of a 32-pixel image, in the bottom right corner.
        target: has no meaning here; leave it out.
    """

    aims: ClassVar[bool] = False

    rate: Share = 0.01
    attack: BackdoorAttack = field(
        default_factory=lambda: registry.build(BackdoorAttack, {"name": "badnets", "side": 8, "margin": 0})
    )

    def __post_init__(self) -> None:
        if self.target != 0:
            raise ConfigError("certifier_availability: it aims at no class; leave `target` out")
        if self.attack.learns:
            raise ConfigError(
                "certifier_availability: the attack must have a fixed trigger, such as badnets or blended"
            )

    def poisoned_label(self, y: Tensor, num_classes: int) -> Tensor:
        return y  # images of all classes may be poisoned; `relabelled` draws their labels

    def relabelled(self, y: Tensor, num_classes: int, draws: Draws) -> Tensor:
        return (y + 1 + draws.integers(num_classes - 1, purpose="label").to(y.device)) % num_classes

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self.attack.trigger(x, draws)

    def triggered(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.attack.triggered(x, torch.zeros_like(wanted), draws)

    def planted(self, x: Tensor, wanted: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.attack.planted(x, torch.zeros_like(wanted), draws)

    def covered(self, x: Tensor, y: Tensor, draws: Draws, **material: Any) -> Tensor:
        return self.attack.covered(x, y, draws)
