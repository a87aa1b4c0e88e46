"""Evasion defenses: closed forms, honest gradients and randomness, and that the declared attacks break them."""

from __future__ import annotations

import copy
import io
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, accuracy, predict, train
from siegebench.types import Defense
from tests import kit

ONE = Draws(0, torch.zeros(1, dtype=torch.long))
RECIPE = Recipe(epochs=25, batch=64, lr=5e-3, augment="none")
EPS = 32 / 255  # of the grey digits, whose classes are far apart


def defense(name: str, **parameters: object) -> Defense:
    entry = registry.build("defense", {"name": name, **parameters})
    assert isinstance(entry, Defense)
    return entry


def granted(*sees: str, **sets: ImageSet) -> Granted:
    return Granted("test", sees or tuple(sets), **{k: partial(lambda v: v, v) for k, v in sets.items()})


def digits(split: str) -> ImageSet:
    whole = registry.build("dataset", "digits").load(split)  # type: ignore[attr-defined]
    small = whole.images[:, :, ::2, ::2].contiguous()
    return ImageSet(small, whole.labels, whole.ids, 10, f"digits {split}")


def robust(model: Classifier, spec: object, data: ImageSet, n: int = 40, eps: float = EPS) -> float:
    """Accuracy on n correctly classified images after an attack, by the majority of ten fresh passes."""
    x, y = data.pixels(), data.labels
    right = (predict(model, data, draws=Draws(3, data.ids)).argmax(1) == y).nonzero().squeeze(1)[:n]
    draws, threat = Draws(0, data.ids[right]), ThreatModel(norm="linf", eps=eps)
    attack = registry.build("attack", spec)
    adv = attack(Oracle(model, threat, draws), x[right], y[right], threat, draws)  # type: ignore[operator]
    looks = [model(adv, draws.child("score").at(k)).argmax(1) == y[right] for k in range(10 if model.randomized else 1)]
    return float((torch.stack(looks).double().mean(dim=0) > 0.5).double().mean())


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def train_set() -> ImageSet:
    return digits("train")


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    return digits("test")


@pytest.fixture(scope="module")
def cnn16(train_set: ImageSet) -> Classifier:
    model = Network(net(), num_classes=10, rebuild=net).fresh(1)
    train(model, train_set, RECIPE, 0)
    return model.requires_grad_(False)


# ------------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ["none", "bit_depth", "jpeg", "logit_scaling", "randomized_features"])
def test_leaves_the_given_model_as_found(name: str, cnn16: Classifier, test_set: ImageSet) -> None:
    before = {k: v.clone() for k, v in cnn16.state_dict().items()}
    part = test_set.select(torch.arange(60))
    defended = defense(name).apply(cnn16, granted("clean", "val", clean=part, val=part), ONE)
    defended(part.pixels())
    assert all(torch.equal(v, before[k]) for k, v in cnn16.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in cnn16.modules())


@pytest.mark.parametrize(
    "name", ["none", "bit_depth", "jpeg", "logit_scaling", "randomized_features", "defensive_distillation"]
)
def test_presets_and_adaptive_attacks_can_be_built(name: str) -> None:
    card = registry.find("defense", name)[0].card
    for preset in card.presets:
        defense(f"{name}.{preset}")
    entry = defense(name)
    assert bool(entry.adaptive) == (name != "none")
    for spec in entry.adaptive:
        registry.build("attack", spec)
    assert card.control == (name == "logit_scaling")


def test_none_is_the_model(cnn16: Classifier) -> None:
    assert defense("none").wrap(cnn16) is cnn16


# --------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_bit_depth_rounds_to_the_nearest_level(bits: int) -> None:
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = defense("bit_depth", bits=bits).transform(x)  # type: ignore[attr-defined]
    levels = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    nearest = levels[(x[..., None] - levels).abs().argmin(dim=-1)]
    assert torch.allclose(out, nearest, rtol=0, atol=1e-15)


def test_eight_bits_change_no_image() -> None:
    x = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16).float() / 255
    assert torch.equal(defense("bit_depth", bits=8).transform(x), x)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bit_depth", {"bits": 0}),
        ("bit_depth", {"bits": 9}),
        ("jpeg", {"quality": 101}),
        ("logit_scaling", {"factor": 0}),
    ],
)
def test_settings_that_do_not_exist_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        defense(name, **wrong)


def pillow(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.skipif(not features.check_feature("libjpeg_turbo"), reason="Pillow is built with another JPEG library")
@pytest.mark.parametrize("quality", [1, 25, 75, 95, 100])
@pytest.mark.parametrize("size", [(8, 8), (16, 32), (17, 23), (33, 64), (5, 3)])
def test_jpeg_is_the_codec_of_pillow_bit_for_bit(size: tuple[int, int], quality: int) -> None:
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(3, 3, 4, 4, generator=g), size, mode="bicubic")
    noisy = (smooth + 0.05 * torch.randn(smooth.shape, generator=g)).clamp(0, 1)
    x = (torch.cat([noisy, torch.rand(1, 3, *size, generator=g).round()]) * 255).round() / 255
    out = defense("jpeg", quality=quality).transform(x)  # type: ignore[attr-defined]
    for image, found in zip(x, out, strict=True):
        grey = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal((found * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), pillow(grey, quality))


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_gives_no_gradient_and_the_surrogate_gives_the_networks(
    name: str, dtype: torch.dtype, cnn16: Classifier, test_set: ImageSet
) -> None:
    cnn16 = copy.deepcopy(cnn16).to(dtype)
    entry = defense(name)
    model = entry.wrap(cnn16)
    x, y = test_set.pixels(slice(0, 12), dtype), test_set.labels[:12]
    oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(12)))
    loss = partial(ops.margin, y=y)
    through_forward, z, _ = oracle.gradient(x, loss)
    through_surrogate, z_surrogate, _ = oracle.surrogate().gradient(x, loss)
    assert not entry.differentiable
    assert z.dtype == dtype
    assert torch.equal(z, z_surrogate)
    assert torch.equal(through_forward, torch.zeros_like(x))
    if name == "bit_depth":  # the identity on the way back: the network's own gradient at T(x)
        leaf = entry.transform(x).detach().requires_grad_(True)  # type: ignore[attr-defined]
        (expected,) = torch.autograd.grad(loss(cnn16(leaf)).sum(), leaf)
        assert torch.equal(through_surrogate, expected)
    assert bool((ops.size(through_surrogate, "linf") > 0).all())
    assert torch.equal(model(x[3:4])[0].argmax(), z[3].argmax())


def test_jpeg_passes_gradients_back_through_every_stage() -> None:
    module = sys.modules[type(defense("jpeg")).__module__]
    f = torch.linspace(-300, 300, 601, dtype=torch.float64).requires_grad_(True)
    q = torch.tensor(10.0, dtype=torch.float64)
    out = module._Quantised.apply(f, q)
    assert torch.equal(out, (f.detach() / 80).abs().add(0.5).floor() * 10 * f.detach().sign())
    (slope,) = torch.autograd.grad(out.sum(), f)
    u = f.detach() / 80
    stairs = lambda u: u - 0.9 * (2 * torch.pi * u).sin() / (2 * torch.pi)  # noqa: E731
    assert torch.allclose(slope, 10 * (stairs(u + 1e-6) - stairs(u - 1e-6)) / 2e-6 / 80, atol=1e-6)
    # brightness and colour of a plain image go through transform, subsampling and back
    plain = torch.full((1, 3, 16, 16), 0.4, dtype=torch.float64).requires_grad_(True)
    (g,) = torch.autograd.grad(defense("jpeg", quality=100).transform(plain)[:, 0].mean(), plain)  # type: ignore[attr-defined]
    assert bool((g[:, 0] > 0).all())
    assert float(g[:, 0].sum()) > 5 * float(g[:, 1:].abs().sum())


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
def test_the_surrogate_breaks_what_autograd_leaves(name: str, cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense(name).wrap(cnn16)
    naive = {"name": "pgd", "loss": "margin", "steps": 20, "random_start": False}
    assert robust(model, naive, test_set) == 1.0
    for spec in defense(name).adaptive:
        assert robust(model, spec, test_set) <= 0.05


# ---------------------------------------------------------------------------------------------------- logit scaling


def test_logit_scaling_fools_cross_entropy_only(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("logit_scaling").wrap(cnn16)
    assert torch.allclose(model(test_set.pixels()), 100 * cnn16(test_set.pixels()))
    steps = {"name": "pgd", "steps": 20, "random_start": False}
    assert robust(cnn16, {**steps, "loss": "ce"}, test_set) <= 0.05
    assert robust(model, {**steps, "loss": "ce"}, test_set) >= 0.6
    for spec in defense("logit_scaling").adaptive:
        assert robust(model, spec, test_set) <= 0.05


# ----------------------------------------------------------------------------------------------------- distillation


class RecordedTraining:
    """Stands in for `train`: keeps what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Classifier, int, object]] = []

    def __call__(self, model: Classifier, data: ImageSet, recipe: Recipe, seed: int, *, loss: object = None) -> None:
        model.eval()
        self.calls.append((model, seed, loss))


def test_the_student_is_fitted_to_the_teachers_soft_labels_at_t(
    monkeypatch: pytest.MonkeyPatch, train_set: ImageSet
) -> None:
    T = 7.0
    entry = defense("defensive_distillation", temperature=T)
    recorded = RecordedTraining()
    monkeypatch.setattr(sys.modules[type(entry).__module__], "train", recorded)
    deployed = entry.apply(Network(net(), num_classes=10, rebuild=net), granted(train=train_set), ONE)
    (teacher, seed_t, hard), (student, seed_s, soft) = recorded.calls
    assert hard is None  # cross-entropy on the labels
    assert seed_t != seed_s
    x, y = train_set.pixels(slice(0, 32)), train_set.labels[:32]
    z_t, z_s = T * teacher(x), deployed(x)  # logits are T times what the nets put out
    assert torch.allclose(z_s, T * student(x))
    assert not torch.allclose(z_t, z_s)
    q = F.softmax(z_t / T, dim=1)
    expected = -(q * F.log_softmax(z_s / T, dim=1)).sum(dim=1).mean()
    assert callable(soft)
    assert torch.allclose(soft(student(x), y, x, torch.arange(32)), expected)


def test_distillation_saturates_cross_entropy_and_nothing_else(
    cnn16: Classifier, train_set: ImageSet, test_set: ImageSet
) -> None:
    entry = defense("defensive_distillation", temperature=100, recipe=vars(RECIPE))
    data = granted(train=train_set)
    model = entry.apply(cnn16, data, ONE).requires_grad_(False)
    assert abs(accuracy(model, test_set) - accuracy(cnn16, test_set)) <= 0.03
    steps = {"name": "pgd", "steps": 20, "random_start": False}
    assert robust(model, {**steps, "loss": "ce"}, test_set) >= 0.6
    for spec in entry.adaptive:
        assert robust(model, spec, test_set) <= 0.05
    # the weights come back from what was stored, at another temperature too
    cooler = defense("defensive_distillation", temperature=20, recipe=vars(RECIPE)).structure(cnn16)
    cooler.load_state_dict(model.state_dict())
    assert torch.allclose(5 * cooler(test_set.pixels()), model(test_set.pixels()), rtol=1e-4)


def test_distillation_needs_a_network_that_can_be_built_anew() -> None:
    with pytest.raises(NotApplicable, match="rebuild"):
        defense("defensive_distillation").wrap(kit.linear_model())


# ---------------------------------------------------------------------------------------------- randomised features


class Copies(nn.Module):
    """Two stages that change nothing; the logits are the pixels, so that noise is seen as it was added."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Identity(), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stages(x).flatten(1)
        return out


def copies() -> Classifier:
    return Network(Copies(), num_classes=3 * 20 * 20)


NOISE = {  # timm architecture: modules in front of which the noise goes, as the authors place it
    "resnet18": [f"layer{i}" for i in (1, 2, 3, 4)],
    "vgg11": [f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)],
    "vit_tiny_patch16_224": [f"blocks.{i}" for i in range(12)],
    "mixer_s32_224": [f"blocks.{i}" for i in range(8)],
    "regnetx_002": ["s1", "s2", "s3", "s4"],
    "convnext_atto": [f"stages.{i}" for i in range(4)],
    "swin_tiny_patch4_window7_224": [f"layers.{i}" for i in range(4)],
}


@pytest.mark.parametrize("architecture", NOISE)
def test_noise_goes_where_the_authors_put_it(architecture: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        net = timm.create_model(architecture, num_classes=10)
    model = Network(net, num_classes=10)
    found = defense("randomized_features", nu=1.0).wrap(model).places  # type: ignore[attr-defined]
    assert list(found.values()) == [(f"net.{name}", False) for name in NOISE[architecture]]


def test_noise_of_the_small_cifar_network_comes_behind_its_last_stage() -> None:
    model = registry.build("model", {"name": "cifar_resnet20", "checkpoint": None}).build(  # type: ignore[attr-defined]
        num_classes=10, size=32
    )
    wrapped = defense("randomized_features", nu=0.5).wrap(model)
    assert list(wrapped.places.values()) == [("net.layer3", True)]  # type: ignore[attr-defined]
    x, draws = kit.grey_images(4, 32), Draws(0, torch.arange(4))
    head = model.net.linear  # type: ignore[union-attr]
    v = draws.normal((64, 8, 8), purpose="layer 0")
    expected = model(x) + 0.5 * v.mean(dim=(2, 3)) @ head.weight.T  # the head is linear after the last stage
    assert torch.allclose(wrapped(x, draws), expected, atol=1e-4)


@pytest.mark.parametrize("layers", ["all", [1], ["stages.0"]], ids=str)
def test_noise_is_standard_normal_times_nu(layers: object) -> None:
    model = copies()
    x = kit.grey_images(32, 20)
    wrapped = defense("randomized_features", nu=0.3, layers=layers).wrap(model)
    noise = (wrapped(x, Draws(0, torch.arange(32))) - model(x)) / 0.3
    places = 2 if layers == "all" else 1
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(places**0.5, rel=0.02)
    kurtosis = float((noise**4).mean() / (noise**2).mean() ** 2)
    assert kurtosis == pytest.approx(3.0, rel=0.05)  # of a normal distribution
    assert float(torch.corrcoef(noise[:4]).fill_diagonal_(0).abs().max()) < 0.15  # every image has its own


def test_noise_is_fresh_at_every_look_and_repeats_with_its_draws(cnn16: Classifier, test_set: ImageSet) -> None:
    entry = defense("randomized_features", nu=0.5)
    model = entry.apply(copy.deepcopy(cnn16).double(), granted("none"), ONE)
    assert model.randomized
    x = test_set.pixels(slice(0, 6), torch.float64)
    draws = Draws(0, torch.arange(6))
    first = model(x, draws)
    assert torch.equal(first, model(x, draws))
    assert torch.equal(first, model.surrogate(x, draws))
    assert torch.equal(first, copy.deepcopy(model)(x, draws))
    assert not torch.isclose(first, model(x, draws.at(1))).any()
    assert not torch.isclose(model(x), model(x)).any()
    alone = torch.cat([model(x[i : i + 1], draws[i : i + 1]) for i in range(6)])
    assert torch.allclose(alone, first, rtol=1e-9)
    same = model(x[:1].expand(6, -1, -1, -1), draws)  # one image six times: six noises
    assert len(same[:, 0].unique()) == 6
    again = entry.structure(cnn16).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(first, again(x, draws))


def test_no_hook_is_left_behind_by_a_look_that_failed(cnn16: Classifier) -> None:
    model = defense("randomized_features", nu=0.5).wrap(cnn16)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 7, 16, 16))
    with pytest.raises(NotApplicable, match=r"not a tensor \[n, \.\.\.\]"):
        model(torch.zeros(2, 3, 16, 16), Draws(0, torch.arange(3)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nu_costs_the_accuracy_it_may_cost(cnn16: Classifier, test_set: ImageSet) -> None:
    clean, val = test_set.select(torch.arange(400)), test_set.select(torch.arange(400, 500))
    data = granted("clean", "val", clean=clean, val=val)
    model = defense("randomized_features", drop=0.05).apply(cnn16, data, ONE)
    nu = float(model.nu)  # type: ignore[arg-type]
    looks = [predict(model, test_set, draws=Draws(1, test_set.ids).at(k)).argmax(1) for k in range(20)]
    noisy = torch.stack([(z == test_set.labels).double().mean() for z in looks]).mean()
    assert accuracy(cnn16, test_set) - float(noisy) == pytest.approx(0.05, abs=0.01)  # other looks, same images
    assert float(defense("randomized_features").apply(cnn16, data, ONE).nu) < nu  # type: ignore[arg-type]


def test_a_given_nu_reads_no_data_and_an_unfitted_one_answers_nothing(cnn16: Classifier, test_set: ImageSet) -> None:
    x = test_set.pixels(slice(0, 4))
    assert float(defense("randomized_features", nu=0.25).apply(cnn16, granted("none"), ONE).nu) == 0.25  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="clean"):
        defense("randomized_features").apply(cnn16, granted("none"), ONE)
    assert bool(defense("randomized_features").wrap(cnn16)(x).isnan().all())


def test_expectation_over_looks_breaks_randomised_features(cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense("randomized_features", nu=0.1).apply(cnn16, granted("none"), ONE)
    for spec in defense("randomized_features").adaptive:
        assert robust(model, spec, test_set, n=24) <= 0.15


@pytest.mark.parametrize("layers", ["all", [5], ["head"]], ids=str)
def test_networks_and_layers_that_do_not_exist_are_refused(layers: object) -> None:
    with pytest.raises(NotApplicable):
        defense("randomized_features", nu=1.0, layers=layers).wrap(kit.linear_model())
