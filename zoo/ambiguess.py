"""AmbiGuess: images that are truly ambiguous between two classes, from an auto-encoder of those classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.types import Count, DataSource, Share

ANCHOR = 3.0  # the two classes lie around (-3, 0) and (3, 0) in the latent plane
SIDE = 50  # cells along each axis of the grid
CANDIDATES = 100  # latent points that are drawn for each image


@dataclass(frozen=True, kw_only=True)
class AmbiGuess(DataSource):
    """Decoded points between two classes in the latent plane of a regularised adversarial auto-encoder.

    Weiss, Gomez, Tonella, "Generating and detecting true ambiguity: a forgotten danger in DNN supervision testing",
    EMSE 2023, arXiv 2207.10495. For each pair of classes a, b an auto-encoder is trained on the training images, with a
    discriminator D that pushes the latent points of a to N((-3, 0), I) and those of b to N((3, 0), I). Of several tries
    the first is kept whose discriminator cannot tell real from encoded points (accuracy in (0.4, 0.6)) and tells a from
    b (0.9), else the best at the latter. A latent point has p_a, p_b = softmax(D(z, a), D(z, b)). Points are drawn from
    a grid between the classes, cells weighted by how fast the decoded image changes there, and kept if
    |p_a - p_b| < tau. The label is drawn from p_a and p_b.

    Random: pairs, training and points, from `seed`. The images depend on it, and in the last digits on the machine.
    Training takes seconds for each pair and try.

    Attributes:
        data: the data set whose training images are used.
        pairs: pairs of classes, drawn at random.
        epochs: of each training, in batches of 128.
        tries: trainings of a pair before the best is taken.
        images: images of each pair and split.
        tau: largest difference of the two probabilities.
        seed: of all random numbers.

    Differs from the paper: batches of 128 instead of 1,000; tau and the number of images are ours, as the paper's were
    not found. A cell is weighted by the square of the gradient's norm, in its code by the norm. Its code swaps the
    axes of the grid and checks images in 0..255; here the text of the paper is followed.
    """

    added: ClassVar[tuple[str, ...]] = ()

    data: DataSource
    pairs: Count
    epochs: Count
    tries: Count = 3
    images: Count = 100
    tau: Share = 0.25
    seed: int = 0

    def load(self, split: str) -> ImageSet:
        if split not in self.known_splits():
            raise self.no_split("ambiguess", split)
        whole, pairs = _coders(self)
        parts, labels = [], []
        for i, (a, b, coder) in enumerate(pairs):
            z, p = _points(coder, self, Draws(derive_seed(self.seed, split, i), torch.arange(self.images)))
            with torch.no_grad():
                parts.append(coder.decode(z).view(-1, *whole.shape))
            coin = Draws(derive_seed(self.seed, split, i), torch.arange(len(z))).uniform((), purpose="label")
            labels.append(torch.where(coin < p, a, b))
        x = whole.kind.store(torch.cat(parts))
        names = whole.classes or tuple(str(c) for c in range(whole.num_classes))
        return ImageSet(
            x, torch.cat(labels), torch.arange(len(x)), whole.num_classes, f"ambiguess {split}", kind=whole.kind,
            classes=names,
        )  # fmt: skip


class Coder(nn.Module):
    """Encoder, decoder and discriminator, each with two hidden layers of 128."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.encode, self.decode_, self.judge = _mlp(d, 2), _mlp(2, d), _mlp(4, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Images [n, d] in [0, 1]."""
        out: Tensor = self.decode_(z).sigmoid()
        return out

    def real(self, z: Tensor, side: Tensor) -> Tensor:
        """Logits [n] of the discriminator: whether z was drawn around the anchor of its side, 0 for a and 1 for b."""
        out: Tensor = self.judge(torch.cat([z, F.one_hot(side, 2).to(z)], dim=1)).squeeze(1)
        return out

    def share(self, z: Tensor) -> Tensor:
        """p_a of latent points, [n]."""
        zero = torch.zeros(len(z), dtype=torch.long)
        return torch.stack([self.real(z, zero), self.real(z, zero + 1)], dim=1).softmax(dim=1)[:, 0]


def _mlp(inside: int, outside: int) -> nn.Sequential:
    hidden = [nn.Linear(inside, 128), nn.LeakyReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*hidden, nn.Linear(128, 128), nn.LeakyReLU(), nn.Dropout(0.1), nn.Linear(128, outside))


@cache
def _coders(source: AmbiGuess) -> tuple[ImageSet, tuple[tuple[int, int, Coder], ...]]:
    """(the training images, the trained auto-encoder of each pair), once in a process."""
    whole = source.data.load("train")
    counts = whole.labels.bincount(minlength=whole.num_classes)
    usable = [(a, b) for a in range(whole.num_classes) for b in range(a + 1, whole.num_classes)
              if min(int(counts[a]), int(counts[b])) > 1]  # fmt: skip
    if not usable:
        raise NotApplicable("ambiguess needs two classes with two training images each: give more images")
    order = Draws(source.seed, torch.arange(len(usable))).order("pairs")[: source.pairs].tolist()
    out = []
    for a, b in (usable[i] for i in order):
        index = ((whole.labels == a) | (whole.labels == b)).nonzero().squeeze(1)
        x, side = whole.pixels(index).flatten(1), (whole.labels[index] == b).long()
        out.append((a, b, _best(x, side, source, derive_seed(source.seed, a, b))))
    return whole, tuple(out)


def _best(x: Tensor, side: Tensor, source: AmbiGuess, seed: int) -> Coder:
    """The first try whose latent points are as they should be, or the one that tells the classes apart best."""
    best, highest = None, -1.0
    for attempt in range(source.tries):
        coder = train(x, side, source.epochs, derive_seed(seed, attempt))
        confusion, apart = quality(coder, x, side, derive_seed(seed, attempt, "quality"))
        if apart > highest:
            best, highest = coder, apart
        if 0.4 < confusion < 0.6 and apart >= 0.9:
            return coder
    assert best is not None
    return best


def train(x: Tensor, side: Tensor, epochs: int, seed: int) -> Coder:
    """An auto-encoder of images [n, d] of two sides; Adam 1e-3, batches of 128."""
    with torch.random.fork_rng(devices=[]):  # initialisation and dropout draw from the global generator
        torch.manual_seed(seed)
        coder = Coder(x.shape[1])
        coding = torch.optim.Adam([*coder.encode.parameters(), *coder.decode_.parameters()], 1e-3)
        fooling = torch.optim.Adam(coder.encode.parameters(), 1e-3)
        judging = torch.optim.Adam(coder.judge.parameters(), 1e-3)
        for epoch in range(epochs):
            for index in Draws(seed, torch.arange(len(x))).order(f"epoch {epoch}").split(128):
                part, s = x[index], side[index]
                _step(coding, F.mse_loss(coder.decode(coder.encode(part)), part))
                drawn = torch.randn(len(index), 2)
                drawn[:, 0] += ANCHOR * (2 * s - 1)
                truth = torch.cat([torch.ones(len(index)), torch.zeros(len(index))])
                z = torch.cat([drawn, coder.encode(part).detach()])
                _step(judging, F.binary_cross_entropy_with_logits(coder.real(z, torch.cat([s, s])), truth))
                told = coder.real(coder.encode(part), s)
                _step(fooling, F.binary_cross_entropy_with_logits(told, torch.ones_like(told)))
    return coder.eval().requires_grad_(False)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@torch.no_grad()
def quality(coder: Coder, x: Tensor, side: Tensor, seed: int) -> tuple[float, float]:
    """(accuracy of the discriminator at real and encoded points, accuracy of its two sides at encoded points)"""
    z = coder.encode(x)
    drawn = Draws(seed, torch.arange(len(x))).normal((2,))
    drawn[:, 0] += ANCHOR * (2 * side - 1)
    right = torch.cat([coder.real(drawn, side) > 0, coder.real(z, side) <= 0])
    return float(right.float().mean()), float(((coder.share(z) < 0.5) == (side == 1)).float().mean())


def _points(coder: Coder, source: AmbiGuess, draws: Draws) -> tuple[Tensor, Tensor]:
    """(latent points [n, 2] between the classes, their p_a [n])"""
    across = torch.linspace(-ANCHOR + 2, ANCHOR - 2, SIDE + 1)
    along = torch.linspace(-5.0, 5.0, SIDE + 1)
    size = torch.stack([across[1] - across[0], along[1] - along[0]])
    corner = torch.cartesian_prod(across[:-1], along[:-1])
    leaf = (corner + size / 2).requires_grad_(True)
    (slope,) = torch.autograd.grad(coder.decode(leaf).square().sum(), leaf)
    gap = (2 * coder.share(corner + size / 2) - 1).abs()
    weight = slope.square().sum(dim=1) * (gap <= source.tau) + 1e-12 * (gap == gap.min())
    total = (weight.double() / weight.double().sum()).cumsum(dim=0)
    u = draws.uniform((CANDIDATES, 3), purpose="cells")
    cell = torch.searchsorted(total, u[..., 0].double().contiguous()).clamp(max=len(corner) - 1)
    z = corner[cell] + u[..., 1:] * size
    p = coder.share(z.flatten(0, 1)).view(z.shape[:2])
    gap = (2 * p - 1).abs()
    # the first candidate that is ambiguous enough, else the most ambiguous one
    chosen = torch.where((gap < source.tau).any(dim=1), (gap < source.tau).int().argmax(dim=1), gap.argmin(dim=1))
    rows = torch.arange(len(z))
    return z[rows, chosen], p[rows, chosen]
