"""Max softmax, entropy, DeepGini and energy, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from siegebench.draws import Draws
from siegebench.types import Scorer
from tests import kit

from .planted import detector, only

EXPECTED = {
    "max_softmax": lambda z: -softmax(z, axis=1).max(axis=1),
    "entropy": lambda z: entropy(softmax(z, axis=1), axis=1),
    "deep_gini": lambda z: 1 - (softmax(z, axis=1) ** 2).sum(axis=1),
    "energy": lambda z: -logsumexp(z, axis=1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_score_is_the_function_of_the_logits_that_the_paper_defines(name: str) -> None:
    model, x = kit.linear_model(), kit.grey_images(12)
    draws = Draws(0, torch.arange(12))
    scorer = detector(name).fit(model, only(), draws)
    assert isinstance(scorer, Scorer)
    np.testing.assert_allclose(scorer(x, draws), EXPECTED[name](model(x).numpy()), rtol=2e-5, atol=1e-5)


def test_only_the_energy_sees_a_shift_of_all_logits() -> None:
    z = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    for name in EXPECTED:
        same = torch.allclose(detector(name).of_logits(z), detector(name).of_logits(z + 3), atol=1e-5)
        assert same == (name != "energy")


def test_confident_predictions_keep_a_gradient() -> None:
    z = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    detector("energy").of_logits(z).sum().backward()
    assert float(z.grad.abs().max()) > 0.9  # type: ignore[union-attr]
