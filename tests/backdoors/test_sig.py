"""SIG: the stripes."""

from __future__ import annotations

import math

import pytest
import torch

from siegebench.errors import NotApplicable
from tests import victims

from .planted import constant, draws


def test_the_stripes_of_sig() -> None:
    x = constant(0.5, size=48)
    v = (victims.backdoor("sig", f=6).stamp(x, draws(x)) - x)[0, 1]
    assert bool((v == v[0]).all())  # every row alike
    torch.testing.assert_close(v[:, 8:], v[:, :-8], atol=1e-6, rtol=0)  # period W / f = 8 pixels
    assert float((v[:, 4:] - v[:, :-4]).abs().max()) > 0.3  # and no shorter one
    assert float(v.max()) == pytest.approx(40 / 255, abs=1e-6)
    assert float(v[0, 1]) == pytest.approx(40 / 255 * math.sin(2 * math.pi / 8), abs=1e-6)
    assert float(v.sum()) == pytest.approx(0, abs=1e-3)
    strong = victims.backdoor("sig", delta="80/255").stamp(x, draws(x))
    assert float((strong - x).max()) == pytest.approx(80 / 255, abs=1e-6)


def test_stripes_too_fine_for_the_image_are_refused() -> None:
    x = constant(0.5, size=12)  # sampled at its zeros only
    with pytest.raises(NotApplicable, match="wider than 12"):
        victims.backdoor("sig", f=6).stamp(x, draws(x))
    victims.backdoor("sig", f=5).stamp(x, draws(x))
