"""The transfer track: images are made on surrogates and judged by the victim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.leaderboard import rank

from siegebench import api
from siegebench.classifier import Ensemble
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.threat import ThreatModel
from siegebench.workspace import Settings, Workspace
from tests import kit, runs


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


def transfer(**changes: object) -> dict[str, object]:
    out = runs.board(**{"track": "transfer", "surrogates": [runs.MODEL], "attacks": ["mifgsm"], **changes})
    del out["measures"]
    return out


@pytest.mark.parametrize(("seeds", "own"), [([0], 1), ([0, 1], 2), ([2, 1], 3)])
def test_no_victim_is_trained_with_the_seed_of_the_surrogates(seeds: list[int], own: int, tmp_path: Path) -> None:
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", transfer(train_seeds=seeds))))).cells
    assert {cell.model["train_seed"] for cell in cells} == set(seeds)
    assert {made["train_seed"] for cell in cells for made in cell.surrogates or ()} == {own}


def test_images_are_made_on_the_surrogates_and_judged_by_the_victim(tmp_path: Path) -> None:
    eps = {"norm": "linf", "eps": "64/255"}
    file = runs.suite(tmp_path / "s.yaml", transfer(threats=[eps]), runs.board(attacks=["mifgsm"], threats=[eps]))
    suite = load_suite(str(file))
    settings = Settings(root=str(tmp_path / "store"), threads=1)
    outcome = api.run(suite, settings, how="serial")
    assert not outcome.failed
    (made,) = [r for r in outcome.results if r.cell.track == "transfer"]
    (direct,) = [r for r in outcome.results if r.cell.track == "white_box" and r.cell.attack is not None]
    assert made.cell.surrogates is not None
    assert made.cell.surrogates[0]["train_seed"] != made.cell.model["train_seed"]
    assert made.counts["backwards_per_sample"] > 0

    # by hand: the attack on the surrogate alone, the victim's answers
    ws = Workspace(Settings(root=str(tmp_path / "store"), threads=1, specs=plan(suite).specs))
    victim, surrogate = ws.victim(made.cell), ws.surrogate(made.cell)
    data = ws.evaluated(made.cell.data)
    x, y = data.pixels(), data.labels
    right = (victim(x).argmax(1) == y).nonzero().squeeze(1)
    from siegebench.draws import derive_seed

    draws = Draws(derive_seed(made.cell.seed, "attack"), data.ids)[right]
    threat = ThreatModel(**(made.cell.threat or {}))
    x_adv = MIFGSM()(Oracle(surrogate, threat, draws), x[right], y[right], threat, draws)
    held = torch.zeros(len(x), dtype=torch.bool)
    held[right] = victim(x_adv).argmax(1) == y[right]
    assert held.tolist() == made.outcome("robust").tolist()
    assert (made.value("robust_acc") or 0) >= (direct.value("robust_acc") or 0)  # a stranger's images are weaker
    assert held.sum() < len(right)  # and not without effect

    # a second run computes nothing; the board says where the images come from
    assert api.run(suite, settings, how="serial").ended == {"cached": 3}
    board = next(b for b in rank.boards(Store(settings.root).rows()) if b.track == "transfer")
    assert "Transfer from" in board.title
    assert board.lines[0].rank == (1, 1)


def test_several_surrogates_answer_with_their_mean() -> None:
    one, two = kit.cnn_model(0), kit.cnn_model(1)
    x = kit.grey_images(3, 16)
    torch.testing.assert_close(Ensemble([one, two])(x), (one(x) + two(x)) / 2)


def test_a_victim_that_is_its_own_surrogate_is_refused(tmp_path: Path) -> None:
    kit.data_folder()
    file = runs.suite(
        tmp_path / "s.yaml", transfer(surrogates=["cifar_resnet20"]),
        data={"set": "cifar10_jpeg", "count": 20}, models=["cifar_resnet56", "cifar_resnet20"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"s\.yaml:\d+:\d+: model 'cifar_resnet20' is one of the surrogates too"):
        plan(load_suite(str(file)))
