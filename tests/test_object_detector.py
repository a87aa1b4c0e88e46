"""Object detectors: as classifiers, through defenses, and the figures of their boxes in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import ModelCard, Wrapped, copied
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.object_detector import (
    Found,
    ObjectDetector,
    average_precision,
    detector_in,
    find,
    iou,
    kept,
    logits,
    matched,
    noting,
)
from siegebench.types import Defense
from tests import kit


class Bright(ObjectDetector):
    """Finds the left and the right half of an image, with their mean brightness as score."""

    card = ModelCard("bright")

    def find(self, x: Tensor) -> Found:
        height, width = x.shape[2:]
        middle = width / 2
        boxes = x.new_tensor([[0, 0, middle, height], [middle, 0, width, height]]).expand(len(x), 2, 4)
        return Found(boxes, x.unflatten(3, (2, -1)).mean(dim=(1, 2, 4)))


class Twice(Wrapped):
    """Calls its model on the images and their mirror images."""

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        both: Tensor = self.inner(x) + self.inner(x.flip(3))
        return both


def boxes(*corners: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(corners, dtype=torch.float32)


# ------------------------------------------------------------------------------------------------------ as a classifier


def test_the_best_box_is_the_answer() -> None:
    x = torch.zeros(3, 3, 4, 8)
    x[1, ..., 4:], x[2] = 0.8, 0.3
    z = Bright()(x)
    assert z.argmax(dim=1).tolist() == [0, 1, 0]
    torch.testing.assert_close(z.softmax(dim=1)[:, 1], torch.tensor([0.0, 0.8, 0.3]), atol=2e-6, rtol=0)


def test_logits_are_finite_and_have_gradients_at_both_ends() -> None:
    score = torch.tensor([0.0, 1e-7, 0.5, 1.0], requires_grad=True)
    z = logits(score)
    (gradient,) = torch.autograd.grad(z[:, 1].sum(), score)
    assert z.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient > 0).all()
    assert z[2].tolist() == [0.0, 0.0]


def test_images_without_boxes_have_no_vehicle() -> None:
    nothing = Found(torch.zeros(2, 0, 4), torch.zeros(2, 0))
    assert nothing.best.tolist() == [0.0, 0.0]
    assert logits(nothing.best).argmax(dim=1).tolist() == [0, 0]
    assert kept(nothing).scores.shape == (2, 0)
    assert matched(nothing, boxes((0, 0, 1, 1), (0, 0, 1, 1))).tolist() == [0.0, 0.0]


def test_an_attack_on_classifiers_hides_what_the_detector_finds() -> None:
    x, bright = torch.full((2, 3, 4, 8), 0.51, requires_grad=True), Bright()
    z = bright(x)
    (gradient,) = torch.autograd.grad(ops.margin(z, torch.ones(2, dtype=torch.long)).sum(), x)
    assert bright((x + 4 / 255 * gradient.sign()).detach()).argmax(dim=1).tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------- through a defense


@pytest.mark.parametrize("name", ["none", "jpeg", "bit_depth", "median_filter", "rnd"])
def test_boxes_are_noted_through_a_defense(name: str) -> None:
    x = kit.grey_images().clamp(0.2, 0.8).requires_grad_(True)
    defended = copied(registry.build(Defense, name).wrap(Bright()))
    draws = Draws(0, torch.arange(len(x)))
    with noting(defended) as notes:
        z = defended.backward_model(x, draws)
    assert [len(found) for found in notes] == [len(x)]
    assert torch.equal(z.argmax(dim=1), (notes[0].best > 0.5).long())
    (gradient,) = torch.autograd.grad(notes[0].scores.sum(), x)
    assert gradient.abs().amax() > 0
    found = find(defended, x, draws, backward=True)
    assert torch.equal(found.scores, notes[0].scores)


def test_nothing_is_noted_outside() -> None:
    bright, x = Bright(), torch.rand(2, 3, 4, 4)
    with noting(bright) as outer:
        bright(x)
        with noting(bright) as inner:
            bright(x)
        bright(x)
    bright(x)
    assert (len(outer), len(inner)) == (3, 1)


def test_boxes_of_several_passes_are_refused() -> None:
    with pytest.raises(NotApplicable, match="calls the detector on 2, 2 images for 2"):
        find(Twice(Bright()), torch.rand(2, 3, 4, 4))
    with pytest.raises(NotApplicable, match="contains 0 object detectors"):
        detector_in(kit.linear_model())


# -------------------------------------------------------------------------------------------------------------- boxes


def test_iou_in_closed_form() -> None:
    one = boxes((0, 0, 2, 2))
    many = boxes((0, 0, 2, 2), (1, 0, 3, 2), (2, 0, 4, 2), (0, 0, 1, 1), (0, 0, 0, 0), (-9, -9, 9, 9))
    expected = torch.tensor([[1, 1 / 3, 0, 1 / 4, 0, 4 / 324]])
    torch.testing.assert_close(iou(one, many), expected)
    torch.testing.assert_close(iou(many, one), expected.T)
    torch.testing.assert_close(iou(one[None, :1], many[None]), expected[None])  # of several images
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    corners = boxes((0, 0, 10, 10), (1, 0, 11, 10), (20, 0, 30, 10), (0, 0, 10, 10), (40, 0, 50, 10))
    found = Found(
        torch.stack([corners, corners]), torch.tensor([[0.5, 0.9, 0.7, 0.8, 1e-5], [0.9, 0.5, 0.0, 0.8, 0.0]])
    )
    after = kept(found)
    torch.testing.assert_close(after.scores, torch.tensor([[0.9, 0.7], [0.9, 0.0]]))
    torch.testing.assert_close(after.boxes[0], corners[[1, 2]])
    assert kept(found, most=1).scores.shape == (2, 1)
    assert kept(found, overlap=0.99, least=0).scores[0].tolist() == pytest.approx([0.9, 0.8, 0.7, 1e-5])


def test_joined_and_selected() -> None:
    one = Found(torch.rand(2, 1, 4), torch.rand(2, 1))
    two = Found(torch.rand(1, 3, 4), torch.rand(1, 3))
    both = Found.join([one, two])
    assert both.boxes.shape == (3, 3, 4)
    assert both.scores[0, 1:].tolist() == [0, 0]
    assert torch.equal(both[2:].scores, two.scores)
    assert torch.equal(both.best, torch.cat([one.best, two.best]))


def test_matched_is_the_best_score_of_a_right_box() -> None:
    found = Found(
        boxes((0, 0, 10, 10), (0, 0, 10, 7), (50, 0, 60, 10)).expand(2, 3, 4),
        torch.tensor([[0.3, 0.6, 0.9], [0.3, 0.2, 0.9]], requires_grad=True),
    )
    truth = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    assert matched(found, truth).tolist() == pytest.approx([0.6, 0.3])
    assert matched(found, truth, overlap=0.75).tolist() == pytest.approx([0.3, 0.3])
    assert matched(found, truth).requires_grad


HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)


def found_in(*images: list[tuple[tuple[float, float, float, float], float]]) -> Found:
    """Boxes and scores of each image."""
    parts = [Found(torch.tensor([[b for b, _ in image]]), torch.tensor([[s for _, s in image]])) for image in images]
    return Found.join(parts)


def test_average_precision_in_closed_form() -> None:
    truth = boxes(HERE, HERE, (0, 0, 0, 0))
    right = found_in([(HERE, 0.9)], [(HERE, 0.8)], [(HERE, 0.1)])
    assert average_precision(right, truth) == 1.0  # the false box comes last
    # right, wrong, right: precision 1 up to recall 1/2, then 2/3
    assert average_precision(found_in([(HERE, 0.9)], [(HERE, 0.5)], [(HERE, 0.7)]), truth) == pytest.approx(
        1 / 2 + 1 / 3
    )
    # wrong, right, right: the envelope is 2/3 everywhere
    assert average_precision(found_in([(HERE, 0.5)], [(HERE, 0.4)], [(HERE, 0.7)]), truth) == pytest.approx(2 / 3)
    # one of two is found
    assert average_precision(found_in([(HERE, 0.9)], [(THERE, 0.2)], [(HERE, 0.1)]), truth) == 0.5
    assert average_precision(found_in([(THERE, 0.9)], [(THERE, 0.2)], [(HERE, 0.1)]), truth) == 0.0


def test_a_second_box_on_the_same_vehicle_is_wrong() -> None:
    twice = found_in([(HERE, 0.9), (HERE, 0.8)], [(HERE, 0.7)])
    assert average_precision(twice, boxes(HERE, HERE)) == pytest.approx(1 / 2 + 1 / 3)
    several = torch.tensor([[HERE, THERE]])
    assert average_precision(found_in([(HERE, 0.9), (THERE, 0.8)]), several) == 1.0


def test_average_precision_of_nothing() -> None:
    nothing = Found(torch.zeros(2, 0, 4), torch.zeros(2, 0))
    assert average_precision(nothing, boxes(HERE, HERE)) == 0.0
    assert math.isnan(average_precision(found_in([(HERE, 0.9)]), torch.zeros(1, 4)))


def test_average_precision_depends_on_the_order_of_scores_only() -> None:
    draws = Draws(0, torch.arange(40))
    corner = draws.uniform((6, 2), purpose="corner") * 4
    found = Found(torch.cat([corner, corner + 10], dim=2), draws.uniform((6,), purpose="score"))
    truth = boxes(HERE).expand(40, 4)
    value = average_precision(found, truth)
    assert 0 < value < 1
    assert average_precision(Found(found.boxes, found.scores**3), truth) == pytest.approx(value)
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert average_precision(found[mixed], truth[mixed]) == pytest.approx(value)
