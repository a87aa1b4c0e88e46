"""Spiking neurons in closed form, and derivatives that only attacks see."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from siegebench import ops, registry, spikes
from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.spikes import RULES, Neurons, Rule, Ruled, using
from siegebench.threat import ThreatModel
from siegebench.tracks.judging import gradient_flags
from siegebench.types import Attack, ModelSource
from tests import kit

LINF = ThreatModel(norm="linf", eps=0.1)


def victim(film: bool = False) -> Network:
    name = "spiking_film" if film else "spiking"
    source = registry.build(ModelSource, {"name": name, "steps": 3})
    model = source.built(4, (48, 8) if film else 8, 1 if film else 3).fresh(1).double().eval()
    assert isinstance(model, Network)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # untrained, the later stages would hardly spike
            torch.nn.init.constant_(module.weight, 4.0)
            torch.nn.init.constant_(module.bias, 0.5)
    return model


def images(n: int = 4) -> Tensor:
    return Draws(1, torch.arange(n)).uniform((3, 8, 8)).double()


def test_a_leaky_neuron_spikes_when_its_closed_form_says_so() -> None:
    # 0.6, 0.9, 1.05: a spike in every third step, and the potential starts again at 0
    spikes_ = Neurons(2.0)(torch.full((7, 1, 1), 0.6))
    assert spikes_.flatten().tolist() == [0, 0, 1, 0, 0, 1, 0]


def test_an_integrating_neuron_loses_no_current() -> None:
    neurons = Neurons(None, hard=False, several=True, floor=-1.0)
    assert neurons(torch.full((4, 1, 1), 0.75)).flatten().tolist() == [0, 1, 1, 1]
    assert neurons(torch.full((2, 1, 1), 2.5)).flatten().tolist() == [2, 3]
    # the potential stays at -1 however strong the inhibition: the third step reaches 1 from there
    assert neurons(torch.tensor([-5.0, 1.0, 1.0]).view(3, 1, 1)).flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("rule", [r for r in get_args(Rule) if r not in ("ste", "zero")])
def test_a_bell_has_the_area_of_the_step(rule: Rule) -> None:
    u = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    area = torch.trapezoid(RULES[rule](u, torch.full_like(u, 0.7)), u)
    assert float(area) == pytest.approx(1.0, abs=0.02)  # atan has long tails


@pytest.mark.parametrize("rule", get_args(Rule))
def test_a_pass_goes_back_through_the_chosen_rule(rule: Rule) -> None:
    current = torch.tensor([[[0.2, 0.8, 1.4, 3.0]]], dtype=torch.float64, requires_grad=True)
    with using(rule):
        out = Neurons(rule="rect")(current)
    (g,) = torch.autograd.grad(out.sum(), current)
    sigma = current.detach().std(correction=0).expand(4)
    torch.testing.assert_close(g[0, 0], RULES[rule](current.detach()[0, 0] - 1, sigma))


def test_pdsg_is_the_normal_density_with_its_shift() -> None:
    sigma = torch.tensor([0.5, 2.0])
    at_mean = RULES["pdsg"](sigma / 2, sigma)
    torch.testing.assert_close(at_mean, 1 / (sigma * math.sqrt(2 * math.pi)))
    torch.testing.assert_close(RULES["pdsg_centred"](torch.zeros(2), sigma), at_mean)


def test_sigma_is_that_of_a_sample_and_its_channel_over_space_and_the_steps_so_far() -> None:
    spread, v = spikes._Spread(), Draws(3, torch.arange(2)).normal((5, 3, 4, 4)).double().transpose(0, 1)
    for step, part in enumerate(v, 1):  # [steps, n, channels, H, W]
        sigma = spread.after(part)

        expected = v[:step].permute(1, 2, 0, 3, 4).flatten(2).std(dim=2, correction=0)
        torch.testing.assert_close(sigma.flatten(1), expected)


def test_only_gradients_depend_on_the_rule() -> None:
    model, x = victim(), images()
    found = {}
    for rule in get_args(Rule):
        leaf = x.clone().requires_grad_(True)
        z = Ruled(model, rule)(leaf)
        assert torch.equal(z, model(x))
        (found[rule],) = torch.autograd.grad(ops.margin(z, torch.zeros(4, dtype=torch.long)).sum(), leaf)
    assert float(found["zero"].abs().max()) == 0
    assert len({float(g.abs().sum()) for g in found.values()}) == len(found)
    plain = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(ops.margin(model(plain), torch.zeros(4, dtype=torch.long)).sum(), plain)
    assert torch.equal(g, found["atan"])  # nothing is left over from the rules of other passes


def test_the_gradient_of_a_sample_does_not_depend_on_its_batch() -> None:
    model, x = Ruled(victim(), "pdsg"), images()

    def gradient(part: Tensor) -> Tensor:
        leaf = part.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
        return g

    torch.testing.assert_close(gradient(x)[2:3], gradient(x[2:3]))


def test_a_rule_without_a_slope_is_reported_as_a_blind_attack() -> None:
    model, x = victim(), images()
    y = model(x).argmax(dim=1)
    for rule, blind in (("zero", True), ("pdsg", False)):
        spec = {"name": "spike_gradient", "rule": rule, "attack": {"name": "pgd", "steps": 3}}
        _, oracle = kit.attack_with(registry.build(Attack, spec), model, x, y, LINF)
        ledger = oracle.ledger
        flags = gradient_flags("spiking", *(int(v.sum()) for v in (ledger.backwards, ledger.blind, ledger.undefined)))
        assert int(ledger.backwards.sum()) > 0
        assert [f.id for f in flags] == (["blind_attack"] if blind else [])


def test_a_film_is_cut_into_its_frames() -> None:
    model = victim(film=True)
    strip = (Draws(2, torch.arange(1)).uniform((1, 48, 8)) < 0.3).double()
    frames = strip.view(1, 3, 2, 8, 8)
    swapped = frames.flip(1).reshape(1, 1, 48, 8)
    assert not torch.equal(model(strip), model(swapped))  # the order of the frames counts
    oracle = Oracle(model, LINF, Draws(0, torch.arange(1)))
    assert oracle.logits(strip).shape == (1, 4)
