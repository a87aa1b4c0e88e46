"""Saved: stored images are found by id, scored on any victim, and never trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from siegebench.attacks.saved import Saved
from torch import Tensor

from siegebench import api
from siegebench.classifier import Classifier
from siegebench.config import load_suite
from siegebench.data import subset
from siegebench.draws import Draws
from siegebench.errors import DataError, SiegeError
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.registry import build
from siegebench.threat import ThreatModel
from siegebench.types import DataSource
from siegebench.workspace import Settings
from tests import kit, runs

LINF = ThreatModel(eps=0.1, access="none")
IDS = torch.tensor([40, 7, 12])


def run(file: Path, model: Classifier, x: Tensor, ids: Tensor = IDS, y: Tensor | None = None) -> Tensor:
    draws = Draws(0, ids)
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    return Saved(file=str(file))(Oracle(model, LINF, draws), x, y, LINF, draws)


def write(path: Path, **tensors: Tensor) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in tensors.items()})
    else:
        save_file(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_images_are_found_by_id_and_those_outside_eps_are_dropped(
    linear: Classifier, tmp_path: Path, suffix: str
) -> None:
    x = kit.grey_images(3)
    stored = torch.stack([x[2] + 0.05, x[0] + 0.2, torch.rand_like(x[0])])
    file = write(tmp_path / f"mine{suffix}", images=stored, ids=torch.tensor([12, 40, 99]))
    x_adv = run(file, linear, x)
    assert torch.equal(x_adv[0], x[0])  # stored, and too far
    assert torch.equal(x_adv[1], x[1])  # not stored
    assert torch.equal(x_adv[2], stored[0])


def test_integers_channels_last_and_folders(linear: Classifier, tmp_path: Path) -> None:
    x = (kit.grey_images(3) * 255).round() / 255
    near = ((x + 0.02) * 255).round().to(torch.uint8)
    (tmp_path / "png").mkdir()
    for i, image in zip(IDS.tolist(), near, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "png" / f"{i}.png")
    for file in (
        write(tmp_path / "a.npz", images=near.permute(0, 2, 3, 1).contiguous(), ids=IDS),
        write(tmp_path / "b.safetensors", images=near, ids=IDS),
        tmp_path / "png",
    ):
        torch.testing.assert_close(run(file, linear, x), near.float() / 255)


def test_a_pixel_outside_the_box_or_nan_makes_a_clean_image(linear: Classifier, tmp_path: Path) -> None:
    x = kit.grey_images(3)
    x[:, :, 0, 0] = 1.0
    stored = x.clone()
    stored[0, 0, 0, 0], stored[1, 0, 1, 1], stored[2, 0, 1, 1] = 1.05, torch.nan, 0.02 + float(x[2, 0, 1, 1])
    x_adv = run(write(tmp_path / "mine.safetensors", images=stored, ids=IDS), linear, x)
    assert torch.equal(x_adv[:2], x[:2])
    assert torch.equal(x_adv[2], stored[2])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"images": torch.rand(2, 3, 8, 8)}, "found images; expected tensors images"),
        ({"images": torch.rand(2, 3, 8, 8), "ids": torch.tensor([1, 1])}, "an id appears twice"),
        ({"images": torch.rand(2, 3, 8, 8), "ids": torch.tensor([1])}, "expected 2 integers"),
        ({"images": torch.rand(2, 3, 8, 8), "ids": torch.rand(2)}, "expected 2 integers"),
        ({"images": torch.rand(2, 3, 8), "ids": torch.tensor([1, 2])}, "expected uint8 or float"),
        ({"images": torch.rand(1, 3, 4, 4), "ids": torch.tensor([7])}, r"images \(3, 4, 4\), expected \(3, 8, 8\)"),
        (
            {"images": torch.rand(1, 3, 8, 8), "ids": torch.tensor([7]), "labels": torch.tensor([4])},
            "made from other images: 1 of 1 labels differ; image 7 has label 4 there and 0 in the data",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    linear: Classifier, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(write(tmp_path / "mine.safetensors", **tensors), linear, kit.grey_images(3))


def test_missing_and_broken_files_are_refused(linear: Classifier, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "images.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("no.npz", "no such file"), ("broken.safetensors", "cannot be read"), ("images.pt", "expected .safetensors"),
        ("empty", "named by their id"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            run(tmp_path / name, linear, kit.grey_images(3))


def test_the_key_follows_the_content_of_the_file(tmp_path: Path) -> None:
    images, other = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    ids = torch.tensor([1, 2])
    first = Saved(file=str(write(tmp_path / "a.safetensors", images=images, ids=ids)))
    turned = Saved(file=str(write(tmp_path / "b.npz", images=images.flip(0), ids=ids.flip(0))))
    assert first.identity() == turned.identity()
    assert "file" not in first.parameters()
    before = first.identity()
    write(tmp_path / "a.safetensors", images=other, ids=ids)
    assert first.identity() != before


def test_it_runs_on_every_board_of_images_and_counts_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = subset(build(DataSource, "digits").load("test"), 40)
    far = torch.where(data.pixels() < 0.5, 0.2, -0.2)  # within 64/255
    half = torch.arange(0, 40, 2)
    own = {"images": (data.pixels() + far)[half], "ids": data.ids[half]}
    good = write(tmp_path / "good.npz", labels=data.labels[half], **own)
    wrong = write(tmp_path / "wrong.npz", labels=(data.labels[half] + 1) % 10, **own)
    strange = write(tmp_path / "strange.npz", images=own["images"], ids=own["ids"] + 10**6)
    save_file(own, tmp_path / "other.safetensors", metadata={"digest": "of another slice"})
    threats = [{"norm": "linf", "eps": "64/255"}]
    no_box = {"track": "transfer", "surrogates": [], "threats": threats}
    with runs.known(tmp_path / "site", monkeypatch):
        for file, message in (
            (wrong, "20 of 20 labels differ"), (strange, "has none of the 40 images"), (tmp_path / "no.npz", "no such"),
            (tmp_path / "other.safetensors", "has no labels to compare"), ("", "needs the parameter file"),
        ):  # fmt: skip
            path = runs.suite(tmp_path / "s.yaml", runs.board(attacks=[{"name": "saved", "file": str(file)}]))
            with pytest.raises(SiegeError, match=f"s.yaml:[0-9]+.*{message}"):
                plan(load_suite(str(path)))
        attacks = [{"name": "saved", "file": str(good)}]
        path = runs.suite(
            tmp_path / "s.yaml", {**no_box, "attacks": attacks}, runs.board(attacks=attacks, threats=threats),
            {"track": "query", "threats": threats, "attacks": attacks},
        )  # fmt: skip
        outcome = api.run(load_suite(str(path)), Settings(root=str(tmp_path / "store"), threads=1), how="serial")
        assert not outcome.failed
        rows = [r for r in outcome.results if r.cell.attack is not None]
        assert {r.cell.track for r in rows} == {"transfer", "white_box", "query"}
        for row in rows:
            assert "sha256" in row.cell.attack
            assert str(tmp_path) not in str(row.as_dict())
            stored = torch.zeros(40, dtype=torch.bool)
            stored[half] = True
            attacked = torch.tensor(row.outcome("clean").tolist())
            missing = int((attacked & ~stored).sum())
            assert {f["id"]: f["evidence"] for f in row.flags}["unchanged"].startswith(
                f"the attack has no image within eps for {missing} of {int(attacked.sum())}"
            )
            robust = torch.tensor(row.outcome("robust").tolist())
            assert bool(robust[attacked & ~stored].all())
