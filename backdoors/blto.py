"""BLTO: a trigger that is optimised through a simulated contrastive training, so that it works in the real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier, frozen
from siegebench.contrastive import Head, Method, head_of, pair, views
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.types import BackdoorAttack, Count, Material, Positive, Share

from .input_aware import Generator

PART = 512  # images that the generator changes at a time


@dataclass(frozen=True, kw_only=True)
class BLTO(BackdoorAttack):
    """x' = clip(x + eps g(x)), with a generator g that is trained in alternation with a surrogate encoder f.

    Sun, Zhang, Lu, Chen, Wang, Chen, Lin, "Backdoor Contrastive Learning via Bi-level Trigger Optimization", ICLR 2024,
    arXiv 2404.07863.

        outer    max_g  E cos(f(t1(x')), f(t2(r))),   x any image, r an image of the target class, t1 and t2 views
        inner    f = argmin of the contrastive loss on the training set whose poisoned images are x'

    A round is `inner` steps on f and then `outer` steps on g. f starts anew every `renew` rounds, so that g does not
    rely on one surrogate. Images of the target class are poisoned, and labels are not changed: a victim that is trained
    without labels learns that x' resembles the target class.

    Random: which images are poisoned, the weights of f and g, the batches, the images r, and the views.

    Cost: `rounds` times (inner + 2 outer) passes on batches through a network of the victim's architecture.

    Differs from the paper: its full text and its code were not available. The numbers of rounds and steps, the bound
    and the architecture of g are ours; f is compared after the projection that its training uses.

    Attributes:
        rate: fraction of the whole training set; at most the fraction that the target class has.
        eps: largest change of a pixel.
        method: how the surrogate is trained; SimSiam in the paper.
        rounds, inner, outer, renew: N, K, J, and after how many rounds a surrogate is replaced.
        batch: images of a step.
        lr, surrogate_lr: of Adam for g and for f.
        width: channels of the first layer of g.
        flip: whether views are mirrored; not for digits and signs.
    """

    clean_label: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    rate: Share = 0.01
    eps: Positive = 16 / 255
    method: Method = "simsiam"
    rounds: Count = 40
    inner: Count = 5
    outer: Count = 5
    renew: Count = 20
    batch: Count = 64
    lr: Positive = 1e-3
    surrogate_lr: Positive = 1e-3
    width: Count = 16
    flip: bool = False

    def quick(self) -> Self:
        return replace(self, rounds=2, inner=1, outer=1, batch=16, width=4)

    def learn(self, data: ImageSet, seed: int, surrogate: Classifier) -> Material:
        device = next(surrogate.parameters()).device
        g = self._generator(data.shape[0], derive_seed(seed, "generator")).to(device)
        psi, reached = torch.optim.Adam(g.parameters(), self.lr), torch.zeros(self.rounds)
        poisoned = torch.zeros(len(data), dtype=torch.bool)
        poisoned[self.chosen(data, seed)[0]] = True
        targets = (self.poisoned_label(data.labels, data.num_classes) >= 0).nonzero().squeeze(1)
        inside, outside = (self._batches(data, derive_seed(seed, which)) for which in ("inner", "outer"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "network noise"))  # dropout draws from the global generator
            for n in range(self.rounds):
                if n % self.renew == 0:
                    f = surrogate.fresh(derive_seed(seed, "surrogate", n)).to(device)
                    head = head_of(f, self.method, derive_seed(seed, "head", n))
                    both = nn.ModuleList([f, head]).train()
                    theta = torch.optim.Adam([p for p in both.parameters() if p.requires_grad], self.surrogate_lr)
                for at, draws in islice(inside, self.inner):
                    x, hit = data.pixels(at).to(device), poisoned[at].to(device)
                    x[hit] = self.changed(g, x[hit]).detach()
                    x = pair(x, draws, flip=self.flip)
                    _descend(theta, head.loss(f.features(x), x))
                with frozen(both):
                    for at, draws in islice(outside, self.outer):
                        r = data.pixels(targets[draws.integers(len(targets), purpose="r")]).to(device)
                        x = self.changed(g, data.pixels(at).to(device))
                        a, b = (self._seen(f, head, v, draws.child(which)) for v, which in ((x, "x"), (r, "r")))
                        similarity = F.cosine_similarity(a, b).mean()
                        _descend(psi, -similarity)
                reached[n] = similarity.detach()
        return {"similarity": reached, **{f"g.{k}": v.detach().cpu() for k, v in g.state_dict().items()}}

    def _seen(self, f: Classifier, head: Head, x: Tensor, draws: Draws) -> Tensor:
        """The projections of a view of each image, [n, d]."""
        out: Tensor = head.projection(f.features(views(x, draws, flip=self.flip)))
        return out

    def _batches(self, data: ImageSet, seed: int) -> Iterator[tuple[Tensor, Draws]]:
        """Batches of indices without end, with the streams of their images; every image once, then every one again."""
        for epoch in count():
            draws = Draws(seed, data.ids)
            for at in draws.order(f"epoch {epoch}").split(self.batch):
                yield at, draws[at].at(epoch)

    def changed(self, g: nn.Module, x: Tensor) -> Tensor:
        """x' [n, C, H, W] in [0, 1], at most eps from x."""
        return (x + self.eps * (2 * g(x) - 1)).clamp(0, 1)

    def _generator(self, channels: int, seed: int = 0) -> Generator:
        with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
            torch.manual_seed(seed)
            return Generator(channels, channels, self.width)

    def trigger(self, x: Tensor, draws: Draws, material: Material | None = None) -> Tensor:
        assert material is not None
        g = self._generator(x.shape[1])
        g.load_state_dict({k.removeprefix("g."): v for k, v in material.items() if k.startswith("g.")})
        g.to(x.device, x.dtype)
        with torch.no_grad():
            return torch.cat([self.changed(g, part) for part in x.split(PART)])


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
