"""APGD against closed forms, a planted optimum and the reference implementation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from siegebench.attacks._l1 import Sparse, stages, steepest
from siegebench.attacks.apgd import APGD, checkpoints, hardest
from siegebench.attacks.autoattack import AutoAttack
from siegebench.attacks.fab import FAB, to_hyperplane
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


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_apgd_in_l1_is_near_the_closed_form_where_the_box_matters(linear: Classifier, loss: str) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_in_the_box(linear, x, y)
    for factor, expected in ((0.99, False), (1.25, True)):
        for i in (0, 15):  # the threat has one eps
            eps = factor * float(nearest[i])
            at = slice(i, i + 1)
            x_adv, _ = kit.attack_with(APGD(loss=loss, steps=60), linear, x[at], y[at], ThreatModel(norm="l1", eps=eps))
            assert bool(linear(x_adv).argmax(1) != y[at]) is expected, (i, factor)


def nearest_in_the_box(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Smallest L1 distance to a wrong class inside the box: pixels move to its border, steepest first."""
    weight, z = model.net.layer.weight, model(x)  # type: ignore[union-attr]
    missing = z.gather(1, y[:, None]) - z  # [n, classes]
    ways = []
    for j in range(z.shape[1]):
        d = to_hyperplane(x.flatten(1), weight[j] - weight[y], missing[:, j], "l1")
        ways.append(torch.where(y == j, torch.inf, ops.size(d, "l1")))
    return torch.stack(ways).amin(dim=0)


def test_the_balls_of_l1_shrink_to_eps_and_keep_the_number_of_steps() -> None:
    assert stages(100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
    assert stages(1) == [(1.0, 1)]
    for steps in range(1, 30):
        assert sum(k for _, k in stages(steps)) == steps
        assert stages(steps)[-1][0] == 1


def test_a_sparse_step_moves_the_largest_entries_by_the_same_amount() -> None:
    g = torch.tensor([[3.0, -2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    out = steepest(g, torch.tensor([1.2, 3.0]))
    assert out.flatten(1).tolist() == [[0.5, -0.5, 0, 0], [0, 0, 0, 0]]
    assert steepest(g, torch.tensor([99.0, 0.0])).flatten(1)[0].tolist() == pytest.approx([1 / 3, -1 / 3, 1 / 3, 0])


def test_apgd_in_l1_walks_the_path_of_the_reference() -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    model, x = kit.cnn_model(), kit.grey_images(4)
    y, eps = model(x).argmax(1), 2.0
    start = ops.project_l1(x + Draws(0, torch.arange(4)).normal(tuple(x.shape[1:])), x, eps)
    theirs = reference.APGDAttack(model, n_iter=25, norm="L1", eps=eps, loss="dlr", device="cpu")
    theirs.init_hyperparam(x)
    x_best, _, loss_best, _ = theirs.attack_single_run(x, y, x_init=start)
    ours = Sparse.start(x, y, y, start)
    oracle = Oracle(model, ThreatModel(norm="l1", eps=eps), Draws(0, torch.arange(4)))
    for k in range(26):
        if k > 0:
            ours.move(eps)
        g, _, value = oracle.gradient(ours.x, partial(ops.dlr, y=y))
        ours.see(g, value)
        if k > 0:
            ours.check()
    torch.testing.assert_close(ours.loss_best, loss_best.detach(), rtol=1e-4, atol=1e-5)
    assert float((ours.x_best - x_best.detach()).abs().max()) < 1e-4


def test_apgd_in_l1_costs_two_passes_more_and_counts_only_the_last_ball(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    nearest = nearest_in_the_box(linear, x, y)
    threat = ThreatModel(norm="l1", eps=0.9 * float(nearest.min()))  # all are broken in the ball of 3 eps
    x_adv, oracle = kit.attack_with(APGD(steps=20), linear, x[:1], y[:1], threat)
    assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [23]
    assert int(linear(x_adv).argmax(1)) == int(y[0])
    assert float(threat.size(x_adv, x[:1])) <= threat.eps * (1 + 1e-6)
    easy = ThreatModel(norm="l1", eps=3 * float(nearest.max()))
    _, oracle = kit.attack_with(APGD(steps=20), linear, x, y, easy)
    assert int(oracle.ledger.forwards.max()) < 23  # the last ball is left early


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
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_sample_alone_fares_as_in_a_batch(attack: APGD, norm: str) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps={"linf": 0.004, "l2": 0.04, "l1": 0.4}[norm])
    together, oracle = kit.attack_with(attack, model, x, y, threat)
    turned = torch.tensor([3, 7, 1, 0, 2, 6, 5, 4])
    for rows in (*torch.arange(8).split(1), turned):
        draws = Draws(0, rows)
        own = Oracle(model, threat, draws)
        alone = attack(own, x[rows], y[rows], threat, draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.forwards.tolist() == oracle.ledger.forwards[rows].tolist()
