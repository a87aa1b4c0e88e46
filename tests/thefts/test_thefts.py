"""Thefts: what they ask, what they learn from, and noise in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import BudgetExhausted, ContractError
from siegebench.oracle import Oracle
from siegebench.testing.specimens import network, planted_set
from siegebench.threat import ThreatModel
from siegebench.tracks.thieving import student
from siegebench.train import Recipe
from siegebench.types import Attacker, Theft

SHAPE = (3, 16, 16)


class Taught:
    """A `fit` that keeps what it was given instead of training."""

    def __init__(self) -> None:
        self.x, self.answers = torch.zeros(0), torch.zeros(0)

    def __call__(self, x: Tensor, answers: Tensor, seed: int, augment: bool) -> Classifier:
        self.x, self.answers = x, answers
        return network().fresh(seed).eval()


def stolen(spec: Any, budget: int, victim: Classifier | None = None, access: str = "score") -> tuple[Taught, Oracle]:
    """What a theft teaches its copy, and the oracle that it asked."""
    data, taught = planted_set(), Taught()
    theft = registry.build(Theft, spec)
    granted = Granted("test", ("clean",), clean=lambda: data.select(torch.arange(40)))
    attacker = Attacker(SHAPE, data, granted, network().fresh, taught)
    draws = Draws(0, torch.arange(budget))
    threat = ThreatModel(access="none" if theft.access() == "none" else access, queries=1)  # type: ignore[arg-type]
    oracle = Oracle((victim or network()).requires_grad_(False), threat, draws)
    theft(oracle, attacker, draws)
    return taught, oracle


def test_knockoff_learns_the_posteriors_of_images_of_the_pool() -> None:
    taught, oracle = stolen("knockoff", 30)
    assert int(oracle.ledger.queries.sum()) == 30
    pool = planted_set().pixels()
    where = (taught.x[:, None] == pool).flatten(2).all(dim=2)
    assert (where.sum(dim=1) == 1).all()
    assert len(where.double().argmax(dim=1).unique()) == 30  # without replacement
    torch.testing.assert_close(taught.answers, network()(taught.x).softmax(dim=1))


def test_labels_are_one_hot_and_a_smaller_budget_is_a_prefix() -> None:
    scores, _ = stolen("knockoff", 40)
    labels, _ = stolen("label_knockoff", 20, access="label")
    assert torch.equal(labels.x, scores.x[:20])
    assert torch.equal(labels.answers.argmax(dim=1), scores.answers[:20].argmax(dim=1))
    assert (labels.answers.amax(dim=1) == 1).all()


def test_repeated_queries_average_the_noise_of_the_answers() -> None:
    from siegebench.types import Defense

    plain = network().requires_grad_(False)
    noisy = registry.build(Defense, {"name": "noisy_answers", "eps": 2.0}).structure(plain)
    true = stolen({"name": "knockoff", "repeat": 1}, 12, plain)[0].answers
    far = {}
    for repeat in (1, 10):
        taught, oracle = stolen({"name": "knockoff", "repeat": repeat}, 12 * repeat, noisy)
        assert len(taught.x) == 12
        assert (oracle.ledger.queries == 1).all()
        far[repeat] = float((taught.answers.argmax(dim=1) == true.argmax(dim=1)).double().mean())
        far[f"l1 {repeat}"] = float((taught.answers - true).abs().sum(dim=1).mean())  # type: ignore[index]
    assert far["l1 10"] < 0.75 * far["l1 1"]  # type: ignore[index]


def test_shuffled_answers_are_the_same_answers_to_other_images() -> None:
    real, _ = stolen("knockoff", 40)
    shuffled, _ = stolen("shuffled_answers", 40)
    assert torch.equal(real.x, shuffled.x)
    assert not torch.equal(real.answers, shuffled.answers)
    torch.testing.assert_close(real.answers.sort(dim=0).values, shuffled.answers.sort(dim=0).values)


def test_own_labels_and_no_victim_never_ask() -> None:
    taught, oracle = stolen("own_labels", 40)
    assert int(oracle.ledger.queries.sum()) == 0
    assert torch.equal(taught.x, stolen("knockoff", 40)[0].x)
    data = planted_set()
    index = Draws(0, data.ids).order("pool")[:40]
    assert torch.equal(taught.answers.argmax(dim=1), data.labels[index])
    taught, oracle = stolen("no_victim", 40)
    assert int(oracle.ledger.queries.sum()) == 0
    assert torch.equal(taught.x, data.pixels(slice(0, 40)))


def test_the_jacobian_theft_moves_images_along_the_gradient_of_its_copy() -> None:
    spec = {"name": "jacobian", "seeds": 10, "rounds": 2, "step": 0.1, "reservoir": 3}
    taught, oracle = stolen(spec, 200)
    assert int(oracle.ledger.queries.sum()) == len(taught.x) == 40  # 10, 20, 40
    step = (taught.x[10:20] - taught.x[:10]).abs()
    assert float(step.max()) <= 0.1 + 1 / 255
    copy = network().fresh(0).eval()  # what `fit` returned
    leaf = taught.x[:10].clone().requires_grad_(True)
    y = taught.answers[:10].argmax(dim=1)
    (g,) = torch.autograd.grad(copy(leaf).gather(1, y[:, None]).sum(), leaf)
    wanted = (taught.x[:10] + 0.1 * g.sign()).clamp(0, 1)
    assert float((taught.x[10:20] - wanted).abs().max()) <= 0.5 / 255 + 1e-6
    short, _ = stolen(spec, 25)
    assert torch.equal(short.x, taught.x[:25])


def test_noise_is_as_its_parameters_say() -> None:
    theft = registry.build(Theft, {"name": "noise_theft", "p": 0.3, "cell": 4, "grey": True})
    x = theft.noise(Draws(0, torch.arange(400)), (3, 16, 16))  # type: ignore[attr-defined]
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert float(x.mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(x[:, 0], x[:, 2])
    assert torch.equal(x[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), x)


def test_ising_neighbours_agree_more_when_it_is_colder() -> None:
    """At infinite temperature they agree half of the time; below 2.27 most spins are aligned."""
    agree = {}
    for temperature in (1.5, 2.5, 1e6):
        theft = registry.build(Theft, {"name": "noise_theft.ising", "temperature": temperature, "sweeps": 60})
        x = theft.noise(Draws(0, torch.arange(60)), (1, 16, 16))  # type: ignore[attr-defined]
        agree[temperature] = float((x == x.roll(1, 3)).double().mean())
    assert agree[1e6] == pytest.approx(0.5, abs=0.02)
    # the energy of the square lattice at T = 2.5 is -1.106 a site (Onsager): neighbours agree in (1 + 1.106 / 2) / 2
    assert agree[2.5] == pytest.approx(0.776, abs=0.03)
    assert agree[1.5] > 0.9


def test_a_copy_learns_the_answers() -> None:
    data, victim = planted_set(), network().requires_grad_(False)
    answers = victim(data.pixels()).softmax(dim=1)
    copy = student(network().fresh, Recipe(epochs=30, batch=16, augment="none"), data.pixels(), answers, 0, True)
    copy.requires_grad_(False)
    gap = (copy(data.pixels()).softmax(dim=1) - answers).abs().sum(dim=1).mean()
    fresh = (
        (network().fresh(0).eval().requires_grad_(False)(data.pixels()).softmax(dim=1) - answers)
        .abs()
        .sum(dim=1)
        .mean()
    )
    assert float(gap) < 0.4 * float(fresh)


calls = st.lists(
    st.tuples(
        st.sampled_from(["index", "slice", "repeat", "one", "all", "averaged"]), st.integers(0, 11), st.integers(1, 5)
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(calls)
def test_no_way_of_asking_exceeds_the_budget(calls: list[tuple[str, int, int]]) -> None:
    """Whatever a thief tries, the victim sees at most one image for each slot, and each is booked."""
    seen = 0

    class Counts(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return x.flatten(1)[:, :10]

    from siegebench.classifier import Network

    model = Network(Counts(), num_classes=10).eval()
    oracle = Oracle(model, ThreatModel(access="score", queries=1), Draws(0, torch.arange(12)))
    x = torch.rand(12, *SHAPE)
    for how, k, n in calls:
        try:
            match how:
                case "index":
                    index = torch.tensor([k, *range(n)])
                    oracle[index].logits(x[: len(index)])
                case "slice":
                    oracle[k : k + n].logits(x[: len(oracle[k : k + n])])
                case "repeat":
                    view = oracle[k : k + 1].repeat(n)
                    view.logits(x[: len(view)])
                case "one":
                    oracle[k : k + 1].logits(x[:n])
                case "all":
                    oracle.labels(x)
                case "averaged":
                    oracle[k : k + 1].averaged(n).logits(x[:1])
        except (BudgetExhausted, ContractError):
            pass
    assert seen == int(oracle.ledger.queries.sum()) <= 12
    assert int(oracle.ledger.queries.max()) <= 1
