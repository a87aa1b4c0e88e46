"""What backdoor attacks and detectors owe, one function a clause (see clauses_evasion)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.specimens import (
    CLASSES,
    Case,
    images,
    network,
    one_draw,
    other_global_numbers,
    planted_set,
    require,
    state_of,
)
from siegebench.types import DatasetDetector, InputDetector, Verdict

# ------------------------------------------------------------------------------------------------------------ backdoors


def _poisoner(case: Case) -> Any:
    return replace(case.quick, rate=0.05)  # 4 of the 80 images; a clean-label attack has 8 to choose from


def poisons_exactly_its_share(case: Case) -> None:
    data = planted_set()
    poisoned = case.kept["poisoned"] = _poisoner(case).poison(data, 0)
    index = poisoned.index
    require(len(index) == 4, f"poisoned {len(index)} images, rate 0.05 of 80 is 4")
    require(torch.equal(index, index.unique()), "the poisoned places are not sorted or not unique")
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
    require(tried, "refuses images of 32x32 and of 64x64 pixels")


def does_not_depend_on_how_images_are_listed(case: Case) -> None:
    data, first = planted_set(), case.kept["poisoned"]
    order = Draws(8, data.ids).order("shuffle")
    with other_global_numbers(99):
        second = _poisoner(case).poison(data.select(order), 0)
    back = order.argsort()
    require(torch.equal(second.data.images[back], first.data.images), "a shuffled set is poisoned otherwise")
    require(torch.equal(second.data.labels[back], first.data.labels), "a shuffled set is labelled otherwise")
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


# ------------------------------------------------------------------------------------------------------------ detectors


def _scores(case: Case, model: Classifier) -> tuple[Tensor, int]:
    """(scores, how many there should be)"""
    detector, granted = case.quick, case.granted()
    if isinstance(detector, InputDetector):
        scorer = detector.fit(model, granted, one_draw())
        case.kept["scorer"] = scorer
        return scorer(images(12), Draws(1, torch.arange(12))), 12
    if isinstance(detector, DatasetDetector):
        return detector.score(model, granted, one_draw()), len(planted_set())
    verdict = case.kept["verdict"] = detector.judge(model, granted, one_draw())
    return torch.tensor([verdict.score]), 1


def gives_finite_scores_from_the_data_its_card_declares(case: Case) -> None:
    scores, n = _scores(case, network())
    case.kept["scores"] = scores
    require(scores.shape == (n,), f"scores {tuple(scores.shape)}, expected ({n},)")
    require(torch.isfinite(scores).all(), f"{int((~torch.isfinite(scores)).sum())} of {n} scores are not finite")
    require(not scores.requires_grad, "the scores carry a gradient graph; detach them")


def scores_the_same_for_the_same_draws(case: Case) -> None:
    kept, scorer = case.kept["scores"], case.kept.get("scorer")
    with other_global_numbers(99):
        again, _ = _scores(case, network())
    require(torch.equal(again, kept), "a second run gave other scores")
    case.kept["scorer"] = scorer


def leaves_the_judged_model_as_found(case: Case) -> None:
    model = network()
    before = state_of(model)
    _scores(case, model)
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


def scores_an_input_alone_as_in_a_batch(case: Case) -> None:
    if not isinstance(case.entry, InputDetector):
        return
    scorer, x, draws = case.kept["scorer"], images(12), Draws(1, torch.arange(12))
    for i in (0, 5, 11):
        alone = scorer(x[i : i + 1], draws[i : i + 1])
        require(
            torch.allclose(alone, case.kept["scores"][i : i + 1], rtol=1e-3, atol=1e-4),
            f"input {i} alone scores {float(alone):.4g}, in the batch {float(case.kept['scores'][i]):.4g}",
        )


def gives_a_well_formed_verdict(case: Case) -> None:
    verdict = case.kept.get("verdict")
    if verdict is None:
        return
    require(isinstance(verdict, Verdict), f"judge returned {type(verdict).__name__}, expected a Verdict")
    require(type(verdict.score) is float, f"score is {type(verdict.score).__name__}, expected float")
    require(type(verdict.backdoored) is bool, f"backdoored is {type(verdict.backdoored).__name__}, expected bool")
    bad = [t for t in verdict.targets if not 0 <= t < CLASSES]
    require(not bad, f"target {bad[:1]} is not a class")


BACKDOOR = (
    poisons_exactly_its_share,
    labels_poisons_by_its_rule,
    leaves_the_source_data_unchanged,
    stamps_any_size_in_range,
    does_not_depend_on_how_images_are_listed,
    refuses_targets_outside_the_classes,
)
DETECTOR = (
    gives_finite_scores_from_the_data_its_card_declares,
    scores_the_same_for_the_same_draws,
    leaves_the_judged_model_as_found,
    scores_an_input_alone_as_in_a_batch,
    gives_a_well_formed_verdict,
)
