"""`siegebench.attack`: one attack on one model, from Python."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.cells import Flag
from siegebench.classifier import Classifier, frozen
from siegebench.data import IMAGE, ImageSet
from siegebench.draws import Draws, content_ids, derive_seed
from siegebench.errors import BudgetExhausted, ConfigError, shortened
from siegebench.inputs import PROBES, as_classifier, as_images, as_labels, as_tensor, gradients
from siegebench.memory import kept
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.threat import Access, Norm, Rule, ThreatModel
from siegebench.tracks.attacking import explored
from siegebench.tracks.judging import fresh_passes, gradient_flags, majority, right
from siegebench.tracks.targets import goals
from siegebench.types import Attack

DEFAULT_EPS = "8/255"  # for linf, when none is given
log = logging.getLogger("siegebench")


class WeakAttack(UserWarning):
    """An attack could not work properly, so images that are still correctly classified prove little."""


@dataclass(frozen=True, eq=False)
class AttackReport:
    """The result of an attack on one batch, scored with new forward passes (the majority of nine for a random model).

    Attributes:
        x_adv: adversarial images, [n, C, H, W].
        clean: whether the clean image is classified correctly, bool [n].
        success: whether the returned image is within the budget and misclassified (with a target: classified as the
            target), bool [n].
        distance: size of the perturbation in the norm of the threat, [n].
        queries, forwards, backwards: passes of each image, int64 [n].
        flags: what makes the result doubtful, with evidence.
        threat: the budget and the access that the attack was given.
    """

    x_adv: Tensor
    clean: Tensor
    success: Tensor
    distance: Tensor
    queries: Tensor
    forwards: Tensor
    backwards: Tensor
    threat: ThreatModel
    flags: list[Flag] = field(default_factory=list)

    def __str__(self) -> str:
        won, n, right_before = int((self.success & self.clean).sum()), len(self.clean), int(self.clean.sum())
        passes = float((self.forwards + self.backwards).double().mean()) if n else 0.0
        lines = [
            f"{self.threat.label}, {self.threat.access} access: {won} of {right_before} correctly classified images "
            f"({n} in all) are adversarial; {passes:.1f} passes an image"
        ]
        return "\n".join([*lines, *(f"{flag.id}: {flag.evidence}" for flag in self.flags)])


def attack(name: str, **parameters: Any) -> Callable[..., Any]:
    """An attack as a function of (model, images, labels, norm=, eps=): adversarial images.

    >>> x_adv = attack("pgd", steps=20)(model, x, y, norm="linf", eps="8/255")
    >>> print(attack("pgd", steps=20)(model, x, y, norm="linf", eps="8/255", report=True))

    The function takes:

    - `model`: any `nn.Module` that maps images in [0, 1] to logits (normalisation inside), or a Classifier. It is
      attacked in eval mode and its state is restored, in whatever mode or context (`inference_mode`, `no_grad`) it is
      called.
    - `x`, `y`: float [n, C, H, W] in [0, 1] and n integers; tensors or numpy arrays. They do not change.
    - `norm`, `eps`, `queries`: the budget; eps is a number or a fraction such as `"0.5/255"`. Without eps an Linf
      attack gets 8/255 and says so.
    - `target`: `next`, `random`, `least_likely`, a class, or a tensor [n] of classes: each image is to be classified as
      that class. An attack without support for targets refuses it.
    - `start`: points [n, C, H, W] to start from, such as the result of another attack; they are projected into the
      budget. An attack without support for them refuses.
    - `seed`, `ids`: random numbers are a function of the seed and the id of each image, int [n]; by default ids are
      hashes of the images, so that a result does not depend on the batch.
    - `num_classes`: checked against what the model returns.
    - `data`: training images, for an attack that learns first (see `siegebench list attacks`).
    - `report=True`: return an AttackReport with the images, success, passes and flags.

    Adversarial images are returned on the device of `x`, in float32 (float64 for a model in float64). A WeakAttack
    warning says if the gradients were zero or not finite.

    Raises:
        ConfigError: unknown name or parameter; images or labels that do not fit, before the attack starts.
        ModelError: when the model fails or does not return one finite logit for each class.
    """
    entry = registry.build(Attack, {"name": name, **parameters})

    def call(
        model: nn.Module,
        x: Any,
        y: Any,
        *,
        norm: Norm = "linf",
        eps: float | str | None = None,
        queries: int | None = None,
        target: Any = None,
        start: Any = None,
        seed: int = 0,
        ids: Any = None,
        num_classes: int | None = None,
        data: ImageSet | None = None,
        report: bool = False,
    ) -> Any:
        with gradients(), kept():
            if entry.learning() and data is None:
                raise ConfigError(
                    f"attack {name!r} learns from training images: pass data=, such as load_data(NAME, 'train')"
                )
            if target is not None and not entry.can_aim():
                raise ConfigError(f"attack {name!r} cannot aim at a class: leave target out")
            if start is not None and not entry.can_start():
                raise ConfigError(f"attack {name!r} cannot start from given points: leave start out")
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
                raise ConfigError(f"seed: expected an integer, found {shortened(seed)}")
            target = _target(target)
            rule = None if isinstance(target, Tensor) else target
            threat = _threat(name, entry.access(), norm, eps, queries, rule)
            # images may have any number of channels: the model says whether it takes them
            kind = model.kind if isinstance(model, Classifier) else IMAGE
            given = as_images(x, None if kind.name == IMAGE.name else kind)
            labels = as_labels(y, len(given))
            if not len(given):
                return _empty(given, threat) if report else given
            images, labels = _placed(model, given, labels)
            begin = None if start is None else _start(start, images)
            victim = _prepared(as_classifier(model, images, num_classes=num_classes), images)
            labels = as_labels(labels, len(images), victim.num_classes)
            own = content_ids(images) if ids is None else as_labels(ids, len(images), name="ids").to(images.device)
            draws = Draws(derive_seed(seed, "attack"), own)
            with frozen(victim):
                goal = None if target is None else _goal(target, victim, images, labels, draws)
                lesson = None
                if data is not None and entry.learning():
                    streams = Draws(derive_seed(seed, "learn"), data.ids).to(images.device)
                    lesson = entry.learn(Oracle(victim, threat, streams), data, threat, streams)
                if entry.exploring():
                    few = slice(0, entry.explored())
                    aims = None if goal is None else goal[few]
                    lesson, _ = explored(entry, victim, threat, images[few], labels[few], draws[few], aims)
                oracle = Oracle(victim, threat, draws, goal=goal, start=begin)
                try:
                    x_adv = entry(oracle, images, labels, threat, draws, lesson)
                except BudgetExhausted:
                    raise ConfigError(
                        f"attack {name!r} does not work within queries={queries}: leave queries out, or use one that "
                        "does (`siegebench list attacks --track query`)"
                    ) from None
                flags = _flags(oracle, images, x_adv, labels)
                for flag in flags:
                    warnings.warn(f"{name}: {flag.evidence}", WeakAttack, stacklevel=2)
                if not report:
                    return x_adv.to(given.device)
                found = [*flags, *entry.findings(lesson)]
                return _report(oracle, images, x_adv, labels, draws, found, given.device)

    return call


def _threat(
    name: str, access: Access, norm: Norm, eps: float | str | None, queries: int | None, target: Rule | int | None
) -> ThreatModel:
    if eps is None:
        if norm != "linf":
            raise ConfigError(f"norm {norm!r} needs eps=, the radius of the ball in pixels of [0, 1]; for l2 e.g. 0.5")
        eps = DEFAULT_EPS
        log.warning("attack %s: no eps was given; the budget is linf %s", name, eps)
    try:
        return ThreatModel.parse({"norm": norm, "eps": eps, "access": access, "queries": queries, "target": target})
    except ValueError as error:
        raise ConfigError(f"eps: {error}") from None


def _target(target: Any) -> Rule | int | Tensor | None:
    """A rule or a class as it is, classes of the images as a tensor."""
    if isinstance(target, np.integer):
        return int(target)
    return as_tensor(target, "target") if isinstance(target, (np.ndarray, list, tuple)) else target


def _placed(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels on the device of the model; images in float64 if its weights are, else in float32."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    weights = [t for t in tensors if t.is_floating_point()]
    double = bool(weights) and weights[0].dtype == torch.float64
    device = tensors[0].device if tensors else x.device
    return x.to(device, torch.float64 if double else torch.float32), y.to(device)


def _prepared(victim: Classifier, x: Tensor) -> Classifier:
    """The model as suites prepare it, with fewer and faster operations; as it is where it cannot be copied."""
    with frozen(victim):
        try:
            return prepare(victim, x[:PROBES])
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return victim


def _start(start: Any, x: Tensor) -> Tensor:
    found = as_images(start, name="start").to(x)
    if found.shape != x.shape:
        raise ConfigError(f"start: expected images {tuple(x.shape)}, found {tuple(found.shape)}")
    return found


def _flags(oracle: Oracle, x: Tensor, x_adv: Tensor, y: Tensor) -> list[Flag]:
    ledger, model = oracle.ledger, oracle.model
    counts = (int(t.sum()) for t in (ledger.backwards, ledger.blind, ledger.undefined))
    return gradient_flags(model.card.name, *counts)


def _report(
    oracle: Oracle, x: Tensor, x_adv: Tensor, y: Tensor, draws: Draws, flags: list[Flag], device: torch.device
) -> AttackReport:
    model, threat, ledger = oracle.model, oracle.threat, oracle.ledger
    z, far = fresh_passes(model, x_adv, draws, "adversarial"), threat.size(x_adv, x)
    won = ~majority(right(z, y)) if oracle.goal is None else majority(right(z, oracle.goal))
    found = {
        "x_adv": x_adv,
        "clean": majority(right(fresh_passes(model, x, draws, "clean"), y)),
        "success": won & (far <= threat.limit),
        "distance": far,
        "queries": ledger.queries,
        "forwards": ledger.forwards,
        "backwards": ledger.backwards,
    }
    return AttackReport(threat=threat, flags=flags, **{k: v.to(device) for k, v in found.items()})


def _empty(x: Tensor, threat: ThreatModel) -> AttackReport:
    no, none = x.new_zeros(0, dtype=torch.bool), x.new_zeros(0, dtype=torch.long)
    return AttackReport(x, no, no, x.new_zeros(0), none, none, none, threat)


def _goal(target: Rule | int | Tensor, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """The class that each image is to become, int64 [n]."""
    if not isinstance(target, Tensor):
        return goals(target, y, model.num_classes, draws, lambda: fresh_passes(model, x, draws, "clean").mean(dim=0))
    return as_labels(target, len(y), model.num_classes, "target").to(y.device)
