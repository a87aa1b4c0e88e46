"""Making the copy of a theft: what the thief gets, the counted queries, and the copy as an artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import artifacts, registry, sources
from siegebench.cells import Cell
from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.tracks.detection_inputs import fitted
from siegebench.train import Recipe, train
from siegebench.types import Attacker, Theft
from siegebench.workspace import Workspace

WEIGHTS = "copy."  # before the names of the weights in the artifact of a copy


@dataclass(frozen=True)
class Asked:
    """What the victim answered.

    Attributes:
        queries: number of queries.
        answers: how often each class was the top-1 answer, int64 [classes].
        flips: how many of the answers have another top-1 class than the undefended network.
    """

    queries: Tensor
    answers: Tensor
    flips: Tensor


class WatchedOracle(Oracle):
    """An oracle that also records its answers, and how many differ from those of the undefended network.

    Args:
        undefended: the victim without its defense.
    """

    def __init__(self, model: Classifier, undefended: Classifier, threat: ThreatModel, draws: Draws) -> None:
        super().__init__(model, threat, draws)
        self.undefended: Classifier
        object.__setattr__(self, "undefended", undefended)  # as the model: not a submodule
        self.asked = Asked(*(torch.zeros(n, dtype=torch.long) for n in (1, model.num_classes, 1)))

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, rows = super()._pass(x)
        top = z.detach().argmax(dim=1).cpu()
        draws = Draws(self.draws.seed, self.draws.ids[rows]) if self.undefended.randomized else None
        with torch.no_grad():
            plain = self._in_parts(self.undefended, x, draws).argmax(dim=1).cpu()
        self.asked.queries.add_(len(x))
        self.asked.answers.add_(top.bincount(minlength=self.num_classes))
        self.asked.flips.add_(int((top != plain).sum()))
        return z, rows


def student(
    blank: Callable[[int], Classifier], recipe: Recipe, x: Tensor, answers: Tensor, seed: int, augment: bool
) -> Classifier:
    """A network that is trained on answers, with the soft cross-entropy -sum_k answer_k log softmax(z)_k.

    Args:
        blank: an untrained network of a seed.
        x: images [n, C, H, W]; they are rounded to what can be stored.
        answers: distributions over the classes [n, classes].
        augment: whether images are augmented as the recipe says.
    """
    model = blank(seed)
    weights = next(model.parameters())
    wanted = answers.to(weights.device, weights.dtype)
    stored = model.kind.store(x.cpu())
    labels = wanted.argmax(dim=1).cpu()
    data = ImageSet(stored, labels, torch.arange(len(stored)), model.num_classes, "answers", kind=model.kind)

    def loss(z: Tensor, y: Tensor, seen: Tensor, index: Tensor) -> Tensor:
        return -(wanted[index.to(wanted.device)] * F.log_softmax(z, dim=1)).sum(dim=1).mean()

    train(model, data, recipe if augment else replace(recipe, augment="none"), seed, loss=loss)
    return model


def pool_of(cell: Cell, ws: Workspace) -> ImageSet | None:
    """The images that the thief uses as queries, in the form of the evaluated images, with their true labels."""
    if cell.pool is None:
        return None
    pool, data = ws.evaluated(cell.pool), ws.evaluated(cell.data)

    def make() -> ImageSet:
        x = data.kind.store(fitted(pool.pixels(), data.shape))
        return replace(pool, source=x, kind=data.kind)

    found: ImageSet = ws.remember(("pool", cell.pool["digest"], data.shape), make)
    return found


def copy_of(cell: Cell, ws: Workspace, victim: Classifier, undefended: Classifier) -> tuple[Classifier, Asked]:
    """(the copy of a cell, what the victim answered for it); stored as an artifact."""
    theft = ws.entry(Theft, cell.theft)
    if not theft.trains:
        return _stolen(cell, ws, theft, victim, undefended)
    threat, asks = cell.threat or {}, theft.access() != "none"
    what: dict[str, Any] = {
        "kind": "copy", "theft": cell.theft, "pool": cell.pool if theft.pooled else None, "copy": cell.copy,
        "data": [cell.data["source"], cell.data.get("train_digest"), cell.data.get("train"), cell.data["classes"]],
        "queries": threat["queries"], "seed": cell.seed,
        "model": cell.model if asks or cell.copy is None else None,
        "victim": [artifacts.fingerprint(victim), cell.defense, threat["access"]] if asks else None,
    }  # fmt: skip
    if not asks and not theft.pooled:
        what["queries"] = None  # the same for every budget

    def make() -> dict[str, Tensor]:
        model, asked = _stolen(cell, ws, theft, victim, undefended)
        weights = {f"{WEIGHTS}{k}": v for k, v in model.to("cpu", torch.float32).state_dict().items()}
        return {**weights, **vars(asked)}

    made_by = sources.of_slots({s: getattr(cell, s) for s in ("model", "defense", "theft", "copy")})
    tensors = artifacts.made(ws.store, what, lambda: ws.timed(make), made_by)
    model = blank_of(cell, ws)[0](cell.seed)
    model.load_state_dict({k.removeprefix(WEIGHTS): v for k, v in tensors.items() if k.startswith(WEIGHTS)})
    return model.to(ws.device, ws.dtype).eval(), Asked(*(tensors[k] for k in ("queries", "answers", "flips")))


def _stolen(
    cell: Cell, ws: Workspace, theft: Theft, victim: Classifier, undefended: Classifier
) -> tuple[Classifier, Asked]:
    threat = cell.threat or {}
    budget = int(threat["queries"])
    draws = Draws(derive_seed(cell.seed, "theft"), torch.arange(budget))
    # one query a slot: the oracle refuses a second, so that the number of slots is the budget
    granted = ThreatModel(access="none" if theft.access() == "none" else threat["access"], queries=1)
    oracle = WatchedOracle(victim, undefended, granted, draws.to(ws.device))
    copy = theft(oracle, _attacker(cell, ws, theft), draws)
    return copy, oracle.asked


def _attacker(cell: Cell, ws: Workspace, theft: Theft) -> Attacker:
    found, _ = registry.find("theft", (cell.theft or {})["name"])
    pool = pool_of(cell, ws) if theft.pooled else None
    if pool is not None and not theft.labelled:
        pool = replace(pool, labels=torch.zeros_like(pool.labels), groups=None)
    own = Granted(
        found.name, found.card.sees,
        clean=lambda: ws.splits(cell.data)[1], val=lambda: ws.splits(cell.data)[2],
    )  # fmt: skip
    blank, recipe = blank_of(cell, ws)
    return Attacker(
        ws.evaluated(cell.data).shape, pool, own, blank,
        lambda x, answers, seed, augment: student(blank, recipe, x, answers, seed, augment),
    )  # fmt: skip


def blank_of(cell: Cell, ws: Workspace) -> tuple[Callable[[int], Classifier], Recipe]:
    """(untrained networks of the copy's architecture, by seed; how they are trained)"""
    source = ws.source(cell.model if cell.copy is None else cell.copy)
    built = source.build_for(ws.evaluated(cell.data))
    recipe: Recipe = getattr(source, "recipe", None) or Recipe()
    return lambda seed: built.fresh(derive_seed(seed, "copy")).to(ws.device, ws.dtype), recipe
