"""The extraction track: copies of a victim behind a counted oracle, and how often they agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Flag, Result, digest, pack, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, content_ids, derive_seed
from siegebench.errors import ContractError
from siegebench.inputs import restored
from siegebench.inventory import Inventory, Named, NamedData
from siegebench.oracle import Oracle
from siegebench.prepare import in_batches, prepare
from siegebench.registry import find
from siegebench.threat import ThreatModel
from siegebench.tracks.base import BoardSpec, Budget, ImagesSpec, Spec, Specs, ThreatSpec, refuse_repeats
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.conventions import convention_flags
from siegebench.tracks.judging import fresh_passes, majority, right
from siegebench.tracks.thieving import Asked, copy_of, pool_of
from siegebench.types import Attack, DataSource, Defense, ModelSource, Theft
from siegebench.workspace import Workspace

CHANGED = 0.01  # largest share of decisions, and of clean accuracy, that a ranked defense may cost
FAR_MORE = 0.05  # by which flips on the asked images exceed those on real ones before a flag is raised
CONSTANT = 2  # classes that a copy predicts, at most, to be called constant


class ExtractionBoard(BoardSpec):
    """Agreement of a copy with its victim: model x defense x theft x budget.

    Attributes:
        thefts: thefts and controls; a defense is ranked only if those that are required were run.
        pool: images that the thief uses as queries, resized to those of the victim; null if it has none.
        network: the network that the thief trains, `copy` in a suite; null for the victim's architecture.
        access: what the victim returns, scores or labels.
        queries: budgets, in all for one copy.
        attack: run on the copy, to see whether adversarial images transfer to the victim.
        threats: the balls of that attack.
    """

    track: Literal["extraction"]
    thefts: Specs
    defenses: Specs = Field(default=["none"])
    pool: ImagesSpec | None = None
    network: Spec | None = Field(default=None, alias="copy")
    access: Literal["score", "label"] = "score"
    queries: Annotated[list[Budget], Field(min_length=1)]
    attack: Spec = Field(default={"name": "pgd", "steps": 10, "early_stop": False})
    threats: Annotated[list[ThreatSpec], Field(min_length=1)]
    slots: ClassVar[dict[str, str]] = {"models": "model", "defenses": "defense", "thefts": "theft"}

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        blame = inventory.document.error
        refuse_repeats(inventory, self.queries, self.where("queries"))
        attack = inventory.resolve(Attack, self.attack, self.where("attack"))
        if attack.entry.learning() or attack.entry.exploring() or attack.entry.access() == "none":
            raise blame(attack.where, f"attack {attack.name!r} does not attack a copy alone; use one such as pgd")
        balls = []
        for j, threat in enumerate(self.threats):
            with inventory.blame((*self.where("threats"), j, "eps")):
                balls.append(threat.model(self.access, None))
        refuse_repeats(inventory, self.threats, self.where("threats"), [(b.norm, b.eps, b.target) for b in balls])
        for j, ball in enumerate(balls):
            if ball.norm not in attack.entry.handles():
                handles = ", ".join(attack.entry.handles())
                raise blame((*self.where("threats"), j), f"attack {attack.name!r} handles {handles}, not {ball.norm}")
            if ball.target is not None:
                raise blame((*self.where("threats"), j, "target"), "transfer is untargeted here: leave the target out")
        if self.network is not None:
            copy = inventory.resolve(ModelSource, self.network, self.where("copy"))
            if copy.entry.pretrained():
                told = f"{copy.name!r} has trained weights, and a thief starts from new ones; leave them out"
                raise blame(copy.where, told)
        for theft in self.named(inventory, "thefts"):
            self._check_theft(inventory, theft)

    def _check_theft(self, inventory: Inventory, theft: Named[Theft]) -> None:
        blame, entry = inventory.document.error, theft.entry
        if not ThreatModel(access=self.access).grants(entry.access()):
            told = f"theft {theft.name!r} needs {entry.access()} access; this extraction board grants {self.access}"
            raise blame(theft.where, told)
        if entry.pooled and self.pool is None:
            raise blame(theft.where, f"theft {theft.name!r} asks about images of a pool; give the board one, `pool:`")
        if entry.labelled and self.pool is not None:
            pool = inventory.resolve(DataSource, self.pool.set, (*self.where("pool"), "set"))
            if pool.description != self.source(inventory).description:
                told = f"theft {theft.name!r} needs a pool of the victim's classes; {pool.name} is another data set"
                raise blame(theft.where, told)
        if entry.images(min(self.queries)) < 1 and entry.pooled:
            raise blame(
                theft.where, f"theft {theft.name!r} cannot ask about one image with {min(self.queries)} queries"
            )

    def images(self, inventory: Inventory) -> NamedData:
        data = super().images(inventory)
        if self.pool is not None:
            pool = self._pool(inventory, data)
            for theft in self.named(inventory, "thefts"):
                needed = theft.entry.images(max(self.queries))
                if needed > len(pool.images):
                    told = f"the pool has {len(pool.images)} images, theft {theft.name!r} asks about {needed}"
                    raise inventory.document.error(self.where("pool"), f"{told}; give more images, or fewer queries")
        return data

    def _pool(self, inventory: Inventory, data: NamedData) -> NamedData:
        """The images that the thieves ask about."""
        assert self.pool is not None
        where = (*self.where("pool"), "set")
        source = inventory.resolve(DataSource, self.pool.set, where)
        images = inventory.load(source, self.pool.split, self.pool.count, where)
        if images.kind.name != data.images.kind.name:
            told = f"{source.name} has inputs of the kind {images.kind.name}, the data of the board"
            raise inventory.document.error(where, f"{told} {data.images.kind.name}")
        if images.digest == data.images.digest:
            raise inventory.document.error(where, "these are the evaluated images; give the thief others")
        pool = NamedData(images, inventory.described(source, self.pool.split, images))
        if _split_of(pool) == _split_of(data):
            both = int(torch.isin(images.ids, data.images.ids).sum())
            if both:
                told = f"{both} of the {len(images)} images of the pool are evaluated too"
                raise inventory.document.error(
                    self.where("pool", "split"), f"{told}; give the thief another split than {self.pool.split!r}"
                )
        return pool

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        pool = None if self.pool is None else self._pool(inventory, data).description
        copy = None
        if self.network is not None:
            named = inventory.resolve(ModelSource, self.network, self.where("copy"))
            copy = inventory.network(named, data).description
        attack = inventory.identified(inventory.resolve(Attack, self.attack, self.where("attack")))
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        thefts: list[Named[Theft]] = self.named(inventory, "thefts")
        for model, defense, theft in product(self.networks(inventory, data), defenses, thefts):
            trained = model.trained or defense.entry.trains
            used = self.used(inventory, data, trained or bool(find("theft", theft.name)[0].card.sees))
            for spec, budget, seed in product(self.threats, sorted(self.queries), self.seeds or ()):
                yield Cell(
                    track=self.track, data=used, model=model.as_trained(),
                    defense=inventory.identified(defense), attack=attack, theft=inventory.identified(theft),
                    pool=pool if theft.entry.pooled else None, copy=copy,
                    threat=spec.model(self.access, budget).describe(), seed=seed,
                )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        """Make the copy, and compare it with the victim on all images of the slice."""
        data, victim = ws.evaluated(cell.data), ws.network(cell)
        undefended = ws.network(replace(cell, defense=None))
        weights = fingerprint(victim)
        made, asked = copy_of(cell, ws, victim, undefended)
        sample = ws.pixels(data, slice(0, 32))
        copy = prepare(restored(made, sample), sample)
        plain = _posteriors(cell, ws, undefended, data, "undefended")
        p = _posteriors(cell, ws, victim, data, "victim")
        q = _posteriors(cell, ws, copy, data, "copy")
        clean, transferred = p.argmax(dim=1) == data.labels, _transferred(cell, ws, victim, copy, data)
        if fingerprint(victim) != weights or any(m.training for m in victim.modules()):
            raise ContractError(f"{cell.title}: the model was changed by the theft")
        result = _row(cell, data, plain, p, q, transferred, asked)
        found = [*_findings(cell, ws, result, q.argmax(dim=1))]
        found += [*convention_flags(ws, cell, victim, data, clean), *conduct_flags(ws, cell, victim, data)]
        result.flags, result.weights = [flag.as_dict() for flag in found], weights
        return result


def _split_of(data: NamedData) -> tuple[Any, Any]:
    return data.description.get("source"), data.description.get("split")


def _posteriors(cell: Cell, ws: Workspace, model: Classifier, data: ImageSet, of: str) -> Tensor:
    """The posteriors of all images, float64 [N, classes] on the CPU; of a randomised model, the mean of its passes."""
    streams = Draws(derive_seed(cell.seed, "agreement"), data.ids)

    def part(at: slice) -> Tensor:
        z = fresh_passes(model, ws.pixels(data, at), streams[at].to(ws.device), of)
        return z.double().softmax(dim=2).mean(dim=0).cpu()

    def make() -> Tensor:
        return torch.cat(in_batches(part, len(data), ws.batch(data.stored)))

    if of == "copy":
        return make()
    what = [cell.model, cell.defense if of == "victim" else None]
    found: Tensor = ws.remember(("posteriors", digest(what), cell.data["digest"], cell.seed), make)
    return found


def _transferred(cell: Cell, ws: Workspace, victim: Classifier, copy: Classifier, data: ImageSet) -> Tensor:
    """Which images the victim classifies correctly after the attack on the copy, bool [N] on the CPU."""
    assert cell.threat is not None
    attack = ws.entry(Attack, cell.attack)
    threat = ThreatModel(**cell.threat).with_access("gradient")
    streams = Draws(derive_seed(cell.seed, "transfer"), data.ids)

    def part(at: slice) -> Tensor:
        x, y, draws = ws.pixels(data, at), data.labels[at].to(ws.device), streams[at].to(ws.device)
        x_adv = attack(Oracle(copy, threat, draws), x, y, threat, draws)
        return majority(right(fresh_passes(victim, x_adv, draws, "transferred"), y)).cpu()

    return torch.cat(in_batches(part, len(data), ws.batch(data.stored)))


def _row(
    cell: Cell, data: ImageSet, plain: Tensor, p: Tensor, q: Tensor, transferred: Tensor, asked: Asked
) -> Result:  # fmt: skip
    """The row of a copy.

    Args:
        plain, p, q: posteriors of the undefended network, the victim and the copy, [N, classes].
    """
    n, y = len(data), data.labels
    agree, clean, copied = p.argmax(1) == q.argmax(1), p.argmax(1) == y, q.argmax(1) == y
    metrics = {
        "agreement": rate(int(agree.sum()), n),
        "clean_acc": rate(int(clean.sum()), n),
        "ca_undefended": rate(int((plain.argmax(1) == y).sum()), n),
        "copy_acc": rate(int(copied.sum()), n),
        "tv": {"value": float((p - q).abs().sum(dim=1).mean()) / 2},
        "flips": rate(int((p.argmax(1) != plain.argmax(1)).sum()), n),
        "answer_l1": {"value": float((p - plain).abs().sum(dim=1).mean())},
    }
    if not clean.all():
        metrics["agreement_wrong"] = rate(int((agree & ~clean).sum()), int((~clean).sum()))
    if clean.any():
        metrics["transfer_robust_acc"] = rate(int((transferred & clean).sum()), int(clean.sum()))
    queries = int(asked.queries)
    if queries:
        metrics["flips_asked"] = rate(int(asked.flips), queries)
        metrics["classes_answered"] = {"value": float((asked.answers > 0).sum())}
    return Result(
        cell=cell,
        metrics=metrics,
        samples={"n": n, "clean": pack(clean), "agree": pack(agree), "copied": pack(copied)},
        counts={"queries": queries},
    )


def _findings(cell: Cell, ws: Workspace, row: Result, predicted: Tensor) -> Iterator[Flag]:
    """Checks of one copy; the leaderboard has those that compare rows."""
    changed, lost = row.value("flips") or 0.0, (row.value("ca_undefended") or 0.0) - (row.value("clean_acc") or 0.0)
    if changed > CHANGED or lost > CHANGED:
        told = f"the defense changes {100 * changed:.1f} % of the decisions on real images"
        told += f" and costs {100 * lost:.1f} points of accuracy; 1 of either is allowed"
        yield Flag("utility_lost", "fail", told)
    asked = row.value("flips_asked")
    if asked is not None and asked > changed + FAR_MORE:
        told = f"the defense changes {100 * asked:.1f} % of the decisions on the asked images"
        yield Flag("out_of_domain_flips", "info", f"{told}, {100 * changed:.1f} % on real ones")
    classes = len(predicted.unique())
    if classes <= CONSTANT:
        yield Flag("constant_copy", "info", f"the copy predicts {classes} of {cell.data['classes']} classes")
    if cell.pool is None:
        return
    if cell.pool["source"] == cell.data["source"]:
        yield Flag("in_domain_pool", "info", f"the pool is of {cell.data['name']}, the data of the victim")
    pool, data = pool_of(cell, ws), ws.evaluated(cell.data)
    assert pool is not None
    equal = int(torch.isin(content_ids(pool.pixels()), content_ids(data.pixels())).sum())
    same = 0
    if cell.pool["source"] == cell.data["source"] and cell.pool["split"] == cell.data["split"]:
        same = 0 if pool.groups is None or data.groups is None else int(torch.isin(pool.groups, data.groups).sum())
    if equal or same:
        told = f"{equal} images of the pool are evaluated too, and {same} are of a group of evaluated images"
        yield Flag("pool_overlap", "fail", f"{told}; give the thief a pool without them")
