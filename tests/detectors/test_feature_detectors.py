"""Mahalanobis, LID, Gaussian anomaly detection and the stand-in for COSTARR on planted features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import median_filter
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.layers import Layers
from tests import kit, victims

from .planted import auroc, detector, only

fitting: Any = pytest.importorskip("siegebench.detectors._fitting")


class Head(nn.Module):
    """The features are the first pixels; logits are a linear function of them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)[:, : self.head.in_features])


def network(weight: Tensor) -> Network:
    return Network(Head(weight), num_classes=len(weight)).eval()


def pictures(features: Tensor) -> Tensor:
    """Images [n, 3, 4, 4] whose first pixels are the features, on the grid of 8 bits."""
    x = torch.full((len(features), 48), 0.5)
    x[:, : features.shape[1]] = features
    return (x.clamp(0, 1) * 255).round().div(255).view(-1, 3, 4, 4)


def planted(features: Tensor, labels: Tensor, classes: int) -> ImageSet:
    x = (pictures(features) * 255).round().to(torch.uint8)
    return ImageSet(x, labels, torch.arange(len(x)), classes, "planted")


def scores(name: str, model: Network, data: ImageSet, x: Tensor, **parameters: Any) -> Tensor:
    scorer = detector(name, **parameters).fit(model, only(train=data), victims.ONE)
    return scorer(x, Draws(0, torch.arange(len(x))))


def normal(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def two_classes() -> tuple[ImageSet, Tensor]:
    """(two classes, stretched alike: long in direction 0, thin in direction 1; the scale of each direction)"""
    scale = torch.tensor([0.1, 0.01, 0.05, 0.05, 0.05, 0.05])
    labels = torch.arange(400) % 2
    f = 0.5 + scale * normal(400)
    f[:, 2] += torch.where(labels == 0, -0.25, 0.25)
    return planted(f, labels, 2), scale


def test_mahalanobis_measures_each_direction_in_its_own_unit() -> None:
    data, _ = two_classes()
    model = network(torch.tensor([[0.0, 0, -1, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]]))
    centre = torch.tensor([0.5, 0.5, 0.25, 0.5, 0.5, 0.5])
    at = torch.stack([centre, centre, centre, centre, centre])
    at[1, 2] = 0.75  # the centre of the other class
    at[2, 0] += 0.1  # along the long direction
    at[3, 1] += 0.1  # the same distance along the thin one
    at[4, 2] = 0.5  # between the classes
    s = scores("mahalanobis", model, data, pictures(at))
    assert float((s[1] - s[0]).abs()) < 0.1 * float(s[2] - s[0]) + 0.2
    assert s[3] > s[2] + 10 * (s[2] - s[0])
    assert s[4] > s[2]


@pytest.mark.parametrize("weights", ["sum", "fgsm"])
def test_mahalanobis_is_the_distance_of_the_definition(weights: str) -> None:
    data, _ = two_classes()
    model = network(torch.tensor([[0.0, 0, -1, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]]))
    x, y = fitting.some(data, 4000, victims.ONE)
    x, y = x[::2], y[::2]  # what the Gaussians are fitted on
    f = x.flatten(1)[:, :6].double().numpy()
    means = np.stack([f[y == c].mean(axis=0) for c in (0, 1)])
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(f - means[y]).covariance_)
    z = pictures(0.5 + 0.2 * normal(9, seed=1))
    apart = z.flatten(1)[:, :6].double().numpy()[:, None] - means[None]
    expected = torch.from_numpy(np.einsum("ncd,de,nce->nc", apart, precision, apart).min(axis=1))
    got = scores("mahalanobis", model, data, z, weights=weights).double()
    assert float(torch.corrcoef(torch.stack([got, expected]))[0, 1].abs()) > 1 - 1e-6  # of one layer, up to scale
    assert weights == "fgsm" or float(torch.corrcoef(torch.stack([got, expected]))[0, 1]) > 0


def test_preprocessing_adds_confidence() -> None:
    data, _ = two_classes()
    model = network(torch.tensor([[0.0, 0, -1, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]]))
    z = pictures(0.5 + 0.2 * normal(9, seed=1))
    plain, moved = (detector("mahalanobis", eta=eta) for eta in (0.0, 0.01))
    gaussian = Layers(model, z)
    assert gaussian.names == []
    one = plain.fit(model, only(train=data), victims.ONE)
    x = z.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(one.differentiable(x, victims.ONE).sum(), x)
    nearer = one(z - 0.01 * g.sign(), victims.ONE)  # a lower score is a larger M
    assert bool((nearer < one(z, victims.ONE)).all())
    two = moved.fit(model, only(train=data), victims.ONE)
    assert bool(torch.isfinite(two(z, victims.ONE)).all())
    torch.testing.assert_close(two.differentiable(z, victims.ONE), two(z, victims.ONE))  # attacks see the step too


def test_eta_is_chosen_on_attacked_training_images() -> None:
    mahalanobis: Any = pytest.importorskip("siegebench.detectors.mahalanobis")
    data, _ = two_classes()
    model = network(torch.tensor([[0.0, 0, -1, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]]))
    chosen = detector("mahalanobis.chosen")
    z = pictures(0.5 + 0.2 * normal(9, seed=1))
    got = chosen.fit(model, only(train=data), victims.ONE)(z, victims.ONE)
    same = [
        torch.equal(got, scores("mahalanobis", model, data, z, weights="fgsm", eta=eta)) for eta in mahalanobis.ETAS
    ]
    assert sum(same) == 1


def test_lid_is_the_formula_and_estimates_the_dimension() -> None:
    from siegebench.detectors.lid import lid  # type: ignore[import-not-found]

    near = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    expected = -1 / (np.log(np.array([1, 2, 4]) / 4).mean())
    torch.testing.assert_close(lid(torch.zeros(1, 1), near, 3), torch.tensor([expected], dtype=torch.float32))
    for d in (2, 6):
        cloud = normal(3000, d, seed=d)
        assert abs(float(lid(torch.zeros(1, d), cloud, 200)) - d) < 0.25 * d
    assert torch.equal(lid(near[:1], near, 2), lid(near[:1], torch.cat([near, near[:1]]), 2))  # itself is skipped


def test_a_full_gaussian_finds_broken_correlations_that_its_baselines_miss() -> None:
    a = normal(500, 1)
    f = torch.cat([0.5 + 0.1 * a, 0.5 + 0.1 * a, 0.5 + 0.02 * normal(500, 2, seed=1)], dim=1)
    f[:, :2] += 0.01 * normal(500, 2, seed=2)
    data, model = planted(f, torch.arange(500) % 2, 2), network(torch.eye(4)[:2])
    odd = 0.5 + torch.tensor([0.06, -0.06, 0.0, 0.0]).expand(50, 4) + 0.005 * normal(50, 4, seed=3)
    held = f[::5] + 0.0
    found = {}
    for name, parameters in {
        "full": {}, "npca": {"reduce": "npca", "kept": 0.95}, "sed": {"covariance": "diagonal"},
        "l2": {"covariance": "none"},
    }.items():  # fmt: skip
        s = scores("gaussian_ad", model, data, pictures(torch.cat([odd, held])), **parameters)
        found[name] = auroc(s[:50], s[50:])
    assert min(found["full"], found["npca"]) > 0.99
    assert max(found["sed"], found["l2"]) < 0.95


def test_gaussian_ad_is_the_mahalanobis_distance() -> None:
    data, _ = two_classes()
    model, z = network(torch.eye(6)[:2]), pictures(0.5 + 0.1 * normal(7, seed=4))
    f = data.pixels().flatten(1)[:, :6].double().numpy()
    mean = f.mean(axis=0)
    gap = z.flatten(1)[:, :6].double().numpy() - mean
    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(f - mean).covariance_)
    expected = np.sqrt(np.einsum("nd,de,ne->n", gap, precision, gap))
    np.testing.assert_allclose(scores("gaussian_ad", model, data, z), expected, rtol=1e-3)


class Shaken(Wrapped):
    """A classifier that adds noise to its input."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.randomized = True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None  # without draws the noise would be different each time
        logits: Tensor = self.inner(x + 0.05 * draws.normal(tuple(x.shape[1:])))
        return logits

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self(x, draws)


@pytest.mark.parametrize("name", ["gaussian_ad", "lid", "mahalanobis"])
def test_a_randomised_network_takes_its_noise_from_the_draws(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (60, 3, 8, 8), generator=g, dtype=torch.uint8)
    data = ImageSet(x, torch.arange(60) % 10, torch.arange(60), 10, "random")
    kind = {"weights": "fgsm"} if name == "mahalanobis" else {}
    scorer = detector(name, **kind).fit(Shaken(kit.cnn_model()), only(train=data), victims.ONE)
    z, draws = data.pixels(slice(0, 6)), Draws(0, torch.arange(6))
    torch.testing.assert_close(scorer(z, draws), scorer(z, draws))
    assert not torch.allclose(scorer(z, draws), scorer(z, draws.child("other")))


def test_features_before_the_weights_show_what_the_weights_hide() -> None:
    """Unknown images have the logits of known ones; they differ in a feature whose weight is almost 0."""
    weight = torch.zeros(2, 6)
    weight[0, 0], weight[1, 1], weight[:, 5] = 1.0, 1.0, 1e-4
    labels = torch.arange(200) % 2
    f = 0.02 * normal(200).abs()
    f[torch.arange(200), labels] += 0.6
    unknown = f[:40].clone()
    unknown[:, 5] = 0.7
    data, model = planted(f, labels, 2), network(weight)
    x = pictures(torch.cat([unknown, f[100:]]))
    found = {}
    for parts in ("pre", "post", "both"):
        s = scores("costarr_standin", model, data, x, parts=parts, logit=False)
        found[parts] = auroc(s[:40], s[40:])
    assert found["pre"] > 0.99
    assert found["both"] > 0.99
    assert found["post"] < 0.7


def test_the_layers_of_a_residual_network_are_its_stem_and_stages() -> None:
    model = registry.build("model", {"name": "cifar_resnet20", "checkpoint": None}).build(num_classes=10, size=32)
    found = Layers(model.eval(), torch.rand(2, 3, 32, 32))
    assert found.names == ["net.layer1", "net.layer2", "net.layer3"]
    x = torch.rand(3, 3, 32, 32)
    features, z = found.with_logits(x)
    torch.testing.assert_close(features[-1], model.features(x))
    torch.testing.assert_close(z, model(x))
    assert [f.shape[1] for f in features] == [16, 32, 64]


class ChannelsLast(nn.Module):
    """[n, H, W, C] after the first convolution and its stages, as in the Swin transformers of timm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 5, 2, 2), nn.Linear(5, 5), nn.Linear(20, 7)
        self.turn = plain(lambda x: x.permute(0, 2, 3, 1))
        self.merge = plain(lambda x: F.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        self.heads = plain(lambda x: x.flatten(1, 2)[:, None].expand(-1, 3, -1, -1))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.merge(self.first(self.turn(self.stem(x)))))
        self.heads(x)  # [n, heads, positions, channels]: no map
        return self.head(x.mean(dim=(1, 2)))


def plain(call: Any) -> nn.Module:
    """A module without weights."""
    module = nn.Module()
    module.forward = call  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20)])
def test_the_layers_of_a_channels_last_network_are_means_over_positions(height: int, width: int) -> None:
    model = Network(ChannelsLast(), num_classes=4).eval()
    x = torch.rand(3, 3, height, width)
    found = Layers(model, x[:2])
    assert found.names == ["net.first", "net.second"]
    features = found(x)
    assert [tuple(f.shape) for f in features] == [(3, 5), (3, 7)]
    torch.testing.assert_close(features[-1], model.features(x))


def test_the_layers_of_a_swin_transformer_are_its_stages() -> None:
    spec = {"name": "timm/swin_tiny_patch4_window7_224", "model_args": {
        "img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 4],
    }}  # fmt: skip
    model = registry.build("model", spec).build(num_classes=10, size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    assert [f.shape[1] for f in Layers(model, x)(x)] == [12, 24, 48]


# ------------------------------------------------------------------------------------------------------ other detectors


def test_squeezers_are_those_of_the_definition() -> None:
    squeezing: Any = pytest.importorskip("siegebench.detectors.feature_squeezing")
    x = kit.grey_images(2)
    for side in (2, 3):
        expected = median_filter(x.numpy(), size=(1, 1, side, side), mode="nearest")
        np.testing.assert_array_equal(squeezing.median(x, side).numpy(), expected)
    flat = torch.full((1, 3, 12, 12), 0.4) + 0.004 * normal(432, 1).view(1, 3, 12, 12)
    assert float(squeezing.non_local_means(flat, 7, 3, 0.02).std()) < 0.5 * float(flat.std())
    edge = torch.zeros(1, 3, 12, 12)
    edge[..., 6:] = 1.0
    torch.testing.assert_close(squeezing.non_local_means(edge, 7, 3, 0.02), edge)


def test_feature_squeezing_is_the_largest_change_of_the_prediction() -> None:
    model, x, draws = kit.linear_model(), kit.grey_images(6), Draws(0, torch.arange(6))
    p = model(x).softmax(dim=1)
    coarse = (p - model((x * 7).round() / 7).softmax(dim=1)).abs().sum(dim=1)
    got = detector("feature_squeezing", bits=3, median=0, search=0).fit(model, only(), draws)
    torch.testing.assert_close(got(x, draws), coarse)
    both = detector("feature_squeezing", bits=3, median=3, search=0).fit(model, only(), draws)(x, draws)
    assert bool((both >= coarse).all())
    torch.testing.assert_close(got.differentiable(x, draws), coarse)


def test_pixel_statistics_find_blocks_and_brightness() -> None:
    g = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(160, 3, 8, 8, generator=g), (32, 32), mode="bilinear")
    data = ImageSet((smooth[:120] * 255).round().to(torch.uint8), torch.arange(120) % 2, torch.arange(120), 2, "smooth")
    blocks = nn.functional.interpolate(nn.functional.avg_pool2d(smooth[120:], 8), (32, 32))
    x = torch.cat([blocks, (0.5 * smooth[120:]), smooth[120:]])
    s = scores("pixel_statistics", network(torch.eye(6)[:2]), data, x)
    assert auroc(s[:40], s[80:]) > 0.99
    assert auroc(s[40:80], s[80:]) > 0.8
