"""APGD against closed forms, a planted optimum and the reference implementation."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.apgd import APGD, checkpoints, hardest
from siegebench.attacks.autoattack import AutoAttack
from siegebench.attacks.fab import FAB
from siegebench.attacks.square import Square
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.registry import build
from siegebench.search import Best
from siegebench.threat import ThreatModel
from tests import kit

from .planted import few_classes, in_the_gap, nearest_boundary


class Peak(nn.Module):
    """Never wrong; the margin of class 0 is smallest at a planted point."""

    def __init__(self, peak: Tensor) -> None:
        super().__init__()
        self.peak = peak

    def forward(self, x: Tensor) -> Tensor:
        far = (x - self.peak).flatten(1).square().sum(dim=1)
        return torch.stack([1 + far, 0 * far, 0 * far - 1, 0 * far - 2], dim=1)


def test_the_cards_name_these_entries() -> None:
    assert build("attack", "apgd.dlr") == APGD(loss="dlr")
    assert build("attack", "apgd.targeted") == APGD(loss="targeted_dlr", targets=9)
    assert build("attack", {"name": "fab", "eta": "21/20"}) == FAB()
    assert build("attack", "square.imagenet") == Square(p=0.05, queries=10_000)
    assert build("attack", "autoattack.rand") == AutoAttack(variant="rand")
    with pytest.raises(ConfigError, match="loss"):
        build("attack", {"name": "apgd", "loss": "hinge"})


def test_the_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(1) == {1: 1}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["margin", "dlr", "targeted_dlr"])
def test_apgd_breaks_exactly_what_can_be_broken(linear: Classifier, norm: str, loss: str) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    threat = ThreatModel(norm=norm, eps=in_the_gap(nearest))
    x_adv, _ = kit.attack_with(APGD(loss=loss), linear, x, y, threat)
    assert torch.equal(linear(x_adv).argmax(1) != y, nearest < threat.eps)


def test_apgd_ce_finds_nearly_all_that_can_be_broken(linear: Classifier) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=float(nearest.median()) * 1.1)
    x_adv, _ = kit.attack_with(APGD(), linear, x, y, threat)
    broken = linear(x_adv).argmax(1) != y
    assert not bool((broken & (nearest > threat.eps)).any())
    assert int((broken != (nearest < threat.eps)).sum()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_halves_its_step_until_it_sits_on_a_planted_peak(norm: str) -> None:
    x = kit.grey_images(4)
    g = torch.Generator().manual_seed(3)
    move = torch.rand(x.shape[1:], generator=g) * 2 - 1
    eps = 0.1 if norm == "linf" else 1.0
    peak = x + 0.5 * eps * move / ops.size(move[None], norm)
    model = Network(Peak(peak), num_classes=4).eval()
    y = torch.zeros(4, dtype=torch.long)
    start = APGD(loss="margin")._start(x, y, y, ThreatModel(norm=norm, eps=eps), Draws(0, torch.arange(4))).x
    x_adv, _ = kit.attack_with(APGD(loss="margin"), model, x, y, ThreatModel(norm=norm, eps=eps))
    assert float(ops.size(x_adv - peak, norm).max()) < 0.02 * eps
    assert float(ops.size(start - peak, norm).min()) > 0.4 * eps


def test_apgd_counts_and_leaves_at_once(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    _, oracle = kit.attack_with(APGD(steps=20), linear, x, y, ThreatModel(eps=1e-5))
    assert oracle.ledger.forwards.tolist() == [21] * 16
    assert oracle.ledger.backwards.tolist() == [21] * 16
    _, oracle = kit.attack_with(APGD(steps=20, loss="targeted_dlr", targets=4), linear, x, y, ThreatModel(eps=1e-5))
    assert oracle.ledger.forwards.tolist() == [1 + 4 * 21] * 16
    x_adv, oracle = kit.attack_with(APGD(steps=20), linear, x, y, ThreatModel(eps=in_the_gap(nearest)))
    broken = linear(x_adv).argmax(1) != y
    assert bool(broken.any())
    assert bool((~broken).any())
    assert bool((oracle.ledger.forwards[broken] < 21).all())
    assert bool((oracle.ledger.forwards[~broken] == 21).all())


def test_restarts_are_for_survivors_and_start_elsewhere(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=in_the_gap(nearest_boundary(linear, x, y, "linf")))
    x_adv, oracle = kit.attack_with(APGD(steps=10, restarts=3), linear, x, y, threat)
    broken = linear(x_adv).argmax(1) != y
    assert bool((oracle.ledger.forwards[~broken] == 33).all())
    assert bool((oracle.ledger.forwards[broken] < 33).all())
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    kit.attack_with(APGD(steps=1, restarts=3), linear, x, y, ThreatModel(eps=1e-5))
    starts = [seen[k] - x for k in (0, 2, 4)]
    for u, v in ((0, 1), (0, 2), (1, 2)):
        assert bool((ops.size(starts[u] - starts[v], "linf") > 1e-6).all())


def test_a_survivor_returns_its_point_of_highest_loss(cnn: Classifier) -> None:
    x = kit.grey_images(16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=1e-4)
    x_adv, _ = kit.attack_with(APGD(loss="margin", steps=20), cnn, x, y, threat)
    survived = cnn(x_adv).argmax(1) == y
    assert bool(survived.any())
    assert bool((ops.margin(cnn(x_adv), y) > ops.margin(cnn(x), y))[survived].all())


def test_losses_that_need_more_classes_are_refused() -> None:
    x = kit.grey_images(2)
    y = torch.zeros(2, dtype=torch.long)
    for loss, classes in (("dlr", 2), ("targeted_dlr", 3)):
        with pytest.raises(NotApplicable, match=f"needs {classes + 1} classes, the model has {classes}"):
            kit.attack_with(APGD(loss=loss), few_classes(classes), x, y, ThreatModel())


def test_hardest_classes_come_in_the_order_of_their_logits() -> None:
    z = torch.tensor([[1.0, 5.0, 3.0, 4.0], [9.0, 0.0, 2.0, 1.0]])
    assert hardest(z, torch.tensor([1, 1]), 2).tolist() == [[3, 2], [0, 2]]
    assert hardest(z, torch.tensor([1, 1]), 9).tolist() == [[3, 2, 0], [0, 2, 3]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_walks_the_path_of_the_reference(norm: str, loss: str) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    eps = 0.01 if norm == "linf" else 0.1
    threat, draws = ThreatModel(norm=norm, eps=eps), Draws(0, torch.arange(8))
    ours = APGD(steps=50, loss=loss, early_stop=False)
    begin, best = ours._start(x, y, y, threat, draws), Best(x)
    start = begin.x
    ours._climb(Oracle(model, threat, draws), begin, threat, best)
    theirs = reference.APGDAttack(model, n_iter=50, norm=norm.capitalize(), eps=eps, loss=loss, device="cpu")
    theirs.init_hyperparam(x)
    x_best, right, _, x_last = theirs.attack_single_run(x, y, x_init=start)
    assert torch.equal(best.hit, ~right)
    expected = torch.where(ops.over(best.hit, x), x_last, x_best)
    assert float((best.point - expected.detach()).abs().max()) < 0.02 * eps


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=12),
        APGD(steps=8, loss="targeted_dlr", targets=3),
        FAB(steps=8, targets=3),
        FAB(steps=8, targets=3, stop_at_eps=True),
        AutoAttack(steps=4, queries=8, targets=2),
        AutoAttack(variant="rand", steps=1),
    ],
    ids=["apgd", "apgd targeted", "fab", "fab that stops", "autoattack", "rand"],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_alone_fares_as_in_a_batch(attack: APGD, norm: str) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps=0.004 if norm == "linf" else 0.04)
    together, oracle = kit.attack_with(attack, model, x, y, threat)
    turned = torch.tensor([3, 7, 1, 0, 2, 6, 5, 4])
    for rows in (*torch.arange(8).split(1), turned):
        draws = Draws(0, rows)
        own = Oracle(model, threat, draws)
        alone = attack(own, x[rows], y[rows], threat, draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.forwards.tolist() == oracle.ledger.forwards[rows].tolist()
