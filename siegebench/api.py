"""The Python interface: the same straight line as the command, one function an arrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.cells import Cell, Result, digest
from siegebench.config import Suite, load_suite
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError
from siegebench.executors import STARTED, Executor, Report, SerialExecutor, executor, interruptible
from siegebench.oracle import Oracle
from siegebench.plan import Plan, plan, subset
from siegebench.store import Store
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack, Classifier, DataSource, ModelCard, ModelSource, Network
from siegebench.workspace import Settings, Workspace, fingerprint


@dataclass(frozen=True)
class Outcome:
    """What a run did, and the rows of its cells.

    Attributes:
        results: one for each cell of the suite that has a row, computed now or before.
        ended: how many cells ended how: ok, not_applicable, error, crashed, cached.
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
        report: called with each cell when it starts (`started`) and with how it ended.

    Raises:
        ConfigError, DataError, ModelError: before anything is computed.
    """
    settings = settings or Settings()
    if not isinstance(suite, Suite):
        suite = load_suite(suite, overrides)
    planned = planned or plan(suite)
    settings = Settings(**{**vars(settings), "sources": {**settings.sources, **planned.sources}})
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
    tracks: Sequence[str] = ("white_box", "query"),
    overrides: Sequence[str] = (),
) -> Outcome:
    """Put any classifier through the attack boards of a suite, in place of the suite's own models.

    Args:
        model: a Classifier, or any module that maps images in [0, 1] to logits (normalisation inside).
        name: shown in tables; the weights' hash keeps two models of one name apart.
        num_classes: needed when `model` is not a Classifier.

    Raises:
        ConfigError: when the suite has no attack board.
    """
    if not isinstance(suite, Suite):
        suite = load_suite(suite, overrides)
    boards = [b for b in suite.boards if b.track in tracks]
    if not boards:
        raise ConfigError(f"suite {suite.suite!r} has no board of the tracks {', '.join(tracks)}")
    if not isinstance(model, Classifier):
        if num_classes is None:
            raise ConfigError("evaluate(model, ...): pass num_classes, or wrap the model in siegebench.Classifier")
        model = Network(model, num_classes=num_classes, card=ModelCard(name=name))
    model = model.eval()
    planned = plan(suite.model_copy(update={"boards": boards, "models": suite.models or boards[0].models}))
    weights = fingerprint(model)
    cells, given = {}, {}
    for cell in planned.cells:
        description = {"name": name, "version": 1, "weights": weights}
        given[digest(description)] = model
        own = Cell.from_dict({**cell.as_dict(), "model": description})
        cells[own.key] = own  # the suite's models collapse into this one
    settings = settings or Settings()
    settings = Settings(**{**vars(settings), "sources": planned.sources})
    workspace = Workspace(settings, given)
    return run(
        suite,
        settings,
        how=SerialExecutor(workspace),
        planned=Plan(list(cells.values()), planned.sources),
    )


def load_model(
    name: str | dict[str, Any], *, num_classes: int = 1000, size: int = 224, **parameters: Any
) -> Classifier:
    """A classifier of the zoo, with its published weights: `timm/resnet18.a1_in1k`, `cifar_resnet20`, ...

    Raises:
        ConfigError, ModelError: unknown name or parameter; weights missing, corrupt or of another shape.
    """
    source = registry.build("model", {**registry.normal(name), **parameters})
    assert isinstance(source, ModelSource)
    return source.build(num_classes=num_classes, size=size).eval()


def load_data(name: str | dict[str, Any], split: str = "test", count: int | None = None, **parameters: Any) -> ImageSet:
    """Images of a dataset; `count` gives the same fixed slice as in a suite.

    Raises:
        ConfigError, DataError: unknown name or parameter; images missing or corrupt.
    """
    source = registry.build("dataset", {**registry.normal(name), **parameters})
    assert isinstance(source, DataSource)
    return subset(source.load(split), count)


def attack(name: str, **parameters: Any) -> Callable[..., Tensor]:
    """An attack as a function of (model, images, labels, norm=, eps=): adversarial images.

    >>> x_adv = attack("pgd", steps=20)(model, x, y, norm="linf", eps="8/255")

    Raises:
        ConfigError: unknown name or parameter.
    """
    entry = registry.build("attack", {"name": name, **parameters})
    assert isinstance(entry, Attack)

    def call(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        norm: Norm = "linf",
        eps: float | str = "8/255",
        queries: int | None = None,
        seed: int = 0,
        num_classes: int | None = None,
    ) -> Tensor:
        access: Access = entry.access()
        threat = ThreatModel.parse({"norm": norm, "eps": eps, "access": access, "queries": queries})
        if not isinstance(model, Classifier):
            if num_classes is None:
                with torch.no_grad():
                    num_classes = int(model(x[:1]).shape[1])
            model = Network(model, num_classes=num_classes)
        draws = Draws(derive_seed(seed, "attack"), torch.arange(len(x), device=x.device))
        grads = [(p, p.requires_grad) for p in model.parameters()]
        training = model.training
        try:
            model.eval().requires_grad_(False)
            return entry(Oracle(model, threat, draws), x, y, threat, draws)
        finally:
            model.train(training)
            for p, flag in grads:
                p.requires_grad_(flag)

    return call
