"""NAP regions: the patterns in counts, and that a certificate holds for every sampled image that obeys them."""

from __future__ import annotations

import pytest
import torch
from siegebench.measures.nap_regions import _relus, _Search, patterns, violations
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import GREY, ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import Certifier, Measure


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def clouds(n: int = 240, seed: int = 0) -> ImageSet:
    """Three classes, images of 2x2 grey pixels around three points."""
    ids = torch.arange(n)
    y = ids % 3
    centre = torch.tensor([[0.2, 0.2, 0.5, 0.8], [0.8, 0.3, 0.4, 0.2], [0.5, 0.8, 0.8, 0.5]])[y]
    x = (centre + 0.13 * Draws(seed, ids).normal((4,))).clamp(0, 1).view(n, 1, 2, 2)
    return ImageSet((255 * x).round().to(torch.uint8), y, ids, 3, "clouds", kind=GREY)


@pytest.fixture(scope="module")
def network() -> Network:
    net = Network(mlp(), num_classes=3, rebuild=mlp).fresh(0)
    net.kind = GREY
    train(net, clouds(), Recipe(epochs=12, batch=32, lr=0.02, augment="none"), 0)
    return net.requires_grad_(False)


def measured(network: Network, data: ImageSet, eps: float = 0.05, **parameters: object) -> dict[str, float]:
    entry = registry.build(Measure, {"name": "nap_regions", **parameters})
    threat, draws, train_set = ThreatModel(eps=eps), Draws(0, data.ids), clouds()
    lesson = entry.learn(Oracle(network, threat, Draws(0, train_set.ids)), train_set, threat, Draws(0, train_set.ids))
    found: dict[str, float] = entry(Oracle(network, threat, draws), data.pixels(), data.labels, threat, draws, lesson)[
        "metrics"
    ]
    return found


def test_patterns_compare_integer_counts() -> None:
    on = torch.tensor([[1, 0, 1, 1]] * 19 + [[1, 0, 0, 1]] + [[0, 1, 1, 1]] * 2).bool()
    y = torch.tensor([0] * 20 + [1] * 2)
    sign = patterns(on, y, 3, 0.95)
    assert sign.tolist() == [[1, -1, 1, 1], [-1, 1, 1, 1], [0, 0, 0, 0]]  # 19 of 20 are enough
    assert patterns(on, y, 3, 0.96)[0].tolist() == [1, -1, 0, 1]
    states = torch.tensor([[0.0, 0.0, 1.0, -2.0], [1.0, -1.0, 1.0, 1.0]])
    assert violations(states, sign).tolist() == [[1, 1, 0], [0, 2, 0]]  # 0 is on both sides


def test_a_certificate_holds_for_every_sampled_image_that_obeys_the_pattern(network: Network) -> None:
    data = clouds(36, seed=5)
    x, y = data.pixels().double(), data.labels
    net = _relus(network, x[:2])
    sign = patterns(net.states(clouds().pixels().double()) > 0, clouds().labels, 3, 0.9)
    rows = (violations(net.states(x), sign).gather(1, y[:, None])[:, 0] == 0).nonzero()[:, 0]
    rows = rows[network(x[rows].float()).argmax(dim=1) == y[rows]]
    crown: object = registry.build(Certifier, "crown")
    search = _Search(net, crown, x[rows], y[rows], sign[y[rows]], torch.zeros(len(rows)))  # type: ignore[arg-type]
    gained, inside = 0, 0
    for eps in (0.02, 0.05, 0.1, 0.2):
        radius = torch.full((len(rows),), eps, dtype=torch.float64)
        region, ball = search.region(radius), search.ball(radius)
        gained += int((region & ~ball).sum())
        assert bool((region | ~ball).all())
        for i, (at, label) in enumerate(zip(x[rows], y[rows], strict=True)):
            if not region[i]:
                continue
            u = torch.rand(400, 1, 2, 2, generator=torch.Generator().manual_seed(i)).double()
            z = (at + eps * (2 * u - 1)).clamp(0, 1)
            obeys = violations(net.states(z), sign)[:, label] == 0
            inside += int(obeys.sum())
            assert bool((network.double()(z[obeys]).argmax(dim=1) == label).all())
            network.float()
    assert gained > 0  # patterns certify what balls do not
    assert inside > 500


def test_lower_delta_binds_more_neurons_and_is_recalled_less(network: Network) -> None:
    data = clouds(18, seed=7)
    found = [measured(network, data, delta=delta, steps=3) for delta in (1.0, 0.9, 0.6)]
    for more, less in zip(found[1:], found, strict=False):
        assert more["nap_neurons"] >= less["nap_neurons"]
        assert more["nap_recall"] <= less["nap_recall"]
    assert found[0]["nap_recall"] > found[2]["nap_recall"]
    for one in found:
        assert one["nap_certified"] >= one["nap_ball"]
        assert one["nap_certified"] <= one["nap_recall"]
        assert one["nap_eps"] >= one["nap_eps_ball"]
        assert one["nap_broken"] == 0


def test_an_empty_region_is_counted_and_never_certified(network: Network) -> None:
    data = clouds(30, seed=9)
    wrong = ImageSet(data.images, (data.labels + 1) % 3, data.ids, 3, "wrong", kind=GREY)
    found = measured(network, wrong, eps=0.001, delta=0.9)
    assert found["nap_empty"] > 0.5
    assert found["nap_certified"] <= found["nap_recall"] < 0.2


def test_what_cannot_be_read_is_refused(network: Network) -> None:
    with pytest.raises(NotApplicable, match="delta"):
        measured(network, clouds(3), delta=0.5)
    with pytest.raises(NotApplicable, match="bounds"):
        measured(network, clouds(3), certifier="lipschitz_margin")
    linear = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), num_classes=3).eval()
    linear.kind = GREY
    with pytest.raises(NotApplicable, match="ReLU"):
        measured(linear, clouds(3))


def test_tensors_of_a_lesson_say_what_is_asked_of_each_class(network: Network) -> None:
    train_set = clouds()
    entry = registry.build(Measure, "nap_regions")
    threat, draws = ThreatModel(), Draws(0, train_set.ids)
    lesson = entry.learn(Oracle(network, threat, draws), train_set, threat, draws)
    assert isinstance(lesson, Tensor)
    assert lesson.shape == (3, 24)
    assert set(lesson.unique().tolist()) <= {-1.0, 0.0, 1.0}
