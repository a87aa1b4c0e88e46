"""Attacks that learn before they run, attacks without any access, and the patch track that their results stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from siegebench.leaderboard import rank

from siegebench import api, direct, registry
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError
from siegebench.oracle import Oracle
from siegebench.registry import build
from siegebench.store import Store
from siegebench.testing import check_entry
from siegebench.threat import ThreatModel
from siegebench.workspace import Settings
from tests import kit, runs

MEMORY = {"name": "outsider/memory", "side": 8}
QUARTER = {"norm": "l0", "eps": "1/16"}


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


def attacks(**changes: object) -> dict[str, object]:
    out = runs.board(attacks=[MEMORY], **changes)
    del out["measures"]
    return out


def test_an_oracle_without_access_answers_nothing() -> None:
    model, x = kit.cnn_model(), kit.grey_images(2, 16)
    oracle = Oracle(model, ThreatModel(access="none"), Draws(0, torch.arange(2)))
    for ask in (oracle.logits, oracle.labels, oracle):
        with pytest.raises(ContractError, match="grants no access"):
            ask(x)
    with pytest.raises(ContractError, match="grants none access"):
        oracle.gradient(x, lambda z: z.sum(dim=1))
    assert oracle.ledger.forwards.tolist() == [0, 0]


def test_the_contract_holds_for_an_attack_that_learns_and_asks_nobody() -> None:
    failed = [c for c in check_entry("outsider/memory") if not c.passed]
    assert not failed, failed


def test_what_was_learnt_is_used_and_ranked_on_the_patch_track(tmp_path: Path) -> None:
    file = runs.suite(
        tmp_path / "s.yaml",
        attacks(track="patch", threats=[QUARTER]),
        attacks(track="transfer", surrogates=[], threats=[{"norm": "linf", "eps": "64/255"}]),
    )
    settings = Settings(root=str(tmp_path / "store"), threads=1)
    outcome = api.run(load_suite(str(file)), settings, how="serial")
    assert outcome.ended == {"ok": 2}
    patch, no_box = (next(r for r in outcome.results if r.cell.track == t) for t in ("patch", "transfer"))
    for row in (patch, no_box):
        assert "train_digest" in row.cell.data  # what it learns from decides the number
        assert row.counts["learning_forwards"] == 0
        assert row.counts["forwards"] == 0
    assert no_box.cell.surrogates == []
    assert no_box.cell.threat is not None
    assert no_box.cell.threat["access"] == "none"
    assert all(flag["id"] != "noop_attack" for row in (patch, no_box) for flag in row.flags)
    titles = [b.title for b in rank.boards(Store(settings.root).rows())]
    assert any(t.startswith("Patch: l0 6.25% on digits") for t in titles), titles
    assert any(t.startswith("No box: linf 64/255 on digits") for t in titles), titles
    assert api.run(load_suite(str(file)), settings, how="serial").ended == {"cached": 2}


@pytest.mark.parametrize(
    ("board", "said"),
    [
        (runs.board(track="transfer", surrogates=[], attacks=["fgsm"]), r"attacks|'fgsm' needs gradient access"),
        (runs.board(track="patch", attacks=["fgsm"], threats=[QUARTER]), "'fgsm' handles linf"),
        (runs.board(track="patch", attacks=[MEMORY], threats=[{"norm": "l0", "eps": 2}]), "eps 2.0 is out of range"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, board: dict[str, object], said: str) -> None:
    del board["measures"]
    with pytest.raises(ConfigError, match=said):
        load_suite(str(runs.suite(tmp_path / "s.yaml", board)))


def test_a_wrapper_learns_with_the_attack_inside() -> None:
    wrapped = build("attack", {"name": "bpda", "attack": MEMORY})
    assert wrapped.learning()  # type: ignore[attr-defined]
    data = build("dataset", "digits").load("train").select(torch.arange(5))  # type: ignore[attr-defined]
    threat, draws = ThreatModel(norm="l0", eps=1 / 16, access="none"), Draws(0, data.ids)
    oracle = Oracle(kit.cnn_model(), threat, draws)
    lesson = wrapped.learn(oracle, data, threat, draws)  # type: ignore[attr-defined]
    x, y = kit.grey_images(2, 32), torch.zeros(2, dtype=torch.long)
    oracle, draws = oracle[:2], draws[:2]
    with pytest.raises(ContractError, match="call learn first"):
        wrapped(oracle, x, y, threat, draws)  # type: ignore[operator]
    out = wrapped(oracle, x, y, threat, draws, lesson)  # type: ignore[operator]
    torch.testing.assert_close(out[:, :, :8, :8], data.pixels(slice(0, 1))[:, :, :8, :8].expand(2, -1, -1, -1))
    assert torch.equal(out[:, :, 8:], x[:, :, 8:])


def test_python_callers_are_told_to_bring_the_images_to_learn_from() -> None:
    model, x = kit.cnn_model(), kit.grey_images(2, 16)
    y = model(x).argmax(1)
    attack = direct.attack("outsider/memory")
    with pytest.raises(ConfigError, match="learns from training images: pass data="):
        attack(model, x, y, norm="l0", eps="1/4")
    data = build("dataset", "digits").load("train").select(torch.arange(5))  # type: ignore[attr-defined]
    assert not torch.equal(attack(model, kit.grey_images(2, 32), y, norm="l0", eps="1/4", data=data), x)


def test_the_suite_names_a_control_and_every_method() -> None:
    suite = load_suite("patch_gtsrb")
    assert {board.track for board in suite.boards} == {"patch"}
    used = {registry.describe("attack", spec)["name"] for board in suite.boards for spec in board.attacks}
    assert {"loap", "adversarial_patch", "area_patch", "rolling_shutter"} <= used
    sweep = next(b for b in suite.boards if len(b.threats) > 1)
    assert {registry.describe("attack", spec)["optimise"] for spec in sweep.attacks} == {True, False}
