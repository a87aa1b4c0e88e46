"""The contract of backdoor attacks, one function per clause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.testing.specimens import (
    CLASSES,
    Case,
    images,
    other_global_numbers,
    planted_set,
    require,
)


def _poisoner(case: Case) -> Any:
    return replace(case.quick, rate=0.05)  # 4 of the 80 images; a clean-label attack has 8 to choose from


def poisons_exactly_its_share(case: Case) -> None:
    data = planted_set()
    poisoned = case.kept["poisoned"] = _poisoner(case).poison(data, 0)
    index = poisoned.index
    require(len(index) == 4, f"poisoned {len(index)} images, rate 0.05 of 80 is 4")
    require(torch.equal(index, index.unique()), "the indices of the poisoned images are not sorted or not unique")
    rest = torch.ones(80, dtype=torch.bool)
    rest[index] = False
    require(torch.equal(poisoned.data.images[rest], data.images[rest]), "changed an image that is not poisoned")
    require(torch.equal(poisoned.data.labels[rest], data.labels[rest]), "changed a label that is not poisoned")
    require(torch.equal(poisoned.data.ids, data.ids), "changed the ids")
    same = (poisoned.data.images[index] == data.images[index]).flatten(1).all(dim=1).sum()
    require(same == 0, f"{int(same)} of 4 poisoned images are unchanged")


def labels_poisons_by_its_rule(case: Case) -> None:
    data, poisoned, entry = planted_set(), case.kept["poisoned"], _poisoner(case)
    index = poisoned.index
    wanted = entry.wanted(data.labels, CLASSES)[index]
    require(torch.equal(poisoned.data.labels[index], wanted), "a poisoned image has another label than wanted()")
    if entry.clean_label:
        require(torch.equal(data.labels[index], wanted), "declares clean_label, and changed a label")


def leaves_the_source_data_unchanged(case: Case) -> None:
    data = planted_set()
    _poisoner(case).poison(data, 0)
    fresh = planted_set()
    for name in ("images", "labels", "ids"):
        require(torch.equal(getattr(data, name), getattr(fresh, name)), f"changed the {name} of the source")


def stamps_any_size_in_range(case: Case) -> None:
    tried = 0
    for size in (8, 16, 32, 64):
        for dtype in (torch.float32, torch.float64):
            x = images(4, size).to(dtype)
            try:
                out = case.entry.stamp(x, Draws(0, torch.arange(4)))
            except NotApplicable:
                continue
            tried += size >= 32
            require(not torch.equal(out, x), f"the trigger changes nothing at {size}x{size}")
    require(tried, "does not support images of 32x32 or 64x64 pixels")


def does_not_depend_on_how_images_are_listed(case: Case) -> None:
    data, first = planted_set(), case.kept["poisoned"]
    order = Draws(8, data.ids).order("shuffle")
    with other_global_numbers(99):
        second = _poisoner(case).poison(data.select(order), 0)
    back = order.argsort()
    require(torch.equal(second.data.images[back], first.data.images), "a shuffled set is poisoned differently")
    require(torch.equal(second.data.labels[back], first.data.labels), "a shuffled set is labelled differently")
    x, draws = images(), Draws(0, torch.arange(6))
    together = case.entry.stamp(x, draws)
    for i in range(6):
        alone = case.entry.stamp(x[i : i + 1], draws[i : i + 1])
        require(torch.allclose(alone[0], together[i], atol=1e-6), f"image {i} alone gets another trigger")


def refuses_targets_outside_the_classes(case: Case) -> None:
    try:
        replace(case.entry, target=CLASSES).check(CLASSES)
    except ContractError:
        return
    raise ContractError(f"check accepts the target {CLASSES} where the classes are 0..{CLASSES - 1}")


CLAUSES = (
    poisons_exactly_its_share,
    labels_poisons_by_its_rule,
    leaves_the_source_data_unchanged,
    stamps_any_size_in_range,
    does_not_depend_on_how_images_are_listed,
    refuses_targets_outside_the_classes,
)
