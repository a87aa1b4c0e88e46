"""`siegebench.attack`: one attack on one model, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import IMAGE, ImageSet, Kind
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.threat import Access, Norm, Rule, ThreatModel
from siegebench.tracks.judging import fresh_passes
from siegebench.tracks.targets import goals
from siegebench.types import Attack


def attack(name: str, **parameters: Any) -> Callable[..., Tensor]:
    """An attack as a function of (model, images, labels, norm=, eps=): adversarial images.

    >>> x_adv = attack("pgd", steps=20)(model, x, y, norm="linf", eps="8/255")

    With `target` (`next`, `random`, `least_likely`, a class, or a tensor [n] of classes) each image is to be classified
    as that class; an attack without support for targets refuses it.

    An attack that learns first (see `siegebench list attacks`) also takes `data=`, its training images.

    Raises:
        ConfigError: unknown name or parameter.
    """
    entry = registry.build(Attack, {"name": name, **parameters})

    def call(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm = "linf",
        eps: float | str = "8/255",
        queries: int | None = None,
        target: Rule | int | Tensor | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        data: ImageSet | None = None,
    ) -> Tensor:
        _check_images(x, y, model.kind if isinstance(model, Classifier) else IMAGE)
        if entry.learning() and data is None:
            raise ConfigError(
                f"attack {name!r} learns from training images: pass data=, such as load_data(NAME, 'train')"
            )
        access: Access = entry.access()
        if target is not None and not entry.can_aim():
            raise ConfigError(f"attack {name!r} cannot aim at a class: leave target out")
        rule = None if isinstance(target, Tensor) else target
        threat = ThreatModel.parse({"norm": norm, "eps": eps, "access": access, "queries": queries, "target": rule})
        if not isinstance(model, Classifier):
            if num_classes is None:
                with torch.no_grad(), _frozen(model):  # eval first: batch norms learn from every forward pass
                    num_classes = int(model(x[:1]).shape[1])
            model = Network(model, num_classes=num_classes)
        draws = Draws(derive_seed(seed, "attack"), torch.arange(len(x), device=x.device))
        with _frozen(model):
            goal = None if target is None else _goal(target, model, x, y, draws)
            lesson = None
            if data is not None and entry.learning():
                own = Draws(derive_seed(seed, "learn"), data.ids).to(x.device)
                lesson = entry.learn(Oracle(model, threat, own), data, threat, own)
            return entry(Oracle(model, threat, draws, goal=goal), x, y, threat, draws, lesson)

    return call


def _goal(target: Rule | int | Tensor, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """The class that each image is to become, int64 [n]."""
    if not isinstance(target, Tensor):
        return goals(target, y, model.num_classes, draws, lambda: fresh_passes(model, x, draws, "clean").mean(dim=0))
    if target.shape != y.shape or target.is_floating_point():
        raise ConfigError(f"target: expected {len(y)} integers, found {target.dtype} {tuple(target.shape)}")
    if not bool(((target >= 0) & (target < model.num_classes)).all()):
        raise ConfigError(
            f"target: expected classes 0..{model.num_classes - 1}, found {int(target.min())} to {int(target.max())}"
        )
    return target.to(y.device).long()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and weights without gradient; every module and parameter is restored afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    grads = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in grads:
            parameter.requires_grad_(flag)


def _check_images(x: Tensor, y: Tensor, kind: Kind) -> None:
    """Refuse anything but a batch of valid inputs for a model of this kind, with one label each."""
    if x.dim() != 4 or not x.is_floating_point():
        what = f"float [n, {kind.channels}, H, W] in {kind.box}"
        raise ConfigError(f"images: expected {what}, found {x.dtype} {tuple(x.shape)}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ConfigError(f"labels: expected {len(x)} integers, found {y.dtype} {tuple(y.shape)}")
    if not bool(kind.inside(x).all()):
        hint = "" if kind.grid is None else f"; divide by {kind.grid} and put the normalisation into the model"
        raise ConfigError(
            f"images: expected pixels in {kind.box}, found {float(x.amin()):.4g} to {float(x.amax()):.4g}{hint}"
        )
