"""Evasion defenses together: the model is left as found, gradients are honest, declared attacks break them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel

from .grey_digits import ONE, defense, granted, robust


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
    through_backward_model, z_surrogate, _ = oracle.backward_model().gradient(x, loss)
    assert not entry.differentiable
    assert z.dtype == dtype
    assert torch.equal(z, z_surrogate)
    assert torch.equal(through_forward, torch.zeros_like(x))
    if name == "bit_depth":  # the identity on the way back: the network's own gradient at T(x)
        leaf = entry.transform(x, Draws.fresh(len(x))).detach().requires_grad_(True)  # type: ignore[attr-defined]
        (expected,) = torch.autograd.grad(loss(cnn16(leaf)).sum(), leaf)
        assert torch.equal(through_backward_model, expected)
    assert bool((ops.size(through_backward_model, "linf") > 0).all())
    assert torch.equal(model(x[3:4])[0].argmax(), z[3].argmax())


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
def test_the_surrogate_breaks_what_autograd_leaves(name: str, cnn16: Classifier, test_set: ImageSet) -> None:
    model = defense(name).wrap(cnn16)
    naive = {"name": "pgd", "loss": "margin", "steps": 20, "random_start": False}
    assert robust(model, naive, test_set) == 1.0
    for spec in defense(name).adaptive:
        assert robust(model, spec, test_set) <= 0.05
