"""Adaptive search: tries many attacks on a few images, and the best two on all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from siegebench import ops
from siegebench.cells import Flag
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Best
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Lesson

from ._square_l1 import SquareL1
from ._straight import Straight
from ._views import Logarithm, Through, alike, is_probability, parts
from .apgd import APGD
from .hopskipjump import HopSkipJump
from .nes import NES
from .rays import RayS
from .square import Square

Loss = Literal["ce", "margin", "dlr", "targeted_dlr"]
TARGETS = 3  # classes that the targeted loss tries
JUDGED = 5  # passes of a model with noise for one decision
LEAST, LONGEST = 5, 100  # steps of one run
MORE = 10  # times the passes for attacks without gradients, where no way has a gradient
HIDDEN = 0.2  # a flag if the gradients of the model break fewer of the explored images than another way, by this much


@dataclass(frozen=True)
class Way:
    """One attack on a victim: whose gradients, which loss.

    Attributes:
        name: for the row.
        view: the classifier whose gradients and losses are used; None for the victim itself.
        own: it uses the gradients that the victim itself offers.
        exact: an image that this view misclassifies is misclassified by the victim too.
        looks: passes averaged for each gradient.
        noise: the gradient is that of images with noise.
        estimate: an attack that needs no gradients, in place of gradient steps.
    """

    name: str
    view: Classifier | None = None
    own: bool = False
    exact: bool = False
    looks: int = 1
    noise: bool = False
    backward_model: bool = False
    estimate: str = ""
    loss: Loss = "margin"

    def __str__(self) -> str:
        return self.name if self.estimate else f"{self.loss} on {self.name}"


@dataclass(frozen=True)
class Trial:
    """The outcome of one way on the explored images: which became misclassified, bool [n], and their margins [n]."""

    way: Way
    hit: Tensor
    margin: Tensor

    @property
    def score(self) -> tuple[int, float]:
        """How many are misclassified, and how near the others are."""
        return int(self.hit.sum()), float(self.margin.clamp(max=0).mean())


@dataclass(frozen=True)
class Choice:
    """What the search has learnt about a victim.

    Attributes:
        ways: the two that the images are attacked with.
        noisy: two passes of the victim on the same images differ.
        joint: its answer to an image depends on the batch, so that images are attacked together.
        flags: what the row says.
    """

    ways: tuple[Way, ...]
    noisy: bool
    joint: bool
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AdaptiveSearch(Attack):
    """Tries on a few images what a careful attacker would try, then attacks all images with the best two.

    In the spirit of Yao, Bielik, Tsankov, Vechev, "Automated discovery of adaptive attacks on adversarial defenses",
    NeurIPS 2021, arXiv 2102.11860, and of Liu, Cheng, Gao, Liu, Zhang, Song, "Practical evaluation of adversarial
    robustness via adaptive auto attack", CVPR 2022, arXiv 2203.05154: the space searched and the search are our own.

    Auto-PGD on the margin is run on these views of the victim, as far as they differ from the earlier ones in their
    gradients on the explored images:
        the victim itself; its backward model
        the victim with the identity as the gradient of each step, cut and custom gradient in its code
        each module inside that maps images to logits, such as the network that a wrapper defends: reached through the
        victim; with the identity as the gradient of what precedes it (BPDA), and of what follows it too; alone, so that
        its images are transferred
        the logarithm of outputs that are probabilities, in float64
        images with noise, whose mean gradient leaves out what changes faster than the ball is wide
    Two attacks without gradients are tried too: Square, and NES or, where nearby images get the same outputs, one that
    needs labels only (RayS or HopSkipJump). The best three views are then tried with cross-entropy, DLR and targeted
    DLR. If two passes on the same image differ, declared or not, gradients are means over several passes. If answers
    depend on the batch, all images are attacked together.

    Only the victim decides what is misclassified. If its decisions differ from those of the view, the image of
    highest loss of the last run is tried.

    Random: starting points, noise, squares and probes. Cost: at most `passes` forward and backward passes for each
    attacked image, more only if an attack without gradients is among the best two; and about `trial` for each of the 8
    to 25 ways tried on each of the explored images, ten times that if no way has a gradient. A way that averages k
    passes takes at least 5 steps.

    Differs from the paper: no search over programs of attacks (Yao et al.) and no learnt starting directions (Liu et
    al.).

    Attributes:
        passes: forward and backward passes for each image that stays correctly classified.
        images: number of images explored.
        trial: forward and backward passes for each way on each explored image.
        looks: passes averaged for each gradient of a victim with noise.
        queries: passes for each image of an attack that needs no gradient, if one is among the best two.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    aims: ClassVar[bool] = True
    explores: ClassVar[bool] = True

    passes: Count = 400
    images: Count = 16
    trial: Count = 30
    looks: Count = 4
    queries: Count = 2000

    def cost(self) -> float:
        return float(self.passes)

    def quick(self) -> Self:
        small = replace(self, passes=min(self.passes, 40), trial=min(self.trial, 10), images=min(self.images, 2))
        small = replace(small, queries=min(self.queries, 40))
        if hasattr(self, "_name"):
            object.__setattr__(small, "_name", self._name)
        return small

    def explored(self) -> int:
        return self.images

    def findings(self, lesson: Lesson) -> tuple[Flag, ...]:
        return lesson.flags if isinstance(lesson, Choice) else ()

    # ------------------------------------------------------------------------------------------------------- explore

    def explore(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Choice:
        noisy, joint = self._conduct(oracle, x)
        self_ = Choice((), noisy, joint)
        ways = self._distinct(oracle, x, y, threat, draws, list(self._ways(oracle, x, draws, noisy)))
        blind = not ways  # then the attacks without gradients get more passes, to tell them apart
        ways += self._estimates(oracle, x, threat, draws)
        trials = [self._try(oracle, x, y, threat, draws, way, self_, MORE if blind else 1) for way in ways]
        climbing = sorted((t for t in trials if not t.way.estimate), key=lambda t: t.score, reverse=True)[:3]
        for loss in self._losses(oracle):
            for found in climbing:
                trials.append(self._try(oracle, x, y, threat, draws, replace(found.way, loss=loss), self_))
        first = max(trials, key=lambda t: t.score)
        rest = [t for t in trials if t is not first]
        second = max(rest, key=lambda t: (int((t.hit & ~first.hit).sum()), t.score))
        return replace(self_, ways=(first.way, second.way), flags=tuple(self._told(trials, first, second)))

    @staticmethod
    def _estimates(oracle: Oracle, x: Tensor, threat: ThreatModel, draws: Draws) -> list[Way]:
        """Attacks that need no gradient: by labels alone where nearby images get the same outputs."""
        ways = [Way("Square", estimate="square")]
        if threat.norm != "l1":
            near = threat.project(x + _spread(threat, x) * draws.normal(tuple(x.shape[1:]), purpose="near").to(x), x)
            still = (oracle.logits(near) == oracle.logits(x)).all(dim=1).float().mean()
            by_label = "RayS" if threat.norm == "linf" else "HopSkipJump"
            ways.append(Way(by_label, estimate=by_label) if bool(still > 0.5) else Way("NES", estimate="NES"))
        return ways

    @staticmethod
    def _losses(oracle: Oracle) -> list[Loss]:
        losses: list[Loss] = ["ce", "dlr"]
        if oracle.goal is None:
            losses.append("targeted_dlr")
        fits = {"dlr": 3 if oracle.goal is None else 4}
        return [loss for loss in losses if oracle.num_classes >= fits.get(loss, ops.CLASSES[loss])]

    @staticmethod
    def _conduct(oracle: Oracle, x: Tensor) -> tuple[bool, bool]:
        """(passes on the same images differ, answers depend on the other images of the batch or on their order)"""
        z = oracle.logits(x)
        close = 1e-4 * float(z.abs().max())

        def apart(a: Tensor, b: Tensor) -> bool:
            return not float((a - b).abs().max()) <= close

        if oracle.model.randomized or apart(oracle.logits(x), z):
            return True, False
        turned = torch.arange(len(x), device=x.device).flip(0)
        alone = oracle[:1].logits(x[:1])
        return False, apart(oracle[turned].logits(x[turned]), z[turned]) or apart(alone, z[:1])

    def _ways(self, oracle: Oracle, x: Tensor, draws: Draws, noisy: bool) -> Iterator[Way]:
        victim, looks = oracle.model, self.looks if noisy else 1
        yield Way("the model", own=True, exact=not noisy)
        if noisy:
            yield Way(f"the mean of {looks} passes", own=True, looks=looks)
        yield Way("its backward model", own=True, exact=not noisy, looks=looks, backward_model=True)
        yield Way("the model, steps and cuts as identity", Straight(victim), exact=not noisy, looks=looks)
        z = oracle.logits(x)
        if is_probability(z):
            yield Way("the logarithm of its outputs", Logarithm(victim), looks=looks)
        known = parts(victim, x, draws)
        for i, part in enumerate(known):
            name = f"{part.name} inside" if len(known) == 1 else f"{part.name} inside ({i + 1} of {len(known)})"
            for before, told in (("exact", ""), ("identity", ", identity before it"), ("absent", " alone")):
                if before != "exact" or not part.same:
                    averaged = 1 if before == "absent" else looks
                    yield Way(f"{name}{told}", Through(victim, part, before), looks=averaged)  # type: ignore[arg-type]
            if part.copies == 1 and not part.same:
                through = Through(victim, part, "identity", values=True)
                yield Way(f"{name}, identity before and after it", through, exact=not noisy, looks=looks)
        yield Way("images with noise", looks=4, noise=True)

    def _distinct(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, ways: list[Way]
    ) -> list[Way]:
        """The ways that have a gradient, without those whose gradients are those of an earlier one."""
        start = threat.project(x + _spread(threat, x) * draws.normal(tuple(x.shape[1:]), purpose="near").to(x), x)
        kept: list[tuple[Way, Tensor]] = []
        for way in ways:
            try:
                seen = self._seen(oracle, way, threat)
                g, _, _ = seen.gradient(start, ops.aimed("margin", y, oracle.goal))
                if way.view is not None:
                    seen.logits(start)  # attacks make passes without a gradient too
            except Exception:
                if way.own:
                    raise
                continue  # code of others in a view: a part that does not run alone, in float64, without its steps
            if bool((ops.size(g, "linf") > 0).any()) and not any(alike(g, other) for _, other in kept):
                kept.append((way, g))
        return [way for way, _ in kept]

    def _try(
        self,
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draws: Draws,
        way: Way,
        choice: Choice,
        times: int = 1,
    ) -> Trial:
        passes = self.trial * (times if way.estimate else 1)
        found = self._attack(oracle, x, y, threat, draws.child("try", str(way)), way, passes, choice.joint)
        hit, margin = self._judge(oracle, found, y, choice.noisy)
        return Trial(way, hit, margin)

    def _told(self, trials: list[Trial], first: Trial, second: Trial) -> Iterator[Flag]:
        n = len(first.hit)
        own = max((t for t in trials if t.way.own), key=lambda t: t.score, default=None)
        broken = 0 if own is None else own.score[0]
        told = f"of {len(trials)} attacks tried on {n} images, the best two: {first.way} ({first.score[0]} of {n} "
        told += f"broken), {second.way} ({second.score[0]}); the gradients of the model itself: {broken}"
        yield Flag("search_choice", "info", told)
        if first.score[0] - broken > max(1.0, HIDDEN * n):
            told = f"its own gradients break {broken} of {n} images, {first.way} breaks {first.score[0]}"
            yield Flag("hidden_gradients", "flag", told)

    # ------------------------------------------------------------------------------------------------------------ run

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        choice: Choice = lesson
        best, half = Best(x), self.passes / 2
        every = torch.arange(len(x), device=x.device)
        longest = max(2 * way.looks * LONGEST for way in choice.ways)
        rounds = max(1, int(half // longest))
        for k in range(rounds):
            for number, way in enumerate(choice.ways):
                if way.estimate and k:
                    continue  # it has had all of its queries
                passes = self.queries if way.estimate else half / rounds
                rows = every if choice.joint else best.left()
                if not len(best.left()):
                    return best.point
                view, streams = oracle[rows], draws[rows].child("run", k, number)
                found = self._attack(view, x[rows], y[rows], threat, streams, way, passes, choice.joint)
                hit, margin = self._judge(view, found, y[rows], choice.noisy)
                inside = threat.size(found, x[rows]) <= threat.limit
                best.keep(rows, found, torch.where(inside, margin, -torch.inf), hit & inside)
        return best.point

    @staticmethod
    def _judge(oracle: Oracle, found: Tensor, y: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
        """(misclassified by the victim, with noise in every one of some passes, bool [n]; mean margin [n])"""
        passes = [oracle.logits(found) for _ in range(JUDGED if noisy else 1)]
        hits = torch.stack([ops.hit(z.argmax(dim=1), y, oracle.goal) for z in passes])
        margins = torch.stack([ops.gain(z, y, oracle.goal).nan_to_num(0.0) for z in passes])
        return hits.all(dim=0), margins.mean(dim=0)

    def _attack(
        self,
        oracle: Oracle,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draws: Draws,
        way: Way,
        passes: float,
        joint: bool,
    ) -> Tensor:
        """The images that one way finds with about this many passes for each."""
        if way.estimate:
            square = SquareL1 if threat.norm == "l1" else Square
            estimates = {"square": square, "NES": NES, "RayS": RayS, "HopSkipJump": HopSkipJump}
            attack = estimates[way.estimate](queries=max(10, int(passes)))
            return attack.run(oracle, x, y, threat, draws)
        steps = min(LONGEST, max(LEAST, int(passes / (2 * way.looks))))
        if way.loss == "targeted_dlr":
            steps = max(5, steps // TARGETS)
        climb = APGD(steps=steps, loss=way.loss, targets=TARGETS, early_stop=way.exact and not joint)
        return climb.run(self._seen(oracle, way, threat), x, y, threat, draws)

    @staticmethod
    def _seen(oracle: Oracle, way: Way, threat: ThreatModel) -> Oracle:
        view = oracle if way.view is None else oracle.of(way.view)
        if way.backward_model:
            view = view.backward_model()
        if way.noise:
            view = view.seen_through(partial(_noisy, threat=threat))
        return view.averaged(way.looks)


def _spread(threat: ThreatModel, x: Tensor) -> float:
    """Standard deviation, for each pixel, of noise that is half as long as the radius of the ball."""
    d = x[0].numel()
    return threat.eps / 2 / {"linf": 1.0, "l2": math.sqrt(d), "l1": d}[threat.norm]


def _noisy(x: Tensor, draws: Draws, threat: ThreatModel) -> Tensor:
    return x + _spread(threat, x) * draws.normal(tuple(x.shape[1:]), purpose="noise").to(x)
