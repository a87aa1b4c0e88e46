"""RND: noise on the image, as much as it says, fresh at every look; whom it costs what, and whom it does not stop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import accuracy, predict
from siegebench.types import Attack, Defense
from tests import kit

from .grey_digits import defense, granted

ONE = Draws(0, torch.zeros(1, dtype=torch.long))


def rnd(model: Classifier, nu: float = 0.02) -> Classifier:
    entry = registry.build("defense", {"name": "rnd", "nu": nu})
    assert isinstance(entry, Defense)
    return entry.apply(model, Granted("test", ()), ONE)


def attack(spec: object) -> Attack:
    built = registry.build("attack", spec)
    assert isinstance(built, Attack)
    return built


def pixels() -> Classifier:
    """A network whose logits are the pixels."""
    return Network(nn.Flatten(), num_classes=3 * 20 * 20).eval()


def held(model: Classifier, x: Tensor, y: Tensor) -> float:
    """Accuracy by the majority of nine fresh looks."""
    draws = Draws(5, torch.arange(len(x)))
    right = torch.stack([model(x, draws.at(k)).argmax(1) == y for k in range(9)])
    return float((right.double().mean(0) > 0.5).double().mean())


def test_noise_is_normal_of_deviation_nu_and_not_clipped() -> None:
    model, x = rnd(pixels(), 0.1), kit.grey_images(32, 20)
    x[:2], x[2:4] = 0.0, 1.0
    noise = (model(x, Draws(0, torch.arange(32))) - x.flatten(1)) / 0.1
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1.0, rel=0.02)
    assert float((noise**4).mean() / (noise**2).mean() ** 2) == pytest.approx(3.0, rel=0.05)
    assert float(torch.corrcoef(noise[4:10]).fill_diagonal_(0).abs().max()) < 0.15  # every image has its own
    for saturated in (noise[:2], noise[2:4]):
        assert abs(float(saturated.mean())) < 0.1


def test_noise_is_fresh_at_every_look_and_repeats_with_its_draws(cnn: Classifier) -> None:
    model = rnd(copy.deepcopy(cnn).double())
    assert model.randomized
    assert not cnn.randomized
    x, draws = kit.grey_images(6).double(), Draws(0, torch.arange(6))
    first = model(x, draws)
    assert torch.equal(first, model(x, draws))
    assert torch.equal(first, model.backward_model(x, draws))
    assert not torch.isclose(first, model(x, draws.at(1))).any()
    assert not torch.isclose(model(x), model(x)).any()
    alone = torch.cat([model(x[i : i + 1], draws[i : i + 1]) for i in range(6)])
    assert torch.allclose(alone, first, rtol=1e-9)
    assert len(model(x[:1].expand(6, -1, -1, -1), draws)[:, 0].unique()) == 6


def test_the_mean_gradient_over_looks_is_that_of_the_network(cnn: Classifier) -> None:
    x = kit.grey_images(4)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=0.1)
    draws = Draws(0, torch.arange(4))
    exact, _, _ = Oracle(cnn, threat, draws).gradient(x, lambda z: ops.margin(z, y))
    cosine = []
    for looks in (1, 60):
        oracle = Oracle(rnd(cnn, 0.05), threat, draws).averaged(looks)
        g, _, _ = oracle.gradient(x, lambda z: ops.margin(z, y))
        cosine.append(float(torch.cosine_similarity(g.flatten(1), exact.flatten(1)).mean()))
    assert cosine[1] > 0.97
    assert cosine[1] > cosine[0]


def test_expectation_over_looks_breaks_it(linear: Classifier) -> None:
    x = kit.grey_images(24)
    y = linear(x).argmax(1)
    model, draws = rnd(linear, 0.02), Draws(0, torch.arange(24))
    threat = ThreatModel(eps=0.15)
    assert held(model, x, y) > 0.7
    for spec in rnd_adaptive():
        x_adv = attack(spec)(Oracle(model, threat, draws), x, y, threat, draws)
        assert held(model, x_adv, y) < 0.1


def rnd_adaptive() -> tuple[object, ...]:
    entry = registry.build("defense", "rnd")
    assert isinstance(entry, Defense)
    assert entry.adaptive
    return entry.adaptive


@pytest.mark.parametrize("name", ["nes", "bandits", "signhunter", "simba", "square"])
def test_query_attacks_that_average_keep_the_budget(cnn: Classifier, name: str) -> None:
    model, x = rnd(cnn), kit.grey_images(4)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=1e-4, access="score", queries=200)
    draws = Draws(0, torch.arange(4))
    oracle = Oracle(model, threat, draws)
    attack({"name": "eot", "looks": 3, "attack": name})(oracle, x, y, threat, draws)
    assert bool((oracle.ledger.queries % 3 == 0).all())
    assert int(oracle.ledger.queries.max()) <= 200
    assert int(oracle.ledger.queries.float().median()) >= 195  # eps is too small to break many


def test_noise_misleads_attackers_who_live_on_small_differences(linear: Classifier) -> None:
    """A defended half-space: the estimate of NES is worth less the larger nu is against sigma."""
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    threat = ThreatModel(eps=0.02, access="score", queries=310)
    gain = {}
    for nu in (1e-6, 0.1):
        draws = Draws(0, torch.arange(8))
        quiet = Network(Far(linear), num_classes=10).eval()  # nothing breaks: all spend the same
        x_adv = attack("nes")(Oracle(rnd(quiet, nu), threat, draws), x, y, threat, draws)
        gain[nu] = float((ops.margin(linear(x_adv), y) - ops.margin(linear(x), y)).mean())
    assert gain[1e-6] > 2 * gain[0.1]


class Far(nn.Module):
    """A model whose first answer is far ahead, by the same amount everywhere."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        own = kit.grey_images(8).flatten(1).sum(1)  # which image is it?
        nearest = (x.flatten(1).sum(1)[:, None] - own).abs().argmin(dim=1)
        truth = self.inner(kit.grey_images(8)).argmax(1)[nearest]
        return z + 1000.0 * nn.functional.one_hot(truth, 10)


def test_a_calibrated_nu_costs_the_accuracy_it_may_cost(cnn16: Classifier, test_set: ImageSet) -> None:
    data = granted(
        "clean", "val", clean=test_set.select(torch.arange(400)), val=test_set.select(torch.arange(400, 500))
    )
    entry = defense("rnd.calibrated", drop=0.05)
    model = entry.apply(cnn16, data, ONE)
    passes = [predict(model, test_set, draws=Draws(1, test_set.ids).at(k)).argmax(1) for k in range(20)]
    noisy = torch.stack([(z == test_set.labels).double().mean() for z in passes]).mean()
    assert accuracy(cnn16, test_set) - float(noisy) == pytest.approx(0.05, abs=0.012)  # other noise, same images
    again = entry.structure(cnn16)
    assert bool(again(test_set.pixels(slice(0, 2))).isnan().all())
    again.load_state_dict(model.state_dict())
    x = test_set.pixels(slice(0, 4))
    assert torch.equal(again(x, Draws(0, torch.arange(4))), model(x, Draws(0, torch.arange(4))))


def test_rows_with_a_given_nu_keep_their_keys() -> None:
    assert registry.describe("defense", "rnd") == {"name": "rnd", "version": 1, "nu": 0.02}
    assert not defense("rnd").trains
    assert registry.describe("defense", "rnd.two_percent")["drop"] == 0.02


@pytest.mark.parametrize("nu", [0, -0.1, "much"])
def test_settings_that_do_not_exist_are_refused(nu: object) -> None:
    with pytest.raises(ConfigError):
        registry.build("defense", {"name": "rnd", "nu": nu})
