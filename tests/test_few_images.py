"""Sets with a few images of a class: entries work, or say in one line what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from siegebench import api, registry
from siegebench.classifier import Network
from siegebench.config import load_suite
from siegebench.data import split_clean
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.plan import plan
from siegebench.tracks.backdoor import triggered
from siegebench.train import Recipe, train
from siegebench.types import InputDetector, ModelDetector
from siegebench.workspace import Settings
from tests import runs, victims

from .test_splits import image_set

WHAT_TO_DO = ("give ", "needs ", "need ", "set ")


def folder(path: Path, train: tuple[int, ...], test: tuple[int, ...]) -> Path:
    """Class folders with so many images of each class."""
    draws = torch.Generator().manual_seed(0)
    for split, counts in (("train", train), ("test", test)):
        for label, count in enumerate(counts):
            for i in range(count):
                place = path / split / f"class{label}"
                place.mkdir(parents=True, exist_ok=True)
                pixels = torch.randint(0, 256, (16, 16, 3), generator=draws, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{i}.png")
    return path


def boards(rate: float) -> list[dict[str, Any]]:
    """Every backdoor, every detector and every defense of the backdoor track."""
    once: dict[str, Any] = {"epochs": 1, "augment": "none"}
    short: dict[str, Any] = {
        "fine_tuning": {"epochs": 1},
        "fine_pruning": {"tuning": once},
        "anp": {"iterations": 2},
        "ibau": {"rounds": 1, "fixed_point": 1},
        "ft_sam": {"tuning": once},
        "nad": {"teacher": once, "student": once},
        "abl": {"isolation": once, "recipe": once, "unlearning": 1},
        "elr": {"recipe": once},
        "dam": {"images": 20, "pretraining": once, "recipe": once, "steps": 2, "merging_steps": 2},
        "dbd": {"features": once, "head": once, "recipe": once},
        "generative_variation_standin": {
            "generator": {"name": "diffpure", "t": 4, "steps": 2, "width": 4, "recipe": once},
            "recipe": once,
        },
        "nab": dict.fromkeys(("isolation", "verifier", "recipe"), once),
        "neural_cleanse": {"steps": 2},
        "strip": {"overlays": 2},
        "badexpert": {"steps": 2, "auxiliary_steps": 2},
        "frequency": {"recipe": {"epochs": 1, "augment": "none"}},
        "sentinet": {"overlays": 2, "images": 4},
        "beyond": {"recipe": once, "views": 4, "nearest": 2},
        "smoothinv": {"steps": 2, "noises": 2, "tested": 2},
        "umd": {"steps": 2, "starts": 1},
        "df_tnd": {"steps": 2},
        "mm_bd": {"steps": 2},
        "k_arm": {"steps": 2, "rounds": 1},
    }
    own = [r for r in registry.cards().values() if r.package.startswith("siegebench.")]

    def named(kind: str) -> list[str]:
        of_images = {"image", "any"}
        return [r.name for r in own if r.card.kind == kind and not r.card.family and of_images & {*r.card.takes}]

    def specs(names: list[str]) -> list[dict[str, Any]]:
        return [{"name": name, **short.get(name, {})} for name in names]

    poisons = [{"name": name, "rate": rate} for name in ("badnets", "blended")]
    judges = [d for d in named("detector") if issubclass(registry.entry_class("detector", d), ModelDetector)]
    others = [d for d in named("detector") if d not in judges]
    of_inputs = [d for d in others if issubclass(registry.entry_class("detector", d), InputDetector)]
    repairs = [d for d in named("defense") if registry.build("defense", d).ranked_in("backdoor")]
    changed = {"kind": "corrupted", "corruption": "contrast"}
    return [
        {"track": "backdoor", "backdoors": poisons, "defenses": specs(repairs)},
        {"track": "input_detection", "backdoors": poisons, "detectors": specs(others)},
        {"track": "input_detection", "inputs": [changed], "detectors": specs(of_inputs)},
        {"track": "model_detection", "backdoors": poisons[:1], "detectors": specs(judges)},
        {"track": "corruption", "corruptions": ["contrast"], "severities": [1]},
    ]


SETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], float]] = {
    "three of each of five classes": ((3,) * 5, (2,) * 5, 0.3),
    "too few for the rate": ((3,) * 5, (2,) * 5, 0.05),
    "two classes": ((4, 4), (2, 2), 0.3),
    "a class with a single image": ((6, 6, 1), (2, 2, 1), 0.3),
    "one of each of five classes": ((1,) * 5, (1,) * 5, 0.4),
    "no test image but of the target": ((5, 5), (3, 0), 0.3),
}


SLOW = ("two classes", "a class with a single image")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SETS])
def test_every_entry_works_or_says_what_it_needs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_counts, test_counts, rate = SETS[name]
    root = folder(tmp_path / "set", train_counts, test_counts)
    with runs.known(tmp_path / "site", monkeypatch):
        suite = runs.suite(
            tmp_path / "few.yaml",
            *boards(rate),
            data={"set": {"name": "image_folder", "folder": str(root)}},
            models=[{"name": runs.MODEL, "recipe": {"epochs": 1, "augment": "none"}}],
        )
        out = api.run(str(suite), Settings(root=str(tmp_path / "store"), threads=1, device="cpu"))
    for row in out.results:
        told = (row.error or {}).get("message", "")
        assert row.status != "error", (row.cell.title, row.error)
        assert row.status == "ok" or any(word in told for word in WHAT_TO_DO), (row.cell.title, told)
        assert all(value["value"] == value["value"] for value in row.metrics.values()), row.cell.title


def test_a_set_with_one_class_is_refused_when_the_suite_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"set": {"name": "image_folder", "folder": str(folder(tmp_path / "set", (8,), (2,)))}}
    with runs.known(tmp_path / "site", monkeypatch):
        suite = runs.suite(tmp_path / "one.yaml", data=data, models=[runs.MODEL])
        with pytest.raises(ConfigError, match=r"one\.yaml:\d+:\d+: image_folder has one class"):
            plan(load_suite(str(suite)))


@pytest.mark.parametrize("n", [4, 5, 9, 10, 11, 20, 21])
def test_small_sets_are_divided_into_three_parts(n: int) -> None:
    data = image_set(torch.arange(n) % 10)
    parts = split_clean(data)
    assert min(map(len, parts)) >= 1
    assert sorted(torch.cat([part.ids for part in parts]).tolist()) == list(range(n))
    assert len(parts[0]) == (n - 20 if n > 20 else n - n // 2)


def test_sets_that_cannot_be_divided_say_so() -> None:
    with pytest.raises(NotApplicable, match=r"3 training images; .* at least 4: give more images"):
        split_clean(image_set(torch.arange(3)))
    with pytest.raises(NotApplicable, match="all training images are of one group"):
        split_clean(image_set(torch.arange(30) % 10, groups=torch.zeros(30, dtype=torch.long)))


def test_a_rate_that_poisons_nothing_says_which_one_would() -> None:
    data = image_set(torch.arange(12) % 3, classes=3)
    with pytest.raises(NotApplicable, match=r"rate 0.03 of 12 training images .* at least 0.084, or give more"):
        victims.backdoor("blended", rate=0.03).poison(data, 0)
    assert len(victims.backdoor("blended", rate=0.084).poison(data, 0).index) == 1
    assert len(victims.backdoor("blended", rate=0).poison(data, 0).index) == 0  # nothing was asked for


def test_a_trigger_needs_images_that_it_can_change() -> None:
    only_target = image_set(torch.zeros(6, dtype=torch.long), classes=3)
    with pytest.raises(NotApplicable, match="none of the 6 test images has a class"):
        triggered(victims.backdoor("blended"), only_target, 0)


def test_clustering_needs_three_images_of_some_class() -> None:
    data = image_set(torch.arange(8) % 4, classes=4)
    detector: Any = registry.build("detector", "activation_clustering")
    model = victims.byobnet()
    with pytest.raises(NotApplicable, match="no class has more than 2 training images"):
        detector.score(model, victims.granted(None, (data, data, data, data), "train"), Draws(0, torch.zeros(1).long()))


def test_batch_norms_and_a_single_image_are_refused_in_one_line() -> None:
    def rebuild() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 10))

    one = image_set(torch.zeros(1, dtype=torch.long))
    model = Network(rebuild(), num_classes=10, rebuild=rebuild)
    with pytest.raises(NotApplicable, match=r"on 1 images of set .* at least 2 images per batch"):
        train(model, one, Recipe(epochs=1, augment="none"), 0)
