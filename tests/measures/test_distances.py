"""Distances to the boundary against the closed form of a linear model."""

from __future__ import annotations

import pytest
import torch
from siegebench.measures.distances import Distances

from siegebench import ops
from siegebench.errors import ConfigError, NotApplicable
from siegebench.threat import Norm
from tests import kit

from .planted import DUAL, affine, built, measured, two_classes


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_a_linear_model_are_margin_over_dual_norm(norm: Norm) -> None:
    model, x, y, way = two_classes()
    exact = (ops.margin(model(x), y).abs() / way.norm(p=DUAL[norm])).sort().values
    assert float((x.amin(), 1 - x.amax())[0]) > 0.05  # the box is out of reach, the closed form holds
    eps = [float(exact[4]) * 1.1, float(exact[12]) * 1.1]
    got, _ = measured(built("distances", eps=eps), model, x, y, norm)
    for share, place in ((5, 0), (25, 4), (50, 9), (75, 14), (95, 18)):  # of 20 images
        assert got[f"distance_q{share:02d}"] == pytest.approx(float(exact[place]), rel=0.03)
    assert got["not_found"] == 0
    for radius in eps:
        assert got[f"held@{radius:.6g}"] == pytest.approx(float((exact > radius).double().mean()))


def test_distances_without_an_answer_are_left_out_and_held() -> None:
    x = kit.grey_images(8)
    model = affine(torch.zeros(3, 192), torch.tensor([1.0, 0.0, 0.0]))
    got, _ = measured(built("distances"), model, x, torch.zeros(8, dtype=torch.long))
    assert got["not_found"] == 1
    assert not [k for k in got if k.startswith("distance")]
    assert {v for k, v in got.items() if k.startswith("held@")} == {1.0}
    assert [k for k in got if k.startswith("held@")] == [f"held@{t * 0.2:.6g}" for t in (0.25, 0.5, 1, 2, 4)]


def test_distances_are_judged_by_a_fresh_look() -> None:
    class Boasts(type(built("distances").attack)):  # type: ignore[misc]
        def run(self, oracle, x, y, threat, draws):
            return x + 1e-4

    model, x, y, _ = two_classes()
    assert measured(Distances(attack=Boasts()), model, x, y)[0]["not_found"] == 1


@pytest.mark.parametrize("name", ["distances", "boundary_tilting"])
def test_only_attacks_that_minimise_have_distances(name: str) -> None:
    with pytest.raises(ConfigError, match="'pgd' works within an eps; expected a minimum-norm attack"):
        built(name, attack="pgd")
    model, x, y, _ = two_classes()
    if name == "distances":
        with pytest.raises(NotApplicable, match="handles l2, linf, not l1"):
            measured(built("distances.label_only"), model, x, y, "l1")
