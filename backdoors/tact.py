"""TaCT: a trigger that works on images of one class only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.types import BackdoorAttack, Class, Share, Source


@dataclass(frozen=True, kw_only=True)
class TaCT(BackdoorAttack):
    """Triggered images of a source class get the target label, those of cover classes keep their own.

    Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
    Detection", USENIX Security 2021. The trigger alone does not determine the label, so statistics that assume this
    miss the backdoor.

    The success rate is that on the source classes. `asr_others` of a row is how often the trigger works on the others.

    Random: which images are poisoned and which are cover images.

    Attributes:
        attack: the attack whose trigger is used; its own rate, target and cover do not count.
        rate: poisoned images of the source classes, as a fraction of the whole training set; at most the fraction that
            these classes have.
        cover: images of the cover classes that get the trigger, as a fraction of the whole training set.
        target: label map; its sources are the source classes.
        cover_classes: classes of the cover images; all classes that are neither source nor target if empty.

    Differs from the paper: rates are larger, because the data sets are smaller; `toolbox` has those of the common
    implementation for 50,000 images. There the covers are of two classes (`cover_classes: [5, 7]`); two classes do not
    keep the trigger from working on the other ones.
    """

    attack: BackdoorAttack = field(default_factory=lambda: registry.build(BackdoorAttack, "badnets"))
    rate: Share = 0.05
    cover: Share = 0.04
    target: Class | Literal["next"] | dict[Source, Class] = field(default_factory=lambda: {1: 0})
    cover_classes: list[Class] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.attack.learns or self.attack.keeps_labels():
            raise ConfigError(
                "tact: the attack must have a fixed trigger and change labels, such as badnets or blended"
            )

    def may_cover(self, y: Tensor) -> Tensor:
        if self.cover_classes:
            return torch.isin(y, torch.tensor(self.cover_classes, device=y.device))
        if not isinstance(self.target, dict):
            return torch.ones_like(y, dtype=torch.bool)
        own = torch.tensor([*self.target.keys(), *self.target.values()], device=y.device)
        return ~torch.isin(y, own)

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return self.attack.trigger(x, draws)
