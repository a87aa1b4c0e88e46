"""The tracks that attack images: white box, query, transfer and patch. One measurement under four kinds of access."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from siegebench.cells import Cell, Result
from siegebench.errors import ConfigError
from siegebench.inventory import Inventory, Named, NamedData, NamedModel
from siegebench.threat import Access, ThreatModel
from siegebench.tracks.attacking import measure_attack
from siegebench.tracks.base import BoardSpec, Budget, Spec, Specs, ThreatSpec, refuse_repeats
from siegebench.types import Attack, Defense, Measure
from siegebench.workspace import Workspace

SURROGATE_SEED = 1  # the attacker trains networks of his own, also of the victim's architecture


class AttackBoard(BoardSpec):
    """What the tracks that attack images have in common."""

    attacks: Specs
    defenses: Specs = Field(default=["none"])
    threats: Annotated[list[ThreatSpec], Field(min_length=1)]
    slots: ClassVar[dict[str, str]] = {"models": "model", "defenses": "defense", "attacks": "attack"}
    takes_model: ClassVar[bool] = True

    def granted(self) -> Access:
        """What an attack of this board may ask of the model it sees."""
        return "gradient"

    def limit(self) -> int | None:
        """Queries that a sample may cost."""
        return None

    def known(self, defense: Defense) -> tuple[dict[str, Any], ...]:
        """The attacks that know a defense: they run beside the suite's own, and a row without them is not ranked."""
        return defense.adaptive

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
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
                handles, asked = ", ".join(entry.handles()), ", ".join(sorted(norms))
                raise blame(attack.where, f"attack {attack.name!r} handles {handles}; the threats are {asked}")
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
            surrogates: the networks that the attacker sees in its place.
        """
        trained = model.trained or any(s.trained for s in surrogates or ())
        shown = None if surrogates is None else [_member(s, SURROGATE_SEED) for s in surrogates]
        own: list[Named[Attack]] = self.named(inventory, "attacks")
        measures: list[Named[Measure]] = self.named(inventory, "measures") if "measures" in self.slots else []
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        for defense in defenses:
            knowing = [inventory.resolve(Attack, spec, defense.where) for spec in self.known(defense.entry)]
            adaptive = [a.description for a in knowing]
            trains = trained or defense.entry.trains
            extra = [a for a in knowing if a.description not in [o.description for o in own]]
            for threat in (spec.model(self.granted(), self.limit()) for spec in self.threats):
                for seed in self.seeds or ():
                    common: dict[str, Any] = {
                        "track": self.track,
                        "model": _member(model, 0),
                        "defense": defense.description,
                        "threat": threat.describe(),
                        "surrogates": shown,
                        "seed": seed,
                    }
                    for attack in (*own, *extra):
                        entry = attack.entry
                        usable = threat.norm in entry.handles() and threat.grants(entry.access())
                        if usable and (threat.target is None or entry.can_aim()):
                            described, knows = attack.description, attack.description in adaptive
                            used = self.used(inventory, data, trains or entry.learning())
                            yield Cell(**common, data=used, attack=described, adaptive=knows)
                    for measure in measures:
                        used = self.used(inventory, data, trains or measure.entry.learning())
                        yield Cell(**common, data=used, measure=measure.description)

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_attack(cell, ws)


def _member(model: NamedModel, seed: int) -> dict[str, Any]:
    return model.seeded(seed) if model.trained else model.description


class WhiteBoxBoard(AttackBoard):
    """Robust accuracy under attacks that see everything; the adaptive attacks of each defense are added."""

    track: Literal["white_box"]
    measures: list[Spec] = Field(default=["masking"])
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "measures": "measure"}


class QueryBoard(AttackBoard):
    """Robust accuracy under attacks that may only ask, with a budget of queries a sample."""

    track: Literal["query"]
    access: Literal["score", "label"] = "score"
    queries: Budget = 1000

    def granted(self) -> Access:
        return self.access

    def limit(self) -> int | None:
        return self.queries


class TransferBoard(AttackBoard):
    """Robust accuracy under images made on other models: the attacker trains surrogates and never meets the victim."""

    track: Literal["transfer"]
    surrogates: list[Spec]  # none: the attacker has no network at all (no box)
    slots: ClassVar[dict[str, str]] = {**AttackBoard.slots, "surrogates": "model"}

    def granted(self) -> Access:
        return "gradient" if self.surrogates else "none"

    def known(self, defense: Defense) -> tuple[dict[str, Any], ...]:
        return ()  # nobody adapts to a defense that he does not meet

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        surrogates = self.networks(inventory, data, "surrogates")
        for i, model in enumerate(self.networks(inventory, data)):
            if _member(model, 0) in [_member(s, SURROGATE_SEED) for s in surrogates]:
                name = model.description["name"]
                raise inventory.document.error(self.where("models", i), f"model {name!r} is one of the surrogates too")
            yield from self._cells(inventory, data, model, surrogates)


class PatchBoard(AttackBoard):
    """Accuracy under patches, patterns and light: few pixels change, or many by what physics allows, but visibly."""

    track: Literal["patch"]
