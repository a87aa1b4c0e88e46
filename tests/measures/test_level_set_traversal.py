"""Level set traversal: where the walk ends, and what a triangle of images counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit

from .planted import built, frozen, resnet20, run


def two_classes(n: int = 8) -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """(linear model, grey images, labels, unit normal of its level sets); both labels occur."""
    net = kit.Linear(classes=2, scale=0.1)
    x = kit.grey_images(n).double()
    w = (net.layer.weight[1] - net.layer.weight[0]).detach().double()
    with torch.no_grad():
        net.layer.bias.copy_(torch.tensor([0.0, -float((x.flatten(1) @ w).median())]))
    model = frozen(net, 2)
    y = model(x).argmax(1)
    assert 0 < int(y.sum()) < n
    return model, x, y, w / w.norm()


def test_a_walk_along_a_hyperplane_ends_at_the_projection_of_the_target() -> None:
    model, x, y, w = two_classes()
    pair = torch.stack([(y == 0).nonzero()[0, 0], (y == 1).nonzero()[0, 0]])
    x, y = x[pair], y[pair]
    exact = {"adv_step": 0, "noise": 0}
    metrics, oracle = run(built("level_set_traversal", steps=400, **exact), model, x, y)
    d = x[0].numel() ** 0.5
    left = float(((x[0] - x[1]).flatten() @ w).abs()) / d  # what only leaving the level set could bridge
    start = float((x[0] - x[1]).norm()) / d
    assert metrics["pairs"] == 2
    assert metrics["rmse_start"] == pytest.approx(start, rel=1e-6)
    assert metrics["rmse_to_target"] == pytest.approx(left, rel=1e-4)
    assert metrics["share_walked"] == pytest.approx(1 - left / start, rel=1e-4)
    assert metrics["linf_to_target"] == pytest.approx(float(left * d * w.abs().max()), rel=1e-4)
    assert metrics["confidence_end"] == pytest.approx(metrics["confidence_start"], abs=1e-9)
    assert oracle.ledger.backwards.tolist() == [401, 401]

    short, _ = run(built("level_set_traversal", steps=10, **exact), model, x, y)
    projected = (start**2 - left**2) ** 0.5 * 0.95**10
    assert short["rmse_to_target"] == pytest.approx((projected**2 + left**2) ** 0.5, rel=1e-6)


def test_the_confidence_is_the_same_all_over_a_triangle_inside_a_hyperplane() -> None:
    model, x, y, _ = two_classes()
    metrics, oracle = run(built("level_set_traversal", steps=20, adv_step=0, noise=0), model, x, y)
    for name in ("triangle_confidence", "edge_confidence", "edge_minimum"):
        assert metrics[name] == pytest.approx(metrics["confidence_start"], abs=1e-9)
    assert metrics["triangle_within@0.1"] == metrics["triangle_within@0.3"] == 1
    assert set(oracle.ledger.forwards.tolist()) == {1 + 2 * (21 + 1) + 66}
    assert set(oracle.ledger.backwards.tolist()) == {2 * 21}


def test_the_triangle_counts_its_points() -> None:
    """One pixel decides, and the ends are one unit of it away: p_c along the triangle is known."""

    class Ramp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            p = 1 - 0.5 * x[:, 0, 0, 0].clamp(0, 1)
            return torch.stack([p.log(), (1 - p).clamp(min=1e-30).log()], dim=1)

    x = torch.zeros(1, 3, 4, 4).double()
    ends = x[:, None].repeat(1, 2, 1, 1, 1)
    ends[:, :, 0, 0, 0] = 1.0
    draws = Draws(0, torch.arange(1))
    oracle = Oracle(Network(Ramp(), num_classes=2).eval(), ThreatModel(), draws)
    stats = built("level_set_traversal")._triangles(oracle, x, torch.zeros(1).long(), ends, torch.ones(1, 2).bool())
    p = torch.tensor([1 - 0.05 * (i + j) for i in range(11) for j in range(11 - i)]).double()
    edge = [1.0] + 2 * [1 - 0.05 * i for i in range(1, 11)]
    assert stats["triangle_confidence"] == pytest.approx(float(p.mean()))
    assert stats["edge_minimum"] == pytest.approx(0.5)
    assert stats["edge_confidence"] == pytest.approx(sum(edge) / 21)
    for d, most in ((0.0, 0), (0.1, 2), (0.2, 4), (0.3, 6)):  # points with i + j <= most
        points = (most + 1) * (most + 2) / 2
        found = stats[f"triangle_within@{d:g}"] * 66
        assert points - (most + 1) <= found <= points  # those at exactly d are on either side by rounding


def test_what_the_model_does_not_see_is_all_taken_from_the_target() -> None:
    class FirstChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kit.small_cnn()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.inner(x * torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype).view(3, 1, 1))
            return 20 * (z - z.mean(dim=1, keepdim=True))

    model, x = frozen(FirstChannel()), kit.grey_images(16).double()
    c = model(x).argmax(1)
    t = x.flip(0)
    draws = Draws(0, torch.arange(16))
    oracle = Oracle(model, ThreatModel(), draws)
    measure = built("level_set_traversal", steps=200, threshold=0.05)
    p0 = model(x).softmax(1).gather(1, c[:, None])[:, 0]
    end = measure._walk(oracle, x, c, t, p0, draws)
    p = model(end).softmax(1).gather(1, c[:, None])[:, 0]
    assert bool((p0 - p < 0.05).all())
    moved = (end - x).flatten(1).norm(dim=1) > 0.5 * (t - x).flatten(1).norm(dim=1)
    assert moved.sum() >= 12  # a walk may be stuck at the edge of what is allowed
    assert (end - t)[moved][:, 1:].abs().max() < 0.01


def test_targets_are_other_classes_whatever_the_order_of_the_batch() -> None:
    y, ids = torch.tensor([0, 0, 1, 2, 1, 0]), torch.tensor([30, 7, 12, 5, 99, 41])
    measure = built("level_set_traversal", targets=4)

    def pairs(order: Tensor) -> dict[int, list[int]]:
        place, found = measure._targets(y[order], Draws(3, ids[order]))
        own = ids[order]
        return {int(own[i]): [int(own[p]) for p, f in zip(place[i], found[i], strict=True) if f] for i in range(6)}

    label = dict(zip(ids.tolist(), y.tolist(), strict=True))
    plain = pairs(torch.arange(6))
    assert plain == pairs(torch.tensor([3, 5, 0, 4, 1, 2]))
    for own, targets in plain.items():
        others = [i for i in label if label[i] != label[own]]
        assert len(targets) == min(4, len(others)) == len(set(targets))
        assert set(targets) <= set(others)


def test_a_batch_of_one_class_has_no_pairs_and_a_network_is_walked_on() -> None:
    model, x = frozen(kit.small_cnn()), kit.grey_images(12).double()
    y = torch.zeros(12).long()
    assert run(built("level_set_traversal"), model, x, y)[0] == {"pairs": 0}
    assert run(built("level_set_traversal"), model, x[:1], y[:1])[0] == {"pairs": 0}

    y = torch.arange(12) % 10
    first, _ = run(built("level_set_traversal", steps=60), model, x, y)
    again, _ = run(built("level_set_traversal", steps=60), model, x, y)
    other, _ = run(built("level_set_traversal", steps=60), model, x, y, seed=1)
    assert first == again != other
    assert first["pairs"] == 24
    assert 0.5 < first["share_walked"] <= 1  # an untrained network is nearly flat
    turned, _ = run(built("level_set_traversal", steps=60), model, x.flip(0), y.flip(0), torch.arange(12).flip(0))
    assert turned == pytest.approx(first, abs=1e-9)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_level_sets_of_resnet20_reach_images_of_other_classes() -> None:
    model, x, y = resnet20()
    metrics, _ = run(built("level_set_traversal"), model, x, y)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["rmse_to_target"] < 0.02
    assert metrics["confidence_end"] > 0.9
    assert metrics["edge_confidence"] > metrics["triangle_confidence"]
