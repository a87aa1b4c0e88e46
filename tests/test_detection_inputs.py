"""Boards of input detection beyond triggers: adversarial and corrupted images, and what such boards refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from siegebench.leaderboard import rank

from siegebench import api
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.stats import oscr
from siegebench.tracks.detecting import Fitted, alarm_flags
from siegebench.tracks.detection_inputs import fitted
from siegebench.workspace import Settings
from tests import runs

LINF = {"norm": "linf", "eps": "64/255"}
ADVERSARIAL = {"kind": "adversarial", "attack": "fgsm", "threat": LINF}
FOG = {"kind": "corrupted", "corruption": "fog", "severity": 5}


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


def suite(folder: Path, **board: Any) -> str:
    return str(runs.suite(folder / "s.yaml", {"track": "input_detection", "detectors": ["strip"], **board}))


@pytest.mark.parametrize(
    ("board", "words"),
    [
        ({}, "has no backdoors and no inputs"),
        ({"inputs": [FOG, FOG]}, "appears twice"),
        ({"inputs": [{**FOG, "severity": 6}]}, "less than or equal to 5"),
        ({"inputs": [{**ADVERSARIAL, "attack": "deepfool", "threat": {**LINF, "norm": "l1"}}]}, "not l1"),
        ({"inputs": [{**ADVERSARIAL, "threat": {**LINF, "target": "next"}}]}, "leave target out"),
        ({"inputs": [{"kind": "ood", "set": "nowhere"}]}, "unknown dataset 'nowhere'"),
        ({"inputs": [{"kind": "ambiguous", "set": {"name": "ambiguess", "data": "digits"}}]}, "needs the parameter"),
        ({"inputs": [FOG], "detectors": ["activation_clustering"]}, "judges training images; this board has no backd"),
        ({"inputs": [FOG], "detectors": ["neural_cleanse"]}, "judges models"),
        ({"backdoors": ["outsider/flips"]}, "'outsider/flips' has no trigger; it is not for the input_detection track"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_line(tmp_path: Path, board: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"s\.yaml:\d+:\d+: ") as caught:
        load_suite(suite(tmp_path, **board))
    assert words in str(caught.value)


def test_a_detector_of_training_images_meets_backdoors_only(tmp_path: Path) -> None:
    detectors = ["strip", "activation_clustering"]
    cells = plan(
        load_suite(suite(tmp_path, data={"set": "digits"}, backdoors=["badnets"], inputs=[FOG], detectors=detectors))
    ).cells
    told = {((c.detector or {})["name"], "fog" if c.corruption else "badnets") for c in cells}
    assert told == {("strip", "fog"), ("strip", "badnets"), ("activation_clustering", "badnets")}


def test_an_attack_that_learns_is_given_its_lesson(tmp_path: Path) -> None:
    attack = {"name": "adversarial_patch", "steps": 2, "images": 20}
    patch = {"kind": "adversarial", "attack": attack, "threat": {"norm": "l0", "eps": 0.25}}
    file = suite(tmp_path, inputs=[patch, ADVERSARIAL])
    outcome = api.run(file, Settings(root=str(tmp_path / "store"), threads=1), how="serial")
    assert [r.error for r in outcome.results] == [None, None]
    assert all(r.value("asr") is not None for r in outcome.results)


def test_the_data_of_the_board_is_no_other_data(tmp_path: Path) -> None:
    same = {"kind": "ood", "set": "digits", "count": 40}
    with pytest.raises(ConfigError, match="digits is the data of the board; give another data set"):
        plan(load_suite(suite(tmp_path, inputs=[same])))


def test_other_data_and_ambiguous_images_are_scored(tmp_path: Path) -> None:
    made = {"name": "ambiguess", "data": "digits", "pairs": 1, "epochs": 2, "tries": 1, "images": 10}
    inputs = [{"kind": "ood", "set": "outsider/planted", "count": 20}, {"kind": "ambiguous", "set": made}]
    file = suite(tmp_path, inputs=inputs, detectors=["max_softmax"])
    outcome = api.run(file, Settings(root=str(tmp_path / "store"), threads=1), how="serial")
    assert [r.error for r in outcome.results] == [None, None]
    by_kind = {(r.cell.inputs or {})["kind"]: r for r in outcome.results}
    assert by_kind["ood"].metrics["tpr@5"]["n"] == 20
    assert by_kind["ambiguous"].metrics["tpr@5"]["n"] == 10
    for row in outcome.results:
        assert {"auroc", "aupr", "aupr_clean", "fpr95", "clean_acc_fpr@5"} <= set(row.metrics)
        assert row.metrics["auroc"]["low"] <= row.metrics["auroc"]["value"] <= row.metrics["auroc"]["high"]
        assert "inputs" in row.sources
    assert by_kind["ood"].cell.labels["inputs"] == "ood outsider/planted"


def test_unknown_classes_are_scored_by_their_kind(tmp_path: Path) -> None:
    known, unknown = ({"name": "open_set", "data": "digits", "unknown": 3, "part": p} for p in ("known", "unknown"))
    inputs = [{"kind": "near_ood", "set": unknown, "count": 30}]
    file = suite(tmp_path, data={"set": known, "count": 40}, inputs=inputs, detectors=["max_softmax"])
    (row,) = api.run(file, Settings(root=str(tmp_path / "store"), threads=1), how="serial").results
    assert row.error is None
    assert row.cell.data["classes"] == 7
    assert row.metrics["tpr@5"]["n"] == 30
    assert 0 <= row.metrics["oscr"]["value"] <= 1
    (board,) = rank.boards([row])
    assert "images of unknown classes" in board.title
    assert board.lines[0].value("oscr") == row.metrics["oscr"]["value"]


def test_oscr_is_the_area_under_its_curve() -> None:
    rng = np.random.default_rng(0)
    known, unknown, right = rng.normal(0, 1, 60), rng.normal(1, 1, 50), rng.random(60) < 0.7
    cuts = np.concatenate([[-np.inf], np.sort([*known, *unknown]), [np.inf]])
    accepted = [float((unknown <= t).mean()) for t in cuts]
    classified = [float(((known <= t) & right).mean()) for t in cuts]
    assert oscr(unknown=unknown, known=known, right=right) == pytest.approx(np.trapezoid(classified, accepted))
    assert oscr(unknown=known + 100, known=known, right=right) == pytest.approx(right.mean())
    assert oscr(unknown=unknown, known=known, right=np.zeros(60, bool)) == 0.0


def test_what_a_detector_trains_is_stored_once_for_all_models(tmp_path: Path) -> None:
    encoder = {"name": runs.MODEL, "recipe": {"epochs": 1}}
    small = {"name": "beyond", "encoder": encoder, "recipe": {"epochs": 1, "augment": "none"}, "width": 8, "views": 4,
             "nearest": 2}  # fmt: skip
    models = [{"name": runs.MODEL, "recipe": {"epochs": n}} for n in (1, 2)]
    fog = suite(tmp_path, models=models, inputs=[FOG], detectors=[small, {**small, "alpha": 0.5}])
    settings = Settings(root=str(tmp_path / "store"), threads=1)
    rows = api.run(fog, settings, how="serial").results
    assert [r.error for r in rows] == [None] * 4
    kinds = [json.loads(path.read_text())["kind"] for path in (tmp_path / "store" / "artifacts").glob("*.json")]
    assert sorted(kinds) == ["clean", "clean", "detector", "detector"]  # of two models and two sets of parameters


def test_a_threshold_that_does_not_hold_on_test_images_is_flagged() -> None:
    def flags(clean: torch.Tensor, val: torch.Tensor) -> list[str]:
        found = Fitted(lambda x, draws: x, lambda x, purpose: x, clean.double(), val.double())
        return [f.id for f in alarm_flags(found)]

    held = torch.arange(200)
    assert flags(held, held) == []
    assert flags(held + 25, held) == ["false_alarm_rate"]  # 17 %
    assert flags(held - 50, held) == ["false_alarm_rate"]  # none
    assert flags(held[:10] + 25, held) == []  # too few to tell


def test_images_of_another_form_are_fitted_to_those_of_the_board() -> None:
    x = torch.rand(2, 1, 8, 8)
    out = fitted(x, (3, 16, 12))
    assert out.shape == (2, 3, 16, 12)
    assert torch.equal(out[:, 0], out[:, 2])
    torch.testing.assert_close(out * 255, (out * 255).round())
    assert torch.equal(fitted(torch.round(x * 255) / 255, (1, 8, 8)), torch.round(x * 255) / 255)
