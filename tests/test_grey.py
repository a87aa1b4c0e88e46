"""Grey images, one channel: every entry works on them or says why not, and so do whole suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from siegebench import api, registry, signatures
from siegebench.config import load_suite
from siegebench.data import GREY
from siegebench.errors import MissingExtra, ModelError
from siegebench.plan import plan
from siegebench.testing import CLAUSES, specimens
from siegebench.testing.specimens import Case, NotChecked
from siegebench.types import Corruption, DataSource, Defense, ModelSource
from siegebench.workspace import Settings
from tests import runs

# parameters for a fast run; None: its parts are tested on one channel elsewhere, it adapts many, or it needs a file
SMALL: dict[str, dict[str, Any] | None] = {
    "adversarial_patch": {"steps": 2, "epochs": 1},
    "art": None,
    "conditional_generator": {"images": 10, "epochs": 1, "batch": 5, "width": 2, "blocks": 2},
    "no_box": {"per_class": 2, "epochs": 1, "decoders": 2, "width": 2, "steps": 2, "ila_steps": 2},
    "saved": None,
    "ctrl": None,  # a pattern of colours, which refuses grey images
    "picture": None,
    "generative_variation": None,
    "nrf": {"steps": 2, "noise_steps": 2},
    "fsba": None,
    "controlled_caption": None,
    "shortcut_bias": None,  # it brings its own images
    "separate_and_trace": {"epochs": 1, "width": 2, "attack": "fgsm"},
    "vmi": {"steps": 2},
    "torchattacks": None,
}
ENTRIES = [
    (kind, name)
    for kind, name in registry.cards()
    if "/" not in name
    and kind not in ("model", "dataset")
    and SMALL.get(name, {}) is not None
    and {"image", "any"} & set(registry.find(kind, name)[0].card.takes)
]


@pytest.mark.filterwarnings("error::UserWarning")  # torch warns when shapes are broadcast
@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=[f"{kind}-{name}" for kind, name in ENTRIES])
def test_entry_works_on_one_channel(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from siegebench.testing import _complete

    monkeypatch.setattr(specimens, "KIND", GREY)
    small = {key: value for key, value in (SMALL.get(name) or {}).items() if key in signatures.parameters(kind, name)}
    try:
        spec = _complete(kind, {"name": name, **small})
        entry = registry.build(kind, spec)
        card = registry.find(kind, spec["name"])[0].card
        CLAUSES[kind][0](Case(kind, entry, sees=card.sees, control=card.control, spec=spec))
    except (NotChecked, MissingExtra) as reason:
        pytest.skip(str(reason))


def test_a_grey_jpeg_is_that_of_pillow() -> None:
    x = specimens.images(4)[:, :1]
    eight = (x * 255).round() / 255
    defended = registry.build(Defense, "jpeg").transform(eight, specimens.one_draw())  # type: ignore[attr-defined]
    assert defended.shape == x.shape
    # severity 2 has quality 65 for small images
    draws = specimens.one_draw()[torch.zeros(4, dtype=torch.long)]
    corrupted = registry.build(Corruption, "jpeg_compression")(eight, 2, draws)
    ours = registry.build(Defense, {"name": "jpeg", "quality": 65}).transform(eight, specimens.one_draw())  # type: ignore[attr-defined]
    assert torch.equal((ours * 255).round(), (corrupted * 255).round())


def test_timm_networks_take_grey_images() -> None:
    data = registry.build(DataSource, {"name": "digits", "channels": 1}).load("test").select(torch.arange(4))
    for spec in ("byobnet_tiny", "timm/test_vit", {"name": "timm/test_resnet", "mean": [0.1307], "std": [0.3081]}):
        model = registry.build(ModelSource, spec).build_for(data)
        assert model(data.pixels()).shape == (4, 10)
        assert (model.kind, model.fresh(0)(data.pixels()).shape) == (GREY, (4, 10))
    with pytest.raises(ModelError, match="mean: 3 numbers for images with 1 channels"):
        registry.build(ModelSource, {"name": "timm/test_resnet", "mean": [0.1, 0.2, 0.3]}).build_for(data)


def test_a_network_for_colours_is_refused_with_its_line(tmp_path: Path) -> None:
    data = {"set": {"name": "digits", "channels": 1}, "count": 20}
    board = runs.board(measures=[])
    path = runs.suite(
        tmp_path / "suite.yaml", board, data=data, models=[{"name": "cifar_resnet20", "checkpoint": None}]
    )
    with pytest.raises(ModelError, match=r"suite\.yaml:\d+:\d+: cifar_resnet20 takes images with 3 channels"):
        plan(load_suite(str(path)))


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with runs.known(tmp_path / "site", monkeypatch):
        yield


@pytest.mark.usefixtures("outsider")
def test_grey_images_go_through_every_track(tmp_path: Path) -> None:
    bright = np.random.default_rng(0).integers(0, 60, (40, 16, 16)) + 60 * (np.arange(40) % 4)[:, None, None]
    for split, seed in (("train", 0), ("test", 1)):
        for i, pixels in enumerate(np.roll(bright, seed, axis=1).astype(np.uint8)):
            path = tmp_path / "data" / split / str(i % 4) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    data = {"set": {"name": "image_folder", "folder": str(tmp_path / "data"), "channels": 1}, "count": 16}
    boards = [board for board in runs.every_track() if "outsider/noise" not in board.get("defenses", ())]
    boards = [board for board in boards if "data" not in board]  # others than these
    boards = [
        {**board, "pool": {"set": data["set"], "split": "train"}} if "pool" in board else board for board in boards
    ]
    path = runs.suite(tmp_path / "suite.yaml", *boards, data=data)
    outcome = api.run(str(path), Settings(root=str(tmp_path / "store"), device="cpu", threads=1))
    assert [(r.cell.title, r.error) for r in outcome.results if r.status == "error"] == []
    done = [r for r in outcome.results if r.status == "ok"]
    assert {r.cell.track for r in done} == {
        "white_box", "query", "transfer", "patch", "backdoor", "poisoning", "input_detection", "model_detection",
        "corruption", "certified", "extraction",
    }  # fmt: skip
    assert all(r.cell.data["source"]["channels"] == 1 and "kind" not in r.cell.data for r in done)
