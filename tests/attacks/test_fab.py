"""FAB: its projection against brute force, its distances against closed forms, its path against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from siegebench.attacks.fab import FAB, to_hyperplane

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.threat import ThreatModel
from tests import kit

from .planted import in_the_gap, nearest_boundary


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
