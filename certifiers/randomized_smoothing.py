"""Randomised smoothing: the majority class under Gaussian noise is stable within a radius in L2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from scipy.special import bdtr, betaincinv, ndtri
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.prepare import at_once
from siegebench.threat import Norm
from siegebench.types import Certificate, Certifier, Count, Positive
from siegebench.types.certifiers import ABSTAINED

BLOCK = 100  # samples of one image with one seed, whatever the batch
MOST = 2**23  # pixel values in a pass on a GPU
EVERY_BIT = (1 << 63) - 1


class Smoothed(Wrapped):
    """The log shares of the classes among `votes` noisy copies of an image; one pass of a smoothed classifier.

    The backward model is the log of the mean softmax of `m` noisy copies.
    """

    def __init__(self, inner: Classifier, sigma: float, votes: int, m: int) -> None:
        super().__init__(inner)
        self.sigma, self.votes, self.m, self.randomized = sigma, votes, m, True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        counts = votes(self.inner, x, self.sigma, self.votes, draws, "votes")
        return ((counts + 0.5) / (counts + 0.5).sum(dim=1, keepdim=True)).log().to(x.dtype)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = (Draws.fresh(len(x), x.device) if draws is None else draws).repeat(self.m)
        eta = self.sigma * draws.normal(tuple(x.shape[1:]), purpose="backward").to(x.dtype)
        z = self.inner.backward_model(x.repeat_interleave(self.m, dim=0) + eta, draws)
        return z.log_softmax(dim=1).unflatten(0, (len(x), self.m)).logsumexp(dim=1)

    def features(self, x: Tensor) -> Tensor:
        return self.inner.features(x)


@torch.no_grad()
def votes(model: Classifier, x: Tensor, sigma: float, n: int, draws: Draws, purpose: str) -> Tensor:
    """How many of n noisy copies of each image get each class, int64 [len(x), classes]; NaN votes for none."""
    counts = torch.zeros(len(x), model.num_classes, dtype=torch.long, device=x.device)
    blocks = -(-n // BLOCK)
    seeds = (draws.bits((blocks,), purpose=purpose) & EVERY_BIT).tolist()
    tasks = [(i, b * BLOCK, seeds[i][b], min(BLOCK, n - b * BLOCK)) for i in range(len(x)) for b in range(blocks)]
    at_most = min(at_once(x, x.device), max(1, MOST // x[0].numel()))
    step = max(1, at_most // min(n, BLOCK))  # blocks in a pass
    space = torch.empty(step * min(n, BLOCK), *x.shape[1:], dtype=x.dtype, device=x.device)
    generator = torch.Generator(x.device)
    for some in (tasks[i : i + step] for i in range(0, len(tasks), step)):
        images, firsts, keys, sizes = zip(*some, strict=True)
        noisy = space[: sum(sizes)]
        for i, seed, part in zip(images, keys, noisy.split(sizes), strict=True):
            part.normal_(0.0, sigma, generator=generator.manual_seed(seed)).add_(x[i])
        rows = torch.tensor(images).repeat_interleave(torch.tensor(sizes)).to(x.device)
        own = None
        if model.randomized:
            places = torch.cat([first + torch.arange(k) for first, k in zip(firsts, sizes, strict=True)])
            own = draws[rows].child(purpose).at(places.to(x.device))
        for at in (slice(k, k + at_most) for k in range(0, len(rows), at_most)):
            z = model(noisy[at], None if own is None else own[at])
            good = torch.isfinite(z).all(dim=1)
            counts.index_put_((rows[at], z.argmax(dim=1)), good.long(), accumulate=True)
    return counts


def lower_bound(k: Tensor, n: int, alpha: float) -> Tensor:
    """One-sided Clopper-Pearson lower bound of a probability, for k of n successes, float64; wrong with prob. alpha."""
    k = k.double().cpu()
    found = torch.as_tensor(betaincinv(k.clamp(min=1).numpy(), (n - k + 1).numpy(), alpha), dtype=torch.float64)
    return torch.where(k > 0, found, 0.0)


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(Certifier):
    """g(x) = the most probable class c of f(x + eta), eta ~ N(0, sigma^2 I). It is constant within R in L2.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, arXiv 1902.02918.

        c_A = the most frequent of n0 samples,   p_A = Clopper-Pearson(n_A of n new samples, alpha),
        R = sigma Phi^-1(p_A),                   abstain if p_A <= 1/2

    A certificate is wrong with probability alpha at most, for each image. The largest possible radius is
    sigma Phi^-1(alpha^(1/n)): 2.46 sigma for n = 1,000 and 3.81 sigma for n = 100,000. In Linf a ball lies inside
    the L2 ball that is sqrt(d) times as large, for d numbers in an image.

    The network has to be trained with such noise (`gaussian_augmentation`). Noise is added in the box of the images,
    before the normalisation, and not clipped. Evaluated images have 8 bits. Sampling in floating point is not covered
    by the proof.

    What is attacked is the vote of `votes` samples, over fresh passes. The backward model gives the gradient of the log
    mean softmax (Salman et al., NeurIPS 2019). An adversarial image breaks a certificate only if the two-sided binomial
    test of `predict` says that another class is more probable.

    Random: the noise. Cost: n0 + n forward passes per image.

    Differs from the paper: radii of several sizes are tested, not reported; a certificate at r needs R > r. PREDICT
    compares the two most frequent classes as there, and serves to judge attacks.

    Attributes:
        sigma: standard deviation of the noise, in the units of the images.
        n0: samples for the class.
        n: new samples for its probability; the paper takes 100,000.
        alpha: probability of a wrong certificate.
        votes: samples in one pass of the attacked predictor.
        m: samples of the backward model.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    statistical: ClassVar[bool] = True
    deploys: ClassVar[bool] = True
    randomized: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "bpda", "attack": {"name": "pgd", "loss": "ce", "steps": 20, "early_stop": False}},
    )

    sigma: Positive = 0.25
    n0: Count = 100
    n: Count = 1000
    alpha: Positive = 0.001
    votes: Count = 32
    m: Count = 8

    def quick(self) -> RandomizedSmoothing:
        return replace(self, n0=20, n=200, votes=20, m=4)

    def predictor(self, model: Classifier) -> Classifier:
        return Smoothed(model, self.sigma, self.votes, self.m)

    def certify(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        c = votes(model, x, self.sigma, self.n0, draws, "select").argmax(dim=1)
        n_a = votes(model, x, self.sigma, self.n, draws, "estimate").gather(1, c[:, None])[:, 0]
        p_a = lower_bound(n_a, self.n, self.alpha)
        radius = self.sigma * torch.as_tensor(ndtri(p_a.numpy()), dtype=torch.float64)
        if norm == "linf":
            radius = radius / x[0].numel() ** 0.5
        sure = p_a > 0.5
        holds = torch.stack([sure & (radius > r) for r in radii])
        return Certificate(torch.where(sure.to(x.device), c, ABSTAINED), holds.to(x.device))

    def predict(self, model: Classifier, x: Tensor, draws: Draws) -> Tensor:
        """The class of g, int64 [len(x)]; ABSTAINED where the test of the two most frequent classes does not decide."""
        top, classes = votes(model, x, self.sigma, self.n, draws, "predict").topk(2, dim=1)
        both = top.cpu().numpy()
        p = 2 * bdtr(both[:, 1], both.sum(axis=1), 0.5)  # of a fair coin, two-sided; 1 or more for ties
        sure = torch.as_tensor(p, device=x.device) <= self.alpha
        return torch.where(sure, classes[:, 0], ABSTAINED)

    def refutes(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        found = self.predict(model, x, draws)
        return (found != y) & (found != ABSTAINED)
