"""The tracks that attack images: white box, query, transfer and patch. They share one measurement."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from siegebench import registry
from siegebench.cells import Cell, Result
from siegebench.errors import ConfigError
from siegebench.inventory import Inventory, Named, NamedData, NamedModel
from siegebench.threat import Access, ThreatModel
from siegebench.tracks.attacking import measure_attack
from siegebench.tracks.base import BoardSpec, Budget, Seeds, Spec, Specs, ThreatSpec, refuse_repeats
from siegebench.types import Attack, Defense, Measure
from siegebench.workspace import Workspace

SURROGATE_SEED = 1  # the smallest training seed of surrogates; a victim of the same architecture must have another


class AttackBoard(BoardSpec):
    """Base class of the boards that attack images.

    Attributes:
        train_seeds: networks and defenses that train are made once with each of these; each is a line of its own.
    """

    attacks: Specs
    defenses: Specs = Field(default=["none"])
    threats: Annotated[list[ThreatSpec], Field(min_length=1)]
    train_seeds: Seeds = Field(default=[0])
    slots: ClassVar[dict[str, str]] = {"models": "model", "defenses": "defense", "attacks": "attack"}
    takes_model: ClassVar[bool] = True

    def granted(self) -> Access:
        """The access that this board gives to attacks."""
        return "gradient"

    def limit(self) -> int | None:
        """Largest number of queries per sample; None without a limit."""
        return None

    @property
    def surrogate_seed(self) -> int:
        """The training seed of surrogates, which no victim of the board has."""
        return next(seed for seed in itertools.count(SURROGATE_SEED) if seed not in self.train_seeds)

    def known(self, defense: Named[Defense]) -> tuple[Spec, ...]:
        """The attacks that know a defense, run on it in addition to those of the suite."""
        return defense.entry.adaptive

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        refuse_repeats(inventory, self.train_seeds, self.where("train_seeds"))
        access, where, blame = self.granted(), self.where("threats"), inventory.document.error
        balls: list[tuple[Any, ...]] = []
        for j, threat in enumerate(self.threats):
            try:
                ball = threat.model(access, None)
            except ConfigError as error:
                raise blame((*where, j, "eps"), str(error)) from None
            balls.append((ball.norm, ball.eps, ball.target))
        refuse_repeats(inventory, [f"{t.norm} {t.eps}" for t in self.threats], where, balls)
        norms, handled = {t.norm for t in self.threats}, set[str]()
        aims = next((f"target {t.target}" for t in self.threats if t.target is not None), "")
        for attack in self.named(inventory, "attacks"):
            entry: Attack = attack.entry
            if not ThreatModel(access=access).grants(entry.access()):
                needs = f"attack {attack.name!r} needs {entry.access()} access"
                raise blame(attack.where, f"{needs}; this {self.track} board grants {access}")
            if aims and not entry.can_aim():
                raise blame(attack.where, f"attack {attack.name!r} cannot aim at a class; a threat has {aims}")
            usable = norms & set(entry.handles())
            if not usable:
                handles, wanted = ", ".join(entry.handles()), ", ".join(sorted(norms))
                raise blame(attack.where, f"attack {attack.name!r} handles {handles}; the threats are {wanted}")
            handled |= usable
        for j, threat in enumerate(self.threats):
            if threat.norm not in handled:
                raise blame((*where, j), f"no attack of this board handles {threat.norm}")

    def images(self, inventory: Inventory) -> NamedData:
        data = super().images(inventory)
        classes = data.images.num_classes
        for j, threat in enumerate(self.threats):
            if isinstance(threat.target, int) and threat.target >= classes:
                message = f"class {threat.target} does not exist, the dataset has 0..{classes - 1}"
                raise inventory.document.error((*self.where("threats"), j, "target"), message)
        for attack in self.named(inventory, "attacks"):
            for ball in (spec.model(self.granted(), self.limit()) for spec in self.threats):
                if ball.norm not in attack.entry.handles():
                    continue
                with inventory.blame(attack.where):
                    reason = attack.entry.refusal(ball, data.images)
                if reason:
                    raise inventory.document.error(attack.where, f"attack {attack.name!r}: {reason}")
        return data

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        for model in self.networks(inventory, data):
            yield from self._cells(inventory, data, model, None)

    def _cells(
        self, inventory: Inventory, data: NamedData, model: NamedModel, surrogates: list[NamedModel] | None
    ) -> Iterator[Cell]:
        """The cells of one model.

        Args:
            surrogates: the networks that the attacker uses in its place.
        """
        trained = model.trained or any(s.trained for s in surrogates or ())
        shown = None if surrogates is None else [s.as_trained(self.surrogate_seed) for s in surrogates]
        own: list[Named[Attack]] = self.named(inventory, "attacks")
        kind = data.images.kind.name
        measures: list[Named[Measure]] = self.fitting(inventory, "measures", kind) if "measures" in self.slots else []
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        for defense in defenses:
            defended = inventory.identified(defense)
            knowing = [inventory.resolve(Attack, spec, defense.where) for spec in self.known(defense)]
            knowing = [a for a in knowing if takes(a, kind)]
            adaptive = [a.description for a in knowing]
            trains = trained or defense.entry.trains
            extra = [a for a in knowing if a.description not in [o.description for o in own]]
            for threat in (spec.model(self.granted(), self.limit()) for spec in self.threats):
                # what is not trained is the same for every training seed
                made_with = self.train_seeds if model.trained or defense.entry.trains else [0]
                for training, seed in product(made_with, self.seeds or ()):
                    common: dict[str, Any] = {
                        "track": self.track,
                        "model": model.under_defense(training),
                        "defense": defended,
                        "threat": threat.describe(),
                        "surrogates": shown,
                        "seed": seed,
                    }
                    for attack in (*own, *extra):
                        entry = attack.entry
                        usable = threat.norm in entry.handles() and threat.grants(entry.access())
                        if usable and (threat.target is None or entry.can_aim()):
                            identified, knows = inventory.identified(attack), attack.description in adaptive
                            used = self.used(inventory, data, trains or entry.learning())
                            yield Cell(**common, data=used, attack=identified, adaptive=knows)
                    for measure in measures:
                        used = self.used(inventory, data, trains or measure.entry.learning())
                        yield Cell(**common, data=used, measure=measure.description)

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_attack(cell, ws)


def takes(named: Named[Any], kind: str) -> bool:
    """Whether an entry takes a kind of data."""
    try:
        registry.check_takes(named.entry, kind)
    except ConfigError:
        return False
    return True


class WhiteBoxBoard(AttackBoard):
    """Robust accuracy under white-box attacks, including the adaptive attacks of each defense.

    Attributes:
        measures: `masking` if left out, on the kinds of data that it takes.
        search: the attack that adapts to a victim by itself, run on every defended entry; `none` leaves it out, which
            the page shows.
    """

    track: Literal["white_box"]
    measures: list[Spec] = Field(default=["masking"])
    search: Spec = "adaptive_search"
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "measures": "measure"}

    def fitting(self, inventory: Inventory, slot: str, kind: str) -> list[Named[Any]]:
        found = super().fitting(inventory, slot, kind)
        if slot == "measures" and slot not in self.model_fields_set:
            return [named for named in found if takes(named, kind)]
        return found

    def known(self, defense: Named[Defense]) -> tuple[Spec, ...]:
        searched = () if self.search == "none" or defense.name == "none" else (self.search,)
        return (*defense.entry.adaptive, *searched)

    def check(self, inventory: Inventory) -> None:
        if self.search != "none":
            found = inventory.resolve(Attack, self.search, self.where("search"))
            if "adaptive" not in registry.traits("attack", found.name):
                able = ", ".join(registry.with_trait("attack", "adaptive"))
                told = f"{found.name!r} does not adapt by itself; one of {able}, or none"
                raise inventory.document.error(self.where("search"), told)
        super().check(inventory)


class QueryBoard(AttackBoard):
    """Robust accuracy under query attacks, with a budget of queries per sample."""

    track: Literal["query"]
    access: Literal["score", "label"] = "score"
    queries: Budget = 1000

    def granted(self) -> Access:
        return self.access

    def limit(self) -> int | None:
        return self.queries


class TransferBoard(AttackBoard):
    """Robust accuracy under transfer attacks: images are optimised on surrogates, without access to the victim."""

    track: Literal["transfer"]
    surrogates: list[Spec]  # empty: the attacker has no network (no box)
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "surrogates": "model"}

    def granted(self) -> Access:
        return "gradient" if self.surrogates else "none"

    def known(self, defense: Named[Defense]) -> tuple[Spec, ...]:
        return ()  # the attacker has no access to the defense

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        surrogates = self.networks(inventory, data, "surrogates")
        for i, model in enumerate(self.networks(inventory, data)):
            if model.as_trained() in [s.as_trained(self.surrogate_seed) for s in surrogates]:
                name = model.description["name"]
                raise inventory.document.error(self.where("models", i), f"model {name!r} is one of the surrogates too")
            yield from self._cells(inventory, data, model, surrogates)


class PatchBoard(AttackBoard):
    """Robust accuracy under visible physical attacks: patches, patterns and light."""

    track: Literal["patch"]
