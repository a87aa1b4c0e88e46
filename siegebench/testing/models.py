"""The contract of models, one function per clause."""

from __future__ import annotations

import copy

import torch

from siegebench.errors import ModelError
from siegebench.testing.specimens import (
    Case,
    NotChecked,
    doubled,
    images,
    input_gradient,
    other_global_numbers,
    require,
    size_of,
    state_of,
)


def builds_a_classifier(case: Case) -> None:
    for classes, size in ((10, 32), (1000, 224)):  # published weights fix both
        try:
            model = case.entry.built(classes, size_of(images(1, size)), case.data.channels)
        except ModelError as error:
            if not case.entry.pretrained():
                raise
            reason = f"weights not available or for other images: {error}"
            continue
        case.kept.update(model=model, classes=classes, x=images(3, size))
        break
    else:
        raise NotChecked(reason)
    require(not any(m.training for m in model.modules()), "the model is not in eval mode")
    require(model.num_classes == classes, f"num_classes is {model.num_classes}, expected {classes}")
    with torch.no_grad():
        z = case.kept["z"] = model(case.kept["x"])
    require(z.shape == (3, classes), f"logits {tuple(z.shape)} for 3 images and {classes} classes")
    require(torch.isfinite(z).all(), "logits are not finite")


def answers_for_an_image_alone_as_in_a_batch(case: Case) -> None:
    model, x = copy.deepcopy(case.kept["model"]).double(), doubled(case.kept["x"])
    with torch.no_grad():
        z = model(x)
        for i in range(len(x)):
            require(torch.allclose(model(x[i : i + 1])[0], z[i], rtol=1e-6, atol=1e-8), f"image {i}: other logits")


def lets_gradients_reach_the_image(case: Case) -> None:
    input_gradient(case.kept["model"], case.kept["x"], "the model", case.kept["model"])


def gives_features_of_each_image(case: Case) -> None:
    with torch.no_grad():
        h = case.kept["model"].features(case.kept["x"])
    require(h.dim() == 2 and len(h) == 3, f"features {tuple(h.shape)}, expected [3, d]")
    require(torch.isfinite(h).all(), "features are not finite")


def builds_anew_from_a_seed(case: Case) -> None:
    model = case.kept["model"]
    before = state_of(model)
    with other_global_numbers(99):
        one = model.fresh(1).state_dict()
    same, other, old = model.fresh(1).state_dict(), model.fresh(2).state_dict(), model.state_dict()
    require(state_of(model) == before, "fresh changed the model")
    shapes = {k: v.shape for k, v in old.items()}
    require({k: v.shape for k, v in one.items()} == shapes, "fresh gives tensors of other names or shapes")
    require(all(torch.equal(one[k], same[k]) for k in one), "fresh(1) twice gives different weights")
    require(any(not torch.equal(one[k], other[k]) for k in one), "fresh(1) and fresh(2) give the same weights")
    parameters = {p.data_ptr() for p in model.parameters()}
    require(not parameters & {v.data_ptr() for v in one.values()}, "fresh shares memory with the model")


CLAUSES = (
    builds_a_classifier,
    answers_for_an_image_alone_as_in_a_batch,
    lets_gradients_reach_the_image,
    gives_features_of_each_image,
    builds_anew_from_a_seed,
)
