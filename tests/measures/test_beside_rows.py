"""What a measure returns for each image, and its pictures, lie beside its row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siegebench.cells import Result
from siegebench.store import Store
from siegebench.tracks.attacking import _beside, _shown
from tests.rows import attacked, named


def row_of(found: dict[str, Any], ids: torch.Tensor) -> Result:
    cell = replace(attacked("pgd", 10).cell, attack=None, measure=named("alignment"))
    return Result(
        cell=cell, metrics={"cosine": {"value": 0.5}}, arrays=_beside(found, ids), images=_shown(found), given={}
    )


def test_numbers_and_pictures_are_stored_and_shown(tmp_path: Path) -> None:
    pictures = torch.rand(11, 3, 8, 17, generator=torch.Generator().manual_seed(0))
    found = {"arrays": {"cosine": torch.linspace(0, 1, 4)}, "pictures": pictures}
    row, store = row_of(found, torch.tensor([7, 3, 9, 1])), Store(tmp_path)
    store.put(row)
    kept = store.arrays(row.cell)
    assert kept["ids"].tolist() == [7, 3, 9, 1]
    np.testing.assert_allclose(kept["cosine"], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    shown = store.pictures(row.cell, 12)
    assert [name for name, _ in shown] == [str(k) for k in range(11)]
    assert all(file.startswith(b"\x89PNG") for _, file in shown)


def test_a_measure_without_them_has_no_files(tmp_path: Path) -> None:
    row, store = row_of({"pictures": torch.zeros(0, 3, 8, 8)}, torch.arange(4)), Store(tmp_path)
    path = store.put(row)
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == [path.name]
