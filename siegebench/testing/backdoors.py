"""The contract of backdoor attacks and other poisoning, one function per clause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from siegebench import ops
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.testing.specimens import (
    CLASSES,
    Case,
    NotChecked,
    images,
    network,
    other_global_numbers,
    planted_set,
    require,
)
from siegebench.types import BackdoorAttack, Material, Poisoned

SHARE = 0.05  # 4 of the 80 images; a clean-label attack has 8 to choose from


def _poisoner(case: Case) -> Any:
    entry = case.quick
    changes = {"rate": SHARE} if hasattr(entry, "rate") else {}
    return replace(entry, **changes, **({"cover": SHARE} if getattr(entry, "cover", 0) else {}))


def _material(entry: Any, data: ImageSet) -> Material | None:
    """What the entry learns from a set, with a network of the specimens."""
    return entry.learn(data, 0, network()) if entry.learning() else None


def _poisoned(case: Case, data: ImageSet) -> Poisoned:
    entry = _poisoner(case)
    poisoned: Poisoned = entry.poison(data, 0, **entry.given(_material(entry, data)))
    return poisoned


def _stamp(case: Case, x: Tensor, draws: Draws) -> Tensor:
    """The trigger at test time, after learning from images of that size."""
    if not isinstance(case.entry, BackdoorAttack):
        raise NotChecked("it has no trigger")
    entry, size = _poisoner(case), x.shape[-1]
    if ("material", size) not in case.kept:
        case.kept["material", size] = _material(entry, planted_set(size=size))
    stamped: Tensor = entry.stamp(x, draws, case.data, material=case.kept["material", size])
    return stamped


def poisons_exactly_its_share(case: Case) -> None:
    data = planted_set()
    poisoned = case.kept["poisoned"] = _poisoned(case, data)
    index, cover = poisoned.index, poisoned.cover
    share = getattr(_poisoner(case), "rate", len(index) / 80)
    require(len(index) == round(80 * share), f"poisoned {len(index)} images, rate 0.05 of 80 is 4")
    for rows, what in ((index, "poisoned"), (cover, "cover")):
        require(torch.equal(rows, rows.unique()), f"the indices of the {what} images are not sorted or not unique")
    require(not bool(torch.isin(cover, index).any()), "a cover image is poisoned too")
    rest = torch.ones(80, dtype=torch.bool)
    rest[torch.cat([index, cover])] = False
    require(torch.equal(poisoned.data.images[rest], data.images[rest]), "changed an image that is not poisoned")
    rest[cover] = True
    require(torch.equal(poisoned.data.labels[rest], data.labels[rest]), "changed a label that is not poisoned")
    require(torch.equal(poisoned.data.ids, data.ids), "changed the ids")
    same = (poisoned.data.images == data.images).flatten(1).all(dim=1)
    if not isinstance(case.entry, BackdoorAttack):
        same &= poisoned.data.labels == data.labels
    for rows, what in ((index, "poisoned"), (cover, "cover")):
        require(not bool(same[rows].any()), f"{int(same[rows].sum())} of {len(rows)} {what} images are unchanged")


def labels_poisons_by_its_rule(case: Case) -> None:
    if not isinstance(case.entry, BackdoorAttack):
        raise NotChecked("it has no label map")
    data, poisoned, entry = planted_set(), case.kept["poisoned"], _poisoner(case)
    index = poisoned.index
    may = entry.poisoned_label(data.labels, CLASSES)
    wanted = entry.relabelled(data.labels, CLASSES, Draws(0, data.ids))
    require(torch.equal(wanted >= 0, may >= 0), "relabelled() and poisoned_label() allow other images to be poisoned")
    require(
        torch.equal(poisoned.data.labels[index], wanted[index]), "a poisoned image has another label than relabelled()"
    )
    if entry.keeps_labels():
        require(torch.equal(data.labels[index], wanted[index]), "declares clean_label, and changed a label")


def hands_over_the_whole_network(case: Case) -> None:
    handed = _poisoner(case).network(case.kept["poisoned"].material)
    if handed is None:
        return  # the user trains the network
    model = network()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in handed.items()}
    require(found == expected, "network() must return the state_dict of the surrogate that learn received")


def leaves_the_source_data_unchanged(case: Case) -> None:
    data = planted_set()
    _poisoned(case, data)
    fresh = planted_set()
    for name in ("images", "labels", "ids"):
        require(torch.equal(getattr(data, name), getattr(fresh, name)), f"changed the {name} of the source")


def stamps_any_size_in_range(case: Case) -> None:
    tried = 0
    for size in (8, 16, 32, 64):
        for dtype in (torch.float32, torch.float64):
            x = images(4, size)
            x = x.to(ops.precision(x, dtype))
            try:
                out = _stamp(case, x, Draws(0, torch.arange(4)))
            except NotApplicable:
                continue
            tried += size >= 32
            require(not torch.equal(out, x), f"the trigger changes nothing at {size}x{size}")
    require(tried, "does not support images of 32x32 or 64x64 pixels")


def does_not_depend_on_how_images_are_listed(case: Case) -> None:
    data, first = planted_set(), case.kept["poisoned"]
    order = Draws(8, data.ids).order("shuffle")
    with other_global_numbers(99):
        if case.entry.learning():  # sums over images are rounded in another order
            again = _poisoned(case, data)
            require(torch.equal(again.data.images, first.data.images), "the same set is poisoned differently twice")
        second = _poisoned(case, data.select(order))
    back = order.argsort()
    if case.entry.learning():
        require(torch.equal(order[second.index].sort().values, first.index), "a shuffled set has other poisons")
    else:
        require(torch.equal(second.data.images[back], first.data.images), "a shuffled set is poisoned differently")
    require(torch.equal(second.data.labels[back], first.data.labels), "a shuffled set is labelled differently")
    if not isinstance(case.entry, BackdoorAttack):
        return
    x, draws = images(), Draws(0, torch.arange(6))
    together = _stamp(case, x, draws)
    for i in range(6):
        alone = _stamp(case, x[i : i + 1], draws[i : i + 1])
        require(torch.allclose(alone[0], together[i], atol=1e-6), f"image {i} alone gets another trigger")


def refuses_targets_outside_the_classes(case: Case) -> None:
    if not isinstance(case.entry, BackdoorAttack):
        raise NotChecked("it has no target")
    try:
        replace(case.entry, target=CLASSES).check(CLASSES)
    except (ContractError, ConfigError):  # one that aims at no class refuses any
        return
    raise ContractError(f"check accepts the target {CLASSES} where the classes are 0..{CLASSES - 1}")


CLAUSES = (
    poisons_exactly_its_share,
    labels_poisons_by_its_rule,
    hands_over_the_whole_network,
    leaves_the_source_data_unchanged,
    stamps_any_size_in_range,
    does_not_depend_on_how_images_are_listed,
    refuses_targets_outside_the_classes,
)
