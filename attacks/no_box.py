"""NoBox: attacks auto-encoders trained on a few images, without any access to a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Access, ThreatModel
from siegebench.train import Augment, augmented
from siegebench.types import Attack, Count, Lesson, Positive

from ._autoencoder import AutoEncoder, arranged, fresh, slope


@dataclass(frozen=True, eq=False)
class _Surrogate:
    """An auto-encoder of some classes.

    Attributes:
        net: the trained auto-encoder.
        prototypes: p_kc, [classes, decoders, C, h, w].
        images: the attacker's images, [classes, per_class, C, H, W].
        first: first class; the classes are consecutive.
    """

    net: AutoEncoder
    prototypes: Tensor
    images: Tensor
    first: int


@dataclass(frozen=True, kw_only=True)
class NoBox(Attack):
    """Without queries, networks or the training set: an auto-encoder g = d_k(e(x)) trained on a few images.

    Li, Guo, Chen, "Practical no-box adversarial attacks against DNNs", NeurIPS 2020, arXiv 2012.02525.
        train        min ||d_k(e(x)) - t||^2; t is, for each decoder k, one image p_kc of the class c of x
                     (`prototypical`), or x itself, where e gets a rotated (`rotation`) or rearranged (`jigsaw`) copy
        CE stage     x_ce maximises the cross-entropy of the logits -||d_k(e(x')) - p_kc||^2 over the classes c,
                     averaged over k, within ce_eps; without prototypes p_c is an image of class c, and p_y = x
        ILA stage    x' maximises <e(x') - e(x), v> within eps, v the unit vector of e(x_ce) - e(x)
    Distances are means over pixels. Steps are sign steps.

    Random: which images the attacker owns, prototypes, weights, order and augmentation; for each sample, the images of
    other classes. The oracle is not queried.

    Differs from the paper: its attacker owns the 20 images that are attacked. Here the attacker owns other images, from
    the training split, so that the outcome of one image does not depend on the others. Its sets have two classes; here
    one auto-encoder may serve more (`together`). Its unsupervised methods pair each image with one of the other class;
    here with a random image of each other class. Images are randomly cropped instead of mirrored, and used in turn
    instead of sampled (in the authors' code the unsupervised methods use all of them in each step). They are rotated or
    rearranged anew in each epoch (in the authors' code the changes add up). Prototypes are downsampled by averaging.
    Width and steps are for small images; `paper` has the authors' numbers for `prototypical` (rotation: 2000 steps,
    jigsaw: 5000).

    Attributes:
        method: training task of the auto-encoder.
        per_class: images of each class that the attacker owns; a class with fewer images repeats them.
        together: number of classes per auto-encoder.
        decoders: number of decoders for `prototypical`; the other methods have one.
        width: channels of the first convolution; the features have four times as many.
        epochs: passes over the images; a batch has one image of each class.
        lr: learning rate of Adam.
        augment: augmentation of the training images.
        ce_eps, steps: budget and number of steps of the CE stage.
        ila_steps: number of steps of the ILA stage.
        step: step size, for pixels in [0, 1].
    """

    needs: ClassVar[Access] = "none"
    restricted: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    method: Literal["prototypical", "rotation", "jigsaw"] = "prototypical"
    per_class: Count = 10
    together: Count = 10
    decoders: Count = 10
    width: Count = 16
    epochs: Count = 50
    lr: Positive = 1e-3
    augment: Augment = "crop"
    ce_eps: Positive = 0.3
    steps: Count = 100
    ila_steps: Count = 50
    step: Positive = 1 / 255

    def learn(self, oracle: Oracle, data: ImageSet, threat: ThreatModel, draws: Draws) -> tuple[_Surrogate, ...]:
        """Train the auto-encoders."""
        own = self._owned(data, draws)
        sets = torch.arange(data.num_classes).tensor_split(max(1, data.num_classes // self.together))
        return tuple(self._trained(data, own[c], int(c[0]), draws) for c in sets)

    def run(
        self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws, lesson: Lesson = None
    ) -> Tensor:
        surrogates: tuple[_Surrogate, ...] = lesson
        x_adv = x.clone()
        for one in surrogates:
            known = (y >= one.first) & (y < one.first + len(one.images))
            mine = known.nonzero().squeeze(1)
            if len(mine):
                x_adv[mine] = self._attack(one, x[mine], y[mine] - one.first, threat, draws[mine])
        return x_adv

    def _owned(self, data: ImageSet, draws: Draws) -> Tensor:
        """Indices into the data of the attacker's images, int64 [classes, per_class]."""
        order = draws.order("the attacker's images").cpu()
        own = []
        for c in range(data.num_classes):
            members = order[data.labels[order] == c]
            if not len(members):
                raise NotApplicable(f"no_box: {data.name} has no image of class {c}")
            own.append(members[torch.arange(self.per_class) % len(members)])
        return torch.stack(own)

    def _trained(self, data: ImageSet, own: Tensor, first: int, draws: Draws) -> _Surrogate:
        classes, m = own.shape
        draws = draws[own.flatten().to(draws.ids.device)]
        x = data.pixels(own.flatten()).to(draws.ids.device)
        label = torch.arange(classes, device=x.device)
        decoders = self.decoders if self.method == "prototypical" else 1
        seed = derive_seed(draws.seed, "no_box", first)
        net = fresh(lambda: AutoEncoder(self.width, decoders, x.shape[1]), seed).to(x.device)
        shape = net.eval()(x[:1]).shape[-2:]

        # decoder k < m uses the k-th image of each class, further decoders a random image of each class
        k = torch.arange(decoders, device=x.device)
        which = torch.where(k < m, k, draws[::m].integers(m, (decoders,), purpose="prototype"))
        p = F.adaptive_avg_pool2d(x[label[:, None] * m + which].flatten(0, 1), shape).unflatten(0, (classes, decoders))

        adam = torch.optim.Adam(net.train().parameters(), self.lr)
        for epoch in range(self.epochs):
            target = seen = augmented(x, self.augment, draws, epoch)
            if self.method != "prototypical":
                seen = arranged(seen, self.method, draws.integers(4, (), epoch, "arrangement"))
                target = F.adaptive_avg_pool2d(target, shape)[:, None]
            order = draws.uniform((), epoch, "order").view(classes, m).argsort(dim=1)
            for batch in (order + label[:, None] * m).T:
                t = p if self.method == "prototypical" else target[batch]
                loss = F.mse_loss(net(seen[batch]), t)
                adam.zero_grad(set_to_none=True)
                loss.backward()
                adam.step()
        return _Surrogate(net.eval().requires_grad_(False), p, x.unflatten(0, (classes, m)), first)

    def _attack(self, one: _Surrogate, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        return self.along(one.net.to(x), x, self.guide(one, x, y, draws), threat)

    def guide(self, one: _Surrogate, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """The CE stage: x_ce, decoded as images of other classes; y is relative to the first class of the surrogate."""
        net, p = one.net.to(x), self._references(one, x, y, draws)

        def confusion(x_ce: Tensor) -> Tensor:
            distance = (net(x_ce)[:, None] - p).square().mean(dim=(3, 4, 5))  # [n, classes, decoders]
            label = y[:, None].expand(-1, distance.shape[2])
            return F.cross_entropy(-distance, label, reduction="none").mean(dim=1)

        x_ce = x
        for _ in range(self.steps):
            x_ce = ops.project(x_ce + self.step * slope(confusion, x_ce).sign(), x, "linf", self.ce_eps)
        return x_ce

    def along(self, net: AutoEncoder, x: Tensor, x_ce: Tensor, threat: ThreatModel) -> Tensor:
        """The ILA stage: move e(x') as far as possible from e(x) in the direction of e(x_ce)."""
        with torch.no_grad():
            v = ops.normalise(net.encode(x_ce) - net.encode(x), "l2")
        x_adv = x
        for _ in range(self.ila_steps):
            g = slope(lambda leaf: ops.flat(net.encode(leaf) * v).sum(dim=1), x_adv)
            x_adv = threat.project(x_adv + self.step * g.sign(), x)
        return x_adv

    def _references(self, one: _Surrogate, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Target images of the decoders for each class, [1 or n, classes, decoders, C, h, w]."""
        if self.method == "prototypical":
            return one.prototypes.to(x)[None]
        classes, m = one.images.shape[:2]
        which = draws.integers(m, (classes,), purpose="rival")
        p = one.images.to(x)[torch.arange(classes, device=x.device), which]
        p[torch.arange(len(x), device=x.device), y] = x
        height, width = one.prototypes.shape[-2:]
        return F.adaptive_avg_pool2d(p.flatten(0, 1), (height, width)).unflatten(0, (-1, classes))[:, :, None]
