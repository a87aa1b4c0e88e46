"""Abstention: on linear networks, where it is known which images can be made to abstain."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.testing.certifiers import linear
from siegebench.testing.specimens import NEAREST
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Measure

FAR = NEAREST["l2"]


def measured(norm: Norm, eps: float, **parameters: object) -> dict[str, float]:
    model, x, y = linear(norm)
    threat, draws = ThreatModel(norm=norm, eps=eps), Draws(0, torch.arange(len(x)))
    entry = registry.build(Measure, {"name": "abstention", **parameters})
    found: dict[str, float] = entry(Oracle(model, threat, draws), x, y, threat, draws)["metrics"]
    return found


@pytest.mark.parametrize(("factor", "abstained"), [(0.6, 0.0), (1.0, 1.0), (1.6, 1.0)])
def test_smoothing_abstains_on_images_that_reach_the_plane(factor: float, abstained: float) -> None:
    """400 samples decide from 0.2 sigma on; an attack for a wrong answer would go on beyond the plane."""
    found = measured("l2", factor * FAR, certifier={"name": "randomized_smoothing", "sigma": FAR, "n": 400})
    assert found["abstained_clean"] == 0
    assert abs(found["abstained"] - abstained) <= 1 / 8
    assert found["answered_wrong"] == 0
    assert found["certified_clean"] == (factor < 0.9)
    assert found["certified"] == 0  # at 0.4 of the distance nothing is certified at 0.6 of it


@pytest.mark.parametrize(("factor", "certified"), [(0.4, 1.0), (0.6, 0.0)])
def test_proofs_are_lost_from_half_of_the_distance_on(factor: float, certified: float) -> None:
    found = measured("linf", factor * NEAREST["linf"], certifier="ibp")
    assert found["certified_clean"] == 1
    assert found["certified"] == certified
    assert found["abstained"] == found["answered_wrong"] == 0  # the answer stays, without a proof


def test_the_gap_is_as_small_as_the_ball_allows() -> None:
    model, x, y = linear("l2")
    threat, draws = ThreatModel(norm="l2", eps=0.4 * FAR), Draws(0, torch.arange(len(x)))
    entry = registry.build(Measure, {"name": "abstention", "certifier": "crown"})
    found = entry.unsure(Oracle(model, threat, draws), x, threat)  # type: ignore[attr-defined]
    torch.testing.assert_close(threat.size(found, x), torch.full((8,), 0.4 * FAR, dtype=x.dtype))

    def gap(at: torch.Tensor) -> torch.Tensor:
        z = model(at)
        return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).amax(dim=1)

    torch.testing.assert_close(gap(found), 0.6 * gap(x))  # the gap of a linear network falls with the distance


def test_a_norm_that_is_not_certified_is_refused() -> None:
    with pytest.raises(NotApplicable, match="the threat is"):
        measured("linf", 0.1, certifier="lipschitz_margin")
