"""Adversarial images for training, from an attack that a defense takes as a parameter."""

from __future__ import annotations

from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack


def check_attack(attack: Attack, norm: Norm) -> None:
    """Refuse an attack that cannot be used during training.

    Raises:
        ValueError: when it does not handle the norm, or learns from training images.
    """
    name = getattr(attack, "_name", type(attack).__name__)
    if norm not in attack.handles():
        raise ValueError(f"attack {name} handles {', '.join(attack.handles())}, not {norm}")
    if attack.learning():
        raise ValueError(f"attack {name} learns from training images; take an attack that needs the model only")


def attacked(model: Classifier, attack: Attack, threat: ThreatModel, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """What the attack makes of images x [n, C, H, W] for the model as it is now, in eval mode; its mode is restored."""
    if not len(x):
        return x
    draws = draws.to(x.device)
    with frozen(model):
        return attack(Oracle(model, threat, draws), x, y, threat, draws)
