"""The contract of object detectors, one function per clause."""

from __future__ import annotations

import copy

import torch

from siegebench import ops
from siegebench.errors import ModelError
from siegebench.object_detector import ObjectDetector, logits, noting
from siegebench.testing.specimens import Case, NotChecked, images, require, state_of

SIDE = 64


def builds_an_object_detector(case: Case) -> None:
    try:
        model = case.entry.build(num_classes=2, size=SIDE)
    except ModelError as error:
        if not case.entry.pretrained():
            raise
        raise NotChecked(f"weights not available: {error}") from None
    require(isinstance(model, ObjectDetector), f"build returns a {type(model).__name__}, no ObjectDetector")
    require(not any(m.training for m in model.modules()), "the detector is not in eval mode")
    case.kept.update(model=model, x=images(3, SIDE))


def finds_boxes_with_scores(case: Case) -> None:
    for height, width in ((SIDE, SIDE), (SIDE + 13, 2 * SIDE)):
        x = images(3, max(height, width))[:, :, :height, :width]
        with torch.no_grad():
            found = case.kept["model"].find(x)
        n, k = found.scores.shape
        require(n == 3 and found.boxes.shape == (3, k, 4), f"boxes {tuple(found.boxes.shape)}, scores {(n, k)}")
        require(found.boxes.isfinite().all() and found.scores.isfinite().all(), "boxes or scores are not finite")
        require(((found.scores >= 0) & (found.scores <= 1)).all(), "scores are not in [0, 1]")
        sides = found.boxes[..., 2:] - found.boxes[..., :2]
        require((sides >= 0).all(), "boxes are not left, top, right, bottom")


def answers_by_the_best_box(case: Case) -> None:
    model, x = case.kept["model"], case.kept["x"]
    before = state_of(model)
    with torch.no_grad(), noting(model) as notes:
        z = model(x)
    require(len(notes) == 1, f"one pass calls find {len(notes)} times")
    require(torch.equal(z, logits(notes[0].best)), "the logits are not those of the best score")
    require(state_of(model) == before, "a pass changes the detector")


def answers_for_an_image_alone_as_in_a_batch(case: Case) -> None:
    model, x = copy.deepcopy(case.kept["model"]).double(), case.kept["x"].double()
    with torch.no_grad():
        z = model(x)
        for i in range(len(x)):
            require(torch.allclose(model(x[i : i + 1])[0], z[i], rtol=1e-6, atol=1e-8), f"image {i}: other logits")


def lets_gradients_reach_the_image(case: Case) -> None:
    leaf = case.kept["x"].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(case.kept["model"].find(leaf).best.sum(), leaf, allow_unused=True)
    require(gradient is not None, "no gradient of the scores reaches the image")
    require(torch.isfinite(gradient).all(), "the gradient of the scores is not finite")
    zero = int((ops.size(gradient, "linf") == 0).sum())
    require(zero == 0, f"the gradient of the best score is zero for {zero} of {len(leaf)} images")


def builds_anew_from_a_seed(case: Case) -> None:
    model = case.kept["model"]
    if case.entry.pretrained():
        return
    one, same, other = (model.fresh(seed).state_dict() for seed in (1, 1, 2))
    require(all(torch.equal(one[k], same[k]) for k in one), "fresh(1) twice gives different weights")
    require(any(not torch.equal(one[k], other[k]) for k in one), "fresh(1) and fresh(2) give the same weights")


CLAUSES = (
    builds_an_object_detector,
    finds_boxes_with_scores,
    answers_by_the_best_box,
    answers_for_an_image_alone_as_in_a_batch,
    lets_gradients_reach_the_image,
    builds_anew_from_a_seed,
)
