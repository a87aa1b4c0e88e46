"""Adam on a texture in (0, 1), shared by the camouflages that ask for gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench.draws import Draws
from siegebench.types.camouflages import Stage, Texture

SPREAD = 0.1  # of the first texture about its colour, in w: a pattern of its own may look more like a vehicle
CLOSE = 1 - 1e-6  # largest argument of g, whose slope has no bound at 1
EDGE = 0.02  # first colours keep this distance from 0 and 1, where the slope of the sigmoid vanishes

Loss = Callable[[Stage, Tensor, int], Tensor]  # (some scenes, the texture, the step) to a scalar


def optimised(
    stage: Stage, draws: Draws, loss: Loss, texture: Callable[[Tensor], Texture], *, texels: int, steps: int,
    scenes: int, lr: float, restarts: int = 1,
) -> Texture:  # fmt: skip
    """The best texture of several descents. The first starts at grey, each other at a dominant colour of the
    backgrounds. The best is the one under which the fewest scenes of the stage are seen, and of these the one with the
    smallest mean of -log(1 - score).

    Args:
        loss: of a step; gets some of the scenes.
        texture: what is painted with the optimised values [3, texels, texels].
        texels: along each side.
        scenes: of one step.
        lr: of Adam. It falls to a tenth along a cosine.
        restarts: number of descents; the last ones are left out if the backgrounds have fewer colours.
    """
    starts = [torch.full((3,), 0.5), *stage.colours.cpu()][:restarts]
    found = []
    for k, colour in enumerate(starts):
        fresh = draws.child("descent", k) if k else draws
        found.append(texture(_descended(stage, fresh, loss, colour, texels, steps, scenes, lr)))
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda one: _visible(stage, one, scenes))


def _descended(
    stage: Stage, draws: Draws, loss: Loss, colour: Tensor, texels: int, steps: int, scenes: int, lr: float
) -> Tensor:
    """The texture [3, texels, texels] = sigmoid(w) after Adam steps on w, each on the mean loss of other scenes, with
    one pass over them all before one comes again."""
    first = colour.clamp(EDGE, 1 - EDGE).logit().view(3, 1, 1)
    w = (first + SPREAD * draws.normal((3, texels, texels), purpose="start")[0]).to(stage.maps.a).requires_grad_(True)
    adam = torch.optim.Adam([w], lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=lr / 10)
    each = min(scenes, len(stage))
    left = torch.zeros(0, dtype=torch.long)
    with torch.enable_grad():
        for step in range(steps):
            if len(left) < each:
                left = draws.uniform((len(stage),), step=step, purpose="order")[0].argsort()
            index, left = left[:each].to(w.device), left[each:]
            adam.zero_grad()
            loss(stage[index], w.sigmoid(), step).backward()
            adam.step()
            falling.step()
    return w.detach().sigmoid()


@torch.no_grad()
def _visible(stage: Stage, texture: Texture, scenes: int) -> tuple[float, float]:
    """(scenes of the stage that are seen under a texture, mean of -log(1 - score))"""
    parts = [stage[index] for index in torch.arange(len(stage), device=stage.maps.a.device).split(scenes)]
    best = torch.cat([some.sighting(texture.on(some.maps)).logit.amax(dim=1) for some in parts])
    return float((best > 0).sum()), float(F.softplus(best).mean())


def g(value: Tensor) -> Tensor:
    """-log(1 - value), for values in [0, 1]."""
    return -torch.log1p(-value.clamp(max=CLOSE))


def attack_loss(hidden: Tensor, candidates: int = 1) -> Tensor:
    """The mean over images of g(score) over the candidates with the highest scores.

    Args:
        hidden: log(1 - score), [n, K].
        candidates: how many; the paper's maximum is 1.
    """
    return -hidden.topk(min(candidates, hidden.shape[1]), dim=1, largest=False).values.mean()


def smooth_loss(eta: Tensor) -> Tensor:
    """A log-scaled total variation of a texture [3, h, w] that repeats."""
    return sum(g((eta - eta.roll(1, axis)).abs().mean(dim=0)).mean() for axis in (1, 2))  # type: ignore[return-value]


def camouflage_loss(eta: Tensor, colours: Tensor) -> Tensor:
    """The mean of g(distance to the nearest colour) over the texels of eta [3, h, w], for colours [K, 3]."""
    far = (eta.flatten(1).T[:, None] - colours.to(eta)).abs().mean(dim=2)
    return g(far.amin(dim=1)).mean()


def output_augmented(
    x: Tensor, boxes: Tensor, draws: Draws, step: int,
    smallest: float, brightness: float, contrast: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Random scale on an empty canvas, translation, contrast and brightness: (images, their boxes).

    Args:
        smallest: scales are between it and 1.
        brightness: is added, between plus and minus this.
        contrast: (lowest, highest) factor about the mean of an image.
    """
    n, width, height = len(x), x.shape[3], x.shape[2]
    u = draws.uniform((n, 5), step=step, purpose="output")[0].to(x)
    scale = smallest + (1 - smallest) * u[:, 0]
    move = (2 * u[:, 1:3] - 1) * (1 - scale)[:, None]  # of the middle, in halves of the picture
    theta = torch.zeros(n, 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -move / scale[:, None]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    half = x.new_tensor([width, height]) / 2
    middle = half * (1 + move)
    corners = boxes.to(x).view(n, 2, 2)
    moved = (corners - half) * scale[:, None, None] + middle[:, None]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    factor = contrast[0] + (contrast[1] - contrast[0]) * u[:, 3]
    x = (x - mean) * factor.view(-1, 1, 1, 1) + mean + brightness * (2 * u[:, 4] - 1).view(-1, 1, 1, 1)
    return x.clamp(0, 1), moved.view(n, 4)
