"""What the benchmarks share: a victim of the zoo, a clock, a counter of passes, how an attack is run and scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.memory import keep
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.registry import build
from siegebench.threat import TOLERANCE, ThreatModel
from siegebench.types import Attack

ROUNDING = 1e-5  # of L1 norms, which other libraries sum in float32


def number(text: str) -> float:
    """`0.5/255` or `0.002`."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


class Counted(nn.Module):
    """Counts the images that pass forwards and backwards; takes float64 too, which some libraries send."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        z: Tensor = self.model(x.float())
        if z.requires_grad:
            z.register_hook(self._book)  # type: ignore[no-untyped-call]
        return z

    def _book(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Clocked(Wrapped):
    """Adds up the CPU seconds inside the network, forwards and backwards; what a run takes beyond is the attack's."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.inside = 0.0

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self._begin()
        z: Tensor = self.inner(x, draws)
        self._end()
        if z.requires_grad:
            z.register_hook(self._begin)  # type: ignore[no-untyped-call]
            x.register_hook(self._end)  # type: ignore[no-untyped-call]
        return z

    def _begin(self, _grad: Tensor | None = None) -> None:
        self.inside -= time.process_time()

    def _end(self, _grad: Tensor | None = None) -> None:
        self.inside += time.process_time()


@dataclass
class Scene:
    """A network, as it is loaded and as the suite prepares it, and correctly classified images of a test set.

    Attributes:
        total: images that were looked at; those that are wrong from the start are not attacked.
    """

    plain: Classifier
    ready: Classifier
    x: Tensor
    y: Tensor
    total: int

    @classmethod
    def load(cls, model: str, dataset: str, images: int) -> Scene:
        """The first images of the test set."""
        data = build("dataset", dataset).load("test").select(torch.arange(images))  # type: ignore[attr-defined]
        built = build("model", model).build(  # type: ignore[attr-defined]
            num_classes=data.num_classes, size=data.size
        )
        plain = built.eval().requires_grad_(False)
        return cls.of(plain, data.pixels(), data.labels)

    @classmethod
    def of(cls, plain: Classifier, x: Tensor, y: Tensor) -> Scene:
        keep()  # as every cell does; other libraries gain by it too
        ready = prepare(plain, x[:8])
        with torch.no_grad():
            right = (plain(x).argmax(dim=1) == y).nonzero().squeeze(1)
        return cls(plain, ready, x[right], y[right], len(x))

    def first(self, n: int) -> Scene:
        """A smaller one, for what is slow."""
        return replace(self, x=self.x[:n], y=self.y[:n], total=min(n, len(self.x)))

    @torch.no_grad()
    def broken(self, x_adv: Tensor, judge: Classifier | None = None) -> Tensor:
        """Wrong at a fresh pass of the plain network, bool [n]."""
        return (judge or self.plain)(x_adv.float()).argmax(dim=1) != self.y

    def score(
        self, x_adv: Tensor, threat: ThreatModel, judge: Classifier | None = None
    ) -> tuple[dict[str, Any], Tensor]:
        """(robust accuracy within eps, in percent of all images, and the median distance, None where half were not
        found; which images are broken, bool [n])"""
        far = threat.size(x_adv, self.x)
        wrong = self.broken(x_adv, judge)
        slack = ROUNDING if threat.norm == "l1" else TOLERANCE
        hit = wrong & (far <= threat.eps + slack * max(1.0, threat.eps))
        distance = torch.where(wrong, far, torch.inf)
        median = float(distance.median())
        return {
            "robust": 100 * (len(self.x) - int(hit.sum())) / self.total,
            "median": median if median < float("inf") else None,
            "found": float(wrong.double().mean()),
        }, hit


@dataclass
class Cost:
    """Seconds of one run, and the passes an image."""

    wall: float
    cpu: float
    forwards: float = 0.0
    backwards: float = 0.0


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, Cost]:
    """(result, its cost): CPU seconds are those of this process, and tell more than wall time on a busy machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = run()
    return out, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def run_ours(spec: Any, scene: Scene, threat: ThreatModel, seed: int = 0) -> tuple[Tensor, Cost]:
    """One of our attacks on the prepared network."""
    attack = build("attack", spec)
    assert isinstance(attack, Attack)
    draws = Draws(seed, torch.arange(len(scene.x)))
    oracle = Oracle(scene.ready, threat, draws)
    x_adv, cost = timed(lambda: attack(oracle, scene.x, scene.y, threat, draws))
    ledger, n = oracle.ledger, len(scene.x)
    cost.forwards, cost.backwards = int(ledger.forwards.sum()) / n, int(ledger.backwards.sum()) / n
    return x_adv, cost


def pass_times(model: Classifier, x: Tensor, repeats: int = 7) -> tuple[float, float]:
    """Best measured seconds an image of (a forward, the backward after one), over several batch sizes."""
    best_forward = best_both = float("inf")
    for size in sorted({s for s in (16, 32, 64, 128, 256) if s <= len(x)} | {len(x)}):
        part = x[:size]
        for _ in range(repeats):
            clock = time.process_time()
            with torch.no_grad():
                model(part)
            best_forward = min(best_forward, (time.process_time() - clock) / size)
            leaf = part.clone().requires_grad_(True)
            clock = time.process_time()
            z = model(leaf)
            torch.autograd.grad(z.logsumexp(dim=1).sum(), leaf)
            best_both = min(best_both, (time.process_time() - clock) / size)
    return best_forward, best_both - best_forward
