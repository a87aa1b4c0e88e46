"""The Python interface: the same steps as the command, one function each."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from siegebench import registry
from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, digest
from siegebench.classifier import Classifier, ModelCard, Network
from siegebench.config import Suite, load_suite
from siegebench.data import ImageSet, Size, subset
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ModelError, did_you_mean
from siegebench.executors import STARTED, Executor, Report, SerialExecutor, executor, interruptible
from siegebench.plan import Plan, plan
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
    """

    results: list[Result]
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        """Cells that ended in an error."""
        return sum(r.status == "error" for r in self.results)


def run(
    suite: Suite | str,
    settings: Settings | None = None,
    *,
    how: Executor | str = "serial",
    slots: int | None = None,
    overrides: Sequence[str] = (),
    report: Report | None = None,
    planned: Plan | None = None,
) -> Outcome:
    """Compute the cells of a suite that are not stored yet.

    Args:
        suite: a Suite, a YAML file, or the name of a bundled suite.
        settings: where the store is and how to compute.
        how: `serial`, `local`, or an Executor.
        report: called with each cell and its status when it starts (`started`) and when it ends.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed.
    """
    settings = settings or Settings()
    if not isinstance(suite, Suite):
        suite = load_suite(suite, overrides)
    planned = planned or plan(suite)
    settings = replace(settings, specs={**settings.specs, **planned.specs}, suite=suite.origin)
    store = Store(settings.root)
    ended: Counter[str] = Counter()

    def tell(cell: Cell, status: str) -> None:
        if status != STARTED:
            ended[status] += 1
        if report is not None:
            report(cell, status)

    todo = []
    for cell in planned.cells:
        if store.finished(cell):
            tell(cell, "cached")
        else:
            todo.append(cell)
    engine = executor(how, slots) if isinstance(how, str) else how
    with interruptible():
        engine.run(todo, settings, tell)
    return Outcome([r for r in map(store.get, planned.cells) if r is not None], ended)


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
        name: shown in tables; two models with the same name are distinguished by their weights and outputs.
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
    own = copy.deepcopy(model).cpu().float()  # the caller's model does not change
    if not isinstance(own, Classifier):
        own = Network(own, num_classes=num_classes or 0, card=ModelCard(name=name))
    own.eval().requires_grad_(False)
    described = {"name": name, "version": 1, "weights": fingerprint(own)}
    planned = plan(suite.model_copy(update={"boards": boards}), given=described)
    settings = replace(settings, specs={**settings.specs, **planned.specs})
    workspace = Workspace(settings)
    # two models with equal weights may differ in code, so their outputs are part of the key as well
    answers = {c.data["digest"]: _answers(own, workspace.evaluated(c.data)) for c in planned.cells}
    planned.cells = [replace(c, model={**described, "answers": answers[c.data["digest"]]}) for c in planned.cells]
    workspace.given = {digest(c.model): own for c in planned.cells}
    return run(suite, settings, how=SerialExecutor(workspace), planned=planned, report=report)


@torch.no_grad()
def _answers(model: Classifier, data: ImageSet) -> str:
    """A short hash of labels and logits for a few images.

    Raises:
        ModelError: when the model does not return one finite logit for each class.
    """
    x = data.pixels(slice(0, 16))
    try:
        z = model(x, Draws(0, data.ids[:16])) if model.randomized else model(x)
    except Exception as error:
        raise ModelError(f"the model fails on images {tuple(x.shape)} of {data.name}: {error}") from error
    if model.kind != data.kind:
        raise ModelError(f"the model takes {model.kind.name}, {data.name} is {data.kind.name}")
    expected = (len(x), data.num_classes)
    model.num_classes = model.num_classes or data.num_classes  # a plain network gets it here
    if z.shape != expected or model.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {model.num_classes} classes and returns {tuple(z.shape)} for {len(x)} images of "
            f"{data.name}; expected {expected}, one logit for each class"
        )
    if not bool(torch.isfinite(z).all()):
        raise ModelError(f"the model returns NaN or infinite logits for images of {data.name}")
    top = z.max(dim=1)
    return digest([top.indices.tolist(), [f"{v:.2e}" for v in top.values.tolist()]])[:16]


def load_model(
    name: str | dict[str, Any], *, num_classes: int = 1000, size: Size = 224, **parameters: Any
) -> Classifier:
    """A classifier of the zoo, with its published weights: `timm/resnet18.a1_in1k`, `cifar_resnet20`, ...

    Raises:
        ConfigError, ModelError: unknown name or parameter; weights missing, corrupt or of another shape.
    """
    source = registry.build(ModelSource, {**registry.normal(name), **parameters})
    return source.build(num_classes=num_classes, size=size).eval()


def load_data(name: str | dict[str, Any], split: str = "test", count: int | None = None, **parameters: Any) -> ImageSet:
    """Images of a dataset; `count` selects the same fixed subset as in a suite.

    Raises:
        ConfigError, DataError: unknown name or parameter; images missing or corrupt.
    """
    source = registry.build(DataSource, {**registry.normal(name), **parameters})
    return subset(source.scan(split), count)
