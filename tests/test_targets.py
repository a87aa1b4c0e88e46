"""Targets: attacks reach the class that they are told, and the evaluator scores who became it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from siegebench.attacks.apgd import APGD
from siegebench.attacks.autoattack import AutoAttack
from siegebench.attacks.cw import CW
from siegebench.attacks.fab import FAB
from siegebench.attacks.fmn import FMN
from siegebench.attacks.pgd import PGD
from siegebench.attacks.rolling_shutter import RollingShutter
from siegebench.attacks.square import Square
from siegebench.leaderboard import export, page, rank
from torch import Tensor

from siegebench import api, direct, ops, registry
from siegebench.cells import Result
from siegebench.classifier import Classifier, Network
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.threat import NORMS, Norm, ThreatModel
from siegebench.tracks.targets import goals, noise
from siegebench.types import Attack
from siegebench.workspace import Settings
from tests import kit, rows, runs
from tests.attacks import test_conditional_generator as generator

CLASSES, N = 4, 8


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


# --------------------------------------------------------------------------------------------- a linear model of 4


def linear() -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """(float64 model, images far from the box, labels, goals that are neither the label nor the nearest class)."""
    model = Network(kit.Linear(classes=CLASSES), num_classes=CLASSES).double().eval().requires_grad_(False)
    x = kit.grey_images(N).double()
    z = model(x)
    return model, x, z.argmax(dim=1), z.argmin(dim=1)


def nearest(model: Any, x: Tensor, goal: Tensor, norm: Norm) -> Tensor:
    """Distance of the region of a class: the least |d| with z_goal >= z_j at x + d, for each j."""
    w, z = model.net.layer.weight.numpy(), model(x).numpy()
    out = []
    for i, t in enumerate(goal.tolist()):
        others = [j for j in range(CLASSES) if j != t]
        a, missing = w[t] - w[others], z[i, others] - z[i, t]
        out.append(_linf(a, missing) if norm == "linf" else _l2(a, missing))
    return torch.tensor(out).double()


def _linf(a: Any, missing: Any) -> float:
    d = a.shape[1]
    rows_ = [np.c_[-a, np.zeros(len(a))], np.c_[np.eye(d), -np.ones(d)], np.c_[-np.eye(d), -np.ones(d)]]
    found = linprog(
        np.r_[np.zeros(d), 1.0], A_ub=np.concatenate(rows_), b_ub=np.r_[-missing, np.zeros(2 * d)], bounds=(None, None)
    )
    return float(found.fun)


def _l2(a: Any, missing: Any) -> float:
    """The solution lies where some of the constraints are met exactly: each subset is tried."""
    best = np.inf
    for k in range(1, len(a) + 1):
        for part in map(list, combinations(range(len(a)), k)):
            d = np.linalg.pinv(a[part]) @ missing[part]
            if (a @ d >= missing - 1e-9).all():
                best = min(best, float(np.linalg.norm(d)))
    return best


def aimed(
    attack: Attack, model: Classifier, x: Tensor, y: Tensor, goal: Tensor, threat: ThreatModel
) -> tuple[Tensor, Oracle]:
    draws = Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws, goal=goal)
    return attack(oracle, x, y, threat, draws), oracle


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("attack", "factor"),
    [
        (PGD(steps=50), 1.1),
        (PGD(steps=50, loss="dlr"), 1.3),
        (APGD(steps=50), 1.05),
        (APGD(steps=50, loss="targeted_dlr"), 1.3),
        (AutoAttack(steps=20, queries=20), 1.05),
        (Square(queries=600), 3.0),
    ],
    ids=["pgd", "pgd dlr", "apgd", "apgd dlr", "autoattack", "square"],
)
def test_the_class_is_reached_near_its_closed_form(attack: Attack, factor: float, norm: Norm) -> None:
    model, x, y, goal = linear()
    far = nearest(model, x, goal, norm)
    for i in range(0, N, 4):
        at = slice(i, i + 1)
        threat = ThreatModel(norm=norm, eps=factor * float(far[i]), access=attack.access())
        assert model(aimed(attack, model, x[at], y[at], goal[at], threat)[0]).argmax(1) == goal[at]
        short = ThreatModel(norm=norm, eps=0.98 * float(far[i]), access=attack.access())
        assert model(aimed(attack, model, x[at], y[at], goal[at], short)[0]).argmax(1) != goal[at]


@pytest.mark.parametrize(
    ("attack", "norm", "factor"),
    [
        (CW(searches=9, steps=200, lr=0.01), "l2", 1.15),
        (FMN(), "l2", 1.1),
        (FMN(), "linf", 1.3),
        (FAB(), "l2", 1.1),
        (FAB(), "linf", 1.3),
    ],
    ids=["cw", "fmn l2", "fmn linf", "fab l2", "fab linf"],
)
def test_the_nearest_point_of_the_class_is_found(attack: Attack, norm: Norm, factor: float) -> None:
    model, x, y, goal = linear()
    far = nearest(model, x, goal, norm)
    threat = ThreatModel(norm=norm, eps=1.0)
    x_adv, _ = aimed(attack, model, x, y, goal, threat)
    assert model(x_adv).argmax(1).tolist() == goal.tolist()
    ratio = threat.size(x_adv, x) / far
    assert float(ratio.min()) > 1 - 1e-6
    assert float(ratio.max()) < factor


def test_a_goal_moves_with_its_sample() -> None:
    model, x, y, goal = linear()
    oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(N)), goal=goal)
    assert oracle[torch.tensor([5, 2])].goal.tolist() == goal[[5, 2]].tolist()
    assert oracle[2:3].repeat(3).goal.tolist() == goal[[2, 2, 2]].tolist()
    assert oracle.averaged(2).backward_model().goal.tolist() == goal.tolist()
    assert Oracle(model, ThreatModel(), Draws(0, torch.arange(N)))[:3].goal is None
    threat = ThreatModel(norm="l2", eps=1.2 * float(nearest(model, x, goal, "l2").max()))
    whole = aimed(PGD(), model, x, y, goal, threat)[0]
    part = torch.tensor([6, 1])
    draws = Draws(0, part)
    alone = PGD()(Oracle(model, threat, draws, goal=goal[part]), x[part], y[part], threat, draws)
    torch.testing.assert_close(alone, whole[part], rtol=0, atol=1e-9)


def test_losses_towards_a_goal_are_positive_beyond_its_boundary() -> None:
    g = torch.Generator().manual_seed(0)
    z, goal = torch.randn(200, 6, generator=g), torch.randint(6, (200,), generator=g)
    reached = z.argmax(dim=1) == goal
    assert torch.equal(ops.gain(z, goal, goal) > 0, reached)
    assert torch.equal(ops.aimed("dlr", goal, goal)(z) > 0, reached)
    torch.testing.assert_close(ops.aimed("dlr", goal, goal)(7 * z + 3), ops.aimed("dlr", goal, goal)(z))
    with pytest.raises(NotApplicable, match="needs 4 classes, the model has 3"):
        ops.aimed("dlr", goal, goal.clamp(max=2))(z[:, :3])


def test_attacks_that_cannot_aim_refuse_a_goal() -> None:
    model, x, y, goal = linear()
    boundary = registry.build(Attack, "boundary")
    with pytest.raises(ContractError, match="cannot aim"):
        aimed(boundary, model, x, y, goal, ThreatModel(norm="l2", access="label"))
    assert not registry.build(Attack, {"name": "eot", "attack": "deepfool"}).can_aim()
    assert registry.build(Attack, {"name": "eot", "attack": {"name": "bpda", "attack": "pgd"}}).can_aim()
    assert not RollingShutter(target=1).can_aim()  # it aims elsewhere


# ------------------------------------------------------------------------------------------------- rules, noise


def test_rules_give_other_classes_and_least_likely_asks_the_victim() -> None:
    y, draws = torch.arange(6000) % 6, Draws(3, torch.arange(6000))

    def look() -> Tensor:
        return torch.nn.functional.one_hot((y + 2) % 6, 6) * -1.0

    def of(target: Any) -> Tensor:
        return goals(target, y, 6, draws, look)

    assert torch.equal(of("next"), (y + 1) % 6)
    assert torch.equal(of("least_likely"), (y + 2) % 6)
    assert of(4).unique().tolist() == [4]
    drawn = of("random")
    assert not bool((drawn == y).any())
    assert drawn[y == 0].bincount(minlength=6)[1:].double().div(1000).sub(0.2).abs().max() < 0.05
    part = torch.tensor([17, 3])
    assert torch.equal(goals("random", y[part], 6, draws[part], look), drawn[part])
    with pytest.raises(ConfigError, match=r"class 6 does not exist, the model has 0\.\.5"):
        of(6)


@pytest.mark.parametrize("norm", NORMS)
def test_noise_is_as_large_as_the_threat_allows(norm: Norm) -> None:
    x = kit.grey_images(8)
    threat = ThreatModel(norm=norm, eps=0.1)
    far = threat.size(noise(x, threat, Draws(0, torch.arange(8))), x)
    assert float(far.max()) <= 0.1 + 1e-6
    assert float(far.min()) > 0.09


# ---------------------------------------------------------------------------------------------------- whole runs


BIG = {"norm": "linf", "eps": "40/255"}
SMALL = [{"name": "pgd", "steps": 8}, "outsider/astray"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Rows of two boards on digits: one without a target and one with `next`, a class, and `least_likely`."""
    folder = tmp_path_factory.mktemp("targets")
    threats = [{**BIG, "target": target} for target in ("next", 3, "least_likely")]
    boards = [runs.board(attacks=SMALL, threats=[BIG, *threats], measures=[])]
    return api.run(load_suite(str(runs.suite(folder / "s.yaml", *boards))), settings(folder)).results


def settings(folder: Path) -> Settings:
    return Settings(root=str(folder / "store"), threads=1)


def row_of(found: list[Result], attack: str, target: Any) -> Result:
    return next(
        r
        for r in found
        if r.cell.attack["name"] == attack and r.cell.threat.get("target") == target  # type: ignore
    )


def test_a_target_changes_no_key_of_a_threat_without_one(found: list[Result], tmp_path: Path) -> None:
    alone = runs.board(attacks=SMALL, threats=[BIG], measures=[])
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", alone)))).cells
    plain = [r.cell for r in found if "target" not in r.cell.threat]  # type: ignore[operator]
    assert {c.key for c in cells} == {c.key for c in plain}
    assert plain[0].threat == {"norm": "linf", "eps": 40 / 255, "access": "gradient", "queries": None}
    assert len({(r.cell.folder, r.cell.labels["threat"]) for r in found}) == 4
    assert row_of(found, "pgd", "next").cell.labels["threat"] == "linf 40/255, target next"


def test_who_became_the_class_is_scored_by_the_evaluator(found: list[Result]) -> None:
    for target in ("next", 3, "least_likely"):
        row, other = row_of(found, "pgd", target), row_of(found, "outsider/astray", target)
        attacked, became = row.outcome("attacked"), row.outcome("target")
        assert not (became & ~attacked).any()
        assert row.metrics["target_rate"]["n"] == attacked.sum() == row.counts["attacked"]
        assert row.value("target_rate") == pytest.approx(became.sum() / attacked.sum(), abs=1e-6)
        assert row.value("target_rate") > 0.5  # type: ignore[operator]
        # one that makes images of another wrong class is far better against accuracy than at the target
        assert other.value("target_rate") < 0.1  # type: ignore[operator]
        assert other.value("asr") > 0.5  # type: ignore[operator]
        assert row.value("target_rate_clean") == other.value("target_rate_clean")
        assert row.value("target_rate_noise") < row.value("target_rate")  # type: ignore[operator]
    assert "target" not in row_of(found, "pgd", None).samples


def test_images_of_the_class_are_left_alone_and_stay_right(found: list[Result]) -> None:
    row = row_of(found, "pgd", 3)
    clean, attacked = row.outcome("clean"), row.outcome("attacked")
    spared = clean & ~attacked
    labels = api.load_data("digits", count=40).labels.numpy()
    assert set(labels[spared]) == {3}
    assert 3 not in labels[attacked]
    assert row.outcome("robust")[spared].all()
    assert row.value("robust_acc") == pytest.approx(row.outcome("robust").mean())
    assert row.metrics["target_rate_clean"]["n"] == (labels != 3).sum()
    assert np.array_equal(row_of(found, "pgd", "next").outcome("attacked"), clean)


def test_a_targeted_threat_is_a_board_of_its_own(found: list[Result]) -> None:
    boards = rank.boards(found)
    assert len({board.id for board in boards}) == len(boards) == 4
    aimed_at = {board.facts["threat"]: board for board in boards}
    board = aimed_at["linf 40/255, target next"]
    assert "target next" in board.title
    assert board.primary == board.row_metric == "target_rate"
    assert [c.id for c in board.columns][:5] == [
        "target_rate", "target_rate_clean", "target_rate_noise", "robust_acc", "clean_acc",
    ]  # fmt: skip
    (line,) = board.lines
    became = np.logical_or.reduce([row_of(found, a, "next").outcome("target") for a in ("pgd", "outsider/astray")])
    assert line.value("target_rate") == pytest.approx(became.sum() / row_of(found, "pgd", "next").counts["attacked"])
    assert line.texts["worst_attack"] == "pgd"
    assert line.value("attack:outsider/astray") < 0.1  # type: ignore[operator]
    assert aimed_at["linf 40/255"].primary == "robust_acc"
    assert "Target reached" in page.render(boards, found)
    assert export.as_dict(boards)["boards"]


def test_ranks_compare_images_that_were_attacked_under_both() -> None:
    threat = {**rows.LINF, "target": 3}

    def row(defense: str, became: int, attacked: int, attack: str = "autoattack", adaptive: bool = True) -> Result:
        made = rows.attacked(attack, 150, defense=defense, threat=threat, adaptive=adaptive)
        made.samples |= {
            "attacked": rows.pack(rows.outcome(attacked)), "target": rows.pack(rows.outcome(became)),
        }  # fmt: skip
        return made

    (board,) = rank.boards([row("good", 10, 60), row("bad", 120, 160), row("late", 10, 60, "pgd"), row("none", 0, 0)])
    by_name = {line.names["defense"]: line for line in board.lines}
    assert by_name["good"].value("target_rate") == pytest.approx(10 / 60, abs=1e-6)
    assert by_name["bad"].value("target_rate") == pytest.approx(120 / 160)
    assert by_name["good"].rank == (1, 2)  # nobody can tell it from an entry without attacked images
    assert by_name["bad"].rank == (2, 3)
    assert by_name["late"].reasons == ("required attack missing: autoattack",)
    (board,) = rank.boards([row("good", 10, 60, adaptive=False)])
    assert board.lines[0].reasons == ("no adaptive attack: none was run against this defense that can be targeted",)


REFUSED = {
    "rule": ("target: net", "threats.0.target: expected next, random, least_likely or a class number, found 'net'"),
    "bool": ("target: true", "expected next, random, least_likely or a class number, found True"),
    "class": ("target: 10", "class 10 does not exist, the dataset has 0..9"),
    "attack": ("target: next", "attack 'deepfool' cannot aim at a class; a threat has target next"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_suite_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    line, words = REFUSED[name]
    attack = "deepfool" if name == "attack" else "pgd"
    file = tmp_path / "s.yaml"
    file.write_text(
        "suite: small\ndata: {set: digits, count: 40}\nmodels: [outsider/tiny]\nboards:\n  - track: white_box\n"
        f"    attacks:\n      - fgsm\n      - {attack}\n    threats:\n      - norm: linf\n        eps: 8/255\n"
        f"        {line}\n"
    )
    with pytest.raises(ConfigError) as caught:
        plan(load_suite(str(file)))
    assert words in str(caught.value)
    assert f"s.yaml:{8 if name == 'attack' else 12}" in str(caught.value)


def test_adaptive_attacks_that_cannot_aim_are_left_out_of_targeted_threats(tmp_path: Path) -> None:
    threats = [BIG, {**BIG, "target": "next"}]
    board = runs.board(attacks=["fgsm"], threats=threats, measures=[], defenses=["jpeg"])
    cells = plan(load_suite(str(runs.suite(tmp_path / "s.yaml", board)))).cells
    count = [sum(c.adaptive for c in cells if ("target" in c.threat) == aims) for aims in (False, True)]  # type: ignore
    assert count[0] >= count[1] > 0


# ------------------------------------------------------------------------ from Python, restricted ones


def test_attack_takes_a_rule_a_class_or_a_class_for_each_image() -> None:
    model, x, y, goal = linear()
    x, model = x.float(), model.float()
    attack = direct.attack("pgd", steps=20)
    reach = {"norm": "l2", "eps": 1.2 * float(nearest(model.double(), x.double(), goal, "l2").max())}
    model = model.float()
    told = attack(model, x, y, target=goal, **reach)  # type: ignore[arg-type]
    assert model(told).argmax(1).tolist() == goal.tolist()
    assert torch.equal(told, attack(model, x, y, target="least_likely", **reach))  # type: ignore[arg-type]
    assert not torch.equal(told, attack(model, x, y, **reach))  # type: ignore[arg-type]
    for fault, words in ((goal[:2], "expected 8 integers"), (goal + 9, "classes 0..3, found"), (7, "does not exist")):
        with pytest.raises(ConfigError, match=words):
            attack(model, x, y, target=fault)
    with pytest.raises(ConfigError, match="'deepfool' cannot aim at a class"):
        direct.attack("deepfool")(model, x, y, target="next")


def test_rolling_shutter_lights_each_image_towards_its_goal() -> None:
    model, test = generator.network(), generator.data()[1]
    x, y = test.pixels()[:40], test.labels[:40]
    goal = (y + 3) % 10
    threat = ThreatModel(norm="l0", eps=1.0)
    attack = RollingShutter(steps=20, light=1.0, exposure=1)
    towards = ops.gain(model(aimed(attack, model, x, y, goal, threat)[0]), y, goal)
    away = ops.gain(model(kit.attack_with(attack, model, x, y, threat)[0]), y, goal)
    for other in (away, ops.gain(model(x), y, goal)):
        assert float((towards > other).double().mean()) > 0.8
