"""How much of private images was recovered: identification in a gallery, PSNR, structural similarity, labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.draws import Draws
from siegebench.types import Recovered

SIDE = 16  # images are averaged to this many pixels a side before they are compared with a gallery
MOST_PSNR = 100.0  # of equal images


@dataclass(frozen=True)
class Scores:
    """One number for each private image, [m * n]; None where the attacker recovered nothing of the kind.

    Attributes:
        identified: whether the private image is the nearest of the gallery to the recovered one.
        psnr, ssim: of the recovered image.
        label_right: whether the class with the largest probability is the largest of the label.
        label_l1: sum of |recovered - true| over the classes, in [0, 2].
    """

    identified: Tensor | None = None
    psnr: Tensor | None = None
    ssim: Tensor | None = None
    label_right: Tensor | None = None
    label_l1: Tensor | None = None


def scores(found: Recovered, x: Tensor, y: Tensor, galleries: Tensor) -> Scores:
    """Compare what was recovered with private images; within a client, by the assignment of least squared error.

    Args:
        x, y: private images [m, n, C, H, W] and labels [m, n, classes].
        galleries: other images for each private one, [m * n, others, d], as `summary` makes them.
    """
    images, labels = _assigned(found, x, y)
    out: dict[str, Tensor] = {}
    if images is not None:
        a, b = images.flatten(0, 1), x.flatten(0, 1)
        mse = (a - b).square().flatten(1).mean(dim=1)
        out["psnr"] = (-10 * mse.clamp(min=1e-30).log10()).clamp(max=MOST_PSNR)
        out["ssim"] = ops.ssim(a, b).clamp(-1, 1)
        out["identified"] = identified(summary(a), summary(b), galleries)
    if labels is not None:
        p, q = labels.flatten(0, 1), y.flatten(0, 1)
        out["label_right"] = p.argmax(dim=1) == q.argmax(dim=1)
        out["label_l1"] = (p - q).abs().sum(dim=1).clamp(max=2)
    return Scores(**out)


def _assigned(found: Recovered, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What was recovered, in the order of the private images of each client."""
    if x.shape[1] == 1:
        return found.images, found.labels
    from scipy.optimize import linear_sum_assignment  # the package must import without scipy

    a, b = (found.labels, y) if found.images is None else (found.images, x)
    assert a is not None
    cost = torch.cdist(a.flatten(2), b.flatten(2)).square().transpose(1, 2)  # [m, private, recovered]
    order = torch.stack([torch.from_numpy(linear_sum_assignment(c)[1]) for c in cost.cpu().numpy()]).to(x.device)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return tuple(None if v is None else v[rows, order] for v in (found.images, found.labels))  # type: ignore[return-value]


def summary(x: Tensor) -> Tensor:
    """Images [n, C, H, W] as unit vectors: averaged to 16x16 pixels, their mean taken off."""
    small = F.adaptive_avg_pool2d(x, SIDE) if min(x.shape[-2:]) > SIDE else x
    rows = small.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def identified(recovered: Tensor, private: Tensor, galleries: Tensor) -> Tensor:
    """Where the private image is nearer to the recovered one than all others by cosine, bool [n]; ties count as not.

    Args:
        recovered, private: as `summary` makes them, [n, d].
        galleries: [n, others, d].
    """
    own = (recovered * private).sum(dim=1)
    others = torch.einsum("nd,nkd->nk", recovered, galleries)
    return own > others.amax(dim=1)


def gallery(public: Tensor, labels: Tensor, count: int, draws: Draws) -> Tensor:
    """Indices of `count` public images for each private one, [n, count]: those of its class first, as far as they go.

    Args:
        public: labels of the public images, [P].
        labels: of the private images, [n].
        draws: one stream for each private image.
    """
    order = draws.uniform((len(public),), purpose="gallery") + (public[None] != labels[:, None]).float()
    return order.topk(count, dim=1, largest=False).indices


def mixed(x: Tensor, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Images and labels mixed with those of another image: mixup with a weight from U(0, 1), one draw an image."""
    other = torch.arange(len(x)).roll(1)
    weight = draws.uniform((), purpose="mixup").to(x)
    return _between(x, x[other], weight), _between(y, y[other], weight)


def _between(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    w = weight.view(-1, *[1] * (a.dim() - 1))
    return w * a + (1 - w) * b
