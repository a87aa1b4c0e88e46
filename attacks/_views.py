"""Other views of a defended model, whose gradients may help where its own do not: parts, logarithms, smoothed inputs.

A view is a Classifier made of the victim. It is found in the running model, not declared: a part is any module inside
the victim that maps images to one number for each class, such as the network that a wrapper defends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops, state
from siegebench.classifier import Classifier, Wrapped, copied
from siegebench.draws import Draws

LIKE = 0.5  # a part sees images if a line through their pixels explains this fraction of the variance of its input
MOST = 4  # parts that are used: the outermost two and the innermost two
PROBABILITY = 1e-4  # tolerance for outputs that are probabilities
Before = Literal["exact", "identity", "absent"]  # what stands before a part: with its gradient, without, or left out


@dataclass(frozen=True, eq=False)
class Part:
    """A module inside a model that maps images to logits.

    Attributes:
        name: for the row: its class.
        module: the module.
        scale, shift: its input is nearly scale * image + shift, a number for each channel.
        size: height and width of its input.
        copies: images of its input for each image.
        same: whether its outputs are those of the model.
    """

    name: str
    module: nn.Module
    scale: Tensor
    shift: Tensor
    size: tuple[int, int]
    copies: int
    same: bool

    def seen(self, x: Tensor) -> Tensor:
        """What the part would get if nothing but scaling stood before it."""
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.scale.to(x) * x + self.shift.to(x)

    def logits(self, out: Tensor, x: Tensor) -> Tensor:
        """One row for each image."""
        return (out if len(out) == len(x) else out.view(self.copies, len(x), -1).mean(dim=0)).to(x.dtype)


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module computes something else, however it is called: with hooks or without."""
    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")


@torch.no_grad()
def parts(model: Classifier, x: Tensor, draws: Draws) -> list[Part]:
    """The parts of a model, outermost first, found in one pass of the images x [n, C, H, W]."""
    found: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}

    def watch(module: nn.Module) -> Any:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = inner(*args, **kwargs)
            given = args[0] if args else None
            if not isinstance(given, Tensor) or not isinstance(out, Tensor):
                return out
            images = given.dim() == 4 and given.is_floating_point() and len(given) % len(x) == 0
            if images and out.shape == (len(given), model.num_classes):
                found.setdefault(id(module), (module, given.detach().clone(), out.detach().clone()))
            return out

        return forward

    inside = [m for m in state.reachable(model) if m is not model and not isinstance(m, torch.jit.ScriptModule)]
    inside = [m for m in inside if "forward" not in vars(m)]
    with ExitStack() as stack:
        for module in inside:
            stack.enter_context(_replaced(module, watch(module)))
        z = model(x, draws if model.randomized else None)
    order = {id(m): i for i, m in enumerate(inside)}
    out = [_part(*found[i], x, z) for i in sorted(found, key=lambda i: order[i])]
    usable = [p for p in out if p is not None]
    return usable if len(usable) <= MOST else [*usable[: MOST // 2], *usable[-MOST // 2 :]]


def _part(module: nn.Module, given: Tensor, logits: Tensor, x: Tensor, z: Tensor) -> Part | None:
    """The part, with the line from images to its input fitted by least squares; None if it sees something else."""
    if given.shape[1] != x.shape[1] or not bool(torch.isfinite(logits).all()):
        return None
    copies, size = len(given) // len(x), (given.shape[2], given.shape[3])
    u = given.double().view(copies, len(x), *given.shape[1:]).mean(dim=0) if copies > 1 else given.double()
    v = x.double() if x.shape[-2:] == size else F.interpolate(x.double(), size, mode="bilinear", antialias=True)
    u, v = (t.transpose(0, 1).flatten(1) for t in (u, v))  # [C, n H W]
    du, dv = u - u.mean(dim=1, keepdim=True), v - v.mean(dim=1, keepdim=True)
    scale = (du * dv).sum(dim=1) / dv.square().sum(dim=1).clamp(min=1e-12)
    error = (du - scale[:, None] * dv).square().sum()
    if not bool(error <= (1 - LIKE) * du.square().sum().clamp(min=1e-12)):
        return None
    shift = u.mean(dim=1) - scale * v.mean(dim=1)
    scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
    same = copies == 1 and bool((logits - z).abs().max() <= 1e-5 * logits.abs().max())
    return Part(type(module).__name__, module, scale, shift, size, copies, same)


class Through(Wrapped):
    """The logits of a part, as logits of the model.

    Args:
        before: what precedes the part: as in the model, with the identity as its gradient (BPDA), or left out.
        values: return the outputs of the model, with the gradients of the part's logits.
    """

    def __init__(self, victim: Classifier, part: Part, before: Before, values: bool = False) -> None:
        super().__init__(victim)
        self.part, self.before, self.values = part, before, values

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        part = self.part
        if self.before == "absent":
            u = part.seen(x)
            weight = next(part.module.parameters(), None)
            u = u if weight is None or not weight.is_floating_point() else u.to(weight.dtype)
            more = (draws,) if isinstance(part.module, Classifier) else ()
            with state.kept(part.module):  # not inside the wrapper that would do it
                return part.logits(part.module(u, *more), x)
        seen: list[Tensor] = []
        inner, wanted = part.module.forward, torch.is_grad_enabled()

        def forward(u: Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch.set_grad_enabled(wanted):  # also where the model switches gradients off
                if self.before == "identity":
                    image = part.seen(x).to(u.dtype)
                    u = u.detach() + (image - image.detach())
                z = inner(u, *args, **kwargs)
            seen.append(z)
            return z

        with _replaced(part.module, forward):
            out: Tensor = self.inner(x, draws)
        z = torch.stack([part.logits(s, x) for s in seen]).mean(dim=0)
        return out.detach() + (z - z.detach()) if self.values else z


class Logarithm(Wrapped):
    """The logarithm of outputs that are probabilities, computed in float64, where they do not saturate so soon."""

    def __init__(self, victim: Classifier) -> None:
        super().__init__(victim)
        self.exact = copied(victim).double()

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        p = self.exact(x.double(), draws)
        return p.clamp(min=torch.finfo(p.dtype).tiny).log().to(x.dtype)


def is_probability(z: Tensor) -> bool:
    """Whether outputs [n, classes] are positive and sum to one, up to rounding to steps."""
    return bool((z >= -PROBABILITY).all() and ((z.sum(dim=1) - 1).abs() < 0.1).all())


def alike(g: Tensor, other: Tensor) -> bool:
    """Whether two gradients [n, ...] point the same way for every image."""
    cosine = F.cosine_similarity(ops.flat(g).double(), ops.flat(other).double(), dim=1)
    return bool((cosine > 0.9999).all())
