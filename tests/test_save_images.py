"""Adversarial images beside the rows: exactly those that the attack found, with their ids and labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import siegebench as sb
from siegebench import api, cli
from siegebench.cells import Result
from siegebench.errors import ConfigError
from siegebench.store import Store
from siegebench.workspace import Settings
from tests import kit, runs

EPS = 8 / 255


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


def images(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of which the model gets the third wrong."""
    x = kit.grey_images(n, size=8)
    y = kit.Linear(classes=4)(x).argmax(1)
    y[2] = (y[2] + 1) % 4
    return x, y


def evaluate(
    folder: Path, most: int | None = None, attack: Any = "fgsm", **settings: Any
) -> tuple[Result, api.Outcome]:
    x, y = images()
    file = runs.suite(
        folder / "s.yaml", runs.board(attacks=[attack], measures=[], threats=[{"norm": "linf", "eps": EPS}])
    )
    where = Settings(root=str(folder / "store"), save_images=most, threads=1, **settings)
    outcome = sb.evaluate(kit.Linear(classes=4), str(file), x=x, y=y, settings=where)
    (row,) = outcome.results
    return row, outcome


def files(folder: Path, row: Result) -> tuple[Path, Path]:
    path = Store(folder / "store").path(row.cell)
    return path.with_suffix(".images.safetensors"), path.with_suffix(".images")


def test_images_lie_beside_the_row_and_are_what_was_scored(tmp_path: Path) -> None:
    x, y = images()
    row, _ = evaluate(tmp_path, 0, batch=4)
    file, folder = files(tmp_path, row)
    found = load_file(file)
    assert {k: v.dtype for k, v in found.items()} == {"images": np.float32, "ids": np.int64, "labels": np.int64}
    assert found["ids"].tolist() == [0, 1, 3, 4, 5, 6, 7, 8], "images that are wrong already are not attacked"
    assert found["labels"].tolist() == y[found["ids"]].tolist()
    by_hand = sb.attack("fgsm")(kit.Linear(classes=4), x, y, norm="linf", eps=EPS)[found["ids"]]
    np.testing.assert_allclose(found["images"], by_hand.numpy(), atol=1e-6)
    still = kit.Linear(classes=4)(torch.from_numpy(found["images"])).argmax(1) == torch.from_numpy(found["labels"])
    assert row.value("robust_acc") == pytest.approx(float(still.sum()) / 9, abs=1e-6)
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"original_digest": row.cell.data["digest"], "cell": row.cell.key}
    assert {p.name for p in folder.iterdir()} == {f"{i}.png" for i in found["ids"]}
    with Image.open(folder / "3.png") as picture:
        pixels = np.asarray(picture).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, (found["images"][2] * 255).round().astype(np.uint8))
    assert not runs.leftovers(tmp_path / "store")


def test_a_stored_row_without_its_images_is_computed_again(tmp_path: Path) -> None:
    row, outcome = evaluate(tmp_path)
    assert outcome.ended == {"ok": 1}
    assert not files(tmp_path, row)[0].exists()
    again, outcome = evaluate(tmp_path, 3)
    assert outcome.why == {"images": 1}
    assert again.metrics == row.metrics
    assert again.cell.key == row.cell.key, "how many images are kept is no part of the key"
    assert len(load_file(files(tmp_path, row)[0])["ids"]) == 3
    assert len(list(files(tmp_path, row)[1].iterdir())) == 3
    assert evaluate(tmp_path, 2)[1].ended == {"cached": 1}, "there are enough"
    assert evaluate(tmp_path)[1].ended == {"cached": 1}
    assert evaluate(tmp_path, 0)[1].why == {"images": 1}
    assert evaluate(tmp_path, 100)[1].ended == {"cached": 1}, "there are no more"
    history = tmp_path / "store" / "history"
    assert len(list(history.rglob("*.images.safetensors"))) == 1
    assert len(list(history.rglob("*.png"))) == 3


def test_images_outside_the_budget_are_the_originals(tmp_path: Path) -> None:
    """A minimum-norm attack may end outside; such an image is no adversarial image of this threat."""
    x, _ = images()
    row, _ = evaluate(tmp_path, 0, attack={"name": "fmn", "steps": 3})
    found = load_file(files(tmp_path, row)[0])
    far = np.abs(found["images"] - x.numpy()[found["ids"]]).reshape(len(found["ids"]), -1).max(axis=1)
    assert far.max() <= EPS + 1e-5


def test_saved_images_are_an_attack_with_the_same_result(tmp_path: Path) -> None:
    row, _ = evaluate(tmp_path, 0)
    saved, _ = evaluate(tmp_path, attack={"name": "saved", "file": str(files(tmp_path, row)[0])})
    assert saved.status == "ok", saved.error
    assert saved.value("robust_acc") == row.value("robust_acc")
    assert saved.value("robust_acc") != row.value("clean_acc"), "nothing was broken, so nothing is compared"


def test_the_option_has_an_optional_number() -> None:
    assert [cli._most_images(v) for v in (None, cli.ALL, "3")] == [None, 0, 3]
    for bad in ("0", "-1", "many"):
        with pytest.raises(ConfigError, match=f"--save-images={bad}: expected a whole number above 0"):
            cli._most_images(bad)
