"""Randomised features: where the noise goes, how much of it, and that expectation breaks it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.train import accuracy, predict
from tests import kit

from .grey_digits import ONE, defense, granted, robust


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
