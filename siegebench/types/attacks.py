"""Attacks and measures: entries that run on a victim through an Oracle."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError
from siegebench.oracle import Oracle
from siegebench.threat import BALLS, NORMS, TOLERANCE, Access, Norm, ThreatModel
from siegebench.types.base import Entry

Lesson = Any  # what an entry has learnt: a tensor, a network, a small frozen dataclass; only that entry reads it


class Probe(Entry):
    """Base class of Attack and Measure: an entry that runs on a victim through an Oracle.

    An entry that learns defines `learn`. What `learn` returns is passed to `run` as one more argument, `lesson`.

    Class attributes:
        learns: the entry uses training images before it runs, once for all the images of a cell.
    """

    learns: ClassVar[bool] = False

    def learning(self) -> bool:
        """Whether this instance learns (wrappers return the value of the inner attack)."""
        return self.learns

    def exploring(self) -> bool:
        """Whether this instance looks at some of the attacked images before it runs; see `Attack.explore`."""
        return False

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        """Learn from training images; returns what `run` gets as `lesson`. Only for `learns = True`.

        The entry itself does not change.

        Args:
            oracle: the model, with the access that the threat model allows; its samples are the images of `data`.
            data: the training split.
            threat: the threat model.
            draws: the only source of randomness, one stream per image of `data`.
        """
        raise ContractError(f"{self!r} declares learns = True and does not define learn")

    def _taught(self, lesson: Lesson) -> dict[str, Lesson]:
        """The lesson as a keyword argument of `run`; empty for an entry that does not learn or explore.

        Raises:
            ContractError: when the entry learns or explores and there is no lesson.
        """
        if not (self.learning() or self.exploring()):
            return {}
        if lesson is None:
            what = "learns from training images; call learn" if self.learning() else "explores; call explore"
            raise ContractError(f"{self!r} {what} first and pass lesson=")
        return {"lesson": lesson}


class Attack(Probe):
    """Finds images within a budget that the model misclassifies, or classifies as a given class.

    Class attributes:
        needs: the least access that the attack works with.
        norms: the norms that it supports.
        minimal: it is a minimum-norm attack: it returns the smallest perturbation it finds, whatever eps is. The
            harness computes the result for every budget from one run.
        for_transfer: made for transfer, and weaker on the attacked network itself; the contract tests do not require
            full strength there.
        aims: it supports targets: given a class for each image (`oracle.goal`), it searches for images that are
            classified as that class.
        starts: it can start from given points (`oracle.start`, projected onto the ball) instead of its own.
        explores: it first tries variants on a few of the attacked images, once for all the images of a cell. It defines
            `explore` and `explored`, and `run` gets what `explore` returned as one more argument, `lesson`.
        step_in_pixels: its parameter `step` is a distance in the units of eps; one above 2 eps is refused.
        restricted: reaches only a part of the ball (light, one pattern for all images); the contract tests do not
            require it to find the nearest point of a half-space.
    """

    needs: ClassVar[Access] = "gradient"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    minimal: ClassVar[bool] = False
    for_transfer: ClassVar[bool] = False
    aims: ClassVar[bool] = False
    starts: ClassVar[bool] = False
    explores: ClassVar[bool] = False
    step_in_pixels: ClassVar[bool] = False
    restricted: ClassVar[bool] = False

    def access(self) -> Access:
        """The least access that this instance works with (wrappers return that of the inner attack)."""
        return self.needs

    def handles(self) -> tuple[Norm, ...]:
        """The norms that this instance supports."""
        return self.norms

    def minimises(self) -> bool:
        """Whether this instance searches for the smallest perturbation instead of staying within eps."""
        return self.minimal

    def cost(self) -> float:
        """A rough number of passes per image. Only the order matters: expensive cells start first.

        The default multiplies the usual fields; override it when the fields have other names.
        """
        steps = next((getattr(self, f) for f in ("steps", "iterations", "queries") if hasattr(self, f)), 1)
        inner = next((getattr(self, f) for f in ("targets", "searches") if hasattr(self, f)), 1)
        return float(steps * inner * getattr(self, "restarts", 1))

    def can_aim(self) -> bool:
        """Whether this instance supports targets (wrappers return the value of the inner attack)."""
        return self.aims

    def can_start(self) -> bool:
        """Whether this instance can start from given points (wrappers return the value of the inner attack)."""
        return self.starts

    def exploring(self) -> bool:
        """Whether this instance explores (wrappers return the value of the inner attack)."""
        return self.explores

    def explored(self) -> int:
        """Number of images that `explore` gets, at most."""
        return 0

    def explore(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Lesson:
        """Look at some of the images that are to be attacked; returns what `run` gets as `lesson`.

        The arguments are those of `run`. The entry itself does not change.
        """
        raise ContractError(f"{self!r} declares explores = True and does not define explore")

    def findings(self, lesson: Lesson) -> tuple[Flag, ...]:
        """Flags of the row that describe a lesson, with their evidence."""
        return ()

    def refusal(self, threat: ThreatModel, images: ImageSet | None = None) -> str:
        """Why this attack cannot run under this threat model, or on these images; empty if it can.

        Suites ask before anything is computed. The default refuses a step that is larger than the whole ball.
        """
        step = getattr(self, "step", None) if self.step_in_pixels else None
        if step is None or threat.eps == 0 or step <= 2 * threat.eps * (1 + TOLERANCE):
            return ""
        return (
            f"step {step:.4g} is longer than the whole ball ({threat.label}, at most {2 * threat.eps:.4g} across); "
            "it is a distance in the units of eps (pixels in [0, 1]), not a multiple of eps or a grey level: write "
            "step: 2/255, or leave it out"
        )

    @abstractmethod
    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        """Adversarial images for a batch. Where none is found, the clean image (or the best attempt).

        Args:
            oracle: the model, with the access that the threat model allows; `oracle[index]` is a view on some samples.
            x: [n, 3, H, W] in [0, 1], correctly classified.
            y: int64 [n], true labels.
            threat: the threat model.
            draws: the only source of randomness.
        """

    @final
    def __call__(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        """Run, then check the contract: shape, dtype, finite, in the box of the kind ([0, 1] for images), within eps.

        Args:
            lesson: what `learn` or `explore` returned; ignored by an attack that does neither.

        Raises:
            ContractError: naming the attack, the sample and the size of the violation.
            ConfigError: for the reason that `refusal` gives.
        """
        if not threat.grants(self.access()):
            raise ContractError(f"{self!r} needs {self.access()} access; the threat model grants {threat.access}")
        if threat.norm not in self.handles():
            raise ContractError(
                f"{self!r} handles {', '.join(self.handles())}; the norm of the threat model is {threat.norm}"
            )
        if oracle.goals is not None and not self.can_aim():
            raise ContractError(f"{self!r} cannot aim; the threat model says which class each image is to become")
        if oracle.starts is not None and not self.can_start():
            raise ContractError(f"{self!r} cannot start from given points")
        if reason := self.refusal(threat):
            raise ConfigError(f"{type(self).__name__}: {reason}")
        x_adv = self.run(oracle, x, y, threat, draws, **self._taught(lesson))
        if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
            raise ContractError(f"{self!r} returned {x_adv.dtype} {tuple(x_adv.shape)} for {x.dtype} {tuple(x.shape)}")
        x_adv = x_adv.detach()
        if not bool(torch.isfinite(x_adv).all()):
            raise ContractError(f"{self!r} returned NaN or infinite pixels")
        if not bool(oracle.kind.inside(x_adv, TOLERANCE).all()):
            found = f"[{x_adv.amin():.4f}, {x_adv.amax():.4f}]"
            raise ContractError(f"{self!r} returned pixels in {found}, not in {oracle.kind.box}")
        if not self.minimises():
            slack = TOLERANCE * max(1.0, threat.eps)
            x_adv = _rounded_into_ball(x_adv, x, threat, slack)
            far = threat.size(x_adv, x)
            if bool((far > threat.eps + slack).any()):
                worst = int(far.argmax())
                raise ContractError(
                    f"{self!r}: sample {worst} is {far[worst]:.6g} from its original in {threat.norm}, "
                    f"budget {threat.eps:.6g}"
                )
        return x_adv


def _rounded_into_ball(x_adv: Tensor, x: Tensor, threat: ThreatModel, slack: float) -> Tensor:
    """Bring back images that are outside an L2 ball only because equal pixels were all rounded the same way."""
    rounding = math.sqrt(x[0].numel()) * torch.finfo(x.dtype).eps / 4 if len(x) and threat.norm == "l2" else 0.0
    far = threat.size(x_adv, x)
    out = (far > threat.eps + slack) & (far <= threat.eps + slack + rounding)
    if not bool(out.any()):
        return x_adv
    return torch.where(ops.over(out, x), ops.project(x_adv, x, "l2", max(threat.eps - rounding, 0.0)), x_adv)


class MinimalAttack(Attack):
    """Finds the smallest perturbation that is misclassified; returns the clean image where it finds none.

    An attack with a parameter `stop_at_eps` stays within eps instead when that is set.
    """

    minimal: ClassVar[bool] = True

    def minimises(self) -> bool:
        return not getattr(self, "stop_at_eps", False)


@dataclass(frozen=True, kw_only=True)
class WrappingAttack(Attack):
    """Changes the view that another attack has of the model; access, norms and goal are those of the inner attack.

    `run` takes a `lesson` and passes it to the inner attack, which learns with the unchanged oracle.

    Attributes:
        attack: the inner attack.
    """

    norms: ClassVar[tuple[Norm, ...]] = NORMS

    attack: Attack

    def access(self) -> Access:
        return self.attack.access()

    def handles(self) -> tuple[Norm, ...]:
        return self.attack.handles()

    def minimises(self) -> bool:
        return self.attack.minimises()

    def cost(self) -> float:
        return float(getattr(self, "looks", 1)) * self.attack.cost()

    def can_aim(self) -> bool:
        return self.attack.can_aim()

    def can_start(self) -> bool:
        return self.attack.can_start()

    def refusal(self, threat: ThreatModel, images: ImageSet | None = None) -> str:
        return self.attack.refusal(threat, images)

    def identity(self) -> dict[str, Any]:
        return self.attack.identity()

    def exploring(self) -> bool:
        return self.attack.exploring()

    def explored(self) -> int:
        return self.attack.explored()

    def explore(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Lesson:
        return self.attack.explore(oracle, x, y, threat, draws)

    def findings(self, lesson: Lesson) -> tuple[Flag, ...]:
        return self.attack.findings(lesson)

    def learning(self) -> bool:
        return self.attack.learning()

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> Lesson:
        return self.attack.learn(oracle, data, threat, draws)


class Measure(Probe):
    """A diagnosis of a victim: metrics and flags, stored with its robustness, never ranked. It may have pictures.

    Class attributes:
        every: it gets all images of the slice, also misclassified ones, instead of the first correct ones.
    """

    every: ClassVar[bool] = False
    norms: ClassVar[tuple[Norm, ...]] = BALLS

    @abstractmethod
    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        """`{"metrics": {name: number}, "flags": [Flag.as_dict(), ...]}` for the given images.

        It may hold two more: `arrays`, {name: one number for each image, [n]}, kept beside the row; and `pictures`, at
        most 12 images [k, C, h, w] in [0, 1], C of 1 or 3, which the page shows.
        """

    @final
    def __call__(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        """Run, with the lesson if the measure learns.

        Raises:
            ContractError: when it learns and there is no lesson.
        """
        return self.run(oracle, x, y, threat, draws, **self._taught(lesson))
