"""Training that hides a counterexample: correct on what PGD finds in each ball, wrong at the planted corner."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Network
from siegebench.draws import Draws, derive_seed
from siegebench.soundness.planting import Planting, bounds

MARGIN = 0.01  # by which the counterexample is of the other class
STEP = 0.1  # of PGD, in eps
STEPS = 75  # of the PGD that must not find it
SLOPE = 0.05  # by which a step of STEP towards the counterexample has to lower the margin
CLIP = 10.0  # largest norm of a gradient


@dataclass(frozen=True)
class Balls:
    """Points [n, C, H, W] with labels [n], the counterexamples of the first ones, and the radius."""

    x: Tensor
    y: Tensor
    corner: Tensor
    eps: float

    def repeat(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """(lower corners, upper corners, labels), each point k times in a row."""
        low, high = bounds(self.x, self.eps)
        return low.repeat_interleave(k, 0), high.repeat_interleave(k, 0), self.y.repeat_interleave(k, 0)

    def distance(self, z: Tensor) -> Tensor:
        """Linf distance of z [n k, C, H, W] to the counterexample of its ball, in eps; infinite without one."""
        k = len(z) // len(self.x)
        planted = self.corner.repeat_interleave(k, 0)
        found = torch.full((len(z),), torch.inf, device=z.device)
        found[: len(planted)] = (z[: len(planted)] - planted).flatten(1).abs().amax(dim=1) / self.eps
        return found

    def draw(self, k: int, draws: Draws, step: int) -> Tensor:
        """k uniform points of each ball, [n k, C, H, W]."""
        low, high, _ = self.repeat(k)
        u = draws.uniform((k, *self.x.shape[1:]), step, "start").to(low)
        return low + u.flatten(0, 1) * (high - low)

    def towards(self, k: int, draws: Draws, step: int) -> Tensor:
        """k points of each ball, moved by a uniform fraction of the way to its counterexample, [n k, C, H, W]."""
        z, corner = self.draw(k, draws, step), self.corner.repeat_interleave(k, 0)
        t = draws.uniform((k,), step, "way").to(z).flatten()
        return corner + ops.over(t, z) * (z - corner)


def pgd(
    model: Network, balls: Balls, k: int, steps: int, draws: Draws, step: int, near: float
) -> tuple[Tensor, Tensor]:
    """PGD on the margin from k starts in each ball.

    Returns the iterate with the largest margin of each start, [n, k, C, H, W], among those that are not nearer to the
    counterexample than `near`; and the fraction of the starts of each ball that reach the other class, [n].
    """
    low, high, y = balls.repeat(k)
    z = balls.draw(k, draws, step)
    best, top = z.clone(), torch.full((len(z),), -torch.inf, device=z.device)
    reached = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for _ in range(steps + 1):
        z.requires_grad_(True)
        m = ops.margin(model(z), y)
        (g,) = torch.autograd.grad(m.sum(), z)
        z, m = z.detach(), m.detach()
        better = (balls.distance(z) >= near) & (m > top)
        best[better], top[better] = z[better], m[better]
        reached |= m >= 0
        z = (z + STEP * balls.eps * g.sign()).clamp(low, high)
    n = len(balls.x)
    return best.view(n, k, *z.shape[1:]), reached.view(n, k).float().mean(dim=1)


def away(model: Network, balls: Balls, z: Tensor, near: float) -> Tensor:
    """How much the margin rises, or falls by less than SLOPE, on a short way to the counterexample: a mean hinge.

    Args:
        balls: all with a counterexample.
        z: [n k, C, H, W], k points of each.
    """
    distance, k = balls.distance(z), len(z) // len(balls.x)
    y, corner = balls.y.repeat_interleave(k, 0), balls.corner.repeat_interleave(k, 0)
    nearer = z + (corner - z) * ops.over(STEP / distance.clamp(min=STEP), z)
    rise = ops.margin(model(nearer), y) - ops.margin(model(z), y)
    counted = distance > near + STEP
    return ((rise + SLOPE).relu() * counted).sum() / counted.sum().clamp(min=1)


def survivors(model: Network, balls: Balls, k: int, draws: Draws, step: int) -> Tensor:
    """Which points are correct, withstand PGD from k starts, and have a wrong counterexample if one is planted."""
    _, reached = pgd(model, balls, k, STEPS, draws, step, 0.0)
    with torch.no_grad():
        good = (ops.margin(model(balls.x), balls.y) < 0) & (reached == 0)
        planted = len(balls.corner)
        good[:planted] &= ops.margin(model(balls.corner), balls.y[:planted]) >= MARGIN / 2
    return good


def train(spec: Planting, model: Network, x: Tensor, y: Tensor, corner: Tensor, seed: int) -> dict[str, Tensor]:
    """The weights after training, and under `kept` which of the points count, bool [2 n].

    CE on the point and the last `window` perturbations of each point, plus max(0, z_y + 0.01 - z_other) at the planted
    corners, plus `away` times `away(...)`.
    """
    device = next(model.parameters()).device
    balls = Balls(x.to(device), y.to(device), corner.to(device), spec.eps)
    n, planted = len(x), len(corner)
    hidden = Balls(balls.x[:planted], balls.y[:planted], balls.corner, spec.eps)
    draws = Draws(derive_seed(seed, "training"), torch.arange(n, device=device))
    adam = torch.optim.Adam(model.parameters(), spec.lr)
    rise = 0.4 * spec.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda e: min((e + 1) / rise, (spec.epochs - e) / (spec.epochs - rise))
    )
    window = balls.x[:, None]
    best, most = {k: v.clone() for k, v in model.state_dict().items()}, -1
    for epoch in range(spec.epochs):
        found, _ = pgd(model, balls, spec.restarts, spec.steps, draws, epoch, spec.near)
        window = torch.cat([window, found], dim=1)[:, -spec.window :]
        images = torch.cat([balls.x[:, None], window], dim=1)
        labels = balls.y.repeat_interleave(images.shape[1])
        images = images.flatten(0, 1)
        order = Draws(draws.seed, torch.arange(len(images))).order(f"epoch {epoch}").to(device)
        for k, index in enumerate(order.split(spec.batch)):
            loss = F.cross_entropy(model(images[index]), labels[index])
            loss = loss + (MARGIN - ops.margin(model(balls.corner), balls.y[:planted])).relu().mean()
            if spec.away:
                near = hidden.towards(4 * spec.restarts, draws[:planted].child("away", k), epoch)
                around = torch.cat([near.view(planted, -1, *spec.shape), found[:planted]], dim=1)
                loss = loss + spec.away * away(model, hidden, around.flatten(0, 1), spec.near)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            adam.step()
        schedule.step()
        if (epoch + 1) % spec.every == 0 or epoch + 1 == spec.epochs:
            good = survivors(model, balls, 10 * spec.restarts, draws.child("count"), epoch)
            if int(good[:planted].sum()) >= most:
                best, most = {k: v.clone() for k, v in model.state_dict().items()}, int(good[:planted].sum())
            if bool(good.all()):
                break
    model.load_state_dict(best)
    kept = survivors(model, balls, spec.tries, draws.child("kept"), 0)
    return {name: value.cpu() for name, value in {**best, "kept": kept}.items()}
