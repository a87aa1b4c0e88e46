"""Attacks that see scores: closed forms on linear models, exact query counts, samples that do not know of another."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from siegebench.attacks.bandits import Bandits
from siegebench.attacks.nes import NES
from siegebench.attacks.signhunter import SignHunter, chunks
from siegebench.attacks.simba import SimBA, cosines
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.search import Budget
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit
from tests.test_autoattack import in_the_gap, nearest_boundary

KINDS: dict[str, Attack] = {
    "nes": NES(),
    "bandits": Bandits(tile=1),  # the weights of the models here are noise
    "signhunter": SignHunter(),
    "simba-pixel": SimBA(basis="pixel"),
    "simba-dct": SimBA(basis="dct"),
}
every_kind = pytest.mark.parametrize("name", KINDS)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def with_queries(name: str, queries: int) -> Attack:
    return replace(KINDS[name], queries=queries)


def score(norm: Norm, eps: float, queries: int | None = None) -> ThreatModel:
    return ThreatModel(norm=norm, eps=eps, access="score", queries=queries)


class TwoClasses(nn.Module):
    """Logits (s, -s) / 2 with s = w x + b, so that the margin of class 0 is -s."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w.flatten()), b

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w + self.b
        return torch.stack([s, -s], dim=1) / 2


def half_space(shape: tuple[int, int, int] = (3, 8, 8), b: float = 0.0) -> tuple[Classifier, Tensor]:
    """(linear model of two classes in float64, its weights)."""
    w = Draws(7, torch.zeros(1, dtype=torch.long)).normal(shape)[0].double()
    return Network(TwoClasses(w, b), num_classes=2).double().eval().requires_grad_(False), w


# ------------------------------------------------------------------------------------------------------- all of them


@every_kind
@both_norms
def test_every_sample_breaks_near_the_smallest_budget_and_none_below(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(12)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, norm)
    x_adv, oracle = kit.attack_with(with_queries(name, 1500), linear, x, y, score(norm, 2.0 * float(nearest.max())))
    assert bool((linear(x_adv).argmax(1) != y).all())
    assert bool((oracle.ledger.queries < 1500).all())
    x_adv, _ = kit.attack_with(with_queries(name, 200), linear, x, y, score(norm, 0.95 * float(nearest.min())))
    assert bool((linear(x_adv).argmax(1) == y).all())
    assert bool((x_adv != x).flatten(1).any(dim=1).all())


@every_kind
@both_norms
def test_queries_are_spent_to_the_last_and_never_exceeded(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(6)
    y = linear(x).argmax(1)
    for own, granted, expected in ((37, None, 37), (37, 1000, 37), (1000, 52, 52), (94, 94, 94), (301, 63, 63)):
        threat = score(norm, 1e-4, granted)
        _, oracle = kit.attack_with(with_queries(name, own), linear, x, y, threat)
        spent = oracle.ledger.queries
        if name == "bandits":  # a single query is of no use to it
            assert bool(((spent == expected) | (spent == expected - 1)).all())
        else:
            assert spent.tolist() == [expected] * 6
        assert oracle.ledger.backwards.tolist() == [0] * 6


@every_kind
@pytest.mark.parametrize("queries", [1, 2, 3, 4])
def test_a_handful_of_queries_is_no_error(linear: Classifier, name: str, queries: int) -> None:
    x = kit.grey_images(3)
    y = linear(x).argmax(1)
    threat = score("linf", 0.01, queries)
    x_adv, oracle = kit.attack_with(KINDS[name], linear, x, y, threat)
    assert int(oracle.ledger.queries.max()) <= queries
    if queries >= 3:
        assert bool((x_adv != x).flatten(1).any(dim=1).all()) or name.startswith("simba")


@every_kind
def test_what_others_spent_is_not_spent_again(name: str) -> None:
    model, x = kit.cnn_model().double(), kit.grey_images(4).double()
    y = model(x).argmax(1)
    threat = score("linf", 1e-4, 80)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(model, threat, draws)
    for k, spent in enumerate((0, 7, 48, 80)):
        if spent:
            oracle[torch.tensor([k])].repeat(spent).logits(x[k : k + 1].expand(spent, -1, -1, -1))
    x_adv = KINDS[name](oracle, x, y, threat, draws)
    assert oracle.ledger.queries.tolist() == ([80, 79, 80, 80] if name == "bandits" else [80] * 4)
    assert torch.equal(x_adv[3], x[3])
    for k, rest in enumerate((80, 73, 32)):  # each fares as if its rest had been all
        own = Oracle(model, threat, draws[k : k + 1])
        alone = with_queries(name, rest)(own, x[k : k + 1], y[k : k + 1], threat, draws[k : k + 1])
        torch.testing.assert_close(alone[0], x_adv[k], rtol=0, atol=1e-9)


@every_kind
@both_norms
def test_a_broken_sample_spends_no_more(linear: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(10)
    y = linear(x).argmax(1)
    threat = score(norm, 1.3 * in_the_gap(nearest_boundary(linear, x, y, norm)))
    x_adv, oracle = kit.attack_with(with_queries(name, 250), linear, x, y, threat)
    broken, spent = linear(x_adv).argmax(1) != y, oracle.ledger.queries
    assert bool(broken.any())
    assert bool((~broken).any())
    assert int(spent[broken].median()) < 200
    assert int(spent[~broken].min()) >= 249
    for i in broken.nonzero().squeeze(1)[:3].tolist():
        one, took = Draws(0, torch.tensor([i])), int(spent[i])
        for queries in (took, took - 1):
            own = Oracle(linear, threat, one)
            alone = with_queries(name, queries)(own, x[i : i + 1], y[i : i + 1], threat, one)
            fell = bool((linear(alone).argmax(1) != y[i]).all())
            if queries == took:
                assert fell
                assert own.ledger.queries.tolist() == [took]
            elif not isinstance(KINDS[name], (NES, Bandits)):  # these come to the last point without the last look
                assert not fell


@every_kind
@both_norms
def test_a_sample_alone_fares_as_in_a_batch(name: str, norm: Norm) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat, attack = score(norm, 0.02 if norm == "linf" else 0.2), with_queries(name, 70)
    together, oracle = kit.attack_with(attack, model, x, y, threat)
    for rows in (*torch.arange(8).split(1)[:3], torch.tensor([3, 7, 1, 0, 2, 6, 5, 4]), torch.tensor([6, 2])):
        draws = Draws(0, rows)
        own = Oracle(model, threat, draws)
        alone = attack(own, x[rows], y[rows], threat, draws)
        torch.testing.assert_close(alone, together[rows], rtol=0, atol=1e-9)
        assert own.ledger.queries.tolist() == oracle.ledger.queries[rows].tolist()
    other, _ = kit.attack_with(attack, model, x, y, threat, seed=1)
    assert torch.equal(other, together) is (name == "signhunter")  # nothing is random there


@every_kind
@both_norms
def test_scores_rise_on_a_network(name: str, norm: Norm) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(12).double()
    y = model(x).argmax(1)
    threat = score(norm, 0.002 if norm == "linf" else 0.02)
    start = last = ops.margin(model(x), y)
    for queries in (40, 80, 160):
        x_adv, _ = kit.attack_with(with_queries(name, queries), model, x, y, threat)
        now = ops.margin(model(x_adv), y)
        if name != "bandits":  # it returns where it stands
            assert bool((now >= last - 1e-12).all())
        last = now
    assert float((last - start).min()) > 0
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(ops.margin(model(leaf), y).sum(), leaf)[0].flatten(1)
    most = threat.eps * (g.abs().sum(1) if norm == "linf" else g.norm(dim=1))
    assert float(((last - start) / most).median()) > 0.12
    assert float(threat.size(x_adv, x).max()) <= threat.eps + 1e-9


@every_kind
@both_norms
def test_no_budget_changes_nothing(cnn: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    x_adv, _ = kit.attack_with(with_queries(name, 20), cnn, x, y, score(norm, 0.0))
    assert torch.equal(x_adv, x)


@every_kind
@both_norms
@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 9, 13)])
def test_images_of_any_shape_that_meet_the_box(name: str, norm: Norm, shape: tuple[int, int, int]) -> None:
    model, _ = half_space(shape, b=1000.0)  # nothing breaks
    x = Draws(1, torch.arange(3)).uniform(shape).double()
    x[0], x[1] = 0.0, 1.0
    y = model(x).argmax(1)
    threat = score(norm, 0.4 if norm == "linf" else 4.0)
    x_adv, oracle = kit.attack_with(with_queries(name, 60), model, x, y, threat)
    assert oracle.ledger.queries.tolist() == [60] * 3
    assert bool((ops.margin(model(x_adv), y) > ops.margin(model(x), y)).all())


# ---------------------------------------------------------------------------------------------------------------- NES


def test_nes_estimates_the_gradient() -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    oracle, draws = Oracle(model, score("linf", 0.1), Draws(0, torch.arange(4))), Draws(0, torch.arange(4))
    pairs = torch.tensor([3000, 100, 0, 7])
    budget, rows = Budget(oracle, y, 10_000), torch.arange(4)
    g = NES(sigma=0.001)._gradient(budget, rows, x, y, pairs, draws, 0)
    assert oracle.ledger.queries.tolist() == (2 * pairs).tolist()
    exact = -w.flatten()  # of the margin
    assert float(g[2].abs().max()) == 0
    # from m pairs in n dimensions: length^2 is (n + m + 1) / m times the true one, cosine^2 is m / (n + m + 1)
    n = exact.numel()
    for k in (0, 1, 3):
        m = int(pairs[k])
        cosine = float(torch.cosine_similarity(g[k].flatten(), exact, dim=0))
        length = float(g[k].norm() / exact.norm())
        assert cosine == pytest.approx(math.sqrt(m / (n + m + 1)), abs=0.1)
        assert length == pytest.approx(math.sqrt((n + m + 1) / m), rel=0.25)


def test_nes_draws_a_pair_anew_for_each_step_and_pair() -> None:
    model, _ = half_space(b=500.0)
    x = kit.grey_images(1).double()
    y, one = model(x).argmax(1), Draws(0, torch.zeros(1, dtype=torch.long))
    seen: list[Tensor] = []

    def look(image: Tensor) -> Tensor:
        seen.append(image.clone())
        return model(image)

    class Seen(Classifier):
        num_classes = 2

        def forward(self, image: Tensor, draws: Draws | None = None) -> Tensor:
            return look(image)

    threat = score("linf", 0.01, 31)
    NES(pairs=5)(Oracle(Seen(), threat, one), x, y, threat, one)
    probes = torch.cat([s for s in seen if len(s) > 1])
    assert len(probes) == 10 + 10 + 8
    assert [len(s) for s in seen] == [10, 1, 10, 1, 8, 1]
    moves = torch.cat([s[: len(s) // 2] - s[len(s) // 2 :] for s in seen if len(s) > 1]).flatten(1)
    assert float(torch.corrcoef(moves).fill_diagonal_(0).abs().max()) < 0.35
    assert float(moves.std()) == pytest.approx(0.02, rel=0.05)  # 2 sigma


def test_nes_follows_the_gradients_before() -> None:
    """Fifteen pairs in 192 dimensions say little; what is remembered says more."""
    model, w = half_space(b=500.0)
    x = kit.grey_images(8).double()
    y = model(x).argmax(1)
    threat = score("linf", 0.05, 31 * 5)
    gain = {}
    for momentum in (0.0, 0.9):
        x_adv, _ = kit.attack_with(NES(pairs=15, momentum=momentum, step=2.0), model, x, y, threat)
        gain[momentum] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean() / (0.05 * w.abs().sum()))
    assert gain[0.9] > gain[0.0] + 0.1


# ---------------------------------------------------------------------------------------------------------- SignHunter


@pytest.mark.parametrize("n", [1, 2, 7, 12, 75, 192])
def test_chunks_cover_every_level_and_begin_again(n: int) -> None:
    levels = math.ceil(math.log2(n)) + 1
    seen: list[list[int]] = []
    parts = chunks(n)
    for level in range(2 * levels):
        length = math.ceil(n / 2 ** (level % levels))
        covered: list[int] = []
        for _ in range(math.ceil(n / length)):
            part = next(parts)
            covered += range(n)[part]
        assert covered == list(range(n))
        seen.append(covered)
    assert [p.stop - p.start for p in islice(chunks(12), 1, 3)] == [6, 6]


@both_norms
def test_signhunter_ends_at_the_sign_of_the_gradient(norm: Norm) -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    once = 1 + 1 + 2 + 4 + 8 + 16 + 32 + 64 + 96 + 192  # all chunks of 192 coordinates, after the first image
    eps = 0.05
    for queries, there in ((once, True), (once - 1, None), (once - 100, False), (once + 30, True)):
        x_adv, oracle = kit.attack_with(SignHunter(), model, x, y, score(norm, eps, queries))
        s = -w.sign() if norm == "linf" else -w.sign() / math.sqrt(192)
        if there is not None:
            assert torch.allclose(x_adv, x + eps * s, rtol=0, atol=1e-12) is there
        assert oracle.ledger.queries.tolist() == [queries] * 4


def test_signhunter_needs_one_query_where_its_first_image_is_wrong() -> None:
    x = kit.grey_images(8).double()
    bright = Network(TwoClasses(-torch.ones(192), float(x.flatten(1).sum(1).max()) + 1), num_classes=2).double().eval()
    y = bright(x).argmax(1)
    assert y.tolist() == [0] * 8
    x_adv, oracle = kit.attack_with(SignHunter(), bright, x, y, score("linf", 0.2))
    assert oracle.ledger.queries.tolist() == [1] * 8
    assert torch.equal(x_adv, x + 0.2)


# --------------------------------------------------------------------------------------------------------------- SimBA


@pytest.mark.parametrize("n", [1, 5, 8, 32])
def test_cosines_are_an_orthonormal_basis_from_low_to_high(n: int) -> None:
    basis = cosines(n)
    torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=torch.float64))
    changes = (basis.sign().diff(dim=1) != 0).sum(dim=1)
    assert changes.tolist() == list(range(n))


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_simba_takes_every_direction_to_its_better_side(basis: str) -> None:
    model, w = half_space(b=500.0)
    x = kit.grey_images(4).double()
    y = model(x).argmax(1)
    q = torch.eye(8, dtype=torch.float64) if basis == "pixel" else cosines(8)
    along = q @ -w @ q.T  # what each direction does to the margin
    wanted = x + 0.01 * (q.T @ along.sign() @ q)
    spent = 1 + int((along < 0).sum()) + 2 * int((along > 0).sum())  # -step is tried first
    attack = SimBA(basis=basis, step=0.01)  # type: ignore[arg-type]
    for queries, there in ((spent, True), (spent - 2, False)):
        x_adv, oracle = kit.attack_with(attack, model, x, y, score("l2", 0.2, queries))
        assert oracle.ledger.queries.tolist() == [queries] * 4
        assert torch.allclose(x_adv, wanted, rtol=0, atol=1e-12) is there
    torch.testing.assert_close(ops.size(wanted - x, "l2"), torch.full((4,), 0.01 * math.sqrt(192)).double())
    # a second round goes on from there
    x_adv, _ = kit.attack_with(attack, model, x, y, score("l2", 0.4, 2 * spent - 1))
    torch.testing.assert_close(x_adv, x + 2 * (wanted - x), rtol=0, atol=1e-12)


def test_simba_orders_are_whole_random_and_low_first() -> None:
    draws, shape = Draws(0, torch.arange(5)), (3, 32, 32)
    zero = torch.zeros(5, dtype=torch.long)
    for basis in ("pixel", "dct"):
        attack = SimBA(basis=basis)  # type: ignore[arg-type]
        order = attack._order(draws, zero, shape)
        assert torch.equal(order.sort(dim=1).values, torch.arange(3072).expand(5, -1))
        assert not torch.equal(order[0], order[1])
        assert not torch.equal(order, attack._order(draws, zero + 3072, shape))
        highest = torch.maximum(order // 32 % 32, order % 32)
        if basis == "dct":  # 4 of 32 first, then frame by frame
            assert int(highest[:, :48].max()) == 3
            assert bool((highest[:, 48:].diff(dim=1) >= 0).all())
        else:
            assert float(highest[:, :48].double().mean()) > 15


def test_simba_by_the_probability_is_blind_where_the_network_is_sure() -> None:
    """That is why the margin is the default."""
    x, gain = kit.grey_images(4).double(), {}
    for b in (0.0, 500.0):
        model, _ = half_space(b=b)
        y = model(x).argmax(1)
        for loss in ("ce", "margin"):
            attack = SimBA(basis="pixel", step=0.001, loss=loss)  # type: ignore[arg-type]
            x_adv, _ = kit.attack_with(attack, model, x, y, score("l2", 0.01, 100))
            gain[loss, b] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).min())
    assert gain["ce", 500.0] == 0 < gain["margin", 500.0]
    assert gain["ce", 0.0] == pytest.approx(gain["margin", 0.0])  # two classes: the same decisions


def test_low_frequencies_pay_on_smooth_weights() -> None:
    row = torch.linspace(-1, 1, 16, dtype=torch.float64)
    w = (row[:, None] + row.square()[None]).expand(3, -1, -1).contiguous()
    model = Network(TwoClasses(w, 500.0), num_classes=2).double().eval().requires_grad_(False)
    x = kit.grey_images(6, size=16).double()
    y = model(x).argmax(1)
    gain = {}
    for basis in ("pixel", "dct"):
        x_adv, _ = kit.attack_with(SimBA(basis=basis), model, x, y, score("l2", 1.0, 60))  # type: ignore[arg-type]
        gain[basis] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean() / w.norm())
    assert gain["dct"] > 2 * gain["pixel"]


# ------------------------------------------------------------------------------------------------------------- Bandits


@both_norms
def test_tiles_pay_where_neighbours_agree(norm: Norm) -> None:
    coarse = Draws(3, torch.zeros(1, dtype=torch.long)).normal((3, 4, 4))[0].double()
    w = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    model = Network(TwoClasses(w, 500.0), num_classes=2).double().eval().requires_grad_(False)
    x = kit.grey_images(6, size=16).double()
    y = model(x).argmax(1)
    threat = score(norm, 0.05 if norm == "linf" else 1.0, 200)
    most = threat.eps * float(w.abs().sum() if norm == "linf" else w.norm())
    gain = {}
    for tile in (1, 4):
        x_adv, _ = kit.attack_with(Bandits(tile=tile), model, x, y, threat)
        gain[tile] = float((ops.margin(model(x_adv), y) - ops.margin(model(x), y)).mean()) / most
    assert gain[4] > 0.4
    assert gain[4] > gain[1] + 0.1


def test_bandits_looks_only_where_a_probe_was_wrong(linear: Classifier) -> None:
    x = kit.grey_images(12)
    y = linear(x).argmax(1)
    nearest = nearest_boundary(linear, x, y, "linf")
    threat = score("linf", 2.0 * float(nearest.max()))
    seen: list[tuple[int, bool]] = []

    class Seen(Classifier):
        num_classes = 10

        def forward(self, image: Tensor, draws: Draws | None = None) -> Tensor:
            z = linear(image)
            seen.append((len(image), bool((z.argmax(1) != y[0]).any())))
            return z

    one = Draws(0, torch.zeros(1, dtype=torch.long))
    Bandits(tile=1)(Oracle(Seen(), threat, one), x[:1], y[:1], threat, one)
    for (count, _), (before, wrong) in zip(seen[1:], seen, strict=False):
        if before == 2:
            assert count == (1 if wrong else 2)
    assert seen[-1] == (1, True)
