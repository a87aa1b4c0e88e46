"""Logit rank: exact on random heads, and nothing where there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.types import Measure
from tests import kit

rank: Any = pytest.importorskip("siegebench.measures.logit_rank")


def answers(d: int, classes: int, n: int, bias: bool, seed: int, relu: bool = True) -> tuple[Tensor, float]:
    """(float32 logits of a random head, as float64; their error)"""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=g)
    z = (h.relu() if relu else h) @ torch.randn(d, classes, generator=g) + bias * torch.randn(classes, generator=g)
    return z.double(), 2 * torch.finfo(torch.float32).eps * float(z.abs().max())


def dims(z: Tensor, exact: float, form: str, decimals: int | None = None) -> int:
    found: int = rank.dimension(*rank.released(z, form, decimals, exact))[0]
    return found


@pytest.mark.parametrize("seed", range(12))
def test_random_heads_are_read_to_the_unit(seed: int) -> None:
    g = torch.Generator().manual_seed(100 + seed)
    d = int(torch.randint(1, 40, (), generator=g))
    classes = d + 2 + int(torch.randint(0, 60, (), generator=g))
    for bias in (False, True):
        z, exact = answers(d, classes, 2 * classes + 10, bias, seed, relu=seed % 2 == 0)
        assert dims(z, exact, "logits") == d
        assert dims(z, exact, "probabilities") == d  # the softmax loses a constant for each answer, nothing else
        assert dims(z, exact, "logits", 4) == d
        assert dims(z, exact, "labels") == 0


@pytest.mark.parametrize(("d", "classes"), [(9, 10), (10, 10), (64, 10), (64, 43), (30, 31)])
def test_nothing_is_read_without_more_classes_than_features(d: int, classes: int) -> None:
    for seed in range(3):
        z, exact = answers(d, classes, 400, True, seed)
        for form in ("logits", "probabilities", "labels"):
            assert dims(z, exact, form) == 0
            assert dims(z, exact, form, 2) == 0


def test_coarse_answers_hide_what_exact_ones_reveal() -> None:
    z, exact = answers(16, 200, 500, True, 0)
    z = z / 4  # confident answers, not certain ones
    assert dims(z, exact, "probabilities") == 16
    assert dims(z, exact, "probabilities", 1) == 0
    assert dims(z, exact, "probabilities", 2) == 0
    assert dims(z, exact, "logits", 2) == 16
    assert dims(z, exact, "logits", -2) == 0  # rounded to hundreds


def test_one_query_too_few_reveals_nothing() -> None:
    z, exact = answers(20, 100, 500, False, 0)
    assert dims(z[:22], exact, "logits") == 20
    assert dims(z[:21], exact, "logits") == 0


def test_the_last_layer_is_known_up_to_a_change_of_basis() -> None:
    g = torch.Generator().manual_seed(5)
    w = torch.randn(90, 12, generator=g).double()
    z = torch.randn(300, 12, generator=g).double() @ w.T
    basis = rank.read(z, 1e-12).basis
    w = w - w.mean(dim=0)
    assert float((w - basis @ (basis.T @ w)).norm() / w.norm()) < 1e-10
    torch.testing.assert_close(basis.T @ basis, torch.eye(12).double())


def _net() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 24), nn.ReLU())
    return nn.Sequential(*body, nn.Linear(24, 60))


def images(n: int, seed: int) -> ImageSet:
    x = Draws(seed, torch.arange(n)).uniform((3, 8, 8))
    return ImageSet((255 * x).round().to(torch.uint8), torch.arange(n) % 60, torch.arange(n), 60, "noise")


def measured(model: Classifier, **parameters: object) -> dict[str, Any]:
    entry = registry.build(Measure, {"name": "logit_rank", **parameters})
    threat, own, given = ThreatModel(), images(300, 0), images(20, 1)
    lesson = entry.learn(Oracle(model, threat, Draws(0, own.ids)), own, threat, Draws(0, own.ids))
    draws = Draws(0, given.ids)
    return entry(Oracle(model, threat, draws), given.pixels(), given.labels, threat, draws, lesson)


def test_a_network_is_told_from_a_later_version_and_from_another() -> None:
    model = Network(_net(), num_classes=60, rebuild=_net).fresh(0).eval().requires_grad_(False)
    found = measured(model)["metrics"]
    assert found["revealed"] == 1
    assert found["dim"] == found["spanned"] <= found["width"] == 24
    assert found["signature"] < 1e-5 < found["signature_updated"] < found["signature_other"]
    assert found["signature_updated"] > 1000 * found["signature"]
    assert 0 <= found["flips"] < 0.5
    coarse, fine = (measured(model, given=int(found["decimals"]) + i)["metrics"] for i in (-1, 0))
    assert (coarse["revealed"], fine["revealed"]) == (0, 1)
    for preset in ({"answers": "labels"}, {"answers": "probabilities", "given": 2}):
        hidden = measured(model, **preset)
        assert hidden["metrics"]["revealed"] == 0
        assert [f["id"] for f in hidden["flags"]] == ["nothing_revealed"]
        assert "dim" not in hidden["metrics"]


class _Noisy(Classifier):
    """Answers with noise of its own."""

    randomized = True

    def __init__(self, inner: Classifier, sigma: float) -> None:
        super().__init__()
        self.inner, self.sigma, self.num_classes, self.card = inner, sigma, inner.num_classes, inner.card

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None
        return self.inner(x) + self.sigma * draws.normal((self.num_classes,)).to(x)


def test_noise_is_measured_and_hides_small_directions() -> None:
    model = Network(_net(), num_classes=60, rebuild=_net).fresh(0).eval().requires_grad_(False)
    dim = measured(model)["metrics"]["dim"]
    assert measured(_Noisy(model, 1e-5))["metrics"]["dim"] == dim
    assert measured(_Noisy(model, 10.0))["metrics"]["revealed"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit", "resnet18"])
def test_timm_networks_with_random_weights_and_1000_classes(name: str) -> None:
    kit.data_folder()
    source: Any = registry.build("model", {"name": f"timm/{name}", "download": False})
    model = source.build(num_classes=1000, size=32).fresh(0).eval().requires_grad_(False)
    data: Any = registry.build("dataset", "gtsrb")
    own = data.scan("train").select(torch.arange(0, 30000, 20))
    entry = registry.build(Measure, "logit_rank")
    draws = Draws(0, own.ids)
    z, exact, spanned = entry.learn(Oracle(model, ThreatModel(), draws), own, ThreatModel(), draws)
    found, gap = rank.dimension(z, exact)
    print(
        name,
        "width",
        model.features(own.pixels(slice(2))).shape[1],
        "spanned",
        spanned,
        "read",
        found,
        "gap",
        round(gap, 1),
    )
    assert found == spanned


def test_a_published_network_with_ten_classes_reveals_nothing() -> None:
    weights = kit.data_folder() / "weights" / "resnet20-12fca82f.th"
    if not weights.is_file():
        pytest.skip("needs the published ResNet-20 in the folder of SIEGEBENCH_DATA")
    source: Any = registry.build("model", "cifar_resnet20")
    data: Any = registry.build("dataset", "cifar10_jpeg")
    model = source.build(num_classes=10, size=32).eval().requires_grad_(False)
    x = data.scan("test").select(torch.arange(100)).pixels()
    with torch.no_grad():
        z = model(x).double()
    assert dims(z, 1e-5, "logits") == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_published_network_with_more_classes_than_features_is_read_to_the_unit() -> None:
    """YOLOX-nano: 80 classes on 64 features, with a layer of its own for each stride; only its sigmoids are seen."""
    folder = kit.data_folder() / "weights" / "yolox-nano"
    if not (folder / "yoloxN.param").is_file():
        pytest.skip("needs the published YOLOX-nano in the folder of SIEGEBENCH_DATA")
    source: Any = registry.build("model", {"name": "yolox_nano", "checkpoint": str(folder / "yoloxN.param")})
    images: Any = registry.build("dataset", "gtsrb")
    x = images.scan("test").select(torch.arange(6)).pixels()
    with torch.no_grad():
        p = source.detector(size=32).net(nn.functional.interpolate(x, (416, 416), mode="bilinear") * 255)
    p = p[..., 5:].double().split([52 * 52, 26 * 26, 13 * 13], dim=1)
    for part in p:
        z = (part.log() - (1 - part).log()).flatten(0, 1)
        exact = 2 * torch.finfo(torch.float32).eps * float(z.abs().max())
        assert rank.dimension(z, exact)[0] == 64
        assert rank.dimension(z.round(decimals=4), max(exact, 0.3e-4))[0] == 64
        assert rank.dimension(z.round(decimals=0), 0.3)[0] == 0
