"""K-Arm: a bandit spends the inversion of triggers on the targets whose mask shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.types import Count, ModelDetector, Positive, Share, Verdict

from ._inversion import Inversion, Rules, logits_of, on_grey

ANY = -1  # the source of an arm whose trigger is to work on the images of every class
TINY = 1e-3  # smallest size of a mask that is divided by


@dataclass(eq=False)
class Arm:
    """One trigger that is being inverted.

    Attributes:
        images: uint8 [n, C, H, W] that it is optimised on.
        pace: by how much |m|_1 shrank in a step, on average over the last round.
    """

    source: int
    target: int
    images: Tensor
    state: Inversion
    rounds: int = 0
    pace: float = 0.0

    @property
    def size(self) -> float:
        """The smallest |m|_1 that succeeded; the whole image if none did."""
        return float(self.state.best)

    @property
    def found(self) -> bool:
        return self.size < self.state.masks[0].numel()


@dataclass(frozen=True, kw_only=True)
class KArm(ModelDetector):
    """Neural Cleanse on a few promising targets, one at a time (Shen et al., ICML 2021).

    1. Pre-screening. A class is a candidate target when it is among the `top` K most probable classes of at least a
       fraction `common` of the clean images. If no class is, a pair (s, t) is a candidate when t is among these of at
       least a fraction `common_pair` of the images of s. If there is no such pair either, the model is called clean.
    2. Bandit. Each candidate is an arm: a mask m and a pattern p, as in Neural Cleanse. Every arm has `warmup` rounds
       of `length` steps. Then, with probability `explore` a random arm gets a round, otherwise the arm with the largest

           (decrease of |m|_1 in a step) + beta / |m|_1.

       An arm rests once its weight of |m|_1 has both increased and decreased, and `lost` steps have not made its mask
       1 % smaller. Arms that do not rest come first; one that rests at a larger mask than the best is given up. The
       search ends after `rounds` rounds of the best arm, or when `stall` rounds in a row have not made its mask 1 %
       smaller.
    3. Verdict. The model is called backdoored when the smallest mask of a target covers less than a fraction `bound` of
       the image. For a pair the fraction is `bound_pair`, and the trigger from t to s, after as many steps, must be
       more than `ratio` times as large. The score is log(bound H W / |m|_1), positive for a backdoored model.

    Random: the start of m and p, the images of each step, the choice of arms.

    Cost: about as much as Neural Cleanse needs for the candidates alone; one forward pass of each clean image for the
    pre-screening.

    Attributes:
        batch: clean images per step.
        length: steps of Adam in a round.
        steps: rounds at most, over all arms.
        rounds: of the best arm.
        warmup: rounds of every arm.
        stall: rounds of the best arm without progress.
        lost: steps without progress after which an arm rests.
        explore: probability of a random arm.
        beta: weight of small masks in the choice, against fast shrinking ones; for an image of 224 x 224 pixels. For
            other sizes both count the same fractions of the image.
        top: fraction of the classes that count as probable; two classes if there are at most eight.
        common: fraction of the images for a candidate target.
        common_pair: fraction of the images of a class for a candidate pair.
        least, most: smallest and largest number of candidates, the most common first. With `least`, classes that are
            less common than `common` may also be candidates, and pairs are not searched.
        lr: of Adam, with betas (0.5, 0.9).
        weight: of |m|_1 at the start.
        factor: the weight is multiplied by it to increase, and divided by its power 1.5 to decrease.
        patience: consecutive steps that must succeed (or fail) before the weight changes.
        success: fraction of the batch that counts as success.
        bound: fraction of the pixels; 1720 of 224 x 224 as published.
        bound_pair: fraction for a pair; 1000 of 224 x 224 as published.
        ratio: of the sizes in both directions of a pair.

    Differs from the paper: the bounds and `beta`, given for 224 x 224 images, count fractions of the image. Masks start
    at random values instead of in the centre, and patterns have all colours instead of one. The rule for arms that rest
    and the limits `least` and `most` are ours.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "blended"},)  # a trigger of full size

    batch: Count = 32
    length: Count = 5
    steps: Count = 1000
    rounds: Count = 60
    warmup: Count = 2
    stall: Count = 12
    lost: Count = 20
    explore: Share = 0.3
    beta: Positive = 1e4
    top: Share = 0.25
    common: Share = 0.95
    common_pair: Share = 0.9
    least: Annotated[int, Field(ge=0, strict=True)] = 0
    most: Count = 64
    lr: Positive = 0.1
    weight: Positive = 1e-3
    factor: Annotated[float, Field(gt=1)] = 1.5
    patience: Count = 5
    success: Share = 0.99
    bound: Share = 1720 / 224**2
    bound_pair: Share = 1000 / 224**2
    ratio: Positive = 10.0

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < 2:
            raise NotApplicable(f"{self!r}: needs at least 2 classes, not {model.num_classes}")
        seed = derive_seed(draws.seed, "k-arm")
        with frozen(model):
            arms = self.screened(model, data.clean, seed)
            if not arms:
                return Verdict(-math.log(1 / self.bound), False)
            best = self.search(model, arms, seed)
            pixels = best.state.masks[0].numel()
            bound = self.bound if best.source == ANY else self.bound_pair
            score = math.log(bound * pixels / max(best.size, TINY))  # 0 where no trigger is needed
            if best.source != ANY and score > 0:
                score = min(score, self._one_way(model, data.clean, best, seed))
        pictures = {
            a.target: on_grey(a.state.masks, a.state.patterns)[0].cpu() for a in _smallest_last(arms) if a.found
        }
        return Verdict(score, score > 0, (best.target,) if score > 0 else (), pictures)

    def screened(self, model: Classifier, clean: ImageSet, seed: int) -> list[Arm]:
        """The candidates, the commonest first: targets, or else pairs."""
        labels, classes = clean.labels, model.num_classes
        k = 2 if classes <= 8 else max(1, round(self.top * classes))
        near = _among_the_first(model, clean, k)  # bool [N, classes]
        share = near.double().mean(dim=0)
        order = share.argsort(descending=True, stable=True)
        kept = max(self.least, int((share >= self.common).sum()))
        found = [(float(share[t]), ANY, t) for t in order[:kept].tolist()]
        if not found:
            for s in labels.unique().tolist():
                share = near[labels == s].double().mean(dim=0)
                share[s] = 0
                found += [(float(share[t]), s, t) for t in (share >= self.common_pair).nonzero().squeeze(1).tolist()]
        found.sort(key=lambda arm: -arm[0])
        return [self._arm(model, clean, s, t, seed) for _, s, t in found[: self.most]]

    def _arm(self, model: Classifier, clean: ImageSet, source: int, target: int, seed: int) -> Arm:
        parameter = next(model.parameters())
        chosen = (clean.labels == source).nonzero().squeeze(1) if source != ANY else torch.arange(len(clean))
        images = clean.select(chosen).images.to(parameter.device)
        rules = Rules(self.lr, self.weight, self.factor, self.factor**1.5, self.patience, self.success)
        state = Inversion.random(images.shape[1:], torch.tensor([target]), seed, rules, parameter)
        return Arm(source, target, images, state)

    def search(self, model: Classifier, arms: list[Arm], seed: int) -> Arm:
        """The arm with the smallest mask; all arms keep what they found."""
        one, idle = Draws(seed, torch.zeros(1, dtype=torch.long)), 0
        running = list(arms)
        for arm in arms:
            for _ in range(min(self.warmup, max(1, self.steps // len(arms)))):
                self.pull(model, arm, seed)
        for turn in range(sum(arm.rounds for arm in arms), self.steps):
            best = min(running, key=_rank)
            running = [arm for arm in running if arm is best or self._may_win(arm, best)]
            if best.rounds >= self.rounds or idle >= self.stall:
                break
            arm = max(running, key=self._promise)
            if float(one.uniform(step=turn, purpose="explore")) < self.explore:
                arm = running[int(one.integers(len(running), step=turn, purpose="arm"))]
            before = best.size
            self.pull(model, arm, seed)
            if best.found and arm is best:
                idle = idle + 1 if best.size > 0.99 * before else 0
        return min(running, key=_rank)

    def pull(self, model: Classifier, arm: Arm, seed: int) -> None:
        """One round of an arm: `length` steps on random images of its own."""
        one = Draws(seed, torch.zeros(1, dtype=torch.long, device=arm.images.device))
        first = 0.0
        for i in range(self.length):
            step = arm.state.taken + 1
            x = arm.images[one.integers(len(arm.images), (self.batch,), step, "batch")[0]].to(arm.state.w.dtype) / 255
            arm.state.step(logits_of(model, seed, step), x)
            first = float(arm.state.size) if i == 0 else first
        arm.rounds += 1
        arm.pace = max(0.0, first - float(arm.state.size)) / max(1, self.length - 1)

    def _promise(self, arm: Arm) -> tuple[bool, float]:
        scale = (arm.state.masks[0].numel() / 224**2) ** 2  # both terms are proportional to the number of pixels
        return not self._rests(arm), arm.pace + self.beta * scale / max(arm.size, 1e-9)

    def _rests(self, arm: Arm) -> bool:
        """Whether the weight of |m|_1 has found its range and the mask no longer shrinks."""
        state = arm.state
        return bool(state.rose) and bool(state.fell) and int(state.since) >= self.lost

    def _may_win(self, arm: Arm, best: Arm) -> bool:
        return not (best.found and self._rests(arm) and arm.size > best.size)

    def _one_way(self, model: Classifier, clean: ImageSet, arm: Arm, seed: int) -> float:
        """log(size in the other direction / size / ratio): positive where only one direction has a small trigger."""
        if not bool((clean.labels == arm.target).any()):
            return 0.0
        back = self._arm(model, clean, arm.target, arm.source, seed)
        for _ in range(arm.rounds):
            self.pull(model, back, seed)
        return math.log(max(back.size, TINY) / max(arm.size, TINY) / self.ratio)


def _rank(arm: Arm) -> tuple[bool, float]:
    return not arm.found, arm.size if arm.found else float(arm.state.size)


def _smallest_last(arms: list[Arm]) -> list[Arm]:
    return sorted(arms, key=_rank, reverse=True)


@torch.no_grad()
def _among_the_first(model: Classifier, clean: ImageSet, k: int) -> Tensor:
    """Which classes are among the k most probable of each image, bool [N, classes]."""
    parameter = next(model.parameters())
    x = clean.pixels(slice(None), parameter.dtype)
    out = []
    for i in batches(x, parameter.device):
        draws = Draws(0, i) if model.randomized else None
        z = model(x[i].to(parameter.device), draws.to(parameter.device) if draws is not None else None)
        out.append(torch.zeros(z.shape, dtype=torch.bool).scatter(1, z.topk(k).indices.cpu(), True))
    return torch.cat(out)
