"""The Python interface: the same steps as the command, one function each."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import ValidationError
from torch import nn

from siegebench import given, registry
from siegebench.cells import Cell, Result, digest
from siegebench.classifier import Classifier
from siegebench.config import Suite, load_suite
from siegebench.data import ImageSet, Size, subset
from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.evaluation import now
from siegebench.executors import STARTED, Executor, Report, SerialExecutor, executor, interruptible
from siegebench.inputs import gradients, image_kind
from siegebench.plan import Plan, plan
from siegebench.reuse import reasons
from siegebench.sources import check_loaded
from siegebench.store import Store
from siegebench.threat import Norm
from siegebench.tracks import TRACKS
from siegebench.tracks.base import BoardSpec, ThreatSpec
from siegebench.types import DataSource, ModelSource
from siegebench.workspace import Settings, Workspace

P = ParamSpec("P")
T = TypeVar("T")


def called(function: Callable[P, T]) -> Callable[P, T]:
    """A function of the interface: it has gradients in any mode of the caller, and names the nearest argument."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    free = len(known) < len(parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known and not free:
                raise TypeError(f"{function.__name__}() has no argument {name!r}. {did_you_mean(name, known)}")
        with gradients():
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True, repr=False)
class Outcome:
    """The result of a run: the rows of its cells.

    Attributes:
        results: one for each cell of the suite that has a row, computed now or before.
        ended: number of cells by final status: ok, not_applicable, error, crashed, cached.
        store: folder of the store, where the rows are.
        why: number of cells that were computed, by reason: new, failed (before), stale, again, images.
    """

    results: list[Result]
    ended: Counter[str] = field(default_factory=Counter)
    store: str = ""
    why: Counter[str] = field(default_factory=Counter)

    def __repr__(self) -> str:
        ended = ", ".join(f"{n} {status}" for status, n in sorted(self.ended.items()))
        return f"Outcome({len(self.results)} rows in {self.store!r}: {ended or 'nothing to do'})"

    @property
    def failed(self) -> int:
        """Cells that ended in an error."""
        return sum(r.status == "error" for r in self.results)


@called
def run(
    suite: Suite | str,
    settings: Settings | None = None,
    *,
    how: Executor | str = "serial",
    slots: int | None = None,
    overrides: Sequence[str] = (),
    again: bool = False,
    report: Report | None = None,
    planned: Plan | None = None,
) -> Outcome:
    """Compute the cells of a suite that are not stored yet, and write their rows into `settings.root`.

    A row is computed again if the source of its entries has changed, unless `settings.keep_stale`. Rows of earlier
    versions do not store hashes of the source, and are used.

    Args:
        suite: a Suite, a YAML file, or the name of a bundled suite.
        settings: where the store is and how to compute.
        how: `serial`, `local`, `ray`, or an Executor, such as `siegebench.executors.RayExecutor(address="auto")`.
        again: compute all cells again; trained weights are used again. Rows that are replaced move to the history.
        report: called with each cell and its status when it starts (`started`) and when it ends.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed.
    """
    settings = _settings(settings)
    if not isinstance(suite, Suite):
        suite = load_suite(suite, _several(overrides))
    planned = planned or plan(suite)
    settings = replace(
        settings,
        specs={**settings.specs, **planned.specs},
        suite=suite.origin,
        again=now() if again else settings.again,
    )
    check_loaded(planned.cells)
    try:
        Path(settings.root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"settings.root: expected a folder that can be written, found {str(settings.root)!r} ({error.strerror})"
        ) from None
    store = Store(settings.root)
    why: Counter[str] = Counter()
    ended: Counter[str] = Counter()

    def tell(cell: Cell, status: str) -> None:
        if status != STARTED:
            ended[status] += 1
        if report is not None:
            report(cell, status)

    todo = []
    found = reasons(planned.cells, store, settings)
    for cell in planned.cells:
        if found[cell.key]:
            why[found[cell.key]] += 1
            todo.append(cell)
        else:
            tell(cell, "cached")
    engine = executor(how, slots) if isinstance(how, str) else how
    with interruptible():
        engine.run(todo, settings, tell)
    return Outcome([r for r in map(store.get, planned.cells) if r is not None], ended, settings.root, why)


@called
def evaluate(
    model: nn.Module,
    suite: Suite | str | None = None,
    *,
    x: Any = None,
    y: Any = None,
    data: Any = None,
    norm: Norm | None = None,
    eps: float | str | None = None,
    name: str = "model",
    num_classes: int | None = None,
    settings: Settings | None = None,
    tracks: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    again: bool = False,
    report: Report | None = None,
) -> Outcome:
    """Evaluate any classifier on the attack boards of a suite, instead of the suite's own models.

    >>> outcome = evaluate(my_module, x=images, y=labels, eps="4/255")
    >>> outcome.results[0].value("robust_acc")

    Rows are written below `settings.root`, the folder `results` by default; the outcome says where.

    Args:
        model: a Classifier, or any module that maps images in [0, 1] to logits (normalisation inside). It does not
            change: a copy is attacked.
        suite: a Suite, a YAML file, or the name of a bundled suite; with images of your own `own` by default.
        x, y: images [n, C, H, W] in [0, 1] and labels [n], in place of the suite's data. Off the 8-bit grid they keep
            their values. Rows are stored under their content, order included.
        data: in place of x and y: a DataLoader (not shuffled), another iterable of images and labels, or an ImageSet.
        norm, eps: one threat in place of those of the suite; the norm is linf if only eps is given.
        tracks: tracks whose boards are computed; by default all that accept a given model.
        name: shown in tables. Rows are stored under the name and what identifies the model: its weights; the code of
            its classes and of all that they use, with hooks, attributes and closures; its logits and input gradients
            on a few images with noise below a grey level. Only a model that is equal in all of these gets stored rows.
        num_classes: checked against the data when given.
        again: compute all cells again; rows that are replaced move to the history.
        report: called with each cell and its status when it starts (`started`) and when it ends.

    Raises:
        ConfigError: when there are neither images nor a suite, when the suite has no attack board, when images or
            labels are not valid, or when something in the suite needs training images and x and y are given.
        ModelError: when the model does not return one finite logit for each class of the data.
    """
    brought = any(value is not None for value in (x, y, data))
    if suite is None and not brought:
        raise ConfigError(
            "evaluate: no images. Give x= and y=, or data=, to attack the model on images of your own; or "
            "suite='quickstart' to attack it on scikit-learn's digits"
        )
    if not isinstance(suite, Suite):
        suite = load_suite(suite or "own", _several(overrides))
    suite = suite.model_copy(update={"boards": _boards(suite, tracks, norm, eps)})
    settings = _settings(settings)
    own, described = given.own(model, name, num_classes)  # the caller's model does not change
    images = given.images(own, x, y, data) if brought else None
    planned = plan(suite, given=described, data=images)
    settings = replace(settings, specs={**settings.specs, **planned.specs})
    workspace = Workspace(settings)
    if images is not None:
        workspace.held = {images.images.digest: images.images}
    slices = {c.data["digest"]: c.data for c in planned.cells}
    ready = {key: given.fitted(own, workspace.evaluated(slice_)) for key, slice_ in slices.items()}
    models = {key: {**described, "answers": answers} for key, (_, answers) in ready.items()}
    planned.cells = [replace(c, model=models[c.data["digest"]]) for c in planned.cells]
    workspace.given = {digest(models[key]): fitted for key, (fitted, _) in ready.items()}
    return run(suite, settings, how=SerialExecutor(workspace), again=again, planned=planned, report=report)


def _settings(settings: Settings | None) -> Settings:
    if settings is not None and not isinstance(settings, Settings):
        found = shortened(settings)
        raise ConfigError(
            f"settings: expected siegebench.workspace.Settings, such as Settings(root=FOLDER), found {found}"
        )
    return settings or Settings()


def _several(texts: Sequence[str]) -> list[str]:
    """A sequence of texts as a list; a single text is one."""
    return [texts] if isinstance(texts, str) else list(texts)


def _boards(suite: Suite, tracks: Sequence[str] | None, norm: Norm | None, eps: float | str | None) -> list[BoardSpec]:
    """The boards of a suite for a model passed from Python, with one threat in place of theirs if there is one."""
    fitting = [name for name, board in TRACKS.items() if board.takes_model]
    wanted = fitting if tracks is None else _several(tracks)
    for track in wanted:
        if track not in fitting:
            raise ConfigError(f"tracks: {track!r} does not accept a given model. {did_you_mean(track, fitting)}")
    boards: list[BoardSpec] = [b for b in suite.boards if b.track in wanted]
    if not boards:
        raise ConfigError(f"suite {suite.suite!r} has no board of the tracks {', '.join(wanted)}")
    if norm is None and eps is None:
        return boards
    if eps is None:
        raise ConfigError(f"norm: {norm!r} has no eps; give eps= too, such as eps='4/255'")
    try:
        threat = ThreatSpec(norm=norm or "linf", eps=eps)
        threat.model("gradient", None)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"norm, eps: {_first_line(error)}") from None
    boards = [b.model_copy(update={"threats": [threat]}) if "threats" in type(b).model_fields else b for b in boards]
    for i, board in enumerate(boards):
        board.filled(suite, ("boards", i)).check(suite.inventory())
    return boards


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = first["msg"].removeprefix("Value error, ")
        return text if ", found " in text else f"{text}, found {shortened(first.get('input'))}"
    return str(error)


@called
def load_model(
    name: str | dict[str, Any], *, num_classes: int = 1000, size: Size = 224, channels: int = 3, **parameters: Any
) -> Classifier:
    """A classifier of the zoo, with its published weights: `timm/resnet18.a1_in1k`, `cifar_resnet20`, ...

    Args:
        num_classes, size, channels: of the images that it is to classify.
        parameters: of the model, as in a suite.

    Raises:
        ConfigError, ModelError: unknown name or parameter; weights missing, corrupt or of another shape.
    """
    source = registry.build(ModelSource, {**registry.normal(name), **parameters})
    network = source.built(num_classes, size, channels).eval()
    network.kind = network.kind if channels == network.kind.channels else image_kind(channels)
    return network


@called
def load_data(name: str | dict[str, Any], split: str = "test", count: int | None = None, **parameters: Any) -> ImageSet:
    """Images of a dataset; `count` selects the same fixed subset as in a suite.

    Raises:
        ConfigError, DataError: unknown name or parameter; images missing or corrupt.
    """
    source = registry.build(DataSource, {**registry.normal(name), **parameters})
    return subset(source.scan(split), count)
