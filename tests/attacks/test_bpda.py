"""BPDA passes gradients through what has none."""

from __future__ import annotations

from siegebench.attacks.bpda import BPDA
from siegebench.attacks.pgd import PGD

from siegebench.classifier import Classifier
from siegebench.threat import ThreatModel
from tests import kit

from .planted import Rounding, wrong


def test_bpda_passes_a_rounding_that_stops_plain_gradients(linear: Classifier) -> None:
    x = kit.grey_images(16)
    model = Rounding(linear, 8)
    y = model(x).argmax(1)
    threat = ThreatModel(eps=0.15)
    attack = PGD(loss="margin")
    plain, _ = kit.attack_with(attack, model, x, y, threat)
    through, _ = kit.attack_with(BPDA(attack=attack), model, x, y, threat)
    assert int(wrong(model, plain, y).sum()) <= 2
    assert bool(wrong(model, through, y).all())
