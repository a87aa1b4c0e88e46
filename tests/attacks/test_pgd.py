"""PGD: where it starts, how far it steps, which point it returns, who goes on to the next restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from siegebench.attacks.apgd import APGD
from siegebench.attacks.eot import EOT
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.nes import NES
from siegebench.attacks.pgd import PGD
from siegebench.attacks.vmi import VMI

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit

from .planted import NORMS, Recording, nearest_boundary, one_by_one, wrong


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_margin_with_ten_classes(linear: Classifier, norm: Norm) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    radius = nearest_boundary(linear, x, y, norm)
    attack = PGD(loss="margin", restarts=2)
    assert bool(wrong(linear, one_by_one(attack, linear, x, y, norm, 1.05 * radius), y).all())
    assert not bool(wrong(linear, one_by_one(attack, linear, x, y, norm, 0.95 * radius), y).any())


def test_broken_samples_leave_at_once_and_only_survivors_go_to_the_next_restart(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=float(radius.median()))
    attack = PGD(steps=10, restarts=2, loss="margin")
    x_adv, oracle = kit.attack_with(attack, linear, x, y, threat)
    broken = wrong(linear, x_adv, y)
    assert 0 < int(broken.sum()) < 16
    assert oracle.ledger.forwards[~broken].tolist() == [22] * int((~broken).sum())
    assert bool((oracle.ledger.forwards[broken] < 22).all())
    assert int(oracle.ledger.forwards[broken].min()) <= 11


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_returns_its_first_misclassified_iterate_or_the_one_of_highest_loss(cnn: Classifier, norm: Norm) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    for eps in ({"linf": 0.02, "l2": 0.5}[norm], {"linf": 0.2, "l2": 5.0}[norm]):
        outcomes = []
        for i in range(len(x)):
            model = Recording(cnn)
            threat, draws = ThreatModel(norm=norm, eps=eps), Draws(0, torch.tensor([i]))
            # steps of twice the radius: the iterates jump from side to side, the last is often not the best
            attack = PGD(steps=7, restarts=2, step=2 * eps)
            x_adv = attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws)
            seen = torch.cat(model.seen)
            hits = wrong(cnn, seen, y[i].expand(len(seen)))
            if bool(hits.any()):
                assert int(hits.nonzero()[0]) == len(seen) - 1  # nothing was asked after the first success
                assert torch.equal(x_adv[0], seen[-1])
            else:
                loss = ops.cross_entropy(cnn(seen), y[i].expand(len(seen)))
                assert len(seen) == 16
                assert torch.equal(x_adv[0], seen[loss.argmax()])
            outcomes.append(bool(hits.any()))
    assert any(outcomes)


@pytest.mark.parametrize("attack", [PGD(steps=7, early_stop=False), APGD(steps=7, early_stop=False)])
def test_without_early_stop_the_misclassified_point_of_highest_loss_comes_back(cnn: Classifier, attack: Attack) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    broken = 0
    for i in range(len(x)):
        model = Recording(cnn)
        threat, draws = ThreatModel(eps=0.2), Draws(0, torch.tensor([i]))
        x_adv = attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws)
        seen, label = torch.cat(model.seen), y[i].expand(8)
        assert len(seen) == 8
        hits = wrong(cnn, seen, label)
        if bool(hits.any()):
            loss = ops.cross_entropy(cnn(seen), label).masked_fill(~hits, -torch.inf)
            assert torch.equal(x_adv[0], seen[loss.argmax()])
            broken += 1
    assert broken > 0


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_starts_uniformly_in_the_ball(norm: Norm) -> None:
    model = Recording(kit.linear_model())
    x = torch.full((400, 3, 8, 8), 0.5)
    y = torch.zeros(400, dtype=torch.long)
    eps = {"linf": 0.1, "l2": 1.0}[norm]
    kit.attack_with(PGD(steps=1), model, x, y, ThreatModel(norm=norm, eps=eps))
    delta = (model.seen[0] - x).flatten(1)
    share = (delta.abs() / eps if norm == "linf" else (delta.norm(dim=1) / eps) ** delta.shape[1]).flatten()
    assert float(share.max()) <= 1 + 1e-4
    for p in (0.1, 0.5, 0.9):  # uniform on [0, 1]
        assert abs(float(share.quantile(p)) - p) < 0.09
    assert abs(float(delta.mean())) < 0.02 * eps


def test_step_is_two_and_a_half_radii_over_the_steps_unless_given(linear: Classifier) -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    y = linear(x).argmax(1)
    for attack, step in ((PGD(steps=25, random_start=False), 0.001), (PGD(step=0.0005, random_start=False), 0.0005)):
        model = Recording(linear)
        kit.attack_with(attack, model, x, y, ThreatModel(eps=0.01))
        assert float((model.seen[1] - model.seen[0]).abs().max()) == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize(
    "attack", [PGD(step=3.0), PGD(step=0.25), MIFGSM(step=3.0), VMI(step=3.0), EOT(attack=PGD(step=3.0))]
)
def test_a_step_longer_than_the_ball_is_refused_with_its_unit(linear: Classifier, attack: Attack) -> None:
    x = kit.grey_images(2)
    y = linear(x).argmax(1)
    with pytest.raises(ConfigError, match=r"longer than the whole ball.*units of eps.*write step: 2/255"):
        kit.attack_with(attack, linear, x, y, ThreatModel(eps=8 / 255))
    assert not attack.refusal(ThreatModel(eps=0.0))
    assert not PGD(step=16 / 255).refusal(ThreatModel(eps=8 / 255))
    assert not NES(step=1.5).refusal(ThreatModel(eps=8 / 255))  # a fraction of eps


def test_a_suite_with_such_a_step_is_refused_before_anything_runs(tmp_path: Path) -> None:
    ball = {"norm": "linf", "eps": "8/255"}
    board = {"track": "white_box", "attacks": [{"name": "pgd", "step": 3}], "threats": [ball]}
    whole = {"suite": "s", "data": {"set": "digits", "count": 20}, "models": ["cifar_resnet20"], "boards": [board]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError, match=r"s.yaml:\d+.*'pgd': step 3 is longer than the whole ball \(linf 8/255"):
        plan(load_suite(str(tmp_path / "s.yaml")))
