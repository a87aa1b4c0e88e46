"""UMD: triggers of a backdoor's class pairs transfer to one another, whatever its map from sources to targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier, frozen
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.layers import batches
from siegebench.types import Count, ModelDetector, Positive, Share, Verdict

from ._cores import Inference, infer
from ._inversion import Inversion, Rules, clipped, logits_of, on_grey


@dataclass(frozen=True)
class Pairs:
    """The inverted trigger of every pair: x + d, or x (1 - m) + p m, clipped to [0, 1].

    Attributes:
        pairs: (source, target) of each, int64 [P, 2].
        sizes: |d|_2 or |m|_1, float64 [P].
        p: d or p, [P, C, H, W].
        m: [P, 1, H, W]; None for d.
    """

    pairs: Tensor
    sizes: Tensor
    p: Tensor
    m: Tensor | None

    def stamp(self, index: Tensor, x: Tensor) -> Tensor:
        """Images [n, C, H, W] with the triggers of some pairs, [k, n, C, H, W]."""
        p = self.p[index][:, None].to(x.device)
        if self.m is None:
            return (x + p).clamp(0, 1)
        m = self.m[index][:, None].to(x.device)
        return (1 - m) * x + m * p

    def picture(self, i: int) -> Tensor:
        """The trigger of one pair on mid-grey, [C, H, W]."""
        return (0.5 + self.p[i]).clamp(0, 1) if self.m is None else on_grey(self.m[i], self.p[i])


@dataclass(frozen=True, kw_only=True)
class UMD(ModelDetector):
    """Find backdoors with any map from source to target classes, without clean models (Xiang, Xiong, Li, ICML 2023).

    1. For each ordered pair of classes (s, t) a trigger is inverted that sends a fraction `success` of `images` clean,
       correctly classified images of s to t. Mode `pert`: a perturbation d from 0, by gradient descent on
       cross-entropy, with the size |d|_2. Mode `patch`: a mask and a pattern; first without a weight on the mask,
       until it succeeds, then with the adaptive weight of Neural Cleanse on |m|_1, its size.
    2. Transfer map A: the fraction of images of s' that the trigger of (s, t) sends to t'.
    3. The core of pairs (at most one of a source) that maximises

           min_{i in core} mean_{j in core} (A_ij + A_ji) / 2 - max_{k outside} mean_{i in core} A_ik

       in a greedy search from `starts` pairs of pairs.
    4. The median of 1 / size over the core is compared with all pairs outside: z = (median - median) / (1.4826 MAD).
       The model is called backdoored when z exceeds theta, which the largest of as many standard normal numbers exceeds
       with probability `level`. The score is z - theta.

    In a map of a single pair there is no second pair to transfer to. If no core has a positive score in 3, the pair
    with the smallest trigger is tested in place of the core.

    Random: which images are used, and the start of masks and patterns.

    Cost: at most classes^2 x images x steps forward and backward passes, and classes^3 x images forward passes. All
    pairs are optimised in batches of `together`, and leave them when they succeed.

    Attributes:
        mode: kind of trigger.
        images: of each class.
        steps: for each pair at most, and again in the second stage of patches.
        success: fraction of the images that counts as success.
        lr: of plain gradient descent on a perturbation.
        limit: a perturbation is given up when |d|_2 exceeds it.
        lr_first: of Adam in the first stage of patches.
        lr_second: of Adam in the second stage.
        cost: weight of |m|_1 at the start of the second stage.
        factor: the weight is multiplied or divided by it.
        most: largest weight.
        patience: consecutive steps that must succeed (or fail) before the weight changes.
        stall: a patch stops after this many steps without a mask 1 % smaller.
        trials: of perturbations, on other images each; the smallest is kept.
        starts: of the search for a core.
        together: pairs optimised at once; fewer need less memory.
        level: of the test.

    Differs from the paper: written from a description of the published code. A pair without success gets the size
    `limit`, or the whole image. Patches use Adam with betas (0.5, 0.9). A class without correctly classified images
    lends its misclassified ones. In step 4, the published script counts the first pair of the core among the others;
    here no pair of the core is counted there.
    """

    poisons: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "tact"},)  # one pair: no second one to transfer to

    mode: Literal["pert", "patch"] = "pert"
    images: Count = 10
    steps: Count = 1000
    success: Share = 0.9
    lr: Positive = 1e-4
    limit: Positive = 20.0
    lr_first: Positive = 1e-2
    lr_second: Positive = 1e-1
    cost: Positive = 1e-2
    factor: Positive = 1.5
    most: Positive = 10.0
    patience: Count = 5
    stall: Count = 100
    trials: Count = 1
    starts: Count = 5
    together: Count = 128
    level: Share = 0.05

    def judge(self, model: Classifier, data: Granted, draws: Draws) -> Verdict:
        if model.num_classes < 3:
            raise NotApplicable(f"{self!r}: needs at least 3 classes for pairs to compare, not {model.num_classes}")
        with frozen(model):
            found, inferred = self.inferred(model, data.clean, derive_seed(draws.seed, "umd"))
        score = inferred.score - inferred.theta
        smallest = {int(found.pairs[i, 1]): i for i in found.sizes.argsort(descending=True).tolist()}
        pictures = {t: found.picture(i).cpu() for t, i in sorted(smallest.items())}
        targets = sorted({int(found.pairs[i, 1]) for i in inferred.core}) if score > 0 else []
        return Verdict(score, score > 0, tuple(targets), pictures)

    def inferred(self, model: Classifier, clean: ImageSet, seed: int) -> tuple[Pairs, Inference]:
        """The inverted triggers, and the core among them with its test."""
        sources, x = self._images(model, clean, seed)
        found = self.inverted(model, sources, x, seed)
        for trial in range(1, self.trials if self.mode == "pert" else 1):
            x = self._images(model, clean, derive_seed(seed, trial))[1]
            found = _smaller(found, self.inverted(model, sources, x, seed))
        a = self.transfer(model, found, sources, x)
        return found, infer(found.sizes, a, found.pairs[:, 0], self.starts, self.level)

    def _images(self, model: Classifier, clean: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
        """(classes [S] of which there are clean images, images [S, n, C, H, W]); some repeat where there are few."""
        parameter = next(model.parameters())
        right = _predicted(model, clean.pixels(slice(None), parameter.dtype), seed) == clean.labels
        order = Draws(seed, clean.ids).order("images")
        sources, rows = [], []
        for s in clean.labels.unique().tolist():
            own = order[clean.labels[order] == s]
            own = own[right[own]] if bool(right[own].any()) else own
            sources.append(s)
            rows.append(own[torch.arange(self.images) % len(own)])
        if len(sources) < 2:
            raise NotApplicable(f"{self!r}: needs clean images of at least 2 classes, not {len(sources)}")
        x = clean.pixels(torch.cat(rows), parameter.dtype).to(parameter.device)
        return torch.tensor(sources), x.view(len(sources), self.images, *x.shape[1:])

    def inverted(self, model: Classifier, sources: Tensor, x: Tensor, seed: int) -> Pairs:
        """A trigger for every pair of a source with images [S, n, C, H, W] and another class."""
        every = torch.cartesian_prod(torch.arange(len(sources)), torch.arange(model.num_classes))
        every = every[sources[every[:, 0]] != every[:, 1]]
        parts = []
        for row, target in (part.unbind(dim=1) for part in every.split(self.together)):
            goal, mine = target.to(x.device), x[row.to(x.device)]
            name = (sources[row] * model.num_classes + target).to(x.device)
            parts.append(
                self._perturbations(model, mine, goal, seed)
                if self.mode == "pert"
                else self._patches(model, mine, goal, name, seed)
            )
        sizes, p, m = zip(*parts, strict=True)
        pairs = torch.stack([sources[every[:, 0]], every[:, 1]], dim=1)
        return Pairs(
            pairs, torch.cat(sizes).double().cpu(), torch.cat(p), torch.cat(m) if self.mode == "patch" else None
        )

    def _perturbations(self, model: Classifier, x: Tensor, goal: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(|d|_2 [k], d [k, C, H, W], nothing) for k pairs with images [k, n, C, H, W]."""
        k, n = x.shape[:2]
        sizes, out = x.new_full((k,), self.limit), torch.zeros_like(x[:, 0])
        active, d = torch.arange(k, device=x.device), torch.zeros_like(x[:, 0])
        for step in range(self.steps + 1):
            d.requires_grad_(True)
            z = logits_of(model, seed, step)(clipped(x[active] + d[:, None]).flatten(0, 1))
            y = goal[active].repeat_interleave(n)
            (g,) = torch.autograd.grad(F.cross_entropy(z, y, reduction="sum") / n, d)
            with torch.no_grad():
                reached = (z.argmax(dim=1) == y).view(-1, n).double().mean(dim=1) >= self.success
                norm = d.flatten(1).norm(dim=1)
                out[active] = d
                sizes[active[reached]] = norm[reached].clamp(min=1e-6, max=self.limit)
                go = ~reached & (norm <= self.limit)
                d, active = (d - self.lr * g)[go], active[go]
            if not len(active):
                break
        return sizes, out.detach(), sizes

    def _patches(
        self, model: Classifier, x: Tensor, goal: Tensor, name: Tensor, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(|m|_1 [k], p [k, C, H, W], m [k, 1, H, W]) for k pairs with images [k, n, C, H, W]."""
        shape = (1 + x.shape[2], *x.shape[3:])
        free = Rules(self.lr_first, 0.0, self.factor, self.factor, self.patience, self.success)
        first = Inversion(Draws(seed, name).uniform(shape, purpose="start").to(x), goal, free)
        whole = float(first.best[0])
        for step in range(self.steps):
            first.step(logits_of(model, seed, step), x[first.active])
            first.keep(first.best[first.active] >= whole)
            if not len(first.active):
                break
        done = (first.best < whole).nonzero().squeeze(1)
        priced = Rules(self.lr_second, self.cost, self.factor, self.factor, self.patience, self.success, self.most)
        sizes, p, m = first.best.clone(), first.patterns, first.masks
        if len(done):
            second = Inversion(torch.cat([m, p], dim=1)[done].clamp(1e-3, 1 - 1e-3), goal[done], priced)
            for step in range(self.steps):
                second.step(logits_of(model, seed, self.steps + step), x[done][second.active])
                second.keep(second.since < self.stall)
                if not len(second.active):
                    break
            smaller = second.best < sizes[done]
            at = done[smaller]
            sizes[at], m[at], p[at] = second.best[smaller], second.masks[smaller], second.patterns[smaller]
        return sizes.clamp(min=1e-6), p, m

    def transfer(self, model: Classifier, found: Pairs, sources: Tensor, x: Tensor) -> Tensor:
        """A [P, P] float64: the fraction of images of s' that the trigger of (s, t) sends to t'; zero diagonal."""
        k, (classes, n) = model.num_classes, x.shape[:2]
        place = torch.full((k,), -1).index_copy(0, sources, torch.arange(classes))
        rows, columns = place[found.pairs[:, 0]], found.pairs[:, 1]
        out = []
        for index in torch.arange(len(found.sizes)).split(max(1, 2048 // (classes * n))):
            stamped = found.stamp(index, x.flatten(0, 1)).flatten(0, 1)
            hit = F.one_hot(_predicted(model, stamped, 0), k).double()
            out.append(hit.view(len(index), classes, n, k).mean(dim=2)[:, rows, columns])
        return torch.cat(out).fill_diagonal_(0)


def _smaller(one: Pairs, other: Pairs) -> Pairs:
    """For each pair the smaller of two perturbations."""
    better = other.sizes < one.sizes
    p = torch.where(better.to(one.p.device)[:, None, None, None], other.p, one.p)
    return Pairs(one.pairs, torch.minimum(one.sizes, other.sizes), p, None)


@torch.no_grad()
def _predicted(model: Classifier, x: Tensor, seed: int) -> Tensor:
    parameter = next(model.parameters())
    out = []
    for i in batches(x, parameter.device):
        draws = Draws(seed, i.to(parameter.device)) if model.randomized else None
        out.append(model(x[i.to(x.device)].to(parameter.device), draws).argmax(dim=1).cpu())
    return torch.cat(out)
