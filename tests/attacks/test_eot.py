"""EOT: the expectation over passes breaks what one lucky pass hides."""

from __future__ import annotations

from siegebench.attacks.eot import EOT
from siegebench.attacks.pgd import PGD

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.threat import ThreatModel
from tests import kit

from .planted import Noisy, majority_wrong, nearest_boundary


def test_eot_is_not_fooled_by_a_lucky_look(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    gap = -ops.margin(linear(x), y)
    model = Noisy(linear, 0.7 * float(gap.median()))
    threat = ThreatModel(eps=2.5 * float(nearest_boundary(linear, x, y, "linf").max()))
    steps = PGD(steps=40, loss="margin")
    plain, _ = kit.attack_with(steps, model, x, y, threat)
    averaged, oracle = kit.attack_with(EOT(attack=steps, looks=64), model, x, y, threat)
    held, held_eot = ~majority_wrong(model, plain, y), ~majority_wrong(model, averaged, y)
    assert int(held.sum()) >= 8  # one wrong look and plain PGD stops
    assert int(held_eot.sum()) <= int(held.sum()) - 6
    assert bool((oracle.ledger.forwards % 64 == 0).all())
