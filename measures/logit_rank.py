"""LogitRank: the hidden width and the last layer of a network, computed from its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.cells import Flag
from siegebench.classifier import Classifier, copied
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.prepare import at_once
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Count, Lesson, Measure, Positive

Form = Literal["logits", "probabilities", "labels"]
FINEST = 8  # decimals; the sweep starts here
GAP = 1.0  # smallest gap that counts, in natural logarithms
ROUNDING = 12**-0.5  # standard deviation of a rounding error, in units of the last decimal


@dataclass(frozen=True, eq=False)
class Reading:
    """What a matrix of answers reveals.

    Attributes:
        dim: affine dimension of the answers; 0 if nothing is revealed.
        gap: log s_dim - log s_(dim + 1), or the largest gap if nothing is revealed.
        basis: [classes, dim], orthonormal: the column space of the last layer, without the direction (1, ..., 1).
        centre: [classes], the mean answer.
    """

    dim: int
    gap: float
    basis: Tensor
    centre: Tensor

    def residual(self, answers: Tensor) -> Tensor:
        """Fraction of each answer [n, classes] that lies outside the column space, [n]."""
        a = _level(answers) - self.centre
        outside = a - a @ self.basis @ self.basis.T
        return outside.norm(dim=1) / a.norm(dim=1).clamp(min=torch.finfo(a.dtype).tiny)


def read(answers: Tensor, error: float) -> Reading:
    """The subspace of answers, float64 [n, classes]; see `dimension`."""
    dim, gap = dimension(answers, error)
    a, varies = _level(answers), _varies(answers)
    centre = a.mean(dim=0)
    basis = a.new_zeros(a.shape[1], dim)
    if dim:
        basis[varies] = torch.linalg.svd((a - centre)[:, varies], full_matrices=False)[2][:dim].T
    return Reading(dim, gap, basis, centre)


def dimension(answers: Tensor, error: float) -> tuple[int, float]:
    """(affine dimension of answers [n, classes], or 0; the largest gap of their singular values)

    The mean of each answer is subtracted first, so that logits and log-probabilities give the same result; then the
    mean answer, so that a bias has no effect. A gap counts if the singular values below it are no larger than the
    errors of the answers.

    Args:
        answers: float64.
        error: standard deviation of the error of one number, by rounding or noise.
    """
    a = _level(answers)
    part = (a - a.mean(dim=0))[:, _varies(answers)]
    n, k = part.shape
    most = min(n, k) - 1  # full rank: the constants are gone
    if most < 2:
        return 0, 0.0
    s = torch.linalg.svdvals(part)[:most].clamp(min=torch.finfo(part.dtype).tiny)
    gaps = s[:-1].log() - s[1:].log()
    i = int(gaps.argmax())
    floor = 2 * error * (n**0.5 + k**0.5)  # twice the norm of a matrix of such errors
    counts = float(gaps[i]) >= GAP and float(s[i + 1]) <= floor < float(s[i])
    return (i + 1 if counts else 0), float(gaps[i])


def _varies(answers: Tensor) -> Tensor:
    """Which classes are informative, bool [classes]: others never have a probability above 0, after rounding."""
    return (answers != answers[0]).any(dim=0)


def _level(z: Tensor) -> Tensor:
    return z - z.mean(dim=1, keepdim=True)


def released(z: Tensor, form: Form, decimals: int | None, exact: float) -> tuple[Tensor, float]:
    """(what is made of float64 logits [n, classes] once they are released, the error of one number).

    Probabilities are read as their logarithms; those that are rounded to 0 as half a unit.

    Args:
        exact: error of the logits themselves.
    """
    if form == "labels":
        return nn.functional.one_hot(z.argmax(dim=1), z.shape[1]).to(z.dtype), 1.0
    unit = 0.0 if decimals is None else 10.0**-decimals
    if form == "logits":
        return (z if decimals is None else z.round(decimals=decimals)), max(exact, ROUNDING * unit)
    p = z.softmax(dim=1)
    if decimals is None:
        return p.clamp(min=torch.finfo(p.dtype).tiny).log(), exact
    p = p.round(decimals=decimals)
    values = p.clamp(min=unit / 2).log()
    errors = torch.where(p == 0, values.abs(), ROUNDING * unit / p.clamp(min=unit))
    return values, max(exact, float(errors.square().mean().sqrt()))


@dataclass(frozen=True, kw_only=True)
class LogitRank(Measure):
    """Width of the last layer, its weights up to a change of basis, and whether answers tell two models apart.

    Logits are z = W h(x) + b: the answers to more than d images lie in an affine subspace of dimension d, the number of
    features h, if there are more than d + 1 classes.
        dim            argmax_i (log s_i - log s_(i+1)) over the singular values of the answers (Carlini et al.,
                       "Stealing Part of a Production Language Model", ICML 2024, arXiv 2403.06634)
        head_error     |W - U U' W| / |W|: what the subspace U misses of the true last layer, which is then known up to
                       an invertible d x d matrix
        signature      median over fresh images of the fraction of an answer outside U; `signature_updated` for the same
                       network with a last layer that has moved by `update`, `signature_other` for an untrained network
                       of the same architecture (Finlayson et al., "Logits of API-Protected LLMs Leak Proprietary
                       Information", COLM 2024, arXiv 2403.09539)
        decimals       fewest decimals of the answers with which `dim` is still read; `flips`, the share of images whose
                       class changes if they are rounded to one decimal less
    `width` is the true number of features, `spanned` the affine dimension of those of the images asked, for comparison:
    `dim` can only be the latter. Units that are dead on all images do not count, and a layer norm removes one
    dimension.

    With `revealed` 0 there is no such gap (flag `nothing_revealed`): no more classes than features, answers too coarse,
    or labels only.

    Random: the training images, the moved layer, the other network; noise of a randomised model.

    Cost: one forward pass for each training image used, and three for each given image.

    Differs from the paper: images are natural ones, not random prompts. The mean answer is subtracted, so that a bias
    does not raise the dimension by one. The gap is accepted only if the singular values below it can be errors of the
    answers, whose size the attacker knows: rounding, or float32. For a randomised model it is measured by querying
    twice.

    Attributes:
        images: number of training images used as queries, at most; more than there are features.
        answers: what is released: `logits`, `probabilities` or `labels`.
        given: decimals of the released numbers; all when left out.
        update: relative size of the change of the moved last layer.
    """

    learns: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")

    images: Count = 2000
    answers: Form = "logits"
    given: Count | None = None
    update: Positive = 0.01

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> tuple[Tensor, float, int]:
        """(float64 logits of training images [n, classes], their error, affine dimension of the true features)"""
        order, head = draws.order("asked").cpu()[: self.images], _head(oracle.model)
        features: list[Tensor] = []
        handles = [] if head is None else [head.register_forward_pre_hook(lambda _m, a: features.append(a[0].double()))]
        try:
            z = torch.cat([self._asked(oracle, data, i) for i in order.split(at_once(data.stored, oracle.rows.device))])
        finally:
            for handle in handles:
                handle.remove()
        exact = 2 * torch.finfo(oracle.dtype).eps * float(z.abs().max())
        if oracle.model.randomized:
            few = order[:64]
            exact = max(exact, float((self._asked(oracle, data, few) - z[: len(few)]).square().mean().sqrt() / 2**0.5))
        return z, exact, _rank(torch.cat(features).flatten(1)) if features else 0

    @staticmethod
    def _asked(oracle: Oracle, data: ImageSet, index: Tensor) -> Tensor:
        where = oracle.rows.device
        return oracle[index.to(where)].logits(data.pixels(index, oracle.dtype).to(where)).double()

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> dict[str, Any]:
        asked, exact, spanned = lesson
        got, error = released(asked, self.answers, self.given, exact)
        found, head = read(got, error), _head(oracle.model)
        metrics: dict[str, float] = {"revealed": float(found.dim > 0), "gap": found.gap}
        metrics |= {"classes": float(oracle.num_classes), "queries": float(len(asked))}
        if head is not None:
            metrics |= {"width": float(head.in_features), "spanned": float(spanned)}
        if not found.dim:
            told = f"{len(asked)} answers for {oracle.num_classes} classes show no subspace: no more classes than "
            told += "features, or answers that are too coarse"
            return {"metrics": metrics, "flags": [Flag("nothing_revealed", "info", told).as_dict()]}
        metrics["dim"] = float(found.dim)
        if head is not None:
            w = head.weight.double()
            w = w - w.mean(dim=0)
            metrics["head_error"] = float((w - found.basis @ (found.basis.T @ w)).norm() / w.norm())
        z = oracle.logits(x).double()
        for name, answers in self._compared(oracle, x, z, draws):
            metrics[name] = float(found.residual(released(answers, self.answers, self.given, 0.0)[0]).median())
        return {"metrics": metrics | self._coarsest(asked, exact, found.dim, z), "flags": []}

    def _compared(self, oracle: Oracle, x: Tensor, z: Tensor, draws: Draws) -> list[tuple[str, Tensor]]:
        """Answers of the network itself, of a later version and of another one."""
        out = [("signature", z)]
        moved = copied(oracle.model)
        layer = _head(moved)
        if layer is not None:
            w = layer.weight
            noise = Draws(draws.seed, torch.arange(w.numel())).normal(purpose="update").view(w.shape).to(w)
            with torch.no_grad():
                layer.weight.copy_(w + self.update * w.std() * noise)
            out.append(("signature_updated", oracle.of(moved).logits(x).double()))
        try:
            other = oracle.model.fresh(derive_seed(draws.seed, "other")).to(x.device, x.dtype).eval()
        except (NotApplicable, NotImplementedError):  # it cannot be rebuilt
            return out
        out.append(("signature_other", oracle.of(other).logits(x).double()))
        return out

    def _coarsest(self, asked: Tensor, exact: float, dim: int, z: Tensor) -> dict[str, float]:
        """How coarse answers can be until the dimension is lost, and how many answers one decimal less changes."""
        for decimals in range(self.given or FINEST, -2, -1):
            values, error = released(asked, self.answers, decimals, exact)
            if dimension(values, error)[0] == dim:
                continue
            if decimals == (self.given or FINEST):
                return {}
            coarse = released(z, self.answers, decimals, 0.0)[0]
            changed = (coarse.argmax(dim=1) != z.argmax(dim=1)).double().mean()
            return {"decimals": float(decimals + 1), "flips": float(changed)}
        return {"decimals": -1.0, "flips": 0.0}


def _rank(h: Tensor) -> int:
    """Affine dimension of features [n, d], above the errors of float32."""
    n, d = h.shape
    floor = 2 * torch.finfo(torch.float32).eps * float(h.abs().max()) * (n**0.5 + d**0.5)
    return int((torch.linalg.svdvals(h - h.mean(dim=0)) > floor).sum())


def _head(model: Classifier) -> nn.Linear | None:
    """The last linear layer, if its outputs can be the logits."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return linear[-1] if linear and linear[-1].out_features == model.num_classes else None
