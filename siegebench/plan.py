"""Plan: from a suite to the list of its cells, with everything they need known by content. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from siegebench import registry
from siegebench.cells import Cell, digest
from siegebench.config import (
    AttackBoard,
    BackdoorBoard,
    Board,
    DataSpec,
    InputDetectionBoard,
    ModelDetectionBoard,
    QueryBoard,
    Suite,
    TransferBoard,
    WhiteBoxBoard,
    granted,
)
from siegebench.data import IMAGE, ImageSet, split_clean, subset
from siegebench.errors import ConfigError, DataError, ModelError, SiegeError
from siegebench.types import Attack, BackdoorAttack, DataSource, Defense, Measure, ModelSource

SURROGATE_SEED = 1  # the attacker trains networks of his own, also of the victim's architecture


@dataclass
class Plan:
    """The cells of a suite, and where the things they name lie on this machine.

    Attributes:
        cells: neighbours share a model.
        sources: full specs (with folders and files) by the digest of a description; places are not part of a key.
    """

    cells: list[Cell] = field(default_factory=list)
    sources: dict[str, Any] = field(default_factory=dict)


class _Checked:
    """Datasets, models and backdoors that a suite names, each loaded or built once: what is broken is found here."""

    def __init__(self) -> None:
        self._sets: dict[str, ImageSet] = {}
        self._fine: set[str] = set()

    def scan(self, spec: Any, split: str) -> ImageSet:
        """A split whose images may not have been read yet."""
        key = digest([spec, split, "scan"])
        if key not in self._sets:
            source = registry.build("dataset", spec)
            assert isinstance(source, DataSource)
            with _as(DataError, f"dataset {registry.normal(spec)['name']!r} cannot be loaded"):
                self._sets[key] = source.scan(split)
        return self._sets[key]

    def load(self, spec: Any, split: str, count: int | None = None) -> ImageSet:
        key = digest([spec, split, count])
        if key not in self._sets:
            whole = self.scan(spec, split)
            with _as(DataError, f"dataset {registry.normal(spec)['name']!r} cannot be loaded"):
                self._sets[key] = subset(whole, count)
        return self._sets[key]

    def model(self, spec: Any, data: ImageSet) -> ModelSource:
        """A source whose network has been built once for this data: weights are there, whole, finite and fit."""
        source = registry.build("model", spec)
        assert isinstance(source, ModelSource)
        key = digest([spec, data.num_classes, data.size])
        if key not in self._fine:
            with _as(ModelError, f"model {registry.normal(spec)['name']!r} cannot be built"):
                source.build(num_classes=data.num_classes, size=data.size)
            self._fine.add(key)
        return source

    def backdoor(self, spec: Any, data: DataSpec) -> None:
        """Refuse targets that are no classes, and rates that the training set cannot give."""
        backdoor = registry.build("backdoor", spec)
        assert isinstance(backdoor, BackdoorAttack)
        key = digest([spec, data.set])
        if key not in self._fine:
            try:
                backdoor.eligible(split_clean(self.scan(data.set, "train"))[0])
            except SiegeError as error:
                raise ConfigError(str(error)) from None
            self._fine.add(key)


@contextmanager
def _as(kind: type[SiegeError], what: str) -> Iterator[None]:
    """Whatever a loader raises becomes one of our errors; the original stays its cause."""
    try:
        yield
    except SiegeError:
        raise
    except Exception as error:
        raise kind(f"{what}: {type(error).__name__}: {str(error)[:300]}") from error


def plan(suite: Suite, given: dict[str, Any] | None = None) -> Plan:
    """The cells of a suite, in the order in which they should run.

    Args:
        given: the description of a model handed over from Python, which takes the place of the suite's models.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed; the message begins with the place.
    """
    out, checked, seen = Plan(), _Checked(), set()
    for board in suite.boards:
        for cell in _cells(suite, board, checked, out.sources, given):
            if cell.key not in seen:
                seen.add(cell.key)
                out.cells.append(cell)
    out.cells.sort(key=_neighbours)
    return out


def _neighbours(cell: Cell) -> tuple[Any, ...]:
    """Cells of one victim lie side by side, dear ones first (autoattack before fgsm)."""
    dear = {"model_detection": 1, "backdoor": 2, "input_detection": 3}.get(cell.track, 0)
    cost = -_attack_cost(cell.attack) if cell.attack else 0.0
    return (dear, digest(cell.model), digest(cell.backdoor), digest(cell.defense), cost, cell.key)


def _attack_cost(attack: dict[str, Any]) -> float:
    """A rough number of passes: only the order matters."""
    inner = attack.get("attack")
    if isinstance(inner, dict):
        return float(attack.get("looks", 1)) * _attack_cost(inner)
    steps = attack.get("steps") or attack.get("queries") or 1
    return (
        float(steps) * float(attack.get("targets") or attack.get("searches") or 1) * float(attack.get("restarts") or 1)
    )


def _describe(kind: str, spec: Any, sources: dict[str, Any]) -> dict[str, Any]:
    description = registry.describe(kind, spec)
    sources[digest(description)] = registry.normal(spec)
    return description


def _check_takes(suite: Suite, board: Board, data: str, given: bool) -> None:
    """Refuse entries of a board that do not take its kind of data; a model handed over from Python is checked later."""
    for slot, kind in board.slots.items():
        specs = ([] if given else suite.of(board, slot)) if slot == "models" else getattr(board, slot)
        for i, spec in enumerate(specs):
            with suite.blame((*board.place(slot), i)):
                entry = registry.check_takes(kind, spec, data)
                for known in entry.adaptive if isinstance(entry, Defense) else ():
                    registry.check_takes("attack", known, data)


def _cells(
    suite: Suite, board: Board, checked: _Checked, sources: dict[str, Any], given: dict[str, Any] | None
) -> Iterator[Cell]:
    spec: DataSpec = suite.of(board, "data")
    with suite.blame((*board.place("data"), "set")):
        kind = checked.scan(spec.set, spec.split).kind
    _check_takes(suite, board, kind.name, given is not None)
    with suite.blame((*board.place("data"), "set" if spec.count is None else "count")):
        evaluated = checked.load(spec.set, spec.split, spec.count)
    source = _describe("dataset", spec.set, sources)
    described = {
        "name": source["name"],
        "source": source,
        "split": spec.split,
        "count": len(evaluated),
        "digest": evaluated.digest,
        "classes": evaluated.num_classes,
    }
    if kind != IMAGE:
        described["kind"] = kind.name
    trains = not isinstance(board, AttackBoard)

    def with_training(needed: bool) -> dict[str, Any]:
        """The training set is part of what a number depends on wherever something is trained on it."""
        if not (needed or trains):
            return described
        with suite.blame((*board.place("data"), "set")):
            return {**described, "train_digest": checked.load(spec.set, "train").digest}

    if isinstance(board, (BackdoorBoard, InputDetectionBoard, ModelDetectionBoard)):
        for i, backdoor_spec in enumerate(board.backdoors):
            with suite.blame((*board.place("backdoors"), i)):
                checked.backdoor(backdoor_spec, spec)
    if given is not None:
        assert isinstance(board, AttackBoard)
        yield from _attack_cells(suite, board, given, None, with_training, False, sources)
        return

    def network(slot: str, i: int, model_spec: Any) -> tuple[Callable[[int], dict[str, Any]], bool]:
        """(its description when trained with a seed, whether it is trained here)"""
        with suite.blame((*board.place(slot), i)):
            model = checked.model(model_spec, evaluated)
            identity = model.identity()
        base = _describe("model", model_spec, sources)
        base.update(identity)
        sources[digest(base)] = registry.normal(model_spec)
        untrained = not model.pretrained()

        def member(train_seed: int) -> dict[str, Any]:
            out = {**base, "train_seed": train_seed} if untrained or trains else base
            sources[digest(out)] = sources[digest(base)]
            return out

        return member, untrained

    surrogates: list[dict[str, Any]] | None = None
    if isinstance(board, TransferBoard):
        found = [network("surrogates", j, spec) for j, spec in enumerate(board.surrogates)]
        surrogates = [member(SURROGATE_SEED) for member, _ in found]
        trains_surrogates = any(untrained for _, untrained in found)
    for i, model_spec in enumerate(suite.of(board, "models")):
        member, untrained = network("models", i, model_spec)
        if isinstance(board, AttackBoard):
            if surrogates is not None:
                untrained = untrained or trains_surrogates
                if member(0) in surrogates:
                    with suite.blame((*board.place("models"), i)):
                        raise ConfigError(f"model {registry.normal(model_spec)['name']!r} is one of the surrogates too")
            yield from _attack_cells(suite, board, member(0), surrogates, with_training, untrained, sources)
            continue
        for seed in suite.of(board, "seeds"):
            if isinstance(board, ModelDetectionBoard):
                clean = [(member(seed + 1000 * i), None) for i in range(1, board.clean + 1)]
                bad = [(member(seed), _describe("backdoor", b, sources)) for b in board.backdoors]
                for detector in board.detectors:
                    for described_model, backdoor in [*clean, *bad]:
                        yield Cell(
                            track=board.track,
                            data=with_training(True),
                            model=described_model,
                            backdoor=backdoor,
                            detector=_describe("detector", detector, sources),
                            seed=seed,
                        )
                continue
            for backdoor_spec in board.backdoors:
                backdoor = _describe("backdoor", backdoor_spec, sources)
                slots: list[dict[str, Any]]
                if isinstance(board, BackdoorBoard):
                    slots = [{"defense": _describe("defense", d, sources)} for d in board.defenses]
                else:
                    assert isinstance(board, InputDetectionBoard)
                    slots = [{"detector": _describe("detector", d, sources)} for d in board.detectors]
                for slot in slots:
                    yield Cell(
                        track=board.track,
                        data=with_training(True),
                        model=member(seed),
                        backdoor=backdoor,
                        seed=seed,
                        **slot,
                    )


def _attack_cells(
    suite: Suite,
    board: AttackBoard,
    model: dict[str, Any],
    surrogates: list[dict[str, Any]] | None,
    with_training: Any,
    untrained: bool,
    sources: dict[str, Any],
) -> Iterator[Cell]:
    access = granted(board)
    queries = board.queries if isinstance(board, QueryBoard) else None
    for defense_spec in board.defenses:
        defense = registry.build("defense", defense_spec)
        assert isinstance(defense, Defense)
        described = _describe("defense", defense_spec, sources)
        trains = untrained or defense.trains
        # the attacks that know this defense run beside the suite's own; a row without them is not ranked
        known = () if surrogates is not None else defense.adaptive
        adaptive = [registry.describe("attack", spec) for spec in known]
        own = [_describe("attack", a, sources) for a in board.attacks]
        for threat_spec in board.threats:
            threat = threat_spec.model(access, queries)
            for seed in suite.of(board, "seeds"):
                common: dict[str, Any] = {
                    "track": board.track,
                    "model": model,
                    "defense": described,
                    "threat": threat.describe(),
                    "surrogates": surrogates,
                    "seed": seed,
                }
                for attack in [*own, *(a for a in adaptive if a not in own)]:
                    entry = registry.rebuild("attack", attack) if attack in adaptive else registry.build(
                        "attack", sources[digest(attack)]
                    )  # fmt: skip
                    if not isinstance(entry, Attack):
                        raise ConfigError(f"{attack['name']!r} is not an attack")
                    if threat.norm in entry.handles() and threat.grants(entry.access()):
                        data = with_training(trains or entry.learning())
                        yield Cell(**common, data=data, attack=attack, adaptive=attack in adaptive)
                if isinstance(board, WhiteBoxBoard):
                    for check in board.checks:
                        measure = registry.build("measure", check)
                        assert isinstance(measure, Measure)
                        data = with_training(trains or measure.learning())
                        yield Cell(**common, data=data, measure=_describe("measure", check, sources))
