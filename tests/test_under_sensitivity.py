"""Under-sensitivity: level set traversal, fooling images, obfuscation, on models with a known answer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import Lesson, Measure
from tests import kit, victims


def entry(name: str, **parameters: Any) -> Any:
    built = registry.build("measure", {"name": name, **parameters})
    assert isinstance(built, Measure)
    return built


def frozen(net: nn.Module, classes: int = 10) -> Classifier:
    return Network(net, num_classes=classes).double().eval().requires_grad_(False)


def run(
    measure: Measure,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    ids: Tensor | None = None,
    seed: int = 0,
    lesson: Lesson = None,
) -> tuple[dict[str, float], Oracle]:
    threat, draws = ThreatModel(), Draws(seed, torch.arange(len(x)) if ids is None else ids)
    oracle = Oracle(model, threat, draws)
    found = measure(oracle, x, y, threat, draws, lesson)
    assert found["flags"] == []
    return found["metrics"], oracle


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


# -------------------------------------------------------------------------------------------------- level set traversal


def test_a_walk_along_a_hyperplane_ends_at_the_projection_of_the_target() -> None:
    model, x, y, w = two_classes()
    pair = torch.stack([(y == 0).nonzero()[0, 0], (y == 1).nonzero()[0, 0]])
    x, y = x[pair], y[pair]
    exact = {"adv_step": 0, "noise": 0}
    metrics, oracle = run(entry("level_set_traversal", steps=400, **exact), model, x, y)
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

    short, _ = run(entry("level_set_traversal", steps=10, **exact), model, x, y)
    projected = (start**2 - left**2) ** 0.5 * 0.95**10
    assert short["rmse_to_target"] == pytest.approx((projected**2 + left**2) ** 0.5, rel=1e-6)


def test_the_confidence_is_the_same_all_over_a_triangle_inside_a_hyperplane() -> None:
    model, x, y, _ = two_classes()
    metrics, oracle = run(entry("level_set_traversal", steps=20, adv_step=0, noise=0), model, x, y)
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
    stats = entry("level_set_traversal")._triangles(oracle, x, torch.zeros(1).long(), ends, torch.ones(1, 2).bool())
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
    measure = entry("level_set_traversal", steps=200, threshold=0.05)
    p0 = model(x).softmax(1).gather(1, c[:, None])[:, 0]
    end = measure._walk(oracle, x, c, t, p0, draws)
    p = model(end).softmax(1).gather(1, c[:, None])[:, 0]
    assert bool((p0 - p < 0.05).all())
    moved = (end - x).flatten(1).norm(dim=1) > 0.5 * (t - x).flatten(1).norm(dim=1)
    assert moved.sum() >= 12  # a walk may be stuck at the edge of what is allowed
    assert (end - t)[moved][:, 1:].abs().max() < 0.01


def test_targets_are_other_classes_whatever_the_order_of_the_batch() -> None:
    y, ids = torch.tensor([0, 0, 1, 2, 1, 0]), torch.tensor([30, 7, 12, 5, 99, 41])
    measure = entry("level_set_traversal", targets=4)

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
    assert run(entry("level_set_traversal"), model, x, y)[0] == {"pairs": 0}
    assert run(entry("level_set_traversal"), model, x[:1], y[:1])[0] == {"pairs": 0}

    y = torch.arange(12) % 10
    first, _ = run(entry("level_set_traversal", steps=60), model, x, y)
    again, _ = run(entry("level_set_traversal", steps=60), model, x, y)
    other, _ = run(entry("level_set_traversal", steps=60), model, x, y, seed=1)
    assert first == again != other
    assert first["pairs"] == 24
    assert 0.5 < first["share_walked"] <= 1  # an untrained network is nearly flat
    turned, _ = run(entry("level_set_traversal", steps=60), model, x.flip(0), y.flip(0), torch.arange(12).flip(0))
    assert turned == pytest.approx(first, abs=1e-9)


# ------------------------------------------------------------------------------------------------------ fooling images


class Regions(nn.Module):
    """Ten rows of an image, ten classes: a class is its row bright and the others dark."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.sharp = sharp

    def forward(self, x: Tensor) -> Tensor:
        return self.sharp * x.mean(dim=(1, 3))


def noise(n: int = 20) -> Tensor:
    return 0.45 + 0.1 * Draws(9, torch.arange(n)).uniform((3, 10, 10)).double()


def test_gradient_ascent_finds_the_template_of_each_class() -> None:
    model, x = frozen(Regions(30.0)), noise()
    y = model(x).argmax(1)
    metrics, oracle = run(entry("fooling_images"), model, x, y)
    assert metrics["images"] == 30
    assert metrics["share_classes_found"] == metrics["share_above_99"] == 1
    assert metrics["median_confidence"] > 0.99
    assert metrics["detection_auroc"] == 0  # surer than of any clean image
    assert int(oracle.ledger.backwards[1:].sum()) == 0

    images, wanted = entry("fooling_images")._climb(oracle[:1], x.mean(dim=0), Draws(0, torch.arange(20)))
    rows = images.mean(dim=(1, 3))
    assert rows.argmax(dim=1).equal(wanted)
    assert wanted.tolist() == [k for k in range(10) for _ in range(3)]
    rest = rows.scatter(1, wanted[:, None], torch.nan)
    assert (rows.gather(1, wanted[:, None])[:, 0] - rest.nanmean(dim=1)).min() > 0.15
    few, chosen = entry("fooling_images", classes=4)._climb(oracle[:1], x.mean(dim=0), Draws(0, torch.arange(20)))
    assert len(chosen.unique()) == 4
    same = torch.cat([(wanted == k).nonzero()[:, 0] for k in chosen.unique()])
    torch.testing.assert_close(few, images[same])  # an image does not depend on the others


def test_a_climb_makes_the_progress_it_wishes_and_a_model_without_gradient_stops_it() -> None:
    model, x = frozen(Regions(30.0)), noise()
    one = Draws(0, torch.arange(20))
    oracle = Oracle(model, ThreatModel(), one)

    def reached(steps: int) -> Tensor:
        images, wanted = entry("fooling_images", steps=steps, decay=0)._climb(oracle[:1], x.mean(dim=0), one)
        p: Tensor = model(images).softmax(1).gather(1, wanted[:, None])[:, 0]
        return p

    rise = reached(2) - reached(1)
    assert rise.min() > 0.02  # 0.03 wished, on a curve
    assert rise.max() < 0.04
    flat, _ = run(entry("fooling_images"), frozen(Regions(0.0)), x, torch.zeros(20).long())
    assert flat["median_confidence"] == pytest.approx(0.1)
    assert flat["detection_auroc"] == 0.5
    assert flat["share_above_99"] == 0

    bright, labels = noise(), torch.arange(20) % 10
    bright[torch.arange(20), :, labels] = 1.0
    weak, _ = run(entry("fooling_images", method="evolution", steps=1, population=5), model, bright, labels)
    assert weak["detection_auroc"] > 0.9  # sure of clean images, not of noise


def test_evolution_keeps_one_elite_a_class_and_never_loses_ground() -> None:
    model, x = frozen(Regions(30.0)), noise()
    y, one = model(x).argmax(1), Draws(0, torch.arange(20))
    oracle = Oracle(model, ThreatModel(), one)
    before = torch.zeros(10).double()
    for steps in (1, 5, 20, 60):
        measure = entry("fooling_images", method="evolution", steps=steps, population=60)
        elite, wanted = measure._evolve(oracle[:1], x.mean(dim=0), one)
        fitness = model(elite).softmax(1).diagonal()
        assert wanted.tolist() == list(range(10))
        assert bool((fitness >= before).all())
        before = fitness
    assert elite.amin() >= 0
    assert elite.amax() <= 1
    first, oracle = run(entry("fooling_images", method="evolution", steps=60, population=60), model, x, y)
    assert first["share_classes_found"] == 1
    assert first["median_confidence"] == pytest.approx(float(before.quantile(0.5)))
    assert first["median_confidence"] > 0.5
    assert int(oracle.ledger.forwards.sum()) == 20 + 60 * 61 + 10
    assert int(oracle.ledger.backwards.sum()) == 0
    again, _ = run(entry("fooling_images", method="evolution", steps=60, population=60), model, x, y)
    other, _ = run(entry("fooling_images", method="evolution", steps=60, population=60), model, x, y, seed=1)
    assert first == again != other


def test_polynomial_mutation_has_its_closed_form() -> None:
    change = entry("fooling_images")._mutation(Draws(0, torch.arange(50)), (3, 16, 16), 0).double()
    assert change.abs().max() <= 1
    assert float(change.mean()) == pytest.approx(0, abs=0.002)
    assert float(change.abs().mean()) == pytest.approx(1 / 17, rel=0.02)  # 1 / (eta_m + 2)
    assert float((change < 0).double().mean()) == pytest.approx(0.5, abs=0.01)


# --------------------------------------------------------------------------------------------------------- obfuscation


@cache
def scans() -> tuple[ImageSet, Classifier, Tensor, Tensor]:
    """(training digits 8x8, a network trained on them, 16 test images that it gets right, their labels)"""
    data, _, _, test = victims.tiny_digits()
    model = victims.tiny_net()
    train(model, data, Recipe(epochs=6, batch=64, augment="none"), 0)
    model.requires_grad_(False)
    x, y = test.pixels(), test.labels
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:16]
    return data, model, x[right], y[right]


def learnt(seed: int = 0, **parameters: Any) -> Any:
    """(the key, the second key)"""
    data, model, _, _ = scans()
    threat, draws = ThreatModel(), Draws(seed, data.ids)
    return entry("obfuscation", **parameters).learn(Oracle(model, threat, draws), data, threat, draws)


def test_what_is_hidden_keeps_its_label_and_comes_back_with_the_right_key_only() -> None:
    _, model, x, y = scans()
    keys = learnt(epochs=8)
    measure = entry("obfuscation", keep=0.1)  # the logits of so small a network need a larger weight
    metrics, oracle = run(measure, model, x, y, lesson=keys)
    assert metrics["accuracy"] >= 0.9
    assert metrics["accuracy_start"] < 0.5
    assert metrics["accuracy_cipher"] < 0.5
    assert metrics["rmse_to_image"] > 0.25
    assert metrics["key_psnr"] > 20
    assert metrics["decode_psnr"] > 17
    assert metrics["decode_psnr_wrong_key"] < metrics["decode_psnr"] - 8
    assert set(oracle.ledger.backwards.tolist()) == {200}
    assert set(oracle.ledger.forwards.tolist()) == {203}
    assert run(measure, model, x, y, lesson=keys)[0] == metrics

    def hidden(at: slice) -> Tensor:
        few: Any = entry("obfuscation", steps=5)
        oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(16)[at]))
        found: Tensor = few._descend(oracle, x[at], x[at], y[at], keys[0])
        return found

    torch.testing.assert_close(hidden(slice(3, 4)), hidden(slice(16))[3:4], atol=1e-3, rtol=0)  # alone as in a batch


def test_each_term_of_the_descent_does_its_part() -> None:
    _, model, x, y = scans()
    keys = learnt(epochs=3)

    def with_(**changes: Any) -> dict[str, float]:
        return run(entry("obfuscation", **{"steps": 60, "keep": 0.1, **changes}), model, x, y, lesson=keys)[0]

    plain = with_()
    assert with_(keep=0)["accuracy"] < plain["accuracy"]
    assert with_(decode=1e-9)["decode_psnr"] < plain["decode_psnr"] - 3
    near = with_(start="image", steps=1)
    assert near["rmse_to_image"] < 0.1
    assert near["accuracy_start"] == 1


def test_a_key_is_repeatable_and_its_own() -> None:
    (key, wrong), (again, _), (other, _) = learnt(epochs=1), learnt(epochs=1), learnt(seed=1, epochs=1)
    for name, value in key.state_dict().items():
        assert value.equal(again.state_dict()[name])
    assert not key.order.equal(wrong.order)
    assert not key.order.equal(other.order)
    before = torch.get_rng_state()
    learnt(epochs=1)
    assert torch.get_rng_state().equal(before)


def test_the_cipher_is_undone_by_its_inverse_and_hides() -> None:
    key, _ = learnt(epochs=1)
    x = kit.grey_images(4, size=12)
    hidden = key.encrypt(x)
    squares = torch.nn.functional.pixel_unshuffle(hidden, 4)
    back = (0.5 + key.sign * (squares - 0.5))[:, key.order.argsort()]
    # inverting is its own inverse, but the sign belongs to the place after the shuffle
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(back, 4), x)
    assert sorted(key.order.tolist()) == list(range(48))
    odd = kit.grey_images(2, size=10)
    assert key.encrypt(odd).shape == key(odd).shape == odd.shape
    assert float(ops.size(key.encrypt(odd) - odd, "l2").min()) > 1


def test_variance_and_psnr_have_their_closed_forms() -> None:
    from siegebench.measures.obfuscation import _psnr, _variance  # type: ignore[import-not-found]

    x = kit.grey_images(3).double()
    sums = torch.nn.functional.unfold(x, 4).view(3, 3, 16, -1).sum(dim=2)
    torch.testing.assert_close(_variance(x), sums.var(dim=2).sum(dim=1))
    assert float(_variance(torch.full((1, 3, 8, 8), 0.7).double())) == pytest.approx(0, abs=1e-12)
    assert _psnr(x, x + 0.1) == pytest.approx(20)
    assert _psnr(x, x) == 100


def test_cards_build_and_refuse_what_makes_no_sense() -> None:
    assert entry("level_set_traversal.paper").steps == 400
    assert entry("fooling_images.evolution").method == "evolution"
    assert entry("obfuscation.from_image").start == "image"
    for spec in ({"name": "level_set_traversal", "threshold": 2}, {"name": "fooling_images", "method": "luck"},
                 {"name": "obfuscation", "epochs": 0}):  # fmt: skip
        with pytest.raises(ConfigError):
            registry.build("measure", spec)
    _, model, x, y = scans()
    with pytest.raises(ContractError, match="call learn first"):
        run(entry("obfuscation"), model, x, y)


# ------------------------------------------------------------------------------------------------------- real networks


@cache
def resnet20() -> tuple[Classifier, Tensor, Tensor]:
    """(the published network, the first 32 test images of cifar10_jpeg that it gets right, their labels)"""
    if not (kit.data_folder() / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the folder with real data and weights: set SIEGEBENCH_DATA")
    data: Any = registry.build("dataset", "cifar10_jpeg")
    test, source = data.load("test"), registry.build("model", "cifar_resnet20")
    model = source.build(num_classes=10, size=32).eval().requires_grad_(False)  # type: ignore[attr-defined]
    x, y = test.pixels(slice(64)), test.labels[:64]
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:32]
    return model, x[right], y[right]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_level_sets_of_resnet20_reach_images_of_other_classes() -> None:
    model, x, y = resnet20()
    metrics, _ = run(entry("level_set_traversal"), model, x, y)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["rmse_to_target"] < 0.02
    assert metrics["confidence_end"] > 0.9
    assert metrics["edge_confidence"] > metrics["triangle_confidence"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("parameters", [{}, {"method": "evolution", "steps": 20}], ids=["gradient", "evolution"])
def test_resnet20_is_fooled(parameters: dict[str, Any]) -> None:
    model, x, y = resnet20()
    metrics, _ = run(entry("fooling_images", **parameters), model, x, y)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["median_confidence"] > 0.98
    assert metrics["share_classes_found"] >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_resnet20_reads_what_is_hidden() -> None:
    model, x, y = resnet20()
    data: Any = registry.build("dataset", "cifar10_jpeg")
    train_set, threat = data.load("train"), ThreatModel()
    draws = Draws(0, train_set.ids)
    measure = entry("obfuscation")
    keys = measure.learn(Oracle(model, threat, draws), train_set, threat, draws)
    metrics, _ = run(measure, model, x, y, lesson=keys)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["accuracy"] >= 0.9
    assert metrics["accuracy_cipher"] < 0.5
    assert metrics["decode_psnr"] > metrics["decode_psnr_wrong_key"] + 10
