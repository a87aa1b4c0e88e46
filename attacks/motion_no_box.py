"""No-box attack on skeletons: moves away from the code of the clean motion, along the dynamics of the motion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.threat import Access, ThreatModel
from siegebench.types import Attack, Count, Lesson, Positive, Share

from ._autoencoder import fresh, slope
from ._motion import carried, dynamics

CODE = 128  # numbers in a code
HEIGHT = 1  # the coordinate that points up


class Encoder(nn.Module):
    """Sequences [n, C, T, J] to codes of length one [n, 128]."""

    def __init__(self, channels: int, joints: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels * joints, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(width, 2 * width, 5, padding=2), nn.BatchNorm1d(2 * width), nn.ReLU(),
        )  # fmt: skip
        self.linear = nn.Linear(2 * width, CODE)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers((x - 0.5).transpose(2, 3).flatten(1, 2) / 0.25)
        return F.normalize(self.linear(out.mean(dim=2)), dim=1)


def varied(x: Tensor, draws: Draws, step: int) -> Tensor:
    """Another view of each motion: turned about the vertical by up to 0.3 rad, jittered by 0.003, up to 4 frames later.

    In two dimensions, a turn shortens the horizontal coordinate.
    """
    angle = 0.6 * draws.uniform((1, 1), step, "turn").to(x) - 0.3
    out = x - 0.5
    cos, sin, side = angle.cos(), angle.sin(), out[:, 0]
    if x.shape[1] == 3:
        turned = torch.stack([cos * side + sin * out[:, 2], out[:, HEIGHT], cos * out[:, 2] - sin * side], dim=1)
    else:
        turned = torch.stack([cos * side, out[:, HEIGHT]], dim=1)
    frames = x.shape[2]
    later = draws.integers(5, (1,), step, "shift").to(x.device) + torch.arange(frames, device=x.device)
    at = later.clamp(max=frames - 1)[:, None, :, None].expand_as(turned)
    jitter = 0.003 * draws.normal(tuple(x.shape[1:]), step, "jitter").to(x)
    return turned.gather(2, at) + 0.5 + jitter


@dataclass(frozen=True, eq=False)
class _Known:
    """The trained encoder, and the centres [K, 128] of the codes of the training motions."""

    net: Encoder
    centres: Tensor


@dataclass(frozen=True, kw_only=True)
class MotionNoBox(Attack):
    """Without victim, labels or queries: z = f(x) of an encoder that contrasts motions, and centres c_1..c_K of codes.

    Lu, Wang, Chang, Yang, Shum, "Hard No-Box Adversarial Attack on Skeleton-Based Human Action Recognition with
    Skeleton-Motion-Informed Gradient", ICCV 2023, arXiv 2308.05681.
        train   two views of each motion have near codes, views of different motions far ones; k-means on all codes
        loss    cross-entropy of the cosines of f(x') to [f(x), centres without the `dropped` nearest] with the label of
                f(x), ascended: away from the own code, towards far centres
        G       g_t + a_t g_{t+1} + b_t g_{t+2} with `motion` (attacks/_motion.py), g over its mean absolute value
        m       m <- mu m + G;  x' <- proj(x' + step sign(m))

    Random: initial weights, views, and the order of training; the harness seeds them. The oracle is not queried.

    Differs from the paper: it learns from the training split, because the paper's attacker trains on the attacked
    sequences. SimCLR with the other motions of the batch instead of MoCo; a small temporal CNN instead of a graph
    network or GRU; Adam. The autoregression is local least squares over nine frames with a ridge instead of a kernel
    estimate, and is that of the clean motion. Steps, centres and epochs are fewer (there 400 steps, 120 centres, 450
    epochs).

    Attributes:
        steps: number of steps.
        step: length of a step in the units of eps; eps / 25 when left out.
        mu: fraction of the accumulated gradient that each step keeps; 0 for none.
        motion: carry the gradient through the dynamics of the motion.
        centres, dropped: K, and how many of the nearest are left out.
        epochs, batch, lr, width: of the encoder.
        temperature: of the contrastive loss.
    """

    needs: ClassVar[Access] = "none"
    learns: ClassVar[bool] = True
    restricted: ClassVar[bool] = True
    step_in_pixels: ClassVar[bool] = True

    steps: Count = 100
    step: Positive | None = None
    mu: Share = 1.0
    motion: bool = True
    centres: Count = 60
    dropped: Count = 5
    epochs: Count = 30
    batch: Count = 128
    lr: Positive = 1e-3
    width: Count = 64
    temperature: Positive = 0.07

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> _Known:
        """Train the encoder on the motions, without their labels, and find the centres."""
        from sklearn.cluster import KMeans  # takes a second to import

        x = data.pixels().to(draws.ids.device)
        net = fresh(lambda: Encoder(x.shape[1], x.shape[3], self.width), derive_seed(draws.seed, "encoder"))
        net = net.to(x.device).train()
        adam = torch.optim.Adam(net.parameters(), self.lr)
        for epoch in range(self.epochs):
            for index in draws.order(f"epoch {epoch}").split(self.batch):
                if len(index) < 2:
                    continue
                views = [varied(x[index], draws[index].child(side), epoch) for side in ("one", "other")]
                loss = self._contrast(net(torch.cat(views)))
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
        net.eval().requires_grad_(False)
        with torch.no_grad():
            codes = torch.cat([net(part) for part in x.split(256)])
        k = min(self.centres, max(2, len(codes) // 2))
        seed = derive_seed(draws.seed, "centres") % 2**31
        found = KMeans(k, n_init=1, random_state=seed).fit(codes.cpu().double().numpy()).cluster_centers_
        return _Known(net, F.normalize(torch.from_numpy(found).float(), dim=1))

    def _contrast(self, z: Tensor) -> Tensor:
        """SimCLR: the other view of the same motion among all others of the batch."""
        n = len(z) // 2
        near = z @ z.T / self.temperature
        near = near.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
        return F.cross_entropy(near, torch.arange(2 * n, device=z.device).roll(n))

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        known: _Known = lesson
        net, centres = known.net.to(x), known.centres.to(x)
        with torch.no_grad():
            own = net(x)
        dropped = min(self.dropped, len(centres) - 1)
        far = (own @ centres.T).argsort(dim=1, descending=True)[:, dropped:]
        codes = torch.cat([own[:, None], centres[far]], dim=1)  # [n, 1 + K - dropped, 128]

        def loss(x_adv: Tensor) -> Tensor:
            near = (net(x_adv)[:, None] * codes).sum(dim=2)
            return F.cross_entropy(near, torch.zeros_like(y), reduction="none")

        a, b = dynamics(x)
        step = threat.eps / 25 if self.step is None else self.step
        x_adv, m = x, torch.zeros_like(x)
        for _ in range(self.steps):
            g = slope(loss, x_adv)
            mean = g.abs().mean(dim=(1, 2, 3)).clamp(min=1e-30)
            g = g / ops.over(mean, g)
            m = self.mu * m + (carried(g, a, b) if self.motion else g)
            x_adv = threat.project(x_adv + step * m.sign(), x)
        return x_adv
