"""Attacks that start from given points."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.apgd import APGD
from siegebench.attacks.eot import EOT
from siegebench.attacks.fgsm import FGSM
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.pgd import PGD
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit

EPS: dict[Norm, float] = {"linf": 0.001, "l2": 0.01, "l1": 0.05}  # too small to succeed


@pytest.mark.parametrize("attack", [PGD(steps=2, restarts=2), APGD(steps=2, restarts=2), MIFGSM(steps=2)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_first_point_is_the_given_one_projected(linear: Classifier, attack: Attack, norm: Norm) -> None:
    if norm not in attack.handles():
        pytest.skip("another norm")
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    x = kit.grey_images(3)
    y = linear(x).argmax(1)
    seen.clear()
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(3))
    far = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    start = torch.cat([threat.project(far[:1], x[:1]), far[1:]])
    attack(Oracle(linear, threat, draws, start=start), x, y, threat, draws)
    torch.testing.assert_close(seen[0][0], start[0], rtol=0, atol=1e-6)
    first = ops.project_l1(start, x, threat.eps) if norm == "l1" else threat.project(start, x)
    torch.testing.assert_close(seen[0], first)
    if getattr(attack, "restarts", 1) > 1:  # the second run starts elsewhere
        assert bool((ops.size(seen[3] - seen[0], "linf") > 0).all())


def test_attacks_without_support_refuse_points(linear: Classifier) -> None:
    x = kit.grey_images(2)
    y, draws = linear(x).argmax(1), Draws(0, torch.arange(2))
    for attack in (FGSM(), EOT(attack=FGSM())):
        with pytest.raises(ContractError, match="cannot start from given points"):
            attack(Oracle(linear, ThreatModel(), draws, start=x), x, y, ThreatModel(), draws)
    assert EOT(attack=PGD()).can_start()
