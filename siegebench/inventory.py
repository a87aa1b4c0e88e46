"""Inventory: resolves, loads or builds everything that a suite names, once, and reports errors with their position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import torch

from siegebench import registry
from siegebench.cells import digest, images_key
from siegebench.data import IMAGE, ImageSet, limited, split_clean, subset
from siegebench.errors import ConfigError, DataError, ModelError, SiegeError
from siegebench.inputs import checked
from siegebench.kinds import kind_of
from siegebench.types import Attack, BackdoorAttack, DataSource, Entry, ModelSource, Poisoning
from siegebench.yamlmarks import Document, Loc

E = TypeVar("E", bound=Entry)
E_co = TypeVar("E_co", bound=Entry, covariant=True)


@dataclass(frozen=True)
class Named(Generic[E_co]):
    """An entry that a suite names, resolved once.

    Attributes:
        spec: the entry as the suite gives it, a mapping with `name`.
        description: name, version and all parameters; part of a key.
        entry: the built entry.
        where: position in the document.
    """

    spec: dict[str, Any]
    description: dict[str, Any]
    entry: E_co
    where: Loc

    @property
    def name(self) -> str:
        return str(self.description["name"])


@dataclass(frozen=True)
class NamedModel:
    """A network of a suite.

    Attributes:
        description: part of a key; includes the `identity` of its source.
        trained: whether it is trained here, so that results depend on the training images.
    """

    description: dict[str, Any]
    trained: bool

    def seeded(self, seed: int) -> dict[str, Any]:
        """Its description with this training seed."""
        return {**self.description, "train_seed": seed}

    def as_trained(self, seed: int = 0) -> dict[str, Any]:
        """Its description, with this training seed if it is trained."""
        return self.seeded(seed) if self.trained else self.description

    def under_defense(self, seed: int) -> dict[str, Any]:
        """The same beside a defense: another seed than 0 is told also if only the defense is trained with it."""
        return self.seeded(seed) if seed else self.as_trained()


@dataclass(frozen=True)
class NamedData:
    """The evaluated slice of a data set: its images, and its description."""

    images: ImageSet
    description: dict[str, Any]


@dataclass
class Inventory:
    """The entries, data and models of a suite.

    Attributes:
        document: the suite's document, for the positions of errors.
        given: description of a model passed from Python, which replaces the suite's models.
        data: images passed from Python, which replace the suite's data.
        specs: spec of each description, by digest; folders and files are part of a spec but not of a key.
        costs: cost of each attack, by the digest of its description.
    """

    document: Document
    given: dict[str, Any] | None = None
    data: NamedData | None = None
    specs: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    _names: dict[Any, Any] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict)

    def of(self, given: dict[str, Any] | None, data: NamedData | None = None) -> Inventory:
        """The same inventory for a model and images passed from Python; nothing is loaded or built yet."""
        return replace(self, given=given, data=data, _known={})

    @contextmanager
    def blame(self, where: Loc) -> Iterator[None]:
        """Prefix errors raised inside with `file:line:col`."""
        try:
            yield
        except SiegeError as error:
            if not getattr(error, "blamed", False):
                position = self.document.where((*where, *getattr(error, "loc", ())))
                error.args = (f"{position}: {' '.join(str(error).split())}",)
                error.blamed = True  # type: ignore[attr-defined]
            raise

    def _once(self, key: Any, make: Any) -> Any:
        return _made(self._known, key, make)

    def resolve(self, kind: type[E], spec: Any, where: Loc) -> Named[E]:
        """The entry of a name and its parameters.

        Raises:
            ConfigError: unknown name, parameter or value; the message begins with the position.
        """

        def make() -> Named[E]:
            entry = registry.build(kind, spec)
            description = registry.description_of(kind_of(kind).name, entry)
            self.specs[digest(description)] = registry.normal(spec)
            if isinstance(entry, Attack):
                self.costs[digest(description)] = entry.cost()
            return Named(registry.normal(spec), description, entry, where)

        with self.blame(where):
            found = _made(self._names, (kind, digest(registry.normal(spec))), make)
        return cast("Named[E]", found)

    def identified(self, named: Named[Any]) -> dict[str, Any]:
        """The description of an entry, including the hashes of the files it reads.

        Raises:
            DataError, ModelError: when they are missing.
        """
        with self.blame(named.where):
            described = {**named.description, **named.entry.identity()}
        self.specs[digest(described)] = named.spec
        if (cost := self.costs.get(digest(named.description))) is not None:
            self.costs[digest(described)] = cost
        return described

    def scan(self, source: Named[DataSource], split: str, where: Loc) -> ImageSet:
        """A split; its images may be read later.

        Raises:
            DataError: when it is missing.
        """

        def make() -> ImageSet:
            with _as(DataError, f"dataset {source.name!r} cannot be loaded"):
                return source.entry.scan(split)

        with self.blame(where):
            found: ImageSet = self._once(("scan", digest([source.spec, split])), make)
        return found

    def load(self, source: Named[DataSource], split: str, count: int | None, where: Loc) -> ImageSet:
        """Images of a data set; `count` of them, or all.

        Raises:
            DataError: when they are missing, corrupt or too few.
        """

        whole = self.scan(source, split, where)

        def make() -> ImageSet:
            with _as(DataError, f"dataset {source.name!r} cannot be loaded"):
                return subset(whole, count)

        with self.blame(where if count is None else (*where[:-1], "count")):
            images: ImageSet = self._once(("images", digest([source.spec, split, count])), make)
        return images

    def described(
        self, source: Named[DataSource], split: str, images: ImageSet, train: int | None = None
    ) -> dict[str, Any]:
        """The description of images of a split, part of a key; `train` limits the training images."""
        description = {
            "name": source.name,
            "source": source.description,
            "split": split,
            "count": len(images),
            "digest": images.digest,
            "classes": images.num_classes,
        }
        if images.kind.name != IMAGE.name:
            description["kind"] = images.kind.name
        if train is not None:
            description["train"] = train
        self.specs[images_key(description)] = source.spec
        return description

    def digest(self, source: Named[DataSource], split: str, where: Loc, count: int | None = None) -> str:
        """The digest of a split, or of `count` of its images, read piece by piece; they are not kept in memory.

        Raises:
            DataError: when it is missing or corrupt.
        """
        whole = self.scan(source, split, where)
        with self.blame(where), _as(DataError, f"dataset {source.name!r} cannot be loaded"):
            part: ImageSet = self._once(("part", digest([source.spec, split, count])), lambda: limited(whole, count))
            return part.digest

    def network(self, model: Named[ModelSource], data: NamedData) -> NamedModel:
        """A network, built once to check that its weights exist, are valid, and fit the data, and tried on two images.

        Raises:
            ModelError: when they are not.
        """
        form = (data.images.num_classes, data.images.shape)

        def make() -> NamedModel:
            with _as(ModelError, f"model {model.name!r} cannot be built"):
                built = model.entry.build_for(data.images).eval()
                with torch.no_grad():
                    checked(built, data.images.pixels(slice(0, 2)))
            return NamedModel(self.identified(model), trained=not model.entry.pretrained())

        with self.blame(model.where):
            found = self._once(("network", digest([model.spec, *form])), make)
        return cast("NamedModel", found)

    def check_poison(
        self, backdoor: Named[Poisoning], source: Named[DataSource], where: Loc, train: int | None = None
    ) -> None:
        """Refuse labels that are no classes, and rates too high for the training set."""

        def make() -> None:
            images = limited(self.scan(source, "train", where), train)
            try:
                if isinstance(backdoor.entry, BackdoorAttack):
                    backdoor.entry.eligible(split_clean(images)[0])
                else:
                    backdoor.entry.check(images.num_classes)
            except SiegeError as error:
                raise ConfigError(str(error)) from None

        with self.blame(backdoor.where):
            self._once(("poison", digest([backdoor.spec, source.spec, train])), make)


def _made(known: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    if key not in known:
        known[key] = make()
    return known[key]


@contextmanager
def _as(kind: type[SiegeError], what: str) -> Iterator[None]:
    """Convert any exception of a loader to one of our errors, with the original as its cause."""
    try:
        yield
    except SiegeError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error
