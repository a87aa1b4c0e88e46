"""Attacks that see labels only: closed forms on linear models, exact query counts, samples that do not know another."""

from __future__ import annotations

import itertools

import pytest
import torch
from siegebench.attacks._decision import Queries, bisect, noise, start, to_boundary
from siegebench.attacks.boundary import Boundary
from siegebench.attacks.geoda import GeoDA, cosines
from siegebench.attacks.hopskipjump import HopSkipJump
from siegebench.attacks.rays import RayS, blocks
from siegebench.attacks.sign_opt import SignOPT
from siegebench.attacks.signflip import SignFlip
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import network
from siegebench.threat import Norm, ThreatModel
from siegebench.types import MinimalAttack
from tests import kit
from tests.test_autoattack import in_the_gap, nearest_boundary

KINDS: tuple[tuple[type[MinimalAttack], Norm], ...] = (
    (RayS, "linf"),
    (SignFlip, "linf"),
    (HopSkipJump, "l2"),
    (HopSkipJump, "linf"),
    (Boundary, "l2"),
    (GeoDA, "l2"),
    (GeoDA, "linf"),
    (SignOPT, "l2"),
)
every_kind = pytest.mark.parametrize(
    ("kind", "norm"), KINDS, ids=[f"{kind.__name__.lower()}-{norm}" for kind, norm in KINDS]
)


class Brightness(nn.Module):
    """Class 1 where the mean of the image is at least so far from a half, else class 0."""

    def __init__(self, far: float) -> None:
        super().__init__()
        self.far = far

    def forward(self, x: Tensor) -> Tensor:
        s = (x.flatten(1).mean(1) - 0.5).abs() - self.far
        return torch.stack([-s, s], dim=1)


def brightness(far: float) -> Classifier:
    return Network(Brightness(far), num_classes=2).eval()


def two_classes(linear: Classifier) -> Classifier:
    """The linear model with all classes but two out of reach."""
    with torch.no_grad():
        linear.net.layer.weight[2:] = 0
        linear.net.layer.bias[2:] = -1000
    return linear


def uneven() -> tuple[Classifier, Tensor, Tensor]:
    """(an untrained network whose answers are spread over the classes, images, its labels), float64."""
    model = network().double().requires_grad_(False)
    x = kit.grey_images(8, size=16).double()
    return model, x, model(x).argmax(1)


def label_threat(norm: Norm, eps: float = 0.1, queries: int | None = None) -> ThreatModel:
    return ThreatModel(norm=norm, eps=eps, access="label", queries=queries)


def asking(model: Classifier, x: Tensor, norm: Norm, queries: int) -> Queries:
    threat = label_threat(norm, queries=queries)
    y = model(x).argmax(1)
    return Queries(Oracle(model, threat, Draws(0, torch.arange(len(x)))), x, y, threat, queries)


# ------------------------------------------------------------------------------------------------- all of the attacks


@pytest.mark.parametrize(
    ("attack", "norm", "queries", "factor"),
    [
        (RayS(stop_at_eps=False), "linf", 2000, 1.1),
        (SignFlip(stop_at_eps=False), "linf", 4000, 1.3),
        (HopSkipJump(), "l2", 2000, 1.15),
        (HopSkipJump(), "linf", 2000, 1.35),
        (Boundary(), "l2", 4000, 1.1),
        (GeoDA(), "l2", 2000, 1.2),
        (GeoDA(), "linf", 2000, 1.2),
        (SignOPT(), "l2", 2000, 1.2),
    ],
    ids=lambda value: type(value).__name__.lower() if isinstance(value, MinimalAttack) else str(value),
)
def test_the_distance_comes_near_the_closed_form(
    linear: Classifier, attack: MinimalAttack, norm: Norm, queries: int, factor: float
) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    x_adv, oracle = kit.attack_with(attack, linear, x, y, label_threat(norm, queries=queries))
    assert bool((linear(x_adv).argmax(1) != y).all())
    ratio = ops.size(x_adv - x, norm) / nearest
    assert float(ratio.min()) > 1 - 1e-4
    assert float(ratio.median()) < factor
    assert oracle.ledger.queries.tolist() == [queries] * 8


@every_kind
def test_queries_are_spent_to_the_last_and_never_exceeded(
    linear: Classifier, kind: type[MinimalAttack], norm: Norm
) -> None:
    x = kit.grey_images(5)
    y = linear(x).argmax(1)
    for own, granted, expected in ((37, None, 37), (1000, 2, 2), (1, None, 1), (301, 301, 301), (37, 100, 37)):
        attack = kind(queries=own, stop_at_eps=False)
        _, oracle = kit.attack_with(attack, linear, x, y, label_threat(norm, queries=granted))
        assert oracle.ledger.queries.tolist() == [expected] * 5
        assert oracle.ledger.backwards.tolist() == [0] * 5


@every_kind
def test_what_others_spent_is_not_spent_again(linear: Classifier, kind: type[MinimalAttack], norm: Norm) -> None:
    linear.double()
    x = kit.grey_images(4).double()
    y = linear(x).argmax(1)
    threat = label_threat(norm, queries=150)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(linear, threat, draws)
    for k in (0, 1, 2):  # sample k has spent 150, 127, 60, 0 before
        oracle[torch.tensor([k])].repeat((150, 127, 60)[k]).labels(x[k].expand((150, 127, 60)[k], -1, -1, -1))
    x_adv = kind(stop_at_eps=False)(oracle, x, y, threat, draws)
    assert oracle.ledger.queries.tolist() == [150] * 4
    assert torch.equal(x_adv[0], x[0])
    # the others fare as they would have alone, with what they had left
    for k, left in ((1, 23), (2, 90), (3, 150)):
        own = Draws(0, torch.tensor([k]))
        less = label_threat(norm, queries=left)
        alone = kind(stop_at_eps=False)(Oracle(linear, less, own), x[k : k + 1], y[k : k + 1], less, own)
        torch.testing.assert_close(alone[0], x_adv[k], rtol=0, atol=1e-9)


@every_kind
def test_more_queries_find_smaller_perturbations(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    far = []
    for queries in (12, 1200):
        x_adv, _ = kit.attack_with(kind(queries=queries, stop_at_eps=False), model, x, y, label_threat(norm))
        broken = model(x_adv).argmax(1) != y
        assert bool((broken | (x_adv == x).flatten(1).all(1)).all())  # broken, or left as it was
        far.append(torch.where(broken, ops.size(x_adv - x, norm), torch.inf))
    assert bool(torch.isfinite(far[1]).all())
    assert bool((far[1] < far[0]).all())
    assert float((far[1] / far[0]).median()) < 0.75


@every_kind
def test_stopping_at_eps(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    x_adv, _ = kit.attack_with(kind(queries=400, stop_at_eps=False), model, x, y, label_threat(norm))
    eps = in_the_gap(ops.size(x_adv - x, norm))
    inside = ops.size(x_adv - x, norm) <= eps
    attack = kind(queries=400, stop_at_eps=True)
    assert not attack.minimises()
    assert kind(stop_at_eps=False).minimises()
    x_adv, oracle = kit.attack_with(attack, model, x, y, label_threat(norm, eps))
    broken = model(x_adv).argmax(1) != y
    assert torch.equal(broken, inside)  # the same search, cut short
    assert torch.equal(x_adv[~broken], x[~broken])
    assert bool((ops.size(x_adv - x, norm)[broken] > 0).all())
    assert bool((oracle.ledger.queries[~broken] == 400).all())
    assert bool((oracle.ledger.queries[broken] < 400).any())


@every_kind
def test_a_sample_alone_fares_as_in_a_batch(kind: type[MinimalAttack], norm: Norm) -> None:
    model, x, y = uneven()
    attack = kind(queries=333, stop_at_eps=False)
    together, oracle = kit.attack_with(attack, model, x, y, label_threat(norm))
    for rows in (*torch.arange(8).split(1)[::3], torch.tensor([3, 1, 0, 7, 2, 6, 5, 4])):
        draws = Draws(0, rows)
        own = Oracle(model, label_threat(norm), draws)
        alone = attack(own, x[rows], y[rows], label_threat(norm), draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.queries.tolist() == oracle.ledger.queries[rows].tolist()
    other, _ = kit.attack_with(attack, model, x, y, label_threat(norm), seed=1)
    assert torch.equal(other, together) == (kind is RayS)  # nothing in it is random


@every_kind
def test_a_model_that_never_errs_is_asked_to_the_end(kind: type[MinimalAttack], norm: Norm) -> None:
    x = kit.grey_images(3)
    y = torch.zeros(3, dtype=torch.long)
    x_adv, oracle = kit.attack_with(kind(queries=90, stop_at_eps=False), brightness(2.0), x, y, label_threat(norm))
    assert torch.equal(x_adv, x)
    assert oracle.ledger.queries.tolist() == [90] * 3


@every_kind
def test_images_need_not_be_square(kind: type[MinimalAttack], norm: Norm) -> None:
    x = torch.full((2, 3, 5, 9), 0.5)
    y = torch.zeros(2, dtype=torch.long)
    x_adv, _ = kit.attack_with(kind(queries=200, stop_at_eps=False), brightness(0.1), x, y, label_threat(norm))
    assert bool((brightness(0.1)(x_adv).argmax(1) == 1).all())


# --------------------------------------------------------------------------------------------------- what they share


def test_bisect_ends_at_the_boundary_with_the_fewest_queries() -> None:
    model, x = brightness(0.1), torch.full((3, 3, 4, 4), 0.5)
    ask = asking(model, x, "linf", 100)
    rows = torch.tensor([2, 0])
    high = bisect(
        ask, rows, lambda at, r: x[rows[at]] + ops.over(r, x), torch.tensor([0.5, 0.25]), torch.tensor([0.5 / 64] * 2)
    )
    assert bool(((high >= 0.1) & (high <= 0.1 + 0.5 / 64)).all())
    assert ask.left.tolist() == [95, 100, 94]
    assert ask.distance[1] == torch.inf
    torch.testing.assert_close(ask.distance[rows], high)


def test_bisect_ends_where_the_numbers_end() -> None:
    model, x = brightness(0.1), torch.full((1, 3, 4, 4), 0.5)
    ask = asking(model, x, "linf", 1000)
    rows = torch.tensor([0])
    bisect(ask, rows, lambda at, r: x[at] + ops.over(r, x), torch.ones(1), torch.zeros(1))
    assert int(ask.left) > 940


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_way_to_the_boundary(norm: Norm) -> None:
    model, x = brightness(0.1), torch.full((2, 3, 4, 4), 0.5)
    far = x.clone()
    far[0] += 0.4  # every pixel alike
    far[1, :, :2] += 0.5  # half of the image
    ask = asking(model, x, norm, 100)
    got = to_boundary(ask, torch.arange(2), far, 1e-4) - x
    assert bool((model(x + got).argmax(1) == 1).all())
    torch.testing.assert_close(got[0], torch.full_like(x[0], 0.1), rtol=0, atol=1e-4)
    torch.testing.assert_close(got[1, :, :2], torch.full((3, 2, 4), 0.2), rtol=0, atol=1e-4)
    assert float(got[1, :, 2:].abs().max()) == 0


def test_votes_are_counted_row_by_row() -> None:
    model, x = brightness(0.1), torch.full((4, 3, 4, 4), 0.5)
    ask = asking(model, x, "l2", 5)
    rows = torch.tensor([3, 0, 1])
    points = x[rows][:, None].repeat(1, 7, 1, 1, 1)
    points[:, ::2] += 0.2
    votes = ask.votes(rows, points, torch.tensor([2, 0, 7]))
    assert votes.tolist() == [[1, -1, 0, 0, 0, 0, 0], [0] * 7, [1, -1, 1, -1, 1, 0, 0]]
    assert ask.left.tolist() == [5, 0, 5, 3]
    assert ask.oracle.ledger.queries.tolist() == [0, 5, 0, 2]


def test_noise_that_keeps_the_label_gives_way_to_coarser_noise() -> None:
    # the mean of fine noise is a half; only few cells or one colour lie far from it
    model, x = brightness(0.2), torch.full((8, 3, 16, 16), 0.5)
    ask = asking(model, x, "l2", 500)
    rows, points = start(ask, Draws(0, torch.arange(8)), 1e-4)
    assert rows.tolist() == list(range(8))
    assert bool((model(points).argmax(1) == 1).all())
    torch.testing.assert_close((points - x).flatten(1).mean(1).abs(), torch.full((8,), 0.2), rtol=0, atol=1e-3)


def test_more_directions_start_nearer(linear: Classifier) -> None:
    x = kit.grey_images(16)
    far = []
    for directions in (1, 30):
        ask = asking(linear, x, "l2", 500)
        rows, points = start(ask, Draws(0, torch.arange(16)), 1e-3, directions)
        assert len(rows) == 16
        far.append(ops.size(points - x, "l2"))
    assert bool((far[1] <= far[0]).all())
    assert float((far[1] / far[0]).median()) < 0.9


def test_noise_has_cells_of_every_size() -> None:
    x = torch.zeros(2, 3, 5, 8)
    draws = Draws(0, torch.arange(2))
    for number, different in ((0, 40), (1, 12), (2, 4), (3, 1), (4, 40)):
        image = noise(x, draws, number)
        assert image.shape == x.shape
        assert len(image[0, 0].unique()) == different
    assert not torch.equal(noise(x, draws, 0), noise(x, draws, 4))


# ------------------------------------------------------------------------------------------------------- one by one


def test_rays_finds_every_sign_of_a_linear_model(linear: Classifier) -> None:
    model = two_classes(linear).double()
    x = kit.grey_images(6).double()
    y = model(x).argmax(1)
    nearest = nearest_boundary(model, x, y, "linf")
    attack = RayS(queries=4000, tolerance=1e-5, stop_at_eps=False)
    x_adv, _ = kit.attack_with(attack, model, x, y, label_threat("linf"))
    torch.testing.assert_close(ops.size(x_adv - x, "linf"), nearest, rtol=1e-3, atol=0)


def test_blocks_cover_the_image_level_by_level() -> None:
    first = list(itertools.islice(blocks(10), 1 + 2 + 4 + 5 + 10 + 10))
    for level, size in ((slice(0, 1), 10), (slice(1, 3), 5), (slice(3, 7), 3), (slice(7, 12), 2), (slice(12, 22), 1)):
        covered = [i for block in first[level] for i in range(10)[block]]
        assert covered == list(range(10))
        assert first[level][0].stop == size
    assert first[12:22] == first[22:]


def test_hopskipjump_estimates_the_normal(linear: Classifier) -> None:
    model = two_classes(linear).double()
    x = kit.grey_images(4).double()
    ask = asking(model, x, "l2", 5000)
    rows, points = start(ask, Draws(0, torch.arange(4)), 1e-7)
    w = (model.net.layer.weight[1] - model.net.layer.weight[0]).view(1, 3, 8, 8)
    w = w * ops.over(1 - 2 * ask.y, x)
    spend = torch.tensor([3000, 3000, 3000, 300])
    g = HopSkipJump._gradient(ask, rows, points, torch.full((4,), 0.01).double(), spend, Draws(0, torch.arange(4)))
    cosine = torch.cosine_similarity(g.flatten(1), w.flatten(1))
    assert float(cosine[:3].min()) > 0.9
    assert 0.5 < float(cosine[3]) < float(cosine[:3].min())
    assert (5000 - ask.left >= spend).tolist() == [True] * 4


def test_boundary_proposals_stay_on_the_sphere_and_then_come_nearer() -> None:
    x = torch.full((5, 3, 8, 8), 0.5).double()
    draws = Draws(0, torch.arange(5))
    point = x + 0.1 * draws.normal((3, 8, 8)).double() * torch.arange(1, 6)[:, None, None, None] / 5
    around, inward = torch.full((5,), 0.02).double(), torch.full((5,), 0.03).double()
    far = ops.size(point - x, "l2")
    sphere, trial = Boundary._propose(x, point, far, around, inward, draws.normal((3, 8, 8), 1).double())
    torch.testing.assert_close(ops.size(sphere - x, "l2"), far, rtol=1e-9, atol=0)
    torch.testing.assert_close(ops.size(trial - x, "l2"), 0.97 * far, rtol=1e-9, atol=0)
    angle = torch.cosine_similarity((sphere - x).flatten(1), (point - x).flatten(1)).acos()
    torch.testing.assert_close(angle, around.atan(), rtol=1e-6, atol=0)


def test_geoda_probes_are_smooth() -> None:
    for size, waves in ((8, 8), (9, 3)):
        rows = cosines(size, waves)
        torch.testing.assert_close(rows @ rows.T, torch.eye(waves, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(cosines(8, 1).std()) < 1e-12


def test_signflip_at_a_lower_resolution(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    found = []
    for resize in (1, 2):
        attack = SignFlip(queries=600, resize=resize, stop_at_eps=False)
        x_adv, oracle = kit.attack_with(attack, linear, x, y, label_threat("linf"))
        assert bool((linear(x_adv).argmax(1) != y).all())
        assert oracle.ledger.queries.tolist() == [600] * 4
        found.append(x_adv)
    assert not torch.equal(found[0], found[1])
