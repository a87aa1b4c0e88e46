"""Measures with known answers: linear models, planted tracers, and what must not depend on the scale of the logits."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.attacks.fmn import FMN
from siegebench.attacks.hopskipjump import HopSkipJump
from siegebench.attacks.pgd import PGD
from siegebench.measures.distances import Distances
from siegebench.measures.separate_and_trace import SeparateAndTrace, Tracers, _Copies, _Together, permutations
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.testing.specimens import planted_set
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, predict, train
from siegebench.types import Lesson, Measure
from tests import kit, victims

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
EPS: dict[Norm, float] = {"linf": 0.02, "l2": 0.2, "l1": 1.0}


class Affine(nn.Module):
    """z = W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)


def affine(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    bias = torch.zeros(len(weight)) if bias is None else bias
    return Network(Affine(weight, bias), num_classes=len(weight)).eval().requires_grad_(False)


def two_classes(size: int = 8) -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """(linear model, images that are near its boundary, their labels, w_1 - w_0)"""
    g = torch.Generator().manual_seed(3)
    w = torch.randn(2, 3 * size * size, generator=g) * 0.5
    x = kit.grey_images(20, size)
    way = w[1] - w[0]
    z = torch.linspace(-2, 2, 20)  # margins, none of them zero
    flat = x.flatten(1)
    flat = 0.5 + 0.3 * (flat - 0.5) + (z - (0.5 + 0.3 * (flat - 0.5)) @ way)[:, None] * way / way.square().sum()
    return affine(w), flat.view_as(x), (z > 0).long(), way


def measured(
    entry: Measure,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    norm: Norm = "l2",
    data: ImageSet | None = None,
    lesson: Lesson = None,
) -> tuple[dict[str, float], Oracle]:
    """(metrics, oracle); it learns from `data` first where it learns."""
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    if data is not None:
        own = Draws(1, data.ids)
        lesson = entry.learn(Oracle(model, threat, own), data, threat, own)
    found = entry(oracle, x, y, threat, draws, lesson)
    assert found["flags"] == []
    return found["metrics"], oracle


def built(name: str, **parameters: Any) -> Any:
    return registry.build("measure", {"name": name, **parameters})


# ------------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_a_linear_model_are_margin_over_dual_norm(norm: Norm) -> None:
    model, x, y, way = two_classes()
    exact = (ops.margin(model(x), y).abs() / way.norm(p=DUAL[norm])).sort().values
    assert float((x.amin(), 1 - x.amax())[0]) > 0.05  # the box is out of reach, the closed form holds
    eps = [float(exact[4]) * 1.1, float(exact[12]) * 1.1]
    got, _ = measured(built("distances", eps=eps), model, x, y, norm)
    for share, place in ((5, 0), (25, 4), (50, 9), (75, 14), (95, 18)):  # of 20 images
        assert got[f"distance_q{share:02d}"] == pytest.approx(float(exact[place]), rel=0.03)
    assert got["not_found"] == 0
    for radius in eps:
        assert got[f"held@{radius:.6g}"] == pytest.approx(float((exact > radius).double().mean()))


def test_distances_without_an_answer_are_left_out_and_held() -> None:
    x = kit.grey_images(8)
    model = affine(torch.zeros(3, 192), torch.tensor([1.0, 0.0, 0.0]))
    got, _ = measured(built("distances"), model, x, torch.zeros(8, dtype=torch.long))
    assert got["not_found"] == 1
    assert not [k for k in got if k.startswith("distance")]
    assert {v for k, v in got.items() if k.startswith("held@")} == {1.0}
    assert [k for k in got if k.startswith("held@")] == [f"held@{t * 0.2:.6g}" for t in (0.25, 0.5, 1, 2, 4)]


def test_distances_are_judged_by_a_fresh_look() -> None:
    class Boasts(type(built("distances").attack)):  # type: ignore[misc]
        def run(self, oracle, x, y, threat, draws):
            return x + 1e-4

    model, x, y, _ = two_classes()
    assert measured(Distances(attack=Boasts()), model, x, y)[0]["not_found"] == 1


@pytest.mark.parametrize("name", ["distances", "boundary_tilting"])
def test_only_attacks_that_minimise_have_distances(name: str) -> None:
    with pytest.raises(ConfigError, match="'pgd' keeps to an eps; expected one that looks for the smallest"):
        built(name, attack="pgd")
    model, x, y, _ = two_classes()
    if name == "distances":
        with pytest.raises(NotApplicable, match="handles l2, linf, not l1"):
            measured(built("distances.label_only"), model, x, y, "l1")


# -------------------------------------------------------------------------------------------------------- gradient norm


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradient_norms_of_a_linear_model_are_exact(norm: Norm) -> None:
    model, x, y, way = two_classes()
    got, oracle = measured(built("gradient_norm"), model, x, y, norm)
    steep, margin = float(way.norm(p=DUAL[norm])), ops.margin(model(x), y).abs()
    wrong = 1 - model(x).softmax(dim=1).gather(1, y[:, None]).squeeze(1)
    for name, exact in (("margin_gradient", torch.full((20,), steep)), ("ce_gradient", steep * wrong),
                        ("first_order_distance", margin / steep)):  # fmt: skip
        assert got[f"{name}_mean"] == pytest.approx(float(exact.mean()), rel=1e-4)
        assert got[f"{name}_median"] == pytest.approx(float(exact.quantile(0.5)), rel=1e-4)
        assert got[f"{name}_q95"] == pytest.approx(float(exact.quantile(0.95)), rel=1e-4)
    assert got["zero_gradient_ce"] == got["zero_gradient_margin"] == 0
    assert oracle.ledger.backwards.tolist() == [2] * 20


def test_images_without_a_gradient_are_counted_and_in_no_distance() -> None:
    class Dead(nn.Module):
        """Steep where the first pixel is bright, flat elsewhere."""

        def forward(self, x: Tensor) -> Tensor:
            s = F.relu(x[:, 0, 0, 0] - 0.5) * 4
            return torch.stack([1 + s, torch.zeros_like(s)], dim=1)

    x = torch.full((4, 3, 4, 4), 0.2)
    x[:1, 0, 0, 0] = 0.75
    model = Network(Dead(), num_classes=2).eval()
    got, _ = measured(built("gradient_norm"), model, x, torch.zeros(4, dtype=torch.long))
    assert got["zero_gradient_margin"] == got["zero_gradient_ce"] == 0.75
    assert got["margin_gradient_mean"] == pytest.approx(1.0)  # 4 for one of four
    assert got["first_order_distance_median"] == pytest.approx(0.5)  # margin 2 over slope 4


# ------------------------------------------------------------------------------------------------------------- flatness


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_flatness_of_a_linear_logit_is_exact(norm: Norm) -> None:
    model, x = kit.linear_model(scale=0.2), kit.grey_images(6)
    y, w = model(x).argmax(dim=1), model.net.layer.weight  # type: ignore[union-attr]
    leaf = x.clone().requires_grad_(True)
    g = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0].flatten(1)
    r = Draws(0, torch.arange(6)).normal((3, 8, 8), purpose="direction").flatten(1)
    if norm == "linf":
        g, r = g.sign(), r.sign()
    else:
        g, r = F.normalize(g), F.normalize(r)
    along_1, along_2 = ((w[y] * d).sum(dim=1) * EPS[norm] for d in (g, r))
    axis = torch.linspace(-1, 1, 21)
    exact = (axis[:, None, None] * along_1 + axis[:, None] * along_2).abs().mean()
    got, oracle = measured(built("flatness"), model, x, y, norm)
    assert got["class_delta"] == pytest.approx(float(exact), rel=1e-4)
    own = model(x).gather(1, y[:, None])
    assert got["class_spread"] == pytest.approx(float(own.std(correction=0)), rel=1e-4)
    assert got["class_delta_relative"] == pytest.approx(got["class_delta"] / got["class_spread"])
    assert oracle.ledger.forwards.tolist() == [1 + 1 + 21**2] * 6


def test_relative_flatness_does_not_see_the_scale_of_the_logits() -> None:
    model, x, y, _ = two_classes()
    small = affine(model.net.weight / 10, model.net.bias / 10)  # type: ignore[union-attr, operator]
    old, new = (measured(built("flatness", side=5), m, x, y, "linf")[0] for m in (model, small))
    assert new["class_delta"] == pytest.approx(old["class_delta"] / 10, rel=1e-3)
    assert new["class_delta_relative"] == pytest.approx(old["class_delta_relative"], rel=1e-3)


def test_a_constant_model_is_flat_and_a_gradient_is_steeper_than_chance() -> None:
    x = kit.grey_images(4)
    y = torch.zeros(4, dtype=torch.long)
    got, _ = measured(built("flatness"), affine(torch.zeros(3, 192), torch.tensor([1.0, 0, 0])), x, y, "linf")
    assert got == {"class_delta": 0, "class_spread": 0, "marginal_delta": 0, "marginal_spread": 0}
    with pytest.raises(NotApplicable, match="linf, l2"):
        measured(built("flatness"), kit.linear_model(), x, y, "l1")


# ----------------------------------------------------------------------------------------------------- boundary tilting


def tilted(degrees: float) -> tuple[Classifier, Tensor, Tensor, ImageSet]:
    """(linear classifier through the midpoint of two means, images beside the means, labels, training images)"""
    d = 3 * 8 * 8
    g = torch.Generator().manual_seed(5)
    images = torch.randint(110, 146, (2, 3, 8, 8), generator=g)
    spread = torch.randint(-20, 21, (4, 3, 8, 8), generator=g)
    training = torch.cat([images + s for s in (*spread, *(-spread))]).to(torch.uint8)  # means are the two images
    data = ImageSet(training, torch.arange(16) % 2, torch.arange(16), 2, "tilted")
    means = images.double().flatten(1) / 255
    way = means[1] - means[0]
    unit = way / way.norm()
    aside = torch.randn(d, generator=g).double()
    aside = aside - (aside @ unit) * unit
    theta = math.radians(degrees)
    w = math.cos(theta) * unit + math.sin(theta) * aside / aside.norm()
    b = -w @ means.mean(dim=0)
    model = Network(Affine(torch.stack([-w, w]), torch.stack([-b, b])), num_classes=2).double()
    y = torch.arange(10) % 2
    away = 0.05 * torch.randn(10, d, generator=g).double()
    x = means[y] + away - (away @ w)[:, None] * w  # as far from the boundary as the mean
    return model.eval().requires_grad_(False), x.view(10, 3, 8, 8), y, data


@pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 80.0])
def test_tilting_of_a_linear_classifier_is_its_angle_and_one_over_its_cosine(degrees: float) -> None:
    model, x, y, data = tilted(degrees)
    got, _ = measured(built("boundary_tilting"), model, x, y, "linf", data)
    assert got["not_found"] == 0
    assert got["angle_mean"] == pytest.approx(degrees, abs=0.01)
    assert got["angle_median"] == pytest.approx(degrees, abs=0.01)
    for name in ("strength_mean", "strength_median"):
        assert got[name] == pytest.approx(1 / math.cos(math.radians(degrees)), rel=0.02)


def test_tilting_leaves_out_what_it_cannot_know() -> None:
    model, x, y, data = tilted(30)
    with pytest.raises(ContractError, match="call learn first"):
        measured(built("boundary_tilting"), model, x, y)
    half = data.select((data.labels == 0).nonzero().squeeze(1))
    assert set(measured(built("boundary_tilting"), model, x, y, data=half)[0]) == {"not_found"}
    dead = affine(torch.zeros(2, 192), torch.tensor([1.0, 0.0]))
    got, _ = measured(built("boundary_tilting"), dead, x.float()[::2], y[::2], data=data)
    assert got == {"not_found": 1.0}


# --------------------------------------------------------------------------------------------------- separate and trace


class Planted(nn.Module):
    """A tracer whose outputs each follow a direction of their own: T_0(x) = tanh(3 A (x - 0.5)), A orthonormal."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        rows = torch.linalg.qr(torch.randn(192, 10, generator=g))[0].T
        self.weight = nn.Parameter(3 * rows, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - 0.5).flatten(1) @ self.weight.T).tanh()


# copy i reads its classes 0 and 1 off outputs 2i and 2i + 1, which no other copy reads there
APART = torch.stack([torch.arange(10).roll(-2 * i) for i in range(5)])


def traced(
    model: Classifier, x: Tensor, y: Tensor, norm: Norm = "l2", *, orders: Tensor = APART, **parameters: Any
) -> tuple[dict[str, float], Oracle]:
    """(metrics, oracle) with planted tracers."""
    entry = SeparateAndTrace(**{"copies": len(orders), "attack": PGD(), **parameters})
    return measured(entry, model, x, y, norm, lesson=Tracers(Planted(), orders, entry.alpha, {}))


def undecided(n: int = 30) -> tuple[Classifier, Tensor, Tensor]:
    """(a classifier that slightly prefers class 0 to 1 everywhere, images near grey, labels): tracers alone move."""
    z = torch.zeros(10)
    z[0], z[1] = 5.1, 5.0
    x = 0.5 + 0.01 * (kit.grey_images(n) - 0.5)
    return affine(torch.zeros(10, 192), z), x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(("classes", "copies"), [(10, 10), (43, 5), (5, 4), (2, 2)])
def test_permutations_agree_in_one_place_at_most(classes: int, copies: int) -> None:
    orders = permutations(classes, copies, 0)
    assert (orders.sort(dim=1).values == torch.arange(classes)).all()
    same = (orders[:, None] == orders).sum(dim=2)
    assert int((same - classes * torch.eye(copies, dtype=torch.long)).max()) <= 1
    assert torch.equal(orders, permutations(classes, copies, 0))
    assert classes < 5 or not torch.equal(orders, permutations(classes, copies, 1))


def test_more_copies_than_permutations_are_refused() -> None:
    with pytest.raises(NotApplicable, match="found 2 permutations of 2 outputs"):
        permutations(2, 3, 0)
    for spec in ({"copies": 1}, {"copies": 2, "collude": True}):
        with pytest.raises(ConfigError, match="there is none to tell"):
            built("separate_and_trace", **spec)


@pytest.mark.parametrize(
    ("attack", "norm", "least"), [(PGD(), "linf", 1.0), (FMN(), "l2", 1.0), (HopSkipJump(queries=500), "l2", 0.9)]
)
def test_what_moves_one_tracer_alone_is_traced(attack: Any, norm: Norm, least: float) -> None:
    model, x, y = undecided()
    got, oracle = traced(model, x, y, norm, attack=attack)
    assert got["kept_right"] == 1
    assert got["found"] == 1
    assert got["tracing_accuracy"] >= least
    assert got["transfer_rate"] <= 1 - least
    asked = 500 if isinstance(attack, HopSkipJump) else 2
    assert int(oracle.ledger.forwards.min()) >= asked + 2  # the seller looks before and after


def test_equal_copies_are_named_by_chance() -> None:
    model, x, y = undecided()
    same = torch.arange(10).expand(5, 10)
    got, _ = traced(model, x, y, "linf", orders=same)
    assert got["found"] == 1
    assert got["tracing_accuracy"] == pytest.approx(1 / 5)
    assert got["transfer_rate"] == got["transferred"] == 1
    assert got["tracing_accuracy_transferred"] == pytest.approx(1 / 5)
    got, _ = traced(model, x, y, "linf", orders=same, collude=True)
    assert got["tracing_accuracy"] == pytest.approx(2 / 5)


def test_colluders_fool_both_and_either_is_named() -> None:
    model, x, y = undecided()
    got, _ = traced(model, x, y, collude=True, attack=FMN())
    assert got["found"] == 1
    assert got["tracing_accuracy"] == got["tracing_accuracy_both"] == 1
    assert got["transfer_rate"] == 0


def test_together_means_that_every_copy_is_wrong() -> None:
    model, x, y = undecided(60)
    moved = (x + 0.1 * Draws(0, torch.arange(60)).normal((3, 8, 8))).clamp(0, 1)
    t, p = Planted()(moved), model(moved).softmax(dim=1)
    wrong = torch.stack([(p + 0.15 * t[:, APART[i]]).argmax(dim=1) != y for i in (0, 1)])
    assert 0 < int(wrong.all(dim=0).sum()) < int(wrong.any(dim=0).sum()) < 60
    joint = _Together(_Copies(model, Planted(), APART[:2], 0.15), ThreatModel(), Draws(0, torch.arange(60)), y)
    assert torch.equal(joint.labels(moved) != y, wrong.all(dim=0))
    back = torch.arange(59, -1, -1)
    assert torch.equal(joint[back].labels(moved[back]) != y[back], wrong.all(dim=0)[back])
    assert joint.ledger.forwards.tolist() == [2] * 60


def test_images_that_a_copy_has_wrong_are_not_attacked() -> None:
    model, x, y = undecided()
    got, _ = traced(model, x, y, "linf", alpha=1000.0)
    assert got["kept_right"] < 0.5
    assert got["found"] < 0.5


def test_the_tracer_is_turned_by_noise_as_far_as_it_shall() -> None:
    data = planted_set(320, 8)
    cosine = {}
    for theta in (20.0, 75.0):
        entry = SeparateAndTrace(theta=theta, noise=0.1, epochs=60, lr=1e-2, width=8, copies=3, attack=PGD())
        model = kit.cnn_model()
        threat, draws = ThreatModel(), Draws(0, data.ids)
        taught = entry.learn(Oracle(model, threat, draws), data, threat, draws)
        x = data.pixels()
        t = taught.tracer(x)
        assert float(t.abs().max()) <= 1
        noisy = (x + 0.1 * draws.normal((3, 8, 8), purpose="other noise")).clamp(0, 1)
        cosine[theta] = float(F.cosine_similarity(t, taught.tracer(noisy)).mean())
    print(cosine)
    assert cosine[20.0] == pytest.approx(math.cos(math.radians(20)), abs=0.15)
    assert cosine[75.0] == pytest.approx(math.cos(math.radians(75)), abs=0.15)


def test_a_second_training_gives_the_same_copies() -> None:
    data, model = planted_set(60, 8), kit.cnn_model()
    threat, draws = ThreatModel(), Draws(0, data.ids)
    x = data.pixels()

    def answers(seed: int = 0, **parameters: Any) -> Tensor:
        own = Draws(seed, data.ids)
        taught = built("separate_and_trace", epochs=2, **parameters).learn(
            Oracle(model, threat, own), data, threat, own
        )
        assert 0 <= taught.known["training_acc"] <= 1
        return taught.tracer(x)[:, taught.orders]

    first = answers()
    torch.manual_seed(99)
    assert torch.equal(first, answers())
    assert not torch.equal(first, answers(theta=15))
    assert not torch.equal(first, answers(seed=1))
    with pytest.raises(ContractError, match="call learn first"):
        built("separate_and_trace")(Oracle(model, threat, draws), x, data.labels, threat, draws)


# ----------------------------------------------------------------------------------------------- what the papers claim


def odd_and_even() -> tuple[ImageSet, ImageSet]:
    """(train, test) digits, labelled 1 when they are odd; at half the contrast, far from the box; 8x8."""
    train_set, _, _, test = victims.tiny_digits()
    out = []
    for part in (train_set, test):
        grey = (64 + part.images // 2).to(torch.uint8)
        out.append(ImageSet(grey, part.labels % 2, part.ids, 2, "odd or even"))
    return out[0], out[1]


def logistic(data: ImageSet, decay: float) -> Classifier:
    """Logistic regression with an L2 penalty, to convergence."""
    x, sign = data.pixels(dtype=torch.float64).flatten(1) - 0.5, 2.0 * data.labels - 1
    w = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.softplus(-sign * (x @ w[:-1] + w[-1])).mean() + decay * w[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    slope, bias = w.detach()[:-1], w.detach()[-1] - 0.5 * w.detach()[:-1].sum()
    return affine(torch.stack([-slope, slope]), torch.stack([-bias, bias])).double()


def test_strength_falls_with_regularisation_and_follows_the_angle() -> None:
    train_set, test = odd_and_even()
    x, y = test.pixels(dtype=torch.float64), test.labels
    rows = []
    for decay in (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        model = logistic(train_set, decay)
        right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)
        got, _ = measured(built("boundary_tilting"), model, x[right], y[right], data=train_set)
        angle, strength, cosine = got["angle_mean"], got["strength_median"], math.cos(math.radians(got["angle_mean"]))
        rows.append((len(right) / len(x), angle, strength))
        print(f"decay {decay:g}: accuracy {rows[-1][0]:.3f}, angle {angle:.1f}, strength {strength:.2f}, "
              f"1/cos {1 / cosine:.2f}")  # fmt: skip
        if decay <= 1e-3:  # else the boundary is far from the midpoint of the means
            assert strength == pytest.approx(1 / cosine, rel=0.1)
    assert all(a[1] < b[1] and a[2] < b[2] for a, b in pairwise(rows))
    assert rows[-1][2] > 3.5
    best = max(rows)
    assert best[2] < rows[-1][2] / 2  # strength has no part in what the classifier is worth


def hardened(data: ImageSet, eps: float, seed: int = 0) -> Classifier:
    """A network trained on images moved by three steps of PGD; by none where eps is 0."""
    model = victims.tiny_net(seed)

    def loss(z: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
        if eps == 0:
            return F.cross_entropy(z, y)
        moved = x
        for _ in range(3):
            leaf = moved.detach().requires_grad_(True)
            g = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)[0]
            moved = ops.project(moved + 0.5 * eps * g.sign(), x, "linf", eps)
        return F.cross_entropy(model(moved.detach()), y)

    train(model, data, Recipe(epochs=6, batch=64, augment="none"), seed, loss=loss)
    return model.requires_grad_(False)


@pytest.mark.slow
def test_adversarial_training_flattens_the_landscape() -> None:
    train_set, _, _, test = victims.tiny_digits()
    threat = ThreatModel(norm="linf", eps=0.1)
    x, y = test.pixels(), test.labels
    rows = []
    for eps in (0.0, 0.1):
        model = hardened(train_set, eps)
        right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)[:64]
        clean = float((model(x).argmax(dim=1) == y).double().mean())
        broken, _ = kit.attack_with(PGD(steps=20), model, x[right], y[right], threat)
        held = float((model(broken).argmax(dim=1) == y[right]).double().mean())
        draws = Draws(0, right)
        flat = built("flatness", side=9).run(Oracle(model, threat, draws), x[right], y[right], threat, draws)["metrics"]
        tenth = Network(Through(model, 0.1), num_classes=10).eval()
        lower = built("flatness", side=9).run(Oracle(tenth, threat, draws), x[right], y[right], threat, draws)[
            "metrics"
        ]
        rows.append((held, flat))
        print(f"trained at {eps}: clean {clean:.3f}, held {held:.3f}", {k: round(v, 3) for k, v in flat.items()})
        print("    logits / 10:", {k: round(v, 3) for k, v in lower.items()})
        assert lower["class_delta"] < 0.2 * flat["class_delta"]
        assert lower["class_delta_relative"] == pytest.approx(flat["class_delta_relative"], rel=0.2)
    (held, plain), (held_at, at) = rows
    assert held_at > held + 0.3
    assert at["class_delta_relative"] < plain["class_delta_relative"]


class Through(nn.Module):
    """The logits of another network times a number."""

    def __init__(self, inner: nn.Module, times: float) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        return self.times * self.inner(x)


@cache
def resnet20() -> tuple[Classifier, ImageSet, ImageSet]:
    """(the published network, prepared; train; the test images that it gets right of the first 200)"""
    kit.data_folder()
    source: Any = registry.build("dataset", "cifar10_jpeg")
    network: Any = registry.build("model", "cifar_resnet20")
    test = source.load("test").select(torch.arange(200))
    model = prepare(network.build(num_classes=10, size=32).eval().requires_grad_(False), test.pixels(slice(32)))
    right = (predict(model, test).argmax(dim=1) == test.labels).nonzero().squeeze(1)
    return model, source.load("train"), test.select(right)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_geometry_of_resnet20() -> None:
    model, train_set, test = resnet20()
    x, y = test.pixels(slice(64)), test.labels[:64]
    got: dict[str, dict[str, float]] = {}
    fmn = {"name": "fmn", "steps": 40}
    for norm, eps, spec in (("l2", 0.5, {"name": "gradient_norm"}), ("linf", 8 / 255, {"name": "gradient_norm"}),
                            ("linf", 8 / 255, {"name": "flatness", "side": 7}),
                            ("l2", 0.5, {"name": "distances", "attack": fmn}),
                            ("l2", 0.5, {"name": "boundary_tilting", "attack": fmn})):  # fmt: skip
        threat, draws, own = ThreatModel(norm=norm, eps=eps), Draws(0, test.ids[:64]), Draws(0, train_set.ids)
        entry: Any = registry.build("measure", spec)
        learns = entry.learning()
        lesson = entry.learn(Oracle(model, threat, own), train_set, threat, own) if learns else None
        oracle = Oracle(model, threat, draws)
        found = got[f"{spec['name']} {norm}"] = entry(oracle, x, y, threat, draws, lesson)["metrics"]
        print(spec["name"], norm, {k: round(v, 4) for k, v in found.items()}, flush=True)
    # a network that hides no gradients: what they promise is of the size of what is found
    found, promised = got["distances l2"], got["gradient_norm l2"]
    assert found["not_found"] == got["boundary_tilting l2"]["not_found"] == 0
    assert 0.5 < promised["first_order_distance_median"] / found["distance_q50"] < 5
    assert 60 < got["boundary_tilting l2"]["angle_median"] <= 100
    assert got["boundary_tilting l2"]["strength_median"] > 5


@cache
def tracers() -> Tracers:
    """Trained once a process; what it is attacked with is chosen later."""
    model, train_set, _ = resnet20()
    entry = SeparateAndTrace(images=4000, epochs=4, copies=6, attack=PGD())
    threat, own = ThreatModel(norm="l2", eps=1.0), Draws(0, train_set.ids)
    return entry.learn(Oracle(model, threat, own), train_set, threat, own)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("collude", [False, True], ids=["alone", "colluding"])
@pytest.mark.parametrize(
    ("attack", "norm", "count"),
    [({"name": "hopskipjump", "queries": 500}, "l2", 100), ({"name": "pgd"}, "linf", 100),
     ({"name": "fmn", "steps": 40}, "l2", 50)],
    ids=["hopskipjump", "pgd", "fmn"],
)  # fmt: skip
def test_tracing_copies_of_resnet20(attack: dict[str, Any], norm: Norm, count: int, collude: bool) -> None:
    model, _, test = resnet20()
    buyer: Any = registry.build("attack", attack)
    copies = 6 if collude else 5
    entry = SeparateAndTrace(copies=copies, collude=collude, attack=buyer)
    lesson = replace(tracers(), orders=tracers().orders[:copies])
    x, y, draws = test.pixels(slice(count)), test.labels[:count], Draws(0, test.ids[:count])
    threat = ThreatModel(norm=norm, eps=2 / 255 if norm == "linf" else 1.0)
    got = entry(Oracle(model, threat, draws), x, y, threat, draws, lesson)["metrics"]
    print(attack["name"], "colluding" if collude else "alone", {k: round(v, 4) for k, v in got.items()})
    assert got["training_acc_copies"] > got["training_acc"] - 0.02
    assert got["found"] > 0.5
    if attack["name"] == "hopskipjump" and not collude:
        # at the very boundary of its copy an image scores less there than at any other copy that it fools likewise
        assert got["tracing_accuracy_transferred"] < 0.1
    if attack["name"] == "fmn" and not collude:
        assert got["tracing_accuracy"] > 0.5
