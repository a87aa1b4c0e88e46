"""Workspace: datasets, trained models and defenses that the cells of one process share."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from siegebench import artifacts, registry, sources
from siegebench.cells import Cell, digest, images_key, untrained
from siegebench.classifier import Classifier, Ensemble, M, copied
from siegebench.data import Granted, ImageSet, limited, split_clean, subset
from siegebench.draws import Draws, derive_seed
from siegebench.environment import device
from siegebench.errors import ConfigError, ContractError, DataError, ModelError, NotApplicable
from siegebench.inputs import PROBES, check_answers, restored
from siegebench.prepare import at_once, prepare
from siegebench.rows import Rows
from siegebench.settings import TOGETHER
from siegebench.settings import Settings as Settings
from siegebench.store import Store
from siegebench.types import (
    Certifier,
    DataSource,
    Defense,
    Entry,
    InputDetector,
    Material,
    ModelSource,
    ObjectDetectorSource,
    Poisoned,
    Poisoning,
    TrainedDetector,
)  # fmt: skip
from siegebench.types.detectors import Score

E = TypeVar("E", bound=Entry)
T = TypeVar("T")
EVERY = slice(None)
KEPT, NOTES = 6, 64  # victims and small results in memory


class Workspace:
    """The store of one process, with caches of data and models."""

    def __init__(self, settings: Settings, given: dict[str, Classifier] | None = None) -> None:
        """`given` has classifiers passed from Python, by the digest of their description."""
        self.settings, self.given = settings, given or {}
        self.held: dict[str, ImageSet] = {}  # images passed from Python, by their digest
        self.store = Store(settings.root)
        self.device = device(settings.device)
        if settings.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype {settings.dtype!r}: float32 or float64")
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.training = 0.0  # seconds spent on training so far
        self._entries: dict[tuple[type, str], Any] = {}
        self._sets: dict[str, ImageSet] = {}
        self._splits: dict[str, tuple[ImageSet, ImageSet, ImageSet]] = {}
        self._models: OrderedDict[Hashable, Any] = OrderedDict()
        self._notes: OrderedDict[Hashable, Any] = OrderedDict()

    def entry(self, kind: type[E], description: dict[str, Any] | None) -> E:
        """The entry of a description, with its folders and files on this machine; built once."""
        key = (kind, digest(description))
        if key not in self._entries:
            spec = self.settings.specs.get(key[1])
            self._entries[key] = (
                registry.build(kind, spec) if spec is not None else registry.rebuild(kind, description or {})
            )
        found: E = self._entries[key]
        return found

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Cache a small result that several cells use, such as clean predictions."""
        return _kept(self._notes, NOTES, key, make)

    # ------------------------------------------------------------------------------------------------------------ data

    def dataset(self, data: dict[str, Any]) -> DataSource:
        spec = self.settings.specs.get(images_key(data))
        if spec is None:
            return self.entry(DataSource, data["source"])
        key = (DataSource, images_key(data))
        if key not in self._entries:
            self._entries[key] = registry.build(DataSource, spec)
        found: DataSource = self._entries[key]
        return found

    def classes(self, data: dict[str, Any]) -> tuple[str, ...] | None:
        """The names of the classes in the order of their labels; None if they are not known or nothing was loaded."""
        found = self._sets.get(_slice(data))
        return None if found is None else found.classes

    def evaluated(self, data: dict[str, Any]) -> ImageSet:
        """The evaluated images of a cell.

        Raises:
            DataError: when they differ from those the cell was planned with.
        """
        if data["digest"] in self.held:
            return self.held[data["digest"]]
        key = _slice(data)
        if key not in self._sets:
            part = subset(self.dataset(data).scan(data["split"]), data["count"])
            if part.digest != data["digest"]:
                raise DataError(f"{data['name']}: the images differ from those the cell was planned with")
            self._sets[key] = part
        return self._sets[key]

    def splits(self, data: dict[str, Any]) -> tuple[ImageSet, ImageSet, ImageSet]:
        """(train, clean fit, clean val), all from the training split.

        Raises:
            DataError: when it differs from the one the cell was planned with.
        """
        key = digest([data["source"], data.get("train_digest"), data.get("train")])
        if key not in self._splits:
            whole = limited(self.dataset(data).scan("train"), data.get("train")).in_memory()
            if "train_digest" in data and whole.digest != data["train_digest"]:
                raise DataError(f"{data['name']}: the training images differ from those the cell was planned with")
            self._splits[key] = split_clean(whole)
        return self._splits[key]

    def batch(self, x: Tensor | Rows) -> int:
        """Batch size for images like x, limited by the settings and the device."""
        return min(self.settings.batch, at_once(x, self.device))

    def together(self, x: Tensor | Rows) -> tuple[int, int | None]:
        """(how many images like x an attack works on at a time, and the `most` of its oracle)"""
        batch = self.batch(x)
        return (TOGETHER * batch, batch) if self.device.type == "cpu" else (batch, None)

    def pixels(self, data: ImageSet, index: Tensor | slice = EVERY) -> Tensor:
        """Images on the device, in [0, 1]."""
        return data.pixels(index, self.dtype).to(self.device)

    # --------------------------------------------------------------------------------------------------------- victims

    def _ready(self, model: M) -> M:
        return model.to(self.device, self.dtype).eval()

    def timed(self, fit: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return fit()
        finally:
            self.training += time.perf_counter() - start

    def _fitted(self, description: dict[str, Any], model: M, fit: Callable[[], M]) -> M:
        """`model` with the weights of a description: loaded, or fitted and stored first."""
        made_by = _made_by(description)
        return self._ready(artifacts.trained(self.store, description, model, lambda: self.timed(fit), made_by))

    def source(self, described: dict[str, Any]) -> ModelSource:
        """The source of a network; networks that differ only in their training share it."""
        known = described if digest(described) in self.settings.specs else untrained(described)
        return self.entry(ModelSource, known)

    def _network(
        self,
        cell: Cell,
        what: dict[str, Any],
        images: Callable[[], ImageSet],
        seed: int,
        poisoning: Poisoning | None = None,
    ) -> Classifier:
        """The network of a cell: with its published weights, or trained on `images`; a poisoning may change weights."""
        source = self.source(cell.model)
        built = source.build_for(self.evaluated(cell.data))
        if source.pretrained() and what["kind"] == "clean":
            return self._ready(built)

        def fit() -> Classifier:
            fresh = (built if source.pretrained() else built.fresh(derive_seed(seed, "weights"))).to(self.device)
            if isinstance(source, ObjectDetectorSource) and what["kind"] == "clean":
                source.fit(fresh, self.dataset(cell.data), images(), derive_seed(seed, "train"))
            else:
                source.train(fresh, images(), derive_seed(seed, "train"))
            if poisoning is not None:
                poisoning.tamper(fresh, images(), derive_seed(seed, "tamper"))
            return fresh

        return self._fitted({**what, "data": cell.data.get("train_digest"), "seed": seed}, built, fit)

    def model(self, cell: Cell) -> Classifier:
        """The undefended, clean model of a cell."""
        key, known = digest(cell.model), digest(untrained(cell.model))  # a training seed is that of a defense
        if known in self.given:
            return self._ready(self.given[known])
        what = {"kind": "clean", "model": cell.model}
        seed = int(cell.model.get("train_seed", 0))

        def make() -> Classifier:
            return self._network(cell, what, lambda: self.splits(cell.data)[0], seed)

        return self._victim(("model", key, data_key(cell.data)), make)

    def backdoored(self, cell: Cell) -> tuple[Classifier, Poisoned | None]:
        """The model trained on the poisoned set, or by the attacker; and that set, None for a published network."""

        def make() -> tuple[Classifier, Poisoned | None]:
            if cell.model.get("published"):
                return self.model(cell), None
            poisoned, of = self._poisoned(cell), {"model": cell.model, "backdoor": cell.backdoor}
            poisoning = self.entry(Poisoning, cell.backdoor)
            handed = poisoning.network(poisoned.material)
            if handed is not None:
                built = self.source(cell.model).build_for(self.evaluated(cell.data))
                built.load_state_dict(handed)
                return self._ready(built), poisoned
            what = {"kind": "backdoored", "poisoned": poisoned.data.digest, **of}
            return self._network(cell, what, lambda: poisoned.data, cell.seed, poisoning), poisoned

        key = ("backdoored", digest([cell.model, cell.backdoor, cell.seed]), data_key(cell.data))
        return self._victim(key, make)

    def _poisoned(self, cell: Cell) -> Poisoned:
        """The cell's poisoned set. What the attacker makes with a network is stored as an artifact."""
        poisoning, data = self.entry(Poisoning, cell.backdoor), self.splits(cell.data)[0]
        seed, material = derive_seed(cell.seed, "poison"), None
        if poisoning.learning():
            built = self.source(cell.model).build_for(self.evaluated(cell.data))

            def learn() -> Material:
                return poisoning.learn(data, seed, built.fresh(derive_seed(seed, "surrogate")).to(self.device))

            what: dict[str, Any] = {"kind": "material", "model": cell.model, "backdoor": cell.backdoor}
            what |= {"data": cell.data.get("train_digest"), "seed": seed}
            material = artifacts.made(self.store, what, lambda: self.timed(learn), _made_by(what))
        return poisoning.poison(data, seed, material)

    def trained_on_the_rest(self, cell: Cell, poisoned: Poisoned) -> Classifier | None:
        """The network of a cell, trained on the images that were not poisoned alone; None if they are too few."""
        data, of = self.splits(cell.data)[0], poisoned.data.digest
        rest = torch.ones(len(data), dtype=torch.bool)
        rest[torch.cat([poisoned.index, poisoned.cover])] = False
        if int(rest.sum()) < 2 * data.num_classes:
            return None
        what = {"kind": "not poisoned", "model": cell.model, "backdoor": cell.backdoor, "poisoned": of}
        key = ("not poisoned", digest([cell.model, cell.backdoor, cell.seed]), data_key(cell.data))

        def make() -> Classifier:
            return self._network(cell, what, lambda: data.select(rest.nonzero().squeeze(1)), cell.seed)

        return self._victim(key, make)

    def granted(self, kind: str, cell: Cell, poisoned: Poisoned | None = None) -> Granted:
        """The splits that the cell's defense or detector may use, by its card; never poison indices or triggers."""
        description = (cell.defense if kind == "defense" else cell.detector) or {}
        found, _ = registry.find(kind, description["name"])

        def train_set() -> ImageSet:
            if poisoned is None and cell.model.get("published"):
                raise NotApplicable(f"{found.name} needs the training set, and that of a published network is unknown")
            return poisoned.data if poisoned is not None else self.splits(cell.data)[0]

        return Granted(
            found.name, found.card.sees, train=train_set,
            clean=lambda: self.splits(cell.data)[1], val=lambda: self.splits(cell.data)[2],
        )  # fmt: skip

    def defended(self, cell: Cell, base: Classifier, poisoned: Poisoned | None = None) -> Classifier:
        """The cell's defense applied to a model; trained weights are stored as an artifact.

        Raises:
            ContractError: when it changes the model, or its answers to clean images are no finite logits.
        """
        if cell.defense is None:
            return base
        made = self._defended(cell, base, poisoned)
        try:
            check_answers(made, self.pixels(self.evaluated(cell.data), slice(0, PROBES)))
        except ModelError as error:
            raise ContractError(f"defense {cell.defense['name']!r}: {error}") from error
        return made

    def _defended(self, cell: Cell, base: Classifier, poisoned: Poisoned | None) -> Classifier:
        assert cell.defense is not None
        defense = self.entry(Defense, cell.defense)
        granted = self.granted("defense", cell, poisoned)
        seed = cell.seed if poisoned is not None else int(cell.model.get("train_seed", 0))
        draws = Draws(derive_seed(seed, "defense"), torch.zeros(1, dtype=torch.long))
        if not defense.trains:
            return self._ready(defense.apply(base, granted, draws))
        what = {
            "kind": "defended", "base": artifacts.fingerprint(base), "model": cell.model, "defense": cell.defense,
            "data": cell.data["train_digest"], "poisoned": None if poisoned is None else poisoned.data.digest,
            "seed": seed,
        }  # fmt: skip

        def fit() -> Classifier:
            return defense.apply(copied(base).float(), granted, draws)

        defended = defense.structure(base)
        part = defense.shared(defended)
        if part is None:
            return self._fitted(what, defended, fit)

        def fit_part() -> nn.Module:
            made = defense.shared(fit())
            assert made is not None
            return made

        self._fitted({**what, "kind": "shared", "base": None, "model": None}, part, fit_part)
        return self._ready(defended)

    def scorer(
        self, cell: Cell, base: Classifier, granted: Granted, draws: Draws, poisoned: Poisoned | None = None
    ) -> Score:
        """The scores of the cell's detector, fitted to a model; trained weights are stored as an artifact."""
        detector = self.entry(InputDetector, cell.detector)
        if not isinstance(detector, TrainedDetector):
            return detector.fit(base, granted, draws)
        what = {
            "kind": "detector", "detector": cell.detector, "data": cell.data["train_digest"],
            "poisoned": None if poisoned is None else poisoned.data.digest, "seed": cell.seed,
        }  # fmt: skip
        network = self._fitted(what, detector.network(granted), lambda: detector.trained(granted, draws, self.device))
        return detector.scorer(network, base, granted, draws)

    def network(self, cell: Cell) -> Classifier:
        """The defended model of a cell, prepared for evaluation; without the predictor of its certifier."""
        return self._prepared(
            ("victim", digest([cell.model, cell.defense]), data_key(cell.data)),
            lambda: self.defended(cell, self.model(cell)),
            cell,
        )

    def victim(self, cell: Cell) -> Classifier:
        """What is deployed, and attacked: the defended model of a cell, or the predictor that its certifier makes."""
        network, by = self.network(cell), cell.certifier
        return network if by is None else self.entry(Certifier, by).predictor(network).eval()

    def surrogate(self, cell: Cell) -> Classifier:
        """The model that the attack of a transfer cell uses: the surrogate, or the mean logits of several."""

        def make() -> Classifier:
            members = [self.model(replace(cell, model=description)) for description in cell.surrogates or ()]
            return members[0] if len(members) == 1 else Ensemble(members)

        if not cell.surrogates:
            return self.victim(cell)  # a no-box attack gets no access to it
        return self._prepared(("surrogate", digest(cell.surrogates), data_key(cell.data)), make, cell)

    def _prepared(self, key: Hashable, make: Callable[[], Classifier], cell: Cell) -> Classifier:
        def ready() -> Classifier:
            sample = self.evaluated(cell.data).pixels(slice(0, 32), self.dtype).to(self.device)
            return prepare(restored(make(), sample), sample)

        return self._victim(key, ready)

    def _victim(self, key: Hashable, make: Callable[[], T]) -> T:
        return _kept(self._models, KEPT, key, make)


def _kept(cache: OrderedDict[Hashable, Any], most: int, key: Hashable, make: Callable[[], Any]) -> Any:
    """Look up a key in an LRU cache, and compute it if it is missing."""
    if key not in cache:
        cache[key] = make()
        while len(cache) > most:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]


def _made_by(description: dict[str, Any]) -> dict[str, str]:
    return sources.of_slots({slot: description.get(slot) for slot in ("model", "backdoor", "defense", "detector")})


def _slice(data: dict[str, Any]) -> str:
    return digest([data["source"], data["split"], data["count"], data["digest"]])


def data_key(data: dict[str, Any]) -> str:
    """Digest of the data that a trained model depends on, without the evaluated slice."""
    return digest([data["source"], data.get("train_digest"), data["classes"]])
