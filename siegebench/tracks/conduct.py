"""Whether a victim's answer depends on the image alone: not on its neighbours, earlier images, or hidden noise.

It is also checked whether a pass computes gradients itself. The robust accuracy of a model that behaves differently
says nothing about one image in use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor

from siegebench import state
from siegebench.cells import Cell, Flag, digest
from siegebench.classifier import Classifier
from siegebench.clipping import Unclipped
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.inputs import Restored
from siegebench.workspace import Workspace

TRIED = 16  # clean images
CALLS = 24  # passes of other images before the answers are compared
APART = 0.01  # difference of two answers to one image, relative to the largest logit, that is not rounding
HALF = 0.05  # the same for a network in half precision


def conduct_flags(ws: Workspace, cell: Cell, victim: Classifier, data: ImageSet) -> list[Flag]:
    """Flags of any victim, from its answers to the first images of the slice; found once for each victim."""

    def make() -> list[Flag]:
        rows = torch.arange(min(TRIED, len(data)))
        draws = Draws(derive_seed(cell.seed, "conduct"), data.ids[rows]).to(ws.device)
        return examined(victim, ws.pixels(data, rows), draws)

    found: list[Flag] = ws.remember(
        ("conduct", digest([cell.model, cell.defense, cell.certifier, cell.backdoor]), cell.data["digest"]), make
    )
    return found


@torch.no_grad()
def examined(victim: Classifier, x: Tensor, draws: Draws) -> list[Flag]:
    """Flags of a classifier, from its answers to some images x [n, ...]; its state is restored."""
    bare = victim
    while isinstance(bare, (Restored, Unclipped)):  # as it is, without the wrappers of an evaluation
        bare = bare.inner

    def answer(rows: Tensor, model: Classifier = victim) -> Tensor:
        return model(x[rows].clone(), draws[rows] if model.randomized else None)

    with _generator_kept():
        before = torch.get_rng_state()
        every = torch.arange(len(x), device=x.device)
        z = answer(every)
        again = answer(every)
        drawn = not torch.equal(torch.get_rng_state(), before)
        optimises = _optimises(lambda: answer(every[:1]))
        apart = _apart(victim, z)
        if apart(again, z):
            return [_noise(z, again)]
        return [
            *_batch(answer, z, apart),
            *_history(bare, lambda rows: answer(rows, bare), z, apart),
            *([Flag("global_generator", "flag", GENERATOR)] if drawn else []),
            *([Flag("gradient_in_forward", "flag", OPTIMISES)] if optimises else []),
        ]


GENERATOR = (
    "a pass uses or seeds the global random generator of torch, which other code draws from; take noise from draws"
)


OPTIMISES = (
    "a pass computes gradients itself, as a defense does that optimises at inference: attack it through these steps, "
    "with at least as many of them as it makes"
)


def _optimises(once: Callable[[], Tensor]) -> bool:
    """Whether a pass calls autograd, as AutoAttack's check for dynamic defenses (Croce & Hein, ICML 2020) asks."""
    called = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}
    seen = False

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        seen = seen or (event == "call" and frame.f_code in called)

    def watched() -> None:
        sys.setprofile(look)
        with torch.no_grad():
            once()

    with ThreadPoolExecutor(1) as thread:  # of its own, because this thread may have a profiler already
        thread.submit(watched).result()
    return seen


def _apart(victim: Classifier, z: Tensor) -> Callable[[Tensor, Tensor], bool]:
    half = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in victim.parameters())
    close = (HALF if half else APART) * float(z.abs().max())
    return lambda a, b: not float((a - b).abs().max()) <= close


def _changed(a: Tensor, b: Tensor) -> str:
    labels = int((a.argmax(dim=1) != b.argmax(dim=1)).sum())
    far = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
    return f"logits differ by up to {100 * far:.2g} % of the largest, {labels} of {len(a)} labels change"


def _noise(z: Tensor, again: Tensor) -> Flag:
    told = f"two passes on the same images differ although all known noise is the same: {_changed(again, z)}"
    return Flag("randomness_undeclared", "fail", told)


def _batch(answer: Callable[[Tensor], Tensor], z: Tensor, apart: Callable[[Tensor, Tensor], bool]) -> list[Flag]:
    """Answers to images alone, in reverse order, and in other company must be the same."""
    n = len(z)
    every = torch.arange(n, device=z.device)
    company = {
        "alone": (every[:4], torch.cat([answer(every[i : i + 1]) for i in range(min(4, n))])),
        "in reverse order": (every, answer(every.flip(0)).flip(0)),
        "in another batch": (every[: n // 2], answer(every[: n // 2])),
        "beside copies of one image": (every[:1], answer(torch.zeros_like(every))[:1]),
    }
    for how, (rows, found) in company.items():
        if len(rows) and apart(found, z[rows]):
            told = f"an image gets another answer {how}: {_changed(found, z[rows])}"
            return [Flag("batch_dependent", "fail", told)]
    return []


def _history(
    model: Classifier, answer: Callable[[Tensor], Tensor], z: Tensor, apart: Callable[[Tensor, Tensor], bool]
) -> list[Flag]:
    """A pass must leave nothing behind that later passes could use: neither in their answers nor in the state."""
    every = torch.arange(len(z), device=z.device)
    first, last = every[: max(1, len(z) // 2)], every[-1:]
    with state.kept(model):
        answer(last)
        once = state.summary(model)
    with state.kept(model):
        answer(first)
        answer(last)
        left = state.changes(once, state.summary(model))
        for _ in range(CALLS):
            answer(first)
        later = answer(every)
    if apart(later, z):
        told = f"after {CALLS + 2} other passes the answers differ: {_changed(later, z)}"
        return [Flag("stateful", "fail", f"{told}. Its state is put back after each pass here")]
    if not left:
        return []
    names = ", ".join(sorted(left)[:3])
    told = f"passes leave traces ({names}) by which a later pass can tell that there were others"
    return [Flag("stateful", "flag", f"{told}. Its state is put back after each pass here")]


@contextmanager
def _generator_kept() -> Iterator[None]:
    """Put the global random generator of torch back."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)
