"""The track: rows of a real run, relations that controls must keep, and what a suite may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from siegebench.leaderboard import rank

import siegebench as sb
from siegebench import api
from siegebench.cells import Result
from siegebench.config import load_suite
from siegebench.errors import ConfigError
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.threat import ThreatModel
from siegebench.tracks.thieving import blank_of, copy_of
from siegebench.workspace import Settings, Workspace
from tests import runs

MODEL = {"name": "plain_cnn", "recipe": {"epochs": 2, "batch": 64}}
BOARD: dict[str, Any] = {
    "track": "extraction", "pool": {"set": "digits", "split": "train", "count": 120}, "thefts": ["knockoff"],
    "queries": [120], "threats": [{"norm": "linf", "eps": "8/255"}],
    "attack": {"name": "pgd", "steps": 2, "early_stop": False},
}  # fmt: skip


def suite(folder: Path, **changes: Any) -> str:
    board = {k: v for k, v in {**BOARD, **changes}.items() if v != "left out"}
    return str(runs.suite(folder / "s.yaml", board, models=[MODEL], data={"set": "digits", "count": 60}))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[tuple[str, str, int], Result], Settings]:
    folder = tmp_path_factory.mktemp("extraction")
    controls = ["own_labels", "no_victim", "shuffled_answers", "self_copy", "random_network"]
    every = {**BOARD, "thefts": ["knockoff", "label_knockoff", "noise_theft.digits", *controls]}
    defended = {
        **BOARD,
        "thefts": ["knockoff", "label_knockoff", "random_network"],
        "defenses": ["coarse_answers.labels"],
    }
    small = {**BOARD, "thefts": ["knockoff", "no_victim"], "queries": [40]}
    loaded = load_suite(
        str(runs.suite(folder / "s.yaml", every, defended, small, models=[MODEL], data={"set": "digits", "count": 60}))
    )
    settings = Settings(root=str(folder / "store"), threads=1, specs=plan(loaded).specs)
    outcome = api.run(loaded, settings, how="serial")
    assert not outcome.failed, [r.error for r in outcome.results if r.error]
    found = {
        (str(r.cell.labels["theft"]), str(r.cell.labels["defense"]), int((r.cell.threat or {})["queries"])): r
        for r in outcome.results
    }
    return found, settings


def test_every_query_is_counted(ran: Any) -> None:
    for (theft, _, budget), row in ran[0].items():
        asks = theft in ("knockoff", "label_knockoff", "noise_theft", "shuffled_answers")
        assert row.counts["queries"] == (budget if asks else 0), theft
        assert ("flips_asked" in row.metrics) == asks
        assert row.metrics["agreement"]["n"] == 60


def test_the_controls_keep_their_relations(ran: Any) -> None:
    rows = ran[0]
    assert rows["self_copy", "none", 120].value("agreement") == 1.0
    assert rows["self_copy", "none", 120].value("tv") == 0.0
    # the defense changes the victim's answers, not its decisions
    bare, defended = (rows["random_network", d, 120] for d in ("none", "coarse_answers"))
    assert bare.outcome("agree").tolist() == defended.outcome("agree").tolist()
    same = [rows["no_victim", "none", budget].outcome("agree").tolist() for budget in (40, 120)]
    assert same[0] == same[1]  # it never asks
    bare, defended = (rows["label_knockoff", d, 120] for d in ("none", "coarse_answers"))
    assert bare.outcome("agree").tolist() == defended.outcome("agree").tolist()  # labels are all it reads
    labels, scores = rows["label_knockoff", "none", 120], rows["knockoff", "coarse_answers", 120]
    assert labels.outcome("agree").tolist() == scores.outcome("agree").tolist()  # scores that are labels
    assert rows["knockoff", "coarse_answers", 120].value("flips") == 0.0
    assert (rows["knockoff", "coarse_answers", 120].value("answer_l1") or 0.0) > 0.0


def test_figures_are_those_of_the_copy(ran: Any) -> None:
    rows, settings = ran
    row, ws = rows["knockoff", "none", 120], Workspace(settings)
    victim = ws.network(row.cell)
    copy, asked = copy_of(row.cell, ws, victim, victim)
    data = ws.evaluated(row.cell.data)
    top = copy(data.pixels()).argmax(dim=1)
    assert row.outcome("agree").tolist() == (top == victim(data.pixels()).argmax(dim=1)).tolist()
    assert row.value("copy_acc") == pytest.approx(float((top == data.labels).double().mean()))
    assert int(asked.queries) == 120 == int(asked.answers.sum())
    fresh = blank_of(row.cell, ws)[0](0)
    assert not torch.equal(fresh(data.pixels()), copy(data.pixels()))


def test_a_copy_shares_no_storage_with_its_victim(ran: Any) -> None:
    rows, settings = ran
    for theft in ("self_copy", "random_network", "knockoff"):
        ws = Workspace(settings)
        cell = rows[theft, "none", 120].cell
        victim = ws.network(cell)
        copy, _ = copy_of(cell, ws, victim, victim)
        of_victim = {t.untyped_storage().data_ptr() for t in victim.state_dict().values()}
        assert not of_victim & {t.untyped_storage().data_ptr() for t in copy.state_dict().values()}


def test_the_boards_show_every_row(ran: Any) -> None:
    boards = rank.boards(Store(ran[1].root).rows())
    assert [b.primary for b in boards] == ["agreement", "agreement_lift"]
    assert {k for b in boards for line in b.lines for k in line.keys} == {r.cell.key for r in ran[0].values()}
    in_domain = [f.id for line in boards[0].lines for f in line.flags]
    assert "in_domain_pool" in in_domain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "left out"}, r"s.yaml:\d+.*'knockoff' asks about images of a pool"),
        ({"queries": [400]}, r"s.yaml:\d+.*the pool has 120 images, theft 'knockoff' asks about 400"),
        ({"access": "label"}, r"s.yaml:\d+.*'knockoff' needs score access; this extraction board grants label"),
        ({"thefts": ["knokoff"]}, r"s.yaml:\d+.*Did you mean knockoff"),
        ({"thefts": ["mean_knockoff"], "queries": [3]}, r"s.yaml:\d+.*cannot ask about one image with 3 queries"),
        ({"thefts": ["own_labels"], "pool": {"set": "fashion_mnist"}}, r"s.yaml:\d+.*pool of the victim's classes"),
        ({"threats": [{"norm": "linf", "eps": 0.1, "target": 3}]}, r"s.yaml:\d+.*leave the target out"),
        ({"threats": [{"norm": "linf", "eps": -0.1}]}, r"s.yaml:\d+.*eps -0.1 is out of range"),
        ({"attack": "loap"}, r"s.yaml:\d+.*handles l0, not linf"),
        ({"pool": {"set": "digits", "count": 60}, "queries": [60]}, r"s.yaml:\d+.*these are the evaluated images"),
        (
            {"pool": {"set": "digits", "split": "test", "count": 100}, "queries": [60]},
            r"s.yaml:\d+:\d+: 60 of the 100 ",
        ),
        ({"copy": "cifar_resnet20"}, r"s.yaml:\d+.*"),
        ({"defenses": ["fine_pruning"]}, r"s.yaml:\d+.*not for the extraction track"),
        ({"coppy": MODEL}, r"s.yaml:\d+.*Did you mean copy"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(load_suite(suite(tmp_path, **changes)))


def test_overlap_of_pool_and_evaluated_images_fails(tmp_path: Path) -> None:
    """59 of the 60 images of the pool are evaluated: the same set is refused, a copy of it gets a flag."""
    same = suite(tmp_path, pool={"set": "digits", "count": 59}, queries=[50])
    with pytest.raises(ConfigError, match="59 of the 59 images of the pool are evaluated too"):
        plan(load_suite(same))
    digits = sb.load_data("digits", "test", count=60)
    np.savez(tmp_path / "copy.npz", images=(digits.pixels() * 255).round().byte().numpy(), labels=digits.labels.numpy())
    pool = {"set": {"name": "arrays", "file": str(tmp_path / "copy.npz")}, "split": "test", "count": 59}
    loaded = load_suite(suite(tmp_path, pool=pool, queries=[50]))
    settings = Settings(root=str(tmp_path / "store"), threads=1, specs=plan(loaded).specs)
    (row,) = api.run(loaded, settings, how="serial").results
    (flag,) = [f for f in row.flags if f["id"] == "pool_overlap"]
    assert flag["severity"] == "fail"
    assert ThreatModel(**(row.cell.threat or {})).queries == 50
