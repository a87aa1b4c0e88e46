"""What models, datasets and cards owe, one function a clause (see clauses_evasion)."""

from __future__ import annotations

import copy

import torch

from siegebench import registry
from siegebench.cells import canonical
from siegebench.errors import ContractError, DataError, ModelError
from siegebench.specimens import Case, NotChecked, images, input_gradient, other_global_numbers, require, state_of

# --------------------------------------------------------------------------------------------------------------- models


def builds_a_classifier(case: Case) -> None:
    for classes, size in ((10, 32), (1000, 224)):  # published weights fix both
        try:
            model = case.entry.build(num_classes=classes, size=size)
        except ModelError as error:
            if not case.entry.pretrained():
                raise
            reason = f"weights not at hand or for other images: {error}"
            continue
        case.kept.update(model=model, classes=classes, x=images(3, size))
        break
    else:
        raise NotChecked(reason)
    require(not any(m.training for m in model.modules()), "the model is not in eval mode")
    require(model.num_classes == classes, f"num_classes is {model.num_classes}, asked for {classes}")
    with torch.no_grad():
        z = case.kept["z"] = model(case.kept["x"])
    require(z.shape == (3, classes), f"logits {tuple(z.shape)} for 3 images and {classes} classes")
    require(torch.isfinite(z).all(), "logits are not finite")


def answers_for_an_image_alone_as_in_a_batch(case: Case) -> None:
    model, x = copy.deepcopy(case.kept["model"]).double(), case.kept["x"].double()
    with torch.no_grad():
        z = model(x)
        for i in range(len(x)):
            require(torch.allclose(model(x[i : i + 1])[0], z[i], rtol=1e-6, atol=1e-8), f"image {i}: other logits")


def lets_gradients_reach_the_image(case: Case) -> None:
    input_gradient(case.kept["model"], case.kept["x"], "the model")


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


# ------------------------------------------------------------------------------------------------------------- datasets


def loads_both_splits(case: Case) -> None:
    for split in ("train", "test"):
        try:
            data = case.kept[split] = case.entry.load(split)
        except DataError as error:
            raise NotChecked(f"images not at hand: {error}") from None
        require(data.images.dtype == torch.uint8, f"{split}: images are {data.images.dtype}")  # the rest by ImageSet
        require(len(data.ids.unique()) == len(data), f"{split}: ids are not unique")
        counts = data.labels.bincount(minlength=data.num_classes)
        require(counts.min() > 0, f"{split}: class {int(counts.argmin())} has no image")
    require(case.kept["train"].num_classes == case.kept["test"].num_classes, "the splits differ in num_classes")


def loads_the_same_images_again(case: Case) -> None:
    for split in ("train", "test"):
        again = case.entry.load(split)
        require(again.digest == case.kept[split].digest, f"{split}: a second load has another digest")


def keeps_test_images_out_of_the_training_set(case: Case) -> None:
    seen = {row.tobytes() for row in case.kept["train"].images.numpy()}
    shared = sum(row.tobytes() in seen for row in case.kept["test"].images.numpy())
    most = len(case.kept["test"]) // 1000  # published sets are not free of duplicates
    require(shared <= most, f"{shared} of {len(case.kept['test'])} test images are in the training set bit by bit")


def refuses_an_unknown_split(case: Case) -> None:
    try:
        case.entry.load("no_such_split")
    except DataError:
        return
    raise ContractError("load('no_such_split') must raise DataError")


# -------------------------------------------------------------------------------------------------- entries with a card


def is_rebuilt_from_its_description(case: Case) -> None:
    description = registry.describe(case.kind, case.spec)
    canonical(description)  # plain data, no NaN
    again = registry._describe(case.kind, registry.rebuild(case.kind, description))
    require(again == description, f"describes itself as {description}, is rebuilt as {again}")


def has_presets_that_can_be_built(case: Case) -> None:
    assert case.spec is not None
    found, _ = registry.find(case.kind, case.spec["name"])
    if case.spec["name"] == found.name:
        for preset in found.card.presets:
            registry.build(case.kind, {**case.spec, "name": f"{found.name}.{preset}"})


MODEL = (
    builds_a_classifier,
    answers_for_an_image_alone_as_in_a_batch,
    lets_gradients_reach_the_image,
    gives_features_of_each_image,
    builds_anew_from_a_seed,
)
DATASET = (
    loads_both_splits,
    loads_the_same_images_again,
    keeps_test_images_out_of_the_training_set,
    refuses_an_unknown_split,
)
REGISTERED = (is_rebuilt_from_its_description, has_presets_that_can_be_built)
