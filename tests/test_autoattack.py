"""APGD, FAB and AutoAttack against closed forms, planted optima and the reference implementation."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from siegebench.attacks.apgd import APGD, checkpoints, hardest
from siegebench.attacks.autoattack import LOOKS, AutoAttack
from siegebench.attacks.fab import FAB, to_hyperplane
from siegebench.attacks.square import Square
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.registry import build
from siegebench.search import Best
from siegebench.threat import ThreatModel
from tests import kit


def nearest_boundary(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Closed form on a linear model, far from the box: margin over the dual norm of the difference of the weights."""
    layer = model.net.layer
    z = model(x)
    gap = z.gather(1, y[:, None]) - z
    w = layer.weight[None] - layer.weight[y][:, None]
    dual = w.abs().sum(dim=2) if norm == "linf" else w.norm(dim=2)
    far = gap / dual.clamp(min=1e-12)
    return far.scatter(1, y[:, None], float("inf")).amin(dim=1)


def in_the_gap(distances: Tensor) -> float:
    """An eps between two distances, the widest relative gap apart: half of the samples or so can be broken."""
    d = distances.sort().values
    middle = d[len(d) // 4 : -len(d) // 4]
    k = int((middle[1:] / middle[:-1]).argmax())
    return float((middle[k] * middle[k + 1]).sqrt())


class Flat(nn.Module):
    """z = W x of few classes."""

    def __init__(self, classes: int, size: int = 8) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(classes)
        self.layer = nn.Linear(3 * size * size, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) - 0.5)


def few_classes(classes: int) -> Classifier:
    return Network(Flat(classes), num_classes=classes).eval().requires_grad_(False)


class Peak(nn.Module):
    """Never wrong; the margin of class 0 is smallest at a planted point."""

    def __init__(self, peak: Tensor) -> None:
        super().__init__()
        self.peak = peak

    def forward(self, x: Tensor) -> Tensor:
        far = (x - self.peak).flatten(1).square().sum(dim=1)
        return torch.stack([1 + far, 0 * far, 0 * far - 1, 0 * far - 2], dim=1)


class Noisy(Wrapped):
    """Adds noise to the logits."""

    def __init__(self, inner: Classifier, sigma: float) -> None:
        super().__init__(inner)
        self.randomized, self.sigma = True, sigma

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x) + self.sigma * draws.normal((self.num_classes,))


# ----------------------------------------------------------------------------------------------------------- APGD


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


# ------------------------------------------------------------------------------------------------------------ FAB


def brute_force(t: np.ndarray, w: np.ndarray, c: float, norm: str) -> float:
    """The length of the shortest d with <w, d> = c inside the box, by a general solver; None where there is none."""
    n = len(t)
    bounds = [(-a, 1 - a) for a in t]
    if norm == "l2":
        best = minimize(
            lambda d: d @ d, np.clip(c * w / (w @ w), -t, 1 - t), jac=lambda d: 2 * d, bounds=bounds, method="SLSQP",
            constraints={"type": "eq", "fun": lambda d: w @ d - c, "jac": lambda d: w},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return float(np.sqrt(best.fun)) if best.success else float("nan")
    # variables: d, and m >= |d| (one for all pixels, or one for each)
    k = 1 if norm == "linf" else n
    lift = np.ones((n, 1)) if norm == "linf" else np.eye(n)
    both = np.block([[np.eye(n), -lift], [-np.eye(n), -lift]])
    best = linprog(
        np.r_[np.zeros(n), np.ones(k)], A_ub=both, b_ub=np.zeros(2 * n), A_eq=np.r_[w, np.zeros(k)][None], b_eq=[c],
        bounds=bounds + [(0, None)] * k,
    )  # fmt: skip
    return float(best.fun) if best.status == 0 else float("nan")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_is_the_shortest_way_to_the_hyperplane(norm: str) -> None:
    g = np.random.default_rng(0)
    t = g.random((60, 5))
    t[::4, :2] = g.integers(0, 2, (15, 2))  # pixels at the ends of the box
    w = g.normal(size=(60, 5))
    w[::5, 2] = 0
    reach = np.where(w > 0, w * (1 - t), -w * t).sum(1)  # the largest <w, d> inside the box
    back = np.where(w > 0, w * t, -w * (1 - t)).sum(1)
    c = np.where(g.random(60) < 0.5, reach, -back) * g.random(60)
    d = to_hyperplane(torch.from_numpy(t), torch.from_numpy(w), torch.from_numpy(c), norm)
    assert float(((torch.from_numpy(w) * d).sum(1) - torch.from_numpy(c)).abs().max()) < 1e-9
    moved = torch.from_numpy(t) + d
    assert bool(((moved >= -1e-12) & (moved <= 1 + 1e-12)).all())
    assert bool((d[torch.from_numpy(w) == 0] == 0).all())
    best = np.array([brute_force(*row, norm) for row in zip(t, w, c, strict=True)])
    assert np.isfinite(best).all()
    np.testing.assert_allclose(ops.size(d, norm).numpy(), best, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_hyperplane_beyond_the_box_gives_the_nearest_corner(norm: str) -> None:
    t = torch.tensor([[0.2, 0.7, 0.5]])
    w = torch.tensor([[1.0, -2.0, 0.0]])
    d = to_hyperplane(t, w, torch.tensor([100.0]), norm)
    torch.testing.assert_close(t + d, torch.tensor([[1.0, 0.0, 0.5]]))
    d = to_hyperplane(t, w, torch.tensor([-100.0]), norm)
    torch.testing.assert_close(t + d, torch.tensor([[0.0, 1.0, 0.5]]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_ignores_the_scale_of_the_logits_and_survives_no_gradient(norm: str) -> None:
    g = torch.Generator().manual_seed(0)
    t, w, c = torch.rand(16, 300, generator=g), torch.randn(16, 300, generator=g), torch.randn(16, generator=g)
    d = to_hyperplane(t, w, c, norm)
    for k in (1e-9, 1e9):
        torch.testing.assert_close(to_hyperplane(t, k * w, k * c, norm), d, rtol=1e-3, atol=1e-6)
    assert bool((to_hyperplane(t, 0 * w, c, norm) == 0).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_nearest_boundary(linear: Classifier, norm: str) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    threat = ThreatModel(norm=norm, eps=0.0)
    x_adv, oracle = kit.attack_with(FAB(steps=20), linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) != y).all())
    ratio = threat.size(x_adv, x) / nearest
    assert float(ratio.min()) > 1 - 1e-4
    assert float(ratio.max()) < 1.01
    assert oracle.ledger.forwards.tolist() == [1 + 9 * 2 * 20] * 16
    assert oracle.ledger.backwards.tolist() == [9 * 20] * 16


def test_fab_finds_the_nearest_boundary_in_l1_where_the_box_matters(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    z, weight = linear(x), linear.net.layer.weight
    threat = ThreatModel(norm="l1", eps=0.0)
    x_adv, _ = kit.attack_with(FAB(steps=30), linear, x, y, threat)
    assert bool((linear(x_adv).argmax(1) != y).all())
    for i in range(4):
        point = x[i].flatten().double().numpy()
        others = [j for j in range(10) if j != y[i]]
        normals = [(weight[j] - weight[y[i]]).double().numpy() for j in others]
        ways = [brute_force(point, w, float(z[i, y[i]] - z[i, j]), "l1") for j, w in zip(others, normals, strict=True)]
        ratio = float(threat.size(x_adv[i : i + 1], x[i : i + 1])) / min(ways)
        assert 1 - 1e-4 < ratio < 1.06, ratio


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_walks_the_path_of_the_reference(norm: str) -> None:
    reference = pytest.importorskip("pyautoattack.fab_pt")
    model = kit.cnn_model()
    x = kit.grey_images(8)
    y = model(x).argmax(1)
    theirs = reference.FABAttack_PT(model, norm=norm.capitalize(), n_iter=20, eps=1.0, device="cpu", targeted=True)
    theirs.target_class = 2
    expected = theirs.attack_single_run(x, y, is_targeted=True)
    threat = ThreatModel(norm=norm, eps=0.0)
    found, _ = kit.attack_with(FAB(steps=20, targets=1), model, x, y, threat)
    assert bool((model(found).argmax(1) != y).any())
    torch.testing.assert_close(threat.size(found, x), threat.size(expected, x), rtol=0.02, atol=1e-6)


def test_fab_that_stops_at_eps_leaves_early_and_inside(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=in_the_gap(nearest))
    x_adv, oracle = kit.attack_with(FAB(steps=10, stop_at_eps=True), linear, x, y, threat)
    assert bool((threat.size(x_adv, x) <= threat.eps).all())
    broken = linear(x_adv).argmax(1) != y
    assert torch.equal(broken, nearest < threat.eps)
    assert torch.equal(x_adv[~broken], x[~broken])
    full = 1 + 9 * 2 * 10
    assert bool((oracle.ledger.forwards[broken] < full).all())
    assert bool((oracle.ledger.forwards[~broken] == full).all())


# ----------------------------------------------------------------------------------------------------- AutoAttack


SMALL = AutoAttack(steps=10, queries=20, targets=3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_breaks_exactly_what_can_be_broken(linear: Classifier, norm: str) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    threat = ThreatModel(norm=norm, eps=in_the_gap(nearest))
    x_adv, _ = kit.attack_with(AutoAttack(steps=30, queries=50), linear, x, y, threat)
    assert torch.equal(linear(x_adv).argmax(1) != y, nearest < threat.eps)
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-6


def test_autoattack_costs_what_it_says(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    _, oracle = kit.attack_with(SMALL, linear, x, y, ThreatModel(eps=1e-5))
    s, t, q = 10, 3, 20
    apgd, targeted, fab = s + 1, 1 + t * (s + 1), 1 + t * 2 * s
    assert oracle.ledger.forwards.tolist() == [apgd + targeted + fab + q + 4] * 4
    assert oracle.ledger.backwards.tolist() == [s + 1 + t * (s + 1) + t * s] * 4
    # the figures in the docstring
    assert (101 + 910 + 1801 + 5000 + 4, 101 + 909 + 900) == (7816, 1910)


def test_only_survivors_go_on(linear: Classifier) -> None:
    x = kit.grey_images(32)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=in_the_gap(nearest_boundary(linear, x, y, "linf")))
    x_adv, oracle = kit.attack_with(SMALL, linear, x, y, threat)
    broken = linear(x_adv).argmax(1) != y
    draws = Draws(0, torch.arange(32))
    first = APGD(steps=10).run(Oracle(linear, threat, draws), x, y, threat, draws.child("autoattack", 0))
    by_first = linear(first).argmax(1) != y
    assert bool(by_first.any())
    assert bool((broken | ~by_first).all())
    assert torch.equal(x_adv[by_first], first[by_first])
    assert bool((oracle.ledger.forwards[by_first] <= 11 + 1).all())
    full = 11 + (1 + 3 * 11) + (1 + 3 * 20) + 20 + 4
    assert bool((oracle.ledger.forwards[~broken] == full).all())


def test_a_component_outside_eps_does_not_count(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = ThreatModel(eps=float(nearest.min()) * 0.9)  # FAB finds images outside for all
    x_adv, _ = kit.attack_with(SMALL, linear, x, y, threat)
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-6
    assert bool((linear(x_adv).argmax(1) == y).all())
    assert bool((ops.margin(linear(x_adv), y) > ops.margin(linear(x), y)).all())


def test_scaled_logits_hide_nothing() -> None:
    model, x = kit.linear_model(scale=100.0), kit.grey_images(32)
    y = model(x).argmax(1)
    threat = ThreatModel(eps=1.3 * float(nearest_boundary(model, x, y, "linf").max()))
    fooled, _ = kit.attack_with(APGD(), model, x, y, threat)
    assert float((model(fooled).argmax(1) == y).float().mean()) > 0.3, "cross-entropy should saturate here"
    x_adv, _ = kit.attack_with(AutoAttack(steps=20, queries=20), model, x, y, threat)
    assert bool((model(x_adv).argmax(1) != y).all())


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("variant", ["standard", "rand"])
def test_few_classes(classes: int, variant: str) -> None:
    model, x = few_classes(classes), kit.grey_images(8)
    y = model(x).argmax(1)
    nearest = nearest_boundary(model, x, y, "linf")
    attack = AutoAttack(variant=variant, steps=20, queries=20)
    losses = [c.loss for c in attack.components(classes) if isinstance(c, APGD)]
    second = {2: "margin", 3: "dlr", 4: "targeted_dlr" if variant == "standard" else "dlr"}[classes]
    assert losses == ["ce", second]
    x_adv, _ = kit.attack_with(attack, model, x, y, ThreatModel(eps=in_the_gap(nearest)))
    assert torch.equal(model(x_adv).argmax(1) != y, nearest < in_the_gap(nearest))


def test_the_standard_cascade_is_the_published_one() -> None:
    assert list(AutoAttack().components(10)) == [
        APGD(steps=100, restarts=1, rho=0.75, loss="ce"),
        APGD(steps=100, restarts=1, rho=0.75, loss="targeted_dlr", targets=9),
        FAB(steps=100, targets=9, alpha_max=0.1, eta=1.05, beta=0.9, stop_at_eps=True),
        Square(queries=5000, p=0.8, rescale=False),
    ]


def test_rand_averages_twenty_looks_and_does_not_trust_a_lucky_one(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    model = Noisy(linear, sigma=1.0)
    _, oracle = kit.attack_with(AutoAttack(variant="rand", steps=5), model, x, y, ThreatModel(eps=1e-4))
    far = nearest > nearest.median()
    assert bool((oracle.ledger.forwards[far] == 2 * LOOKS * (6 + 1)).all())
    threat = ThreatModel(eps=1.5 * float(nearest.max()))
    x_adv, _ = kit.attack_with(AutoAttack(variant="rand", steps=20), model, x, y, threat)
    looks = torch.stack([model(x_adv, Draws(9, torch.arange(16)).at(k)).argmax(1) != y for k in range(9)])
    assert bool((looks.sum(0) >= 5).all())


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


@pytest.mark.parametrize(
    "attack",
    [APGD(steps=9), APGD(steps=9, loss="targeted_dlr", targets=2), SMALL],
    ids=["apgd", "apgd targeted", "autoattack"],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_budget_changes_nothing(cnn: Classifier, attack: APGD, norm: str) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    x_adv, _ = kit.attack_with(attack, cnn, x, y, ThreatModel(norm=norm, eps=0.0))
    assert torch.equal(x_adv, x)


# ------------------------------------------------------------------------------------- against the reference, slow


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("eps", ["8/255", "1/255", "0.5/255"])
def test_autoattack_agrees_with_the_reference(eps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyautoattack")
    if not os.environ.get("SIEGEBENCH_DATA"):
        pytest.skip("needs cifar10_jpeg and the ResNet-20 weights: set SIEGEBENCH_DATA to their folder")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    bench, conformance = importlib.import_module("bench"), importlib.import_module("conformance")
    contest = next(c for c in conformance.contests() if c.name == f"autoattack {eps}")
    ours, reference = conformance.hold(contest, bench.Scene.load("cifar_resnet20", "cifar10_jpeg", 200)).rows
    gap = ours.robust - reference.robust
    assert gap <= 0.5, (ours, reference)
    assert abs(gap) <= 1, (ours, reference)
    assert reference.differ <= 4, (ours, reference)
    if eps == "8/255":
        assert ours.robust == 0, ours
        assert reference.cpu >= 5 * ours.cpu, (ours, reference)
