"""VMI without variance is the momentum attack."""

from __future__ import annotations

import torch
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.vmi import VMI

from siegebench.classifier import Classifier
from siegebench.threat import ThreatModel
from tests import kit


def test_vmi_without_variance_is_the_momentum_attack(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=4 / 255)
    found, oracle = kit.attack_with(VMI(steps=5, neighbours=3, beta=1e-6), cnn, x, y, threat)
    plain, _ = kit.attack_with(MIFGSM(steps=5), cnn, x, y, threat)
    broken = cnn(found).argmax(1) != y
    where = broken | (cnn(plain).argmax(1) == y)  # elsewhere mifgsm came back with an earlier point
    torch.testing.assert_close(found[where], plain[where], atol=1e-4, rtol=0)
    assert oracle.ledger.forwards.tolist() == [5 + 4 * 3] * 6
    assert oracle.ledger.backwards.tolist() == [5 + 4 * 3] * 6
    tuned, _ = kit.attack_with(VMI(steps=5, neighbours=3), cnn, x, y, threat)
    assert not torch.equal(tuned, found)
