"""Workspace: what cells share in one process: datasets, trained models and defenses, each made once."""

from __future__ import annotations

import copy
import json
import os
import platform
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siegebench import __version__, registry
from siegebench.cells import Cell, digest
from siegebench.classifier import Classifier, Ensemble
from siegebench.data import Granted, ImageSet, split_clean
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, DataError, ModelError
from siegebench.files import write_atomic
from siegebench.plan import subset
from siegebench.prepare import at_once, prepare
from siegebench.store import Store
from siegebench.train import Recipe, train
from siegebench.types import BackdoorAttack, DataSource, Defense, Entry, ModelSource, Poisoned
from siegebench.weights import load_weights, save_weights, weights_hash

ARTIFACT_VERSION = 1  # raised when training the same description would give other weights
EVERY = slice(None)
KEPT = 6  # victims kept in memory
NOTES = 64  # and small results


@dataclass(frozen=True)
class Settings:
    """How to compute; nothing here changes what a number means, so nothing here is part of a key.

    Attributes:
        root: folder of the store.
        device: `auto` takes CUDA when there is one.
        batch: images a step, an upper bound; halved when memory runs out.
        dtype: `float32`, or `float64` for checks of exactness.
        threads: of torch, for each worker; None leaves torch's own choice.
        sources: full specs of what has a place on this machine (see plan.Plan).
    """

    root: str = "results"
    device: str = "auto"
    batch: int = 256
    dtype: str = "float32"
    threads: int | None = None
    sources: dict[str, Any] = field(default_factory=dict, hash=False)


class Workspace:
    """One process's view of a store."""

    def __init__(self, settings: Settings, given: dict[str, Classifier] | None = None) -> None:
        """`given` holds classifiers handed over from Python, by the digest of their description."""
        self.settings, self.given = settings, given or {}
        self.store = Store(settings.root)
        self.device = _device(settings.device)
        if settings.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype {settings.dtype!r}: float32 or float64")
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self._sets: dict[str, ImageSet] = {}
        self._splits: dict[str, tuple[ImageSet, ImageSet, ImageSet]] = {}
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._notes: OrderedDict[Hashable, Any] = OrderedDict()

    # --------------------------------------------------------------------------------------------------------- entries

    def entry(self, kind: str, description: dict[str, Any]) -> Entry:
        """The entry that a cell describes, with its places on this machine."""
        spec = self.settings.sources.get(digest(description))
        return registry.build(kind, spec) if spec is not None else registry.rebuild(kind, description)

    # ------------------------------------------------------------------------------------------------------------ data

    def _load(self, source: dict[str, Any], split: str) -> ImageSet:
        key = digest([source, split])
        if key not in self._sets:
            entry = self.entry("dataset", source)
            assert isinstance(entry, DataSource)
            self._sets[key] = entry.load(split)
        return self._sets[key]

    def evaluated(self, data: dict[str, Any]) -> ImageSet:
        """The images a cell evaluates.

        Raises:
            DataError: when they are not the ones the cell was planned with.
        """
        whole = self._load(data["source"], data["split"])
        part = whole if data["count"] == len(whole) else subset(whole, data["count"])
        if part.digest != data["digest"]:
            raise DataError(f"{data['name']}: the images differ from those the cell was planned with")
        return part

    def splits(self, data: dict[str, Any]) -> tuple[ImageSet, ImageSet, ImageSet]:
        """(train, clean fit, clean val), all from the training split."""
        key = digest(data["source"])
        if key not in self._splits:
            whole = self._load(data["source"], "train")
            if "train_digest" in data and whole.digest != data["train_digest"]:
                raise DataError(f"{data['name']}: the training images differ from those the cell was planned with")
            self._splits[key] = split_clean(whole)
        return self._splits[key]

    # ---------------------------------------------------------------------------------------------------------- models

    def remember(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """A small result that neighbouring cells share, such as clean predictions."""
        if key not in self._notes:
            self._notes[key] = make()
            while len(self._notes) > NOTES:
                self._notes.popitem(last=False)
        return self._notes[key]

    def _kept(self, key: str, make: Callable[[], Any]) -> Any:
        if key in self._models:
            self._models.move_to_end(key)
        else:
            self._models[key] = make()
            while len(self._models) > KEPT:
                self._models.popitem(last=False)
        return self._models[key]

    def _trained(self, description: dict[str, Any], model: Classifier, fit: Callable[[], Classifier]) -> Classifier:
        """`model` with the weights of an artifact; `fit` returns the trained one when the artifact is not there yet."""
        description = {"artifact": ARTIFACT_VERSION, **description}
        key = digest(description)
        path = self.store.artifact(key)
        with self.store.lock(f"a{key}"):
            state = self._stored(path)
            if state is None:
                self.store.sweep(path)
                trained = fit().to("cpu", torch.float32)
                text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
                write_atomic(path.with_suffix(".json"), text.encode())
                save_weights(path, trained.state_dict())  # last: where the weights are, all is there
                state = load_weights(path)
        model.load_state_dict(state)
        return model

    @staticmethod
    def _stored(path: Path) -> dict[str, Tensor] | None:
        """The weights of an artifact, or None. A damaged file is set aside and made anew."""
        if not path.exists():
            return None
        try:
            return load_weights(path)
        except ModelError:
            os.replace(path, path.with_suffix(".corrupt"))
            return None

    def _place(self, model: Classifier) -> Classifier:
        return model.to(self.device, self.dtype).eval()

    def _source(self, cell_model: dict[str, Any]) -> ModelSource:
        bare = {k: v for k, v in cell_model.items() if k != "train_seed"}
        spec = self.settings.sources.get(digest(cell_model)) or self.settings.sources.get(digest(bare))
        entry = registry.build("model", spec) if spec is not None else registry.rebuild("model", bare)
        assert isinstance(entry, ModelSource)
        return entry

    def model(self, cell: Cell) -> Classifier:
        """The undefended, clean model of a cell."""
        key = digest(cell.model)
        if key in self.given:
            return self._place(self.given[key])

        def make() -> Classifier:
            source = self._source(cell.model)
            data = cell.data
            size = int(self.evaluated(data).images.shape[-1])
            built = source.build(num_classes=data["classes"], size=size)
            if source.pretrained():
                return self._place(built)
            recipe: Recipe = getattr(source, "recipe", None) or Recipe()
            seed = int(cell.model.get("train_seed", 0))
            what = {"kind": "clean", "model": cell.model, "data": data["train_digest"], "seed": seed}

            def fit() -> Classifier:
                fresh = built.fresh(derive_seed(seed, "weights")).to(self.device)
                train(fresh, self.splits(data)[0], recipe, derive_seed(seed, "train"))
                return fresh

            return self._place(self._trained(what, built, fit))

        return self._kept("model" + key + data_key(cell.data), make)

    def backdoored(self, cell: Cell) -> tuple[Classifier, Poisoned]:
        """The model trained on the cell's poisoned set, and the poisoned set."""
        assert cell.backdoor is not None
        backdoor = self.backdoor(cell)
        seed = cell.seed

        def make() -> tuple[Classifier, Poisoned]:
            source = self._source(cell.model)
            clean = self.splits(cell.data)[0]
            poisoned = backdoor.poison(clean, derive_seed(seed, "poison"))
            built = source.build(num_classes=cell.data["classes"], size=int(clean.images.shape[-1]))
            recipe: Recipe = getattr(source, "recipe", None) or Recipe()
            what = {
                "kind": "backdoored",
                "model": cell.model,
                "backdoor": cell.backdoor,
                "data": cell.data["train_digest"],
                "poisoned": poisoned.data.digest,
                "seed": seed,
            }

            def fit() -> Classifier:
                fresh = built if source.pretrained() else built.fresh(derive_seed(seed, "weights"))
                fresh = fresh.to(self.device)
                train(fresh, poisoned.data, recipe, derive_seed(seed, "train"))
                return fresh

            return self._place(self._trained(what, built, fit)), poisoned

        key = digest([cell.model, cell.backdoor, cell.data["train_digest"], seed])
        return self._kept("backdoored" + key, make)

    def backdoor(self, cell: Cell) -> BackdoorAttack:
        entry = self.entry("backdoor", cell.backdoor or {})
        assert isinstance(entry, BackdoorAttack)
        return entry

    def granted(self, kind: str, cell: Cell, poisoned: Poisoned | None = None) -> Granted:
        """The data that the cell's defense or detector may see, by its card; never poison indices or triggers."""
        description = (cell.defense if kind == "defense" else cell.detector) or {}
        found, _ = registry.find(kind, description["name"])
        return Granted(
            found.name,
            found.card.sees,
            train=lambda: poisoned.data if poisoned is not None else self.splits(cell.data)[0],
            clean=lambda: self.splits(cell.data)[1],
            val=lambda: self.splits(cell.data)[2],
        )

    def defended(self, cell: Cell, base: Classifier, poisoned: Poisoned | None = None) -> Classifier:
        """The cell's defense applied to a model; what it trains is an artifact."""
        if cell.defense is None:
            return base
        defense = self.entry("defense", cell.defense)
        assert isinstance(defense, Defense)
        granted = self.granted("defense", cell, poisoned)
        seed = cell.seed if poisoned is not None else int(cell.model.get("train_seed", 0))
        draws = Draws(derive_seed(seed, "defense"), torch.zeros(1, dtype=torch.long))
        if not defense.trains:
            return self._place(defense.apply(base, granted, draws))
        what = {
            "kind": "defended",
            "base": fingerprint(base),
            "model": cell.model,
            "defense": cell.defense,
            "data": cell.data["train_digest"],
            "poisoned": None if poisoned is None else poisoned.data.digest,
            "seed": seed,
        }

        def fit() -> Classifier:
            return defense.apply(copy.deepcopy(base).float(), granted, draws)

        return self._place(self._trained(what, defense.structure(base), fit))

    def victim(self, cell: Cell) -> Classifier:
        """The deployed model of an attack cell, prepared for evaluation."""

        def make() -> Classifier:
            deployed = self.defended(cell, self.model(cell))
            sample = self.evaluated(cell.data).pixels(slice(0, 32), self.dtype).to(self.device)
            return prepare(deployed, sample)

        return self._kept("victim" + digest([cell.model, cell.defense]) + data_key(cell.data), make)

    def surrogate(self, cell: Cell) -> Classifier:
        """What the attack of a transfer cell sees: the cell's surrogates, several as one that adds their logits."""
        assert cell.surrogates is not None

        def make() -> Classifier:
            members = [self.model(replace(cell, model=description)) for description in cell.surrogates or []]
            if not members:
                return self.victim(cell)  # a no-box attack is granted nothing of it
            whole = members[0] if len(members) == 1 else Ensemble(members)
            return prepare(whole, self.evaluated(cell.data).pixels(slice(0, 32), self.dtype).to(self.device))

        return self._kept("surrogate" + digest(cell.surrogates) + data_key(cell.data), make)

    def batch(self, x: Tensor) -> int:
        """Images like those of x a step: what the settings allow, and what the device bears."""
        return min(self.settings.batch, at_once(x, self.device))

    def pixels(self, data: ImageSet, index: Tensor | slice = EVERY) -> Tensor:
        """Images on the device, in [0, 1]."""
        return data.pixels(index, self.dtype).to(self.device)


def _device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: when there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: {torch.cuda.device_count()} CUDA devices are visible; use --device cpu")
    return device


def fingerprint(model: Classifier) -> str:
    """Hash of a model's weights, the same in float32 and float64."""
    return weights_hash({k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()})


def data_key(data: dict[str, Any]) -> str:
    """What of the data decides a trained model: not the evaluated slice."""
    return digest([data["source"], data.get("train_digest"), data["classes"]])


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Versions and hardware of a row; no host name, no path."""
    import importlib.metadata as metadata

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    checkout = Path(__file__).resolve().parent.parent
    return {
        "siegebench": __version__,
        "commit": _commit(checkout),
        "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")},
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else (platform.machine() or "cpu"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _commit(checkout: Path) -> str | None:
    """`<commit>` or `<commit>+dirty` of a checkout; None elsewhere."""
    import subprocess

    if not (checkout / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if head.returncode else head.stdout.strip() + ("+dirty" if dirty.stdout.strip() else "")
