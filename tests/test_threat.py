"""Threat models: numbers as they are written, budgets out of range, images that are feasible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siegebench.cells import eps_text
from siegebench.errors import ConfigError
from siegebench.threat import TOLERANCE, ThreatModel, parse_number

from .properties import SHAPE, normal, norms, quick, seeds


@quick
@given(seed=seeds, norm=norms, eps=st.floats(1e-3, 5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_projected_images_are_feasible(seed: int, norm: str, eps: float, dtype: torch.dtype) -> None:
    x = normal(seed, 4, *SHAPE).sigmoid().to(dtype)
    x[0], x[1] = x[0].round(), 0.0  # corners of the box
    threat = ThreatModel(norm=norm, eps=min(eps, 1.0) if norm == "linf" else eps)
    out = threat.project(x + 3 * normal(seed + 1, 4, *SHAPE).to(dtype), x)
    assert out.dtype == dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert (threat.size(out, x) <= threat.eps + TOLERANCE * max(1.0, threat.eps)).all()
    assert torch.equal(threat.project(x, x), x)


@given(st.integers(1, 509).filter(lambda halves: halves != 255))  # 1/2 is written as such: an L2 budget
@quick
def test_eps_reads_as_a_fraction_and_back(halves: int) -> None:
    text = eps_text(halves / 510)
    assert text.endswith("/255")
    grey = float(text.removesuffix("/255"))
    assert grey == halves / 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 1 / 2 ", 0.5), ("0.1", 0.1), (3, 3.0), ("1e-3", 1e-3), ("0.5/255", 0.5 / 255)],
)
def test_numbers_are_read(text: Any, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", [True, None, "eight", "1/0", "", [1], "nan/2", "8/", "1/2/3", "1e999999999"])
def test_what_is_no_number_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        parse_number(text)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -0.1, 1.1])
def test_eps_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        ThreatModel(norm="linf", eps=eps)
