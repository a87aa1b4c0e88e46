"""BoardSpec: the specification of one board in a suite. Each track derives its cells and measurement from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from siegebench import registry
from siegebench.data import Kind
from siegebench.errors import shortened
from siegebench.inventory import Inventory, Named, NamedData, NamedModel
from siegebench.kinds import KINDS
from siegebench.metrics import SEVERITIES
from siegebench.threat import Access, Norm, Rule, ThreatModel, parse_number, parse_target
from siegebench.train import check_augment
from siegebench.types import Attack, DataSource, Defense, ModelSource, Poisoning, Probe
from siegebench.yamlmarks import Loc

if TYPE_CHECKING:
    from siegebench.cells import Cell, Result
    from siegebench.workspace import Workspace

Spec = str | dict[str, Any]
Specs = Annotated[list[Spec], Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
Budget = Annotated[int, Field(ge=1, strict=True)]
Severity = Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1], strict=True)]  # of a corruption
INHERITED = ("data", "models", "seeds")  # a suite may set them once for all its boards


class Strict(BaseModel):
    """An immutable model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImagesSpec(Strict):
    """Images: dataset, split, and count (class-stratified, chosen by their ids; default: all)."""

    set: Spec
    split: Annotated[str, Field(min_length=1)] = "test"
    count: Budget | None = None


class DataSpec(ImagesSpec):
    """The evaluated images; the data set knows its splits.

    Attributes:
        train: how many images of the split `train` may be used for training and fitting (class-stratified, chosen by
            their ids; default: all). Of these, some are held out as the clean budget.
    """

    train: Budget | None = None


def _text_and_number(value: Any) -> Any:
    parse_number(value)
    return value if isinstance(value, str) else float(value)


class ThreatSpec(Strict):
    """An Lp ball; eps is a number or a fraction such as 8/255. With a target, attacks are targeted."""

    norm: Norm
    eps: Annotated[str | float, BeforeValidator(_text_and_number)]
    target: Annotated[Rule | int | None, BeforeValidator(parse_target)] = None

    def model(self, access: Access, queries: int | None) -> ThreatModel:
        ball = {"norm": self.norm, "eps": self.eps, "target": self.target}
        return ThreatModel.parse({**ball, "access": access, "queries": queries})


class BoardSpec(Strict):
    """One board of a suite.

    Class attributes:
        slots: the kind of entry in each list.
        late: boards with a larger number are computed later.
        takes_model: whether a model passed from Python can be evaluated on it.
    """

    track: str
    data: DataSpec | None = None
    models: Specs | None = None
    seeds: Seeds | None = None
    slots: ClassVar[dict[str, str]] = {"models": "model"}
    late: ClassVar[int] = 0
    takes_model: ClassVar[bool] = False
    _where: Loc = PrivateAttr(())  # position in the document
    _from_suite: frozenset[str] = PrivateAttr(frozenset())

    def filled(self, suite: Any, where: Loc) -> Self:
        """The board with the defaults of its suite filled in.

        Args:
            suite: object with `data`, `models` and `seeds`.
            where: position of the board in the document.
        """
        missing = {name: getattr(suite, name) for name in INHERITED if getattr(self, name) is None}
        board = self.model_copy(update=missing)
        board._where, board._from_suite = where, frozenset(missing)
        return board

    def where(self, slot: str, *rest: Any) -> Loc:
        """Position of a value in the document: on the board, or at the top for defaults of the suite."""
        return (*(() if slot in self._from_suite else self._where), slot, *rest)

    def named(self, inventory: Inventory, slot: str) -> list[Named[Any]]:
        """The resolved entries of a list."""
        kind = KINDS[self.slots[slot]].base_class()
        specs = getattr(self, slot) or ()
        return [inventory.resolve(kind, spec, self.where(slot, i)) for i, spec in enumerate(specs)]

    def fitting(self, inventory: Inventory, slot: str, kind: str) -> list[Named[Any]]:
        """The entries of a list that are run on this kind of data; a board may leave out some of its defaults."""
        return self.named(inventory, slot)

    def check(self, inventory: Inventory) -> None:
        """Refuse unknown names, invalid parameters and invalid combinations.

        Raises:
            ConfigError: the message begins with the position.
        """
        for name in ("data", "models"):
            if getattr(self, name) is None:
                raise inventory.document.error(
                    self._where, f"this {self.track} board has no {name}, and neither has the suite"
                )
        self.source(inventory)
        for slot in self.slots:
            self.named(inventory, slot)
            specs = getattr(self, slot) or ()
            refuse_repeats(inventory, specs, self.where(slot), map(registry.normal, specs))
        refuse_repeats(inventory, self.seeds or (), self.where("seeds"))
        for defense in self.named(inventory, "defenses") if "defenses" in self.slots else ():
            entry: Defense = defense.entry
            if not entry.ranked_in(self.track):
                raise inventory.document.error(
                    defense.where,
                    f"defense {defense.name!r} is for {', '.join(entry.tracks)}, not for the {self.track} track",
                )

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        """The cells of the board."""
        raise NotImplementedError

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        """The row of a cell of this track."""
        raise NotImplementedError

    def check_poison(self, inventory: Inventory, poison: Named[Poisoning]) -> None:
        """Refuse a poison that the training set does not allow, before anything is trained."""
        limit = None if self.data is None else self.data.train
        inventory.check_poison(poison, self.source(inventory), self.where("data", "set"), limit)

    # ------------------------------------------------------------------------------------------ shared by the tracks

    def source(self, inventory: Inventory) -> Named[DataSource]:
        """The data set."""
        assert self.data is not None
        return inventory.resolve(DataSource, self.data.set, self.where("data", "set"))

    def images(self, inventory: Inventory) -> NamedData:
        """The evaluated slice."""
        if inventory.data is not None:
            self.check_takes(inventory, inventory.data.images.kind)
            return inventory.data
        assert self.data is not None
        source, spec = self.source(inventory), self.data
        where = self.where("data", "set")
        kind = inventory.scan(source, spec.split, where).kind
        self.check_takes(inventory, kind)
        images = inventory.load(source, spec.split, spec.count, where)
        if images.num_classes < 2:
            raise inventory.document.error(where, f"{source.name} has one class; a classifier needs two or more")
        return NamedData(images, inventory.described(source, spec.split, images, spec.train))

    def check_takes(self, inventory: Inventory, kind: Kind) -> None:
        """Refuse entries that do not take this kind of data; a model passed from Python is checked later."""
        for slot in self.slots:
            if slot == "models" and inventory.given is not None:
                continue
            for named in self.fitting(inventory, slot, kind.name):
                with inventory.blame(named.where):
                    registry.check_takes(named.entry, kind.name)
                    check_augment(named.entry, kind)
                    for spec in named.entry.adaptive if isinstance(named.entry, Defense) else ():
                        registry.check_takes(inventory.resolve(Attack, spec, named.where).entry, kind.name)

    def used(self, inventory: Inventory, data: NamedData, trains: bool = True) -> dict[str, Any]:
        """The data that a result depends on, including the training images if something is trained on them."""
        if not trains:
            return data.description
        if inventory.data is not None:
            raise inventory.document.error(*self._training(inventory))
        assert self.data is not None
        where = self.where("data", "set" if self.data.train is None else "train")
        digest = inventory.digest(self.source(inventory), "train", where, self.data.train)
        return {**data.description, "train_digest": digest}

    def _training(self, inventory: Inventory) -> tuple[Loc, str]:
        """(position, message) for what needs training images when there are none."""
        why = "needs training images, and images passed from Python have none: leave it out, or evaluate on a dataset"
        for slot in self.slots:
            for named in self.named(inventory, slot) if slot != "models" else ():
                entry = named.entry
                if getattr(entry, "trains", False) or (isinstance(entry, Probe) and entry.learning()):
                    return named.where, f"{self.slots[slot]} {named.name!r} {why}"
        return self._where, f"this {self.track} board {why}"

    def networks(self, inventory: Inventory, data: NamedData, slot: str = "models") -> list[NamedModel]:
        """The networks of a list, or the model passed from Python."""
        if inventory.given is not None and slot == "models":
            return [NamedModel(inventory.given, trained=False)]
        models: list[Named[ModelSource]] = self.named(inventory, slot)
        return [inventory.network(model, data) for model in models]


def refuse_repeats(inventory: Inventory, items: Sequence[Any], where: Loc, values: Iterable[Any] | None = None) -> None:
    """Refuse a list with duplicates.

    Args:
        values: values to compare instead of the items.

    Raises:
        ConfigError: begins with the position.
    """
    seen: list[Any] = []
    for i, (item, value) in enumerate(zip(items, items if values is None else values, strict=True)):
        if value in seen:
            raise inventory.document.error((*where, i), f"{shortened(item)} appears twice")
        seen.append(value)
