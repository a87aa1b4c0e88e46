"""Virtual adversarial training of attention: the scores of the words are moved so that the answer changes most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.text import AttentiveText, attentive
from siegebench.train import Recipe, renew, train
from siegebench.types import Defense, Positive, Share

RECIPE = Recipe(epochs=8, batch=32, lr=1e-3, weight_decay=1e-5, augment="none")


@dataclass(frozen=True, kw_only=True)
class AttentionVAT(Defense):
    """min_theta CE(z(s), y) + weight KL(p(. | s) || p(. | s + r)), with the worst small change r of the scores s.

    Kitada, Iyatomi, "Making Attention Mechanisms More Robust and Interpretable with Virtual Adversarial Training",
    Applied Intelligence 2022, arXiv 2104.08763. s are the scores of the words before the softmax of the attention. d is
    a random unit vector, g the gradient of KL(p(. | s) || p(. | s + xi d)) for d, and r = eps g / ||g||. No label is
    needed, so with `unlabelled` the term also uses texts without labels. With `interpretable`, r_t is a sum over the
    other words j of weights times the difference s_t - s_j, scaled to length 1 for each t, and eps is the norm of the
    weights.

    Random: the initial weights, the order of the texts, which of them have labels, d, and dropout.

    Differs from the paper: eps, xi and the weight of the paper were not read. The differences are between the words of
    one text; a gated recurrent network without pretrained vectors.

    Attributes:
        eps: norm of r; 0 is training without the term.
        xi: length of the first step.
        weight: of the term.
        interpretable: r along differences of scores.
        unlabelled: take the term over all texts, not over labelled ones only.
        labelled: share of the training texts whose label is used.
        recipe: how the network is trained.
    """

    trains: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "viper"},)

    eps: Annotated[float, Field(ge=0)] = 1.0
    xi: Positive = 0.1
    weight: Positive = 1.0
    interpretable: bool = False
    unlabelled: bool = True
    labelled: Share = 1.0
    recipe: Recipe = RECIPE

    def wrap(self, model: Classifier) -> Classifier:
        return model.fresh(0)  # the structure; `fit` trains the weights

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        net, seed, texts = attentive(defended), derive_seed(draws.seed, "attention_vat"), data.train
        streams = Draws(derive_seed(seed, "directions"), texts.ids)
        known = Draws(derive_seed(seed, "labels"), texts.ids).uniform() < self.labelled
        renew(defended, seed)
        net.read(texts)
        epoch = 0

        def loss(z: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
            e = net.embedded(x)
            real = net.real(e)
            h = net.states(e, real)
            s = net.scores(h)
            z = answer(net, h, s, real)
            has = known[index].to(z.device)
            value = (F.cross_entropy(z, y, reduction="none") * has).sum() / has.sum().clamp(min=1)
            if self.eps == 0:
                return value
            r = self.worst(net, h.detach(), s.detach(), real, streams[index].at(epoch))
            far = divergence(z.detach(), answer(net, h, s + r, real))
            used = far if self.unlabelled else far[has]
            return value + self.weight * (used.mean() if len(used) else 0.0)

        def count(done: int) -> None:
            nonlocal epoch
            epoch = done + 1

        train(defended, texts, self.recipe, seed, loss=loss, after=count)

    def worst(self, net: AttentiveText, h: Tensor, s: Tensor, real: Tensor, draws: Draws) -> Tensor:
        """r [n, T], of norm eps over the words of each text and zero at padding; along differences if so chosen."""
        z = answer(net, h, s, real).detach()
        if not self.interpretable:
            d = unit(draws.normal((s.shape[1],), purpose="d").to(s) * real)
            return self.eps * unit(self._gradient(net, h, s, real, z, d, None))
        pair = (real[:, :, None] & real[:, None]).to(s)
        difference = F.normalize((s[:, :, None] - s[:, None]) * pair, dim=2, eps=1e-12)
        a = draws.normal((s.shape[1], s.shape[1]), purpose="d").to(s) * pair
        a = unit(a.flatten(1)).view_as(a)
        g = self._gradient(net, h, s, real, z, a, difference)
        weights = unit(g.flatten(1)).view_as(g)
        return self.eps * (weights * difference).sum(dim=2)

    def _gradient(
        self, net: AttentiveText, h: Tensor, s: Tensor, real: Tensor, z: Tensor, d: Tensor, along: Tensor | None
    ) -> Tensor:
        with torch.enable_grad():
            leaf = d.detach().requires_grad_(True)
            step = leaf if along is None else (leaf * along).sum(dim=2)
            far = divergence(z, answer(net, h, s + self.xi * step, real)).sum()
            (g,) = torch.autograd.grad(far, leaf)
        return g


def answer(net: AttentiveText, h: Tensor, s: Tensor, real: Tensor) -> Tensor:
    """Logits from the states h [n, T, d] of the words and their scores s [n, T]."""
    out: Tensor = net.head((net.weigh(s, real)[:, :, None] * h).sum(dim=1))
    return out


def unit(d: Tensor) -> Tensor:
    """Rows [n, k] of length 1; zero rows stay."""
    return F.normalize(d, dim=1, eps=1e-30)


def divergence(z: Tensor, moved: Tensor) -> Tensor:
    """KL(softmax(z) || softmax(moved)) of each text, [n]."""
    a, b = z.log_softmax(dim=1), moved.log_softmax(dim=1)
    return (a.exp() * (a - b)).sum(dim=1)
