"""Oracle.tapped: features may be replaced on the way, every pass is booked, no hook stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit


def test_a_tapped_pass_is_booked_and_leaves_no_hook(cnn: Classifier) -> None:
    x, draws, seen = kit.grey_images(4, 16), Draws(0, torch.arange(4)), []
    oracle = Oracle(cnn, ThreatModel(norm="l2", eps=0.5), draws)
    view = oracle[torch.tensor([1, 3])].tapped(lambda z: seen.append(z.shape) or 0 * z)  # type: ignore[func-returns-value]
    flat = view.logits(x[[1, 3]])
    assert seen == [(2, 16, 4, 4)]
    assert torch.equal(flat[0], flat[1])  # the tap replaced what the tail sees
    view.gradient(x[[1, 3]], lambda z: z[:, 0])
    assert oracle.ledger.forwards.tolist() == oracle.ledger.queries.tolist() == [0, 2, 0, 2]
    assert oracle.ledger.backwards.tolist() == [0, 1, 0, 1]
    assert not any(m._forward_hooks for m in cnn.modules())
    assert torch.equal(oracle.logits(x), cnn(x))  # the tap is the view's alone


def test_a_tap_needs_gradient_access_and_maps_that_can_be_told_apart(cnn: Classifier) -> None:
    x, draws = kit.grey_images(2, 16), Draws(0, torch.arange(2))
    with pytest.raises(ContractError, match="features"):
        Oracle(cnn, ThreatModel(norm="l2", eps=0.5, access="score"), draws).tapped(lambda z: z)

    class Twice(Wrapped):
        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            return self.inner(x) + self.inner(x.flip(3))

    oracle = Oracle(Twice(cnn), ThreatModel(norm="l2", eps=0.5), draws)
    with pytest.raises(NotApplicable, match="more than once"):
        oracle.tapped(lambda z: z).logits(x)
    assert not any(m._forward_hooks for m in cnn.modules())
