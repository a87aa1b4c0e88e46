"""A defense that breaks its contract during a run becomes an error row with one clear line, however it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from siegebench.cells import Cell, Result
from siegebench.classifier import Classifier, Wrapped
from siegebench.config import load_suite
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import MissingExtra
from siegebench.evaluation import evaluate
from siegebench.plan import plan
from siegebench.types import Defense
from siegebench.workspace import Settings, Workspace
from tests import runs


class Answers(Wrapped):
    """Logits put through a function, which fails once the weights are those after a training, or at once."""

    def __init__(self, inner: Classifier, change: Callable[[Tensor], Tensor], trained: bool) -> None:
        super().__init__(inner)
        self.change = change
        self.register_buffer("ready", torch.tensor(not trained))

    ready: Tensor

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z: Tensor = self.inner(x)
        return self.change(z) if bool(self.ready) else z


def missing(z: Tensor) -> Tensor:
    raise MissingExtra("pandas", "odd", "this defense")


@dataclass(frozen=True, kw_only=True)
class Faulty(Defense):
    """Wraps, and its answers have a fault."""

    fault: str = ""

    def wrap(self, model: Classifier) -> Classifier:
        if self.fault == "changes":
            with torch.no_grad():
                next(model.parameters()).add_(1.0)
        return Answers(model, CHANGES.get(self.fault, lambda z: z), self.trains)


@dataclass(frozen=True, kw_only=True)
class Both(Faulty):
    """Wraps and trains: the fault is there after the training."""

    trains: ClassVar[bool] = True

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, Answers)
        defended.ready.fill_(True)


@dataclass(frozen=True, kw_only=True)
class Trains(Faulty):
    """Trains only; the fault is in its training."""

    trains: ClassVar[bool] = True

    def wrap(self, model: Classifier) -> Classifier:
        return model

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        if self.fault == "extra":
            missing(torch.zeros(1))
        with torch.no_grad():
            for p in defended.parameters():
                p.fill_(torch.nan)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one number": lambda z: z[:, 0],
    "fewer images": lambda z: z[:1],
    "more classes": lambda z: torch.cat([z, z], dim=1),
    "no tensor": lambda z: None,  # type: ignore[arg-type,return-value]
    "fails": lambda z: z / (1 // 0),
    "nan": lambda z: z * torch.nan,
    "extra": missing,
}
TOLD = {
    "one number": ("ContractError", "defense 'pgd_at': the model has 10 classes and returns (4,) for 4 images"),
    "fewer images": ("ContractError", "returns (1, 10) for 4 images; expected (4, 10)"),
    "more classes": ("ContractError", "returns (4, 20) for 4 images; expected (4, 10)"),
    "no tensor": ("ContractError", "returns a NoneType"),
    "fails": ("ContractError", "the model fails on images (4, 3, 32, 32), torch.float32 in [0, 1]: ZeroDivisionError"),
    "nan": ("ContractError", "defense 'pgd_at': the model returns NaN or infinite logits"),
    "extra": ("MissingExtra", "this defense needs pandas, which is not installed: pip install 'siegebench[odd]'"),
    "changes": ("ContractError", "changed the model it was given (net.0.weight)"),
}
CASES = [
    *((Faulty, fault) for fault in TOLD), *((Both, fault) for fault in TOLD if fault != "changes"),
    (Trains, "nan"), (Trains, "extra"),
]  # fmt: skip


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch, runs.known(folder / "site", patch):
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        board = runs.board(defenses=["pgd_at"], measures=[], search="none")
        model = {"name": runs.MODEL, "recipe": {"epochs": 1}}
        data = {"set": "digits", "count": 12, "train": 40}
        file = runs.suite(folder / "s.yaml", board, models=[model], data=data)
        cells = [c for c in plan(load_suite(str(file))).cells if not c.adaptive]
        yield cells[0], folder / "store"


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_it_becomes_an_error_row(
    kind: type[Faulty], fault: str, cell: tuple[Cell, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = row(cell, kind(fault=fault), monkeypatch)
    assert found.status == "error"
    assert found.error is not None
    assert (found.error["type"], TOLD[fault][1] in found.error["message"]) == (TOLD[fault][0], True), found.error
    assert "\n" not in found.error["message"]
    assert [f["id"] for f in found.flags] == (["contract_broken"] if TOLD[fault][0] == "ContractError" else [])
    assert not found.metrics


@pytest.mark.parametrize("kind", [Faulty, Both])
def test_without_a_fault_it_is_an_ordinary_row(
    kind: type[Faulty], cell: tuple[Cell, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = row(cell, kind(), monkeypatch)
    assert (found.status, found.error) == ("ok", None)


def row(cell: tuple[Cell, Path], defense: Defense, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The row of a cell whose defense is replaced by this one; its weights are not stored."""
    found, store = cell
    entry, fitted = Workspace.entry, Workspace._fitted

    def other(self: Workspace, kind: Any, description: Any) -> Any:
        return defense if kind is Defense else entry(self, kind, description)

    def fit(self: Workspace, what: dict[str, Any], model: Any, make: Callable[[], Any]) -> Any:
        return self._ready(make()) if what["kind"] == "defended" else fitted(self, what, model, make)

    monkeypatch.setattr(Workspace, "entry", other)
    monkeypatch.setattr(Workspace, "_fitted", fit)
    return evaluate(found, Workspace(Settings(root=str(store), device="cpu")))
