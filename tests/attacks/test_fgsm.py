"""FGSM takes one step, the steepest, of full length."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.fgsm import FGSM

from siegebench.classifier import Classifier
from siegebench.threat import Norm, ThreatModel
from tests import kit


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
def test_fgsm_takes_the_steepest_step_of_full_length(linear: Classifier, norm: Norm, eps: float) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    z = linear(x)
    second = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    w = (linear.net.layer.weight[second] - linear.net.layer.weight[y]).view_as(x)
    direction = w.sign() if norm == "linf" else w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv, _ = kit.attack_with(FGSM(loss="margin"), linear, x, y, ThreatModel(norm=norm, eps=eps))
    torch.testing.assert_close(x_adv, x + eps * direction)
