"""Attacks around another attack: EOT, BPDA, DI and TI compose and change nothing by themselves."""

from __future__ import annotations

import torch
from siegebench.attacks.bpda import BPDA
from siegebench.attacks.cw import CW
from siegebench.attacks.di import DI
from siegebench.attacks.eot import EOT
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.pgd import PGD
from siegebench.attacks.ti import TI

from siegebench import registry
from siegebench.classifier import Classifier
from siegebench.threat import ThreatModel
from tests import kit

from .planted import Noisy, Rounding, majority_wrong


def test_wrappers_compose_and_pass_on_what_the_attack_inside_says(linear: Classifier) -> None:
    spec = {"name": "eot", "looks": 32, "attack": {"name": "bpda", "attack": {"name": "pgd", "loss": "margin"}}}
    attack = registry.build("attack", spec)
    assert isinstance(attack, EOT)
    assert isinstance(attack.attack, BPDA)
    described = registry.describe("attack", spec)
    assert described["attack"]["attack"]["steps"] == 20
    assert registry.describe("attack", registry.rebuild("attack", described) and spec) == described
    model, x = Noisy(Rounding(linear, 8), 1.0), kit.grey_images(8)
    y = model.inner(x).argmax(1)
    threat = ThreatModel(eps=0.2)
    assert bool(majority_wrong(model, kit.attack_with(attack, model, x, y, threat)[0], y).all())
    for alone in (EOT(attack=PGD(loss="margin"), looks=32), PGD(loss="margin")):
        assert int(majority_wrong(model, kit.attack_with(alone, model, x, y, threat)[0], y).sum()) <= 2

    class Inner(CW):
        needs = "label"

    for wrapper in (EOT(attack=Inner()), BPDA(attack=Inner())):
        assert (wrapper.access(), wrapper.handles(), wrapper.minimises()) == ("label", ("l2",), True)


def test_wrappers_that_change_nothing_give_what_is_inside(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=8 / 255)
    plain, _ = kit.attack_with(MIFGSM(), cnn, x, y, threat)
    nested, _ = kit.attack_with(TI(attack=DI(attack=MIFGSM(), p=0.0), side=1), cnn, x, y, threat)
    assert torch.equal(nested, plain)
    changed, _ = kit.attack_with(TI(attack=DI(attack=MIFGSM(), p=1.0, shrink=0.7), side=5), cnn, x, y, threat)
    assert not torch.equal(changed, plain)
