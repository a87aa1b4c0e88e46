"""Planted fakes: defenses that hide gradients and protect nothing, each in a few lines.

Some take the network apart in wrappers, as defenses of the catalogue do; some are one plain module, as users bring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws


class Fake(Wrapped):
    """A defended model that declares nothing."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.answer(x)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.answer(x)

    def answer(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Probabilities(Fake):
    """Saturated probabilities: a softmax of large logits."""

    def answer(self, x: Tensor) -> Tensor:
        return (100 * self.inner(x)).softmax(dim=1)


class Steps(Fake):
    """Probabilities rounded to steps of 1/100."""

    def answer(self, x: Tensor) -> Tensor:
        return (100 * self.inner(x).softmax(dim=1)).round() / 100


class Detached(Fake):
    """The input is detached; a term of no effect keeps the graph whole."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.detach()) + 1e-6 * x.flatten(1).mean(dim=1, keepdim=True)
        return logits


class NoGrad(Fake):
    """The network runs without gradients."""

    def answer(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.inner(x)
        return logits


class HighFrequency(Fake):
    """A distortion of 0.004 that changes sign many times within the ball: its gradient swamps that of the network."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.004 * torch.sin(5000 * x))
        return logits


class Quantised(Fake):
    """Sixteen grey levels."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 15).round() / 15)
        return logits


class Noise(Fake):
    """Noise of the global generator, which is not declared."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.02 * torch.randn_like(x))
        return logits


class Reseeded(Fake):
    """The same noise at every call: an image gets other noise at another place in the batch."""

    def answer(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        logits: Tensor = self.inner(x + 0.03 * torch.randn_like(x))
        return logits


class Neighbours(Fake):
    """Subtracts a part of the mean image of the batch."""

    def answer(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=0)
        logits: Tensor = self.inner(x - 0.3 * (mean - mean.mean()))
        return logits


class Counter(Fake):
    """Honest for five calls, then every second call has another sign of the gradient."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.calls = 0

    def answer(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.inner(x)
        return logits if self.calls <= 5 else 2 * logits.detach() - logits


class Memory(Fake):
    """Answers an image that is near a remembered one as it answered that one."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.known: list[tuple[Tensor, Tensor]] = []

    def answer(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        for image, logits in self.known[-64:]:
            near = (x.detach() - image).abs().amax(dim=(1, 2, 3)) < 0.1
            z = torch.where(near[:, None], logits, z)
        self.known += list(zip(x.detach().clone(), z.detach(), strict=True))
        return z


class NaNGradients(Fake):
    """A square root at zero: its gradient is infinite, times zero."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) + (0 * x).flatten(1).sum(dim=1, keepdim=True).abs().sqrt()
        return logits


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Reversed(Fake):
    """A function of its own, whose gradient has the other sign."""

    def answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(_Turned.apply(x))
        return logits


class Hooked(Fake):
    """A hook that sets the gradient to zero."""

    def answer(self, x: Tensor) -> Tensor:
        seen = x.clone()
        if seen.requires_grad:
            seen.register_hook(torch.zeros_like)
        logits: Tensor = self.inner(seen)
        return logits


class Refined(Fake):
    """Steps of its own that raise the largest logit, before it answers: it optimises at inference."""

    def answer(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self.inner(leaf).amax(dim=1).sum(), leaf)
        logits: Tensor = self.inner(x + 0.01 * g.sign())
        return logits


class Plain(nn.Module):
    """One plain module around a network, in a list where modules() does not find it."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden, self.change = [net], change

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.hidden[0](self.change(x))
        return logits


FAKES: dict[str, Callable[[Classifier], Classifier]] = {
    "probabilities": Probabilities,
    "steps": Steps,
    "detached": Detached,
    "no_grad": NoGrad,
    "high_frequency": HighFrequency,
    "quantised": Quantised,
    "noise": Noise,
    "reseeded": Reseeded,
    "neighbours": Neighbours,
    "counter": Counter,
    "memory": Memory,
    "nan_gradients": NaNGradients,
    "refined": Refined,
    "reversed": Reversed,
    "hooked": Hooked,
}
