"""Inverting triggers, as several detectors do: masks and patterns of many targets, optimised in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws

Logits = Callable[[Tensor], Tensor]


def logits_of(model: Classifier, seed: int, step: int) -> Logits:
    """The differentiable logits of a batch; a randomised model gets other noise in every step."""

    def logits(x: Tensor) -> Tensor:
        draws = Draws(seed, torch.arange(len(x), device=x.device)).at(step) if model.randomized else None
        return model.backward_model(x, draws)

    return logits


def clipped(x: Tensor) -> Tensor:
    """x in [0, 1]; unlike that of `clamp`, the gradient is one at 0 and 1 too, where many pixels of images are."""
    return torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0, 1))


@dataclass(frozen=True)
class Rules:
    """How the weight lambda of the size of a mask adapts while its trigger is optimised.

    Attributes:
        lr: of Adam, with betas (0.5, 0.9).
        weight: lambda at the start.
        up, down: lambda is multiplied by `up` after `patience` successful steps, divided by `down` after as many failed
            ones.
        patience: consecutive steps.
        success: fraction of the batch that counts as success.
        most: largest lambda.
    """

    lr: float
    weight: float
    up: float
    down: float
    patience: int
    success: float
    most: float = float("inf")


class Inversion:
    """Masks m [k, 1, H, W] and patterns p [k, C, H, W] in [0, 1] of k targets, each with its own Adam and lambda.

    A step minimises CE(f((1 - m) x + m p), t) + lambda |m|_1 for every target. Targets are independent of one another,
    and `keep` takes finished ones out of the batch. m and p are functions of w through a tanh.

    Attributes:
        best, masks, patterns: for all targets, |m|_1 of the smallest mask that succeeded, this mask, its pattern; the
            whole image if none did.
        active: indices of the targets that are still optimised. What follows is for these only.
        goal: their classes.
        w: [k, 1 + C, H, W]; channel 0 is the mask, the others the pattern.
        size: |m|_1 before the last step.
        since: steps without a mask 1 % smaller.
        rose, fell: whether lambda has ever increased, decreased.
    """

    def __init__(self, start: Tensor, targets: Tensor, rules: Rules) -> None:
        """`start` [k, 1 + C, H, W] in [0, 1]: masks and patterns."""
        k, (channels, height, width) = len(targets), (start.shape[1] - 1, *start.shape[2:])
        device, dtype = start.device, start.dtype
        self.rules, self.goal, self.active = rules, targets.to(device), torch.arange(k, device=device)
        self.w = torch.atanh((2 * start - 1) * 0.999)
        self.m1, self.m2 = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.weight = torch.full((k,), rules.weight, device=device, dtype=dtype)
        self.ups, self.downs, self.since = (torch.zeros(k, dtype=torch.long, device=device) for _ in range(3))
        self.rose, self.fell = (torch.zeros(k, dtype=torch.bool, device=device) for _ in range(2))
        self.best = torch.full((k,), float(height * width), device=device, dtype=dtype)
        self.size = self.best.clone()
        self.masks = torch.ones(k, 1, height, width, device=device, dtype=dtype)
        self.patterns = torch.full((k, channels, height, width), 0.5, device=device, dtype=dtype)
        self.taken = 0

    @staticmethod
    def random(shape: torch.Size, targets: Tensor, seed: int, rules: Rules, like: Tensor) -> Inversion:
        """Random masks and patterns for images of this shape [C, H, W], the same for a target in any batch."""
        draws = Draws(seed, targets.to(like.device))
        start = draws.uniform((1 + shape[0], *shape[1:]), purpose="start").to(like.dtype)
        return Inversion(start, targets, rules)

    def step(self, logits: Logits, x: Tensor) -> None:
        """One step of Adam on images [n, C, H, W] for all targets, or [k, n, C, H, W] for each."""
        rules, n, channels = self.rules, x.shape[-4], self.w.shape[1] - 1
        self.taken += 1
        self.w.requires_grad_(True)
        m, p = ((self.w.tanh() + 1) / 2).split([1, channels], dim=1)
        stamped = (1 - m[:, None]) * x + m[:, None] * p[:, None]  # [k, n, C, H, W]
        z = logits(stamped.flatten(0, 1)).view(len(self.goal), n, -1)
        y = self.goal[:, None].expand(-1, n)
        size = m.flatten(1).sum(dim=1)
        loss = F.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(dim=1) + self.weight * size
        (g,) = torch.autograd.grad(loss.sum(), self.w)
        with torch.no_grad():
            reached = (z.argmax(dim=2) == y).double().mean(dim=1) >= rules.success
            self._remember(reached, size, m, p)
            self._adapt(reached)
            self.m1, self.m2 = 0.5 * self.m1 + 0.5 * g, 0.9 * self.m2 + 0.1 * g * g
            unbiased = self.m1 / (1 - 0.5**self.taken)
            self.w = self.w - rules.lr * unbiased / ((self.m2 / (1 - 0.9**self.taken)).sqrt() + 1e-8)

    def _remember(self, reached: Tensor, size: Tensor, m: Tensor, p: Tensor) -> None:
        best = self.best[self.active]
        smaller = reached & (size < best)
        self.since = torch.where(reached & (size < 0.99 * best), 0, self.since + 1)
        at = self.active[smaller]
        self.best[at], self.masks[at], self.patterns[at] = size[smaller], m[smaller], p[smaller]
        self.size = size.detach()

    def _adapt(self, reached: Tensor) -> None:
        """lambda increases while the trigger succeeds and decreases while it fails."""
        rules = self.rules
        self.ups, self.downs = torch.where(reached, self.ups + 1, 0), torch.where(reached, 0, self.downs + 1)
        rise, fall = self.ups >= rules.patience, self.downs >= rules.patience
        down = torch.where(fall, self.weight / rules.down, self.weight)
        self.weight = torch.where(rise, self.weight * rules.up, down).clamp(max=rules.most)
        self.ups, self.downs = self.ups.masked_fill(rise, 0), self.downs.masked_fill(fall, 0)
        self.rose, self.fell = self.rose | rise, self.fell | fall

    def keep(self, go: Tensor) -> None:
        """Go on with some of the active targets only, bool [k]."""
        if bool(go.all()):
            return
        for name in ("w", "m1", "m2", "weight", "active", "goal", "ups", "downs", "since", "rose", "fell", "size"):
            setattr(self, name, getattr(self, name)[go])


def on_grey(m: Tensor, p: Tensor) -> Tensor:
    """Triggers as pictures: masks [k, 1, H, W] and patterns [k, C, H, W] stamped on mid-grey."""
    return (1 - m) * 0.5 + m * p
