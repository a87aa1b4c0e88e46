"""The Python interface: the same steps as the command, one function each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from siegebench import given, registry
from siegebench.cells import Cell, Result, digest
from siegebench.classifier import Classifier
from siegebench.config import Suite, load_suite
from siegebench.data import ImageSet, Size, subset
from siegebench.errors import ConfigError, did_you_mean
from siegebench.evaluation import now
from siegebench.executors import STARTED, Executor, Report, SerialExecutor, executor, interruptible
from siegebench.plan import Plan, plan
from siegebench.reuse import reason
from siegebench.sources import check_loaded
from siegebench.store import Store
from siegebench.tracks import TRACKS
from siegebench.types import DataSource, ModelSource
from siegebench.workspace import Settings, Workspace


@dataclass(frozen=True)
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

    @property
    def failed(self) -> int:
        """Cells that ended in an error."""
        return sum(r.status == "error" for r in self.results)


@given.gradients()
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

    A row that was made by other source of its entries is computed again, unless `settings.keep_stale`. Rows of earlier
    versions do not say what made them, and are used.

    Args:
        suite: a Suite, a YAML file, or the name of a bundled suite.
        settings: where the store is and how to compute.
        how: `serial`, `local`, or an Executor.
        again: compute all cells again; trained weights are used again. Rows that are replaced move to the history.
        report: called with each cell and its status when it starts (`started`) and when it ends.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed.
    """
    settings = settings or Settings()
    if not isinstance(suite, Suite):
        suite = load_suite(suite, overrides)
    planned = planned or plan(suite)
    settings = replace(settings, specs={**settings.specs, **planned.specs}, again=now() if again else settings.again)
    check_loaded(planned.cells)
    store = Store(settings.root)
    why: Counter[str] = Counter()
    ended: Counter[str] = Counter()

    def tell(cell: Cell, status: str) -> None:
        if status != STARTED:
            ended[status] += 1
        if report is not None:
            report(cell, status)

    todo = []
    for cell in planned.cells:
        found = reason(cell, store, settings)
        if found:
            why[found] += 1
            todo.append(cell)
        else:
            tell(cell, "cached")
    engine = executor(how, slots) if isinstance(how, str) else how
    with interruptible():
        engine.run(todo, settings, tell)
    return Outcome([r for r in map(store.get, planned.cells) if r is not None], ended, settings.root, why)


@given.gradients()
def evaluate(
    model: nn.Module,
    suite: Suite | str = "quickstart",
    *,
    name: str = "model",
    num_classes: int | None = None,
    settings: Settings | None = None,
    tracks: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    report: Report | None = None,
) -> Outcome:
    """Evaluate any classifier on the attack boards of a suite, instead of the suite's own models.

    Args:
        model: a Classifier, or any module that maps images in [0, 1] to logits (normalisation inside). It does not
            change: a copy is attacked.
        tracks: tracks whose boards are computed; by default all that accept a given model.
        name: shown in tables. Rows are stored under the name and what identifies the model: its weights; the code of
            its classes and of all that they use, with hooks, attributes and closures; its logits and input gradients
            on a few images with noise below a grey level. Only a model that is equal in all of these gets stored rows.
        num_classes: checked against the data when given.
        report: called with each cell and its status when it starts (`started`) and when it ends.

    Raises:
        ConfigError: when the suite has no attack board.
        ModelError: when the model does not return one finite logit for each class of the data.
    """
    if not isinstance(suite, Suite):
        suite = load_suite(suite, overrides)
    fitting = [name for name, board in TRACKS.items() if board.takes_model]
    wanted = fitting if tracks is None else list(tracks)
    for track in wanted:
        if track not in fitting:
            raise ConfigError(f"tracks: {track!r} does not accept a given model. {did_you_mean(track, fitting)}")
    boards = [b for b in suite.boards if b.track in wanted]
    if not boards:
        raise ConfigError(f"suite {suite.suite!r} has no board of the tracks {', '.join(wanted)}")
    settings = settings or Settings()
    own, described = given.own(model, name, num_classes)  # the caller's model does not change
    planned = plan(suite.model_copy(update={"boards": boards}), given=described)
    settings = replace(settings, specs={**settings.specs, **planned.specs})
    workspace = Workspace(settings)
    answers = {c.data["digest"]: given.answers(own, workspace.evaluated(c.data)) for c in planned.cells}
    planned.cells = [replace(c, model={**described, "answers": answers[c.data["digest"]]}) for c in planned.cells]
    workspace.given = {digest(c.model): own for c in planned.cells}
    return run(suite, settings, how=SerialExecutor(workspace), planned=planned, report=report)


@given.gradients()
def load_model(
    name: str | dict[str, Any], *, num_classes: int = 1000, size: Size = 224, **parameters: Any
) -> Classifier:
    """A classifier of the zoo, with its published weights: `timm/resnet18.a1_in1k`, `cifar_resnet20`, ...

    Raises:
        ConfigError, ModelError: unknown name or parameter; weights missing, corrupt or of another shape.
    """
    source = registry.build(ModelSource, {**registry.normal(name), **parameters})
    return source.build(num_classes=num_classes, size=size).eval()


@given.gradients()
def load_data(name: str | dict[str, Any], split: str = "test", count: int | None = None, **parameters: Any) -> ImageSet:
    """Images of a dataset; `count` selects the same fixed subset as in a suite.

    Raises:
        ConfigError, DataError: unknown name or parameter; images missing or corrupt.
    """
    source = registry.build(DataSource, {**registry.normal(name), **parameters})
    return subset(source.scan(split), count)
