"""Oracle: what it grants, what it books, what it remembers."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.torchattacks import Torchattacks
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.errors import BudgetExhausted, ContractError
from siegebench.oracle import Oracle
from siegebench.threat import Access, ThreatModel
from tests import kit


class Noisy(Wrapped):
    """Adds noise to the logits, a fresh draw at each look."""

    def __init__(self, inner: Classifier, scale: float) -> None:
        super().__init__(inner)
        self.scale, self.randomized = scale, True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x) + self.scale * draws.normal((self.num_classes,), purpose="noise")


class Rounding(Wrapped):
    """Rounds the pixels to a few grey levels: no gradient passes, except through the surrogate."""

    def __init__(self, inner: Classifier, levels: int) -> None:
        super().__init__(inner)
        self.steps = levels - 1

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner((x * self.steps).round() / self.steps, draws)

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        rounded = (x * self.steps).round() / self.steps
        return self.inner(x + (rounded - x).detach(), draws)


def oracle_of(
    model: Classifier, n: int, access: Access = "gradient", queries: int | None = None, seed: int = 0
) -> Oracle:
    return Oracle(model, ThreatModel(eps=0.5, access=access, queries=queries), Draws(seed, torch.arange(n)))


def booked(oracle: Oracle) -> tuple[list[int], list[int], list[int]]:
    ledger = oracle.ledger
    return ledger.forwards.tolist(), ledger.backwards.tolist(), ledger.queries.tolist()


def total(z: Tensor) -> Tensor:
    return z.sum(dim=1)


# ---------------------------------------------------------------------------------------------------------- counts


def test_counts_are_exact_through_every_view(linear: Classifier) -> None:
    x, oracle = kit.grey_images(4), oracle_of(linear, 4)
    oracle.logits(x)
    assert booked(oracle) == ([1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1])
    oracle.labels(x)
    oracle.gradient(x, total)
    assert booked(oracle) == ([3, 3, 3, 3], [1, 1, 1, 1], [3, 3, 3, 3])

    index = torch.tensor([3, 1])
    oracle[index].gradient(x[index], total)  # a view of some samples
    assert booked(oracle) == ([3, 4, 3, 4], [1, 2, 1, 2], [3, 4, 3, 4])

    oracle[index].repeat(3).logits(x[index].repeat_interleave(3, dim=0))  # three images for each of two samples
    assert booked(oracle) == ([3, 7, 3, 7], [1, 2, 1, 2], [3, 7, 3, 7])

    oracle[index][torch.tensor([0])].averaged(5).gradient(x[3:], total)  # a view of a view, five looks
    assert booked(oracle) == ([3, 7, 3, 12], [1, 2, 1, 7], [3, 7, 3, 12])

    oracle[:1].repeat(2).averaged(3).logits(x[:1].repeat(2, 1, 1, 1))
    assert booked(oracle) == ([9, 7, 3, 12], [1, 2, 1, 7], [9, 7, 3, 12])


def test_foreign_calls_are_booked_too(linear: Classifier) -> None:
    x, oracle = kit.grey_images(3), oracle_of(linear, 3)
    leaf = x.clone().requires_grad_(True)
    z = oracle(leaf)
    assert booked(oracle) == ([1, 1, 1], [0, 0, 0], [1, 1, 1])
    z.sum().backward()
    assert booked(oracle)[1] == [1, 1, 1]
    assert torch.equal(leaf.grad, oracle.gradient(x, total)[0])
    with torch.no_grad():
        oracle(x)
    assert booked(oracle) == ([3, 3, 3], [2, 2, 2], [3, 3, 3])
    oracle[1:2](x.repeat(3, 1, 1, 1))  # nine candidates of one sample
    assert booked(oracle)[2] == [3, 12, 3]


def test_averaged_foreign_calls_are_means_of_fresh_looks(linear: Classifier) -> None:
    x = kit.grey_images(2)
    oracle, single = oracle_of(Noisy(linear, 1.0), 2), oracle_of(Noisy(linear, 1.0), 2)
    leaf = x.clone().requires_grad_(True)
    z = oracle.averaged(4)(leaf)
    z.sum().backward()
    assert booked(oracle) == ([4, 4], [4, 4], [4, 4])
    looks = torch.stack([single.logits(x) for _ in range(4)])
    torch.testing.assert_close(z.detach(), looks.mean(dim=0))
    assert float(looks.std(dim=0).min()) > 0.01


def test_images_that_cannot_be_booked_are_refused(linear: Classifier) -> None:
    oracle = oracle_of(linear, 3)
    for call in (oracle, oracle.logits, oracle.labels, lambda x: oracle.gradient(x, total)):
        with pytest.raises(ContractError, match="cannot be booked"):
            call(kit.grey_images(4))
    assert booked(oracle)[0] == [0, 0, 0]


# ---------------------------------------------------------------------------------------------------------- access


def test_score_access_gives_no_gradient(linear: Classifier) -> None:
    x, oracle = kit.grey_images(2), oracle_of(linear, 2, "score")
    with pytest.raises(ContractError, match="gradient"):
        oracle.gradient(x, total)
    leaf = x.clone().requires_grad_(True)
    z = oracle(leaf)
    torch.testing.assert_close(z, linear(x))
    assert not z.requires_grad
    with pytest.raises(RuntimeError, match="grad"):
        z.sum().backward()
    assert booked(oracle) == ([1, 1], [0, 0], [1, 1])


def test_label_access_gives_labels_only(linear: Classifier) -> None:
    x, oracle = kit.grey_images(5), oracle_of(linear, 5, "label")
    y = linear(x).argmax(1)
    with pytest.raises(ContractError, match="labels only"):
        oracle.logits(x)
    with pytest.raises(ContractError, match="gradient"):
        oracle.gradient(x, total)
    assert torch.equal(oracle.labels(x), y)
    shown = oracle(x.clone().requires_grad_(True))
    assert torch.equal(shown, torch.nn.functional.one_hot(y, 10).float())
    assert not shown.requires_grad
    assert booked(oracle)[2] == [2] * 5


def test_nobody_reaches_the_parameters(cnn: Classifier) -> None:
    x = kit.grey_images(2)
    y = cnn(x).argmax(1)
    oracle = oracle_of(cnn, 2)
    assert list(oracle.parameters()) == []
    assert list(oracle.modules()) == [oracle]
    assert not oracle.state_dict()
    # torchattacks takes the device from the first parameter, and must do without
    pytest.importorskip("torchattacks")
    threat = ThreatModel(eps=8 / 255)
    x_adv, oracle = kit.attack_with(Torchattacks(target="PGD", options={"steps": 3}), cnn, x, y, threat)
    assert x_adv.device == x.device
    assert float((x_adv - x).abs().max()) > 0.03
    assert booked(oracle)[1] == [3, 3]


# --------------------------------------------------------------------------------------------------------- budgets


def test_the_last_query_is_granted_and_not_one_more(linear: Classifier) -> None:
    x, oracle = kit.grey_images(2), oracle_of(linear, 2, "score", queries=3)
    for left in (3, 2, 1):
        assert oracle.left().tolist() == [left, left]
        oracle.logits(x)
    for call in (oracle, oracle.logits, oracle.labels, oracle[:1].logits):
        with pytest.raises(BudgetExhausted, match="3 queries granted, 3 spent"):
            call(x[: len(oracle[:1])] if call == oracle[:1].logits else x)
    assert booked(oracle)[2] == [3, 3]
    assert oracle_of(linear, 2).left() is None


def test_no_view_outspends_its_samples(linear: Classifier) -> None:
    x, oracle = kit.grey_images(2), oracle_of(linear, 2, "score", queries=10)
    first, second = oracle[:1], oracle[1:]
    for _ in range(10):
        first.logits(x[:1])
    second.logits(x[1:])  # has nine left; that must not give the first one more
    with pytest.raises(BudgetExhausted):
        first.logits(x[:1])
    with pytest.raises(BudgetExhausted):  # a batch asks for all of its samples or none
        oracle.logits(x)
    assert booked(oracle)[2] == [10, 1]


def test_random_views_never_exceed_the_budget_and_never_stop_early(linear: Classifier) -> None:
    n, limit = 5, 17
    x, oracle = kit.grey_images(n), oracle_of(linear, n, "score", queries=limit)
    g = torch.Generator().manual_seed(0)
    expected = torch.zeros(n, dtype=torch.long)
    refused = 0
    for _ in range(200):
        index = torch.randperm(n, generator=g)[: int(torch.randint(1, n + 1, (), generator=g))]
        k = int(torch.randint(1, 4, (), generator=g))
        try:
            oracle[index].repeat(k).logits(x[index].repeat_interleave(k, dim=0))
            expected[index] += k
            assert bool((expected <= limit).all())
        except BudgetExhausted:
            refused += 1
            assert int(expected[index].max()) + k > limit
        assert torch.equal(oracle.ledger.queries, expected)
    assert refused > 50
    assert bool((expected == limit).any())


def test_averaging_stops_inside_the_budget(linear: Classifier) -> None:
    x, oracle = kit.grey_images(1), oracle_of(linear, 1, "score", queries=5)
    with pytest.raises(BudgetExhausted):
        oracle.averaged(6).logits(x)
    assert booked(oracle)[2] == [5]


# ----------------------------------------------------------------------------------------------------------- noise


def test_noise_belongs_to_the_sample_and_is_fresh_at_every_look(linear: Classifier) -> None:
    model, x = Noisy(linear, 1.0), kit.grey_images(6)
    whole = oracle_of(model, 6)
    first, second = whole.logits(x), whole.logits(x)
    assert float((first - second).abs().min()) > 0
    # alone, in another order, and as repeats: the k-th look of a sample is the same
    alone = oracle_of(model, 6)
    index = torch.tensor([4, 0])
    torch.testing.assert_close(alone[index].logits(x[index]), first[index])
    repeated = oracle_of(model, 6).repeat(2).logits(x.repeat_interleave(2, dim=0)).view(6, 2, -1)
    torch.testing.assert_close(repeated, torch.stack([first, second], dim=1))
    assert not torch.allclose(oracle_of(model, 6, seed=1).logits(x), first)


def test_frozen_noise_is_the_same_at_every_pass(linear: Classifier) -> None:
    x, oracle = kit.grey_images(4), oracle_of(Noisy(linear, 1.0), 4)
    frozen = oracle.frozen()
    first = frozen.logits(x)
    torch.testing.assert_close(frozen[torch.tensor([2])].logits(x[2:3]), first[2:3])
    assert not torch.equal(oracle.logits(x), first)


def test_averaged_gradient_is_the_mean(cnn: Classifier) -> None:
    x, y = kit.grey_images(3), torch.zeros(3, dtype=torch.long)
    model = Noisy(cnn, 3.0)

    def loss(z: Tensor) -> Tensor:
        return ops.cross_entropy(z, y)

    single, mean = oracle_of(model, 3), oracle_of(model, 3).averaged(3)
    looks = [single.gradient(x, loss) for _ in range(3)]
    for got, parts in zip(mean.gradient(x, loss), zip(*looks, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(parts).mean(dim=0))
    assert not torch.allclose(looks[0][0], looks[1][0])


# ------------------------------------------------------------------------------------------------------- gradients


def test_surrogate_has_the_same_values_and_useful_gradients(linear: Classifier) -> None:
    x, oracle = kit.grey_images(3), oracle_of(Rounding(linear, 8), 3)
    plain, z, _ = oracle.gradient(x, total)
    assert not bool(plain.any())  # rounding cuts the graph
    through, z_surrogate, _ = oracle.backward_model().gradient(x, total)
    torch.testing.assert_close(z_surrogate, z)
    expected = linear.net.layer.weight.sum(dim=0).view(1, 3, 8, 8).expand_as(x)
    torch.testing.assert_close(through, expected)
    assert booked(oracle)[1] == [2, 2, 2]


def test_as_attacked_goes_through_the_surrogate_and_averages_only_what_is_random(linear: Classifier) -> None:
    x, oracle = kit.grey_images(3), oracle_of(Rounding(linear, 8), 3)
    assert bool(oracle.as_attacked(4).gradient(x, total)[0].any())
    assert booked(oracle)[1] == [1, 1, 1]
    oracle, other = (oracle_of(Noisy(linear, 1.0), 3) for _ in range(2))
    expected = other.backward_model().averaged(4).logits(x)
    torch.testing.assert_close(oracle.as_attacked(4).logits(x), expected)
    assert booked(oracle)[0] == [4, 4, 4]


def test_gradient_does_not_depend_on_the_rest_of_the_batch(cnn: Classifier) -> None:
    x, y = kit.grey_images(8), torch.arange(8)
    g, z, value = oracle_of(cnn, 8).gradient(x, lambda z: ops.cross_entropy(z, y))
    for i in range(8):
        alone = oracle_of(cnn, 8)[i : i + 1].gradient(x[i : i + 1], lambda z, i=i: ops.cross_entropy(z, y[i : i + 1]))
        for got, expected in zip(alone, (g, z, value), strict=True):
            torch.testing.assert_close(got[0], expected[i])
    assert not g.requires_grad
    assert not z.requires_grad
    assert not value.requires_grad


@pytest.mark.parametrize("looks", [1, 2])
def test_gradients_of_several_losses_share_a_forward_and_a_look(cnn: Classifier, looks: int) -> None:
    x, y = kit.grey_images(3), torch.zeros(3, dtype=torch.long)
    model = Noisy(cnn, 3.0)

    def losses(z: Tensor) -> Tensor:
        return torch.stack([ops.margin(z, y), z[:, 1] * 0, ops.cross_entropy(z, y)], dim=1)

    oracle = oracle_of(model, 3).averaged(looks).filtered(torch.sign)
    g, z, values = oracle.gradients(x, losses)
    assert g.shape == (3, 3, *x.shape[1:])
    for j in range(3):
        alone = oracle_of(model, 3).averaged(looks).filtered(torch.sign)
        for got, expected in zip(
            (g[:, j], z, values[:, j]), alone.gradient(x, lambda z, j=j: losses(z)[:, j]), strict=True
        ):
            torch.testing.assert_close(got, expected)
    assert oracle.ledger.forwards.tolist() == [looks] * 3
    assert oracle.ledger.backwards.tolist() == [3 * looks] * 3
    assert oracle.ledger.blind.tolist() == [looks] * 3  # one of the losses is flat


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_many_images_pass_in_parts(cnn: Classifier, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Noisy(cnn, scale) if scale else cnn
    x, seen = kit.grey_images(7), []
    whole = oracle_of(model, 7).logits(x)
    monkeypatch.setattr("siegebench.prepare.CPU_NUMBERS", 3 * x[0].numel())
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    oracle = oracle_of(model, 7)
    torch.testing.assert_close(oracle.logits(x), whole)
    assert seen == [3, 3, 1]
    assert oracle.ledger.forwards.tolist() == [1] * 7


# ------------------------------------------------------------------------------------------------------------ watch


def test_watch_keeps_the_nearest_misclassified_image(linear: Classifier) -> None:
    x = kit.grey_images(3)
    y = linear(x).argmax(1)
    g, _, _ = oracle_of(linear, 3).gradient(x, lambda z: ops.margin(z, y))
    oracle = oracle_of(linear, 3)
    with pytest.raises(ContractError, match="watch"):
        oracle.best()
    watching = oracle.watching(x, y)
    assert watching.best()[1].tolist() == [float("inf")] * 3
    watching(x + 0.45 * g.sign())  # outside the box: not feasible
    watching(x)  # right: not adversarial
    assert watching.best()[1].tolist() == [float("inf")] * 3
    for step in (0.25, 0.15, 0.2):
        shown = (x + step * g.sign()).clamp(0, 1)
        assert bool((linear(shown).argmax(1) != y).all())
        watching(shown)
    point, distance = watching.best()
    torch.testing.assert_close(distance, torch.full((3,), 0.15))
    torch.testing.assert_close(point, x + 0.15 * g.sign())
    assert oracle.watch is None  # the oracle it came from is as before
    assert booked(oracle)[0] == [5] * 3


def test_watch_through_views_of_views(linear: Classifier) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    g, _, _ = oracle_of(linear, 4).gradient(x, lambda z: ops.margin(z, y))
    some = torch.tensor([3, 1])
    watching = oracle_of(linear, 4)[some].watching(x[some], y[some])
    last = watching[torch.tensor([1])]  # sample 1
    last((x[1:2] + torch.tensor([0.2, 0.1, 0.3]).view(3, 1, 1, 1) * g[1:2].sign()).clamp(0, 1))
    assert watching.best()[1][0] == float("inf")
    torch.testing.assert_close(watching.best()[1][1], torch.tensor(0.1))
    torch.testing.assert_close(last.best()[0], x[1:2] + 0.1 * g[1:2].sign())


def test_watch_sees_behind_label_access(linear: Classifier) -> None:
    x = kit.grey_images(2)
    y = linear(x).argmax(1)
    g, _, _ = oracle_of(linear, 2).gradient(x, lambda z: ops.margin(z, y))
    watching = oracle_of(linear, 2, "label").watching(x, y)
    watching((x + 0.2 * g.sign()).clamp(0, 1))
    assert bool(watching.best()[1].isfinite().all())


def test_gradients_that_are_zero_are_counted() -> None:
    cnn = kit.cnn_model()
    x = kit.grey_images(3, 16)
    y = cnn(x).argmax(1)
    scale = torch.tensor([1.0, 1e7, 1e7]).view(3, 1)  # saturates the softmax of two of them

    def loss(z: Tensor) -> Tensor:
        return ops.cross_entropy(z * scale, y)

    oracle = Oracle(cnn, ThreatModel(), Draws(0, torch.arange(3)))
    oracle.gradient(x, loss)
    assert oracle.ledger.blind.tolist() == [0, 1, 1]
    leaf = x.clone().requires_grad_(True)
    loss(oracle(leaf)).sum().backward()  # the way of a foreign attack
    assert oracle.ledger.backwards.tolist() == [2, 2, 2]
    assert oracle.ledger.blind.tolist() == [0, 2, 2]
