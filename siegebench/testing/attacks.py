"""The contract of attacks, one function per clause.

A clause takes a Case and raises ContractError with what it found. The other clauses of a kind depend on the first one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.testing.specimens import (
    EPS,
    NEAREST,
    Case,
    four_classes,
    halfspace,
    lesson_of,
    other_global_numbers,
    planted_set,
    require,
    state_of,
    victim,
)
from siegebench.threat import ACCESSES, NORMS, TOLERANCE, Norm, ThreatModel
from siegebench.weights import weights_hash

# an attack must succeed at the smallest distance times this factor
WITHIN = {"gradient": 1.5, "score": 4.0, "label": 4.0, "none": 4.0}
ROOT: dict[Norm, float] = {"linf": 0.0, "l2": 0.5, "l1": 1.0, "l0": 0.0}  # half the cube: eps = d^root / 2
QUERIES = 37  # an unusual budget, to which no attack is tuned


def _threat(case: Case, norm: Norm, eps: float | None = None, queries: int | None = None) -> ThreatModel:
    eps = EPS[norm] if eps is None else eps
    return ThreatModel(norm=norm, eps=eps, access=case.entry.access(), queries=queries)


def _attack(
    case: Case,
    attack: Any,
    model: Classifier,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    ids: Tensor | None = None,
    goal: Tensor | None = None,
    start: Tensor | None = None,
    anew: bool = False,
    most: int | None = None,
) -> tuple[Tensor, Oracle]:
    """(images, oracle) of an attack; with `anew` it learns again what it has learned about this model before."""
    draws = Draws(0, torch.arange(len(x)) if ids is None else ids)
    oracle = Oracle(model, threat, draws, goal=goal, start=start, most=most)
    key = ("lesson", id(attack), weights_hash(model.state_dict()), threat, x.shape[-1])
    if anew or key not in case.kept:
        case.kept[key] = lesson_of(attack, model, threat, x.shape[-1])
    lesson = case.kept[key]
    return attack(oracle, x, y, threat, draws, lesson), oracle


def _norms(case: Case) -> tuple[Norm, ...]:
    return tuple(case.entry.handles())


def returns_images_of_the_right_shape_range_and_budget(case: Case) -> None:
    require(_norms(case) and set(_norms(case)) <= set(NORMS), f"norms {_norms(case)} are not among {NORMS}")
    for norm in _norms(case):
        model, x, y = victim()
        model_before, x_before, y_before = state_of(model), x.clone(), y.clone()
        case.kept[norm], _ = _attack(case, case.quick, model, x, y, _threat(case, norm))  # its __call__ checks the rest
        case.kept["model as found", norm] = state_of(model) == model_before
        case.kept["images as found", norm] = torch.equal(x, x_before) and torch.equal(y, y_before)
        # an eps so large that the box limits the attack
        _attack(case, case.quick, model, x[:3], y[:3], _threat(case, norm, 0.5 * x[0].numel() ** ROOT[norm]))


def changes_nothing_at_eps_0(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        out, _ = _attack(case, case.quick, model, x[:3], y[:3], _threat(case, norm, 0.0))
        if not case.entry.minimises():  # a minimum-norm attack may exceed eps
            far = float((out - x[:3]).abs().max())
            require(far == 0, f"{norm}: changed a pixel by {far:.3g} at eps 0")


def gives_the_same_result_for_the_same_draws(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        with other_global_numbers(99):
            again, _ = _attack(case, case.quick, model, x, y, _threat(case, norm), anew=True)
        require(torch.equal(again, case.kept[norm]), f"{norm}: a second run gave other images")


def treats_a_sample_alone_as_in_a_batch(case: Case) -> None:
    model, x, y = victim()
    ids = torch.arange(len(x))
    for norm in _norms(case):
        for how, i in (("in reverse order", ids.flip(0)), ("alone", ids[3:4]), ("in a batch of two", ids[[5, 2]])):
            out, _ = _attack(case, case.quick, model, x[i], y[i], _threat(case, norm), i)
            far = ops.size(out - case.kept[norm][i], "linf")
            # float64: the only remaining difference is rounding in the victim's kernels
            require(far.max() < 1e-7, f"{norm}: sample {int(i[far.argmax()])} gets another result {how}")


def finds_the_same_when_the_model_gets_a_pass_in_parts(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        try:
            out, _ = _attack(case, case.quick, model, x, y, _threat(case, norm), most=3)
        except torch.OutOfMemoryError:
            continue  # its passes cannot be made in parts: a suite gives it fewer images
        far = ops.size(out - case.kept[norm], "linf")
        found = f"{norm}: sample {int(far.argmax())} gets another result: is a loss a number of each sample by itself?"
        require(far.max() < 1e-7, found)


def leaves_the_model_as_found(case: Case) -> None:
    for norm in _norms(case):
        require(case.kept["model as found", norm], f"{norm}: changed weights, modes, gradient flags or hooks")


def leaves_the_images_as_found(case: Case) -> None:
    for norm in _norms(case):
        require(case.kept["images as found", norm], f"{norm}: changed x or y in place")


def is_refused_with_less_access_than_it_needs(case: Case) -> None:
    model, x, y = victim()
    need, norm = case.entry.access(), _norms(case)[0]
    for access in ACCESSES[ACCESSES.index(need) + 1 :]:
        try:
            _attack(case, case.quick, model, x, y, _threat(case, norm).with_access(access))
        except ContractError:
            continue
        raise ContractError(f"needs {need} access and ran with {access} access")


def keeps_the_query_budget(case: Case) -> None:
    if case.entry.access() in ("gradient", "none"):
        return  # no query budget on the white-box track, and no queries without access
    model, x, y = victim()
    for norm in _norms(case):
        for x_, y_ in ((x, y), (x[:1], y[:1])):
            _, oracle = _attack(case, case.entry, model, x_, y_, _threat(case, norm, queries=QUERIES))
            most = int(oracle.ledger.queries.max())
            require(most <= QUERIES, f"{norm}: {most} queries for one sample, {QUERIES} granted")


def books_its_passes(case: Case) -> None:
    if case.control or case.entry.access() == "none":
        return  # a planted no-op makes no passes, and neither does an attack without access
    for norm in _norms(case):
        model, x, y = halfspace(norm)
        threat = _threat(case, norm, 0.9 * NEAREST[norm])
        if case.entry.learning():  # it may query the model only while it learns
            data = planted_set(size=x.shape[-1])
            oracle = Oracle(model, threat, Draws(0, data.ids))
            case.quick.learn(oracle, data, threat, Draws(0, data.ids))
            require(oracle.ledger.forwards.sum() > 0, f"{norm}: no forward pass was counted during learn")
            continue
        ledger = _attack(case, case.quick, model, x, y, threat)[1].ledger
        require(ledger.forwards.min() > 0, f"{norm}: no forward pass was counted for some samples")
        if case.entry.access() == "gradient":
            require(ledger.backwards.min() > 0, f"{norm}: no backward pass was counted for some samples")


def breaks_a_half_space_near_its_closed_form(case: Case) -> None:
    if case.control:
        return  # a planted control does not have to work
    for norm in _norms(case):
        if case.entry.restricted:
            far = float(ops.size(case.kept[norm] - victim()[1], norm).amin())
            require(far > 0, f"{norm}: did not change an image of the victim")
            continue
        model, x, y = halfspace(norm)
        for factor, attack in ((0.9, case.quick), (WITHIN[case.entry.access()], case.entry)):
            eps = factor * NEAREST[norm]
            out, _ = _attack(case, attack, model, x, y, _threat(case, norm, eps))
            fooled = (model(out).argmax(dim=1) != y) & (ops.size(out - x, norm) <= eps * (1 + TOLERANCE))
            if factor > 1 and case.entry.for_transfer:  # a step in the right direction suffices
                fooled = ops.margin(model(out), y) > ops.margin(model(x), y)
            found = f"{norm}: {int(fooled.sum())} of {len(x)} misclassified at {factor} times the smallest distance"
            require(fooled.all() if factor > 1 else not fooled.any(), found)


def breaks_the_same_half_space_behind_scaled_logits_or_shows_that_it_is_blind(case: Case) -> None:
    if case.control or case.entry.restricted or case.entry.access() != "gradient":
        return
    for norm in _norms(case):
        model, x, y = halfspace(norm, scale=2.0**20)  # the cross-entropy has no gradient left
        out, oracle = _attack(case, case.entry, model, x, y, _threat(case, norm, 2 * NEAREST[norm]))
        fooled = ops.margin(model(out), y) > (ops.margin(model(x), y) if case.entry.for_transfer else 0)
        blind = 2 * int(oracle.ledger.blind.sum()) > int(oracle.ledger.backwards.sum())
        found = f"{norm}: {int(fooled.sum())} of {len(x)} misclassified with scaled logits"
        require(fooled.all() or blind, f"{found}, and fewer than half of the gradients were zero")


def aims_at_the_class_it_is_told(case: Case) -> None:
    entry = case.entry
    if case.control or not entry.can_aim():
        return
    for norm in _norms(case):
        if entry.restricted:  # what it reaches is its own affair: it must listen
            model, x, y = victim()
            told = [
                _attack(
                    case, case.quick, model, x, y, replace(_threat(case, norm), target=c), goal=torch.full_like(y, c)
                )[0]
                for c in (0, 1)
            ]
            require(not torch.equal(*told), f"{norm}: gave the same images for two classes")
            continue
        model, x, y = halfspace(norm)
        out, _ = _attack(
            case, entry, model, x, y, _threat(case, norm, WITHIN[entry.access()] * NEAREST[norm]), goal=1 - y
        )
        reached = _reached(case, model, x, out, 1 - y)
        require(reached.all(), f"{norm}: {int(reached.sum())} of {len(x)} became the other class of a half-space")
        model, x, y = four_classes()
        for step in (1, 2, 3):
            goal = (y + step) % 4
            out, _ = _attack(
                case, case.quick, model, x, y, _threat(case, norm, 0.1 * x[0].numel() ** ROOT[norm]), goal=goal
            )
            nearer = ops.gain(model(out), y, goal) > ops.gain(model(x), y, goal)
            nearer |= (out == x).flatten(1).all(dim=1) & entry.minimises()  # none found
            require(nearer.all(), f"{norm}: {int(nearer.sum())} of {len(x)} moved towards the class {step} further on")


def starts_from_the_points_it_is_given(case: Case) -> None:
    entry = case.entry
    if case.control or not entry.can_start():
        return
    for norm in _norms(case):
        threat = _threat(case, norm, WITHIN[entry.access()] * NEAREST[norm])
        model, x, y = halfspace(norm)
        found, _ = _attack(case, entry, model, x, y, threat)
        hit = ops.hit(model(found).argmax(dim=1), y, None)
        model, x, y = halfspace(norm, scale=2.0**20)  # the same boundary, and hardly a gradient to find it by
        out, _ = _attack(case, case.quick, model, x, y, threat, start=found)
        kept = ops.hit(model(out).argmax(dim=1), y, None)[hit]
        require(
            kept.all(), f"{norm}: {int(kept.sum())} of {len(kept)} misclassified, started from misclassified points"
        )


def _reached(case: Case, model: Classifier, x: Tensor, out: Tensor, goal: Tensor) -> Tensor:
    if case.entry.for_transfer:  # the way is right, however short it comes
        return ops.gain(model(out), goal, goal) > ops.gain(model(x), goal, goal)
    return ops.hit(model(out).argmax(dim=1), goal, goal)


CLAUSES = (
    returns_images_of_the_right_shape_range_and_budget,
    changes_nothing_at_eps_0,
    gives_the_same_result_for_the_same_draws,
    treats_a_sample_alone_as_in_a_batch,
    finds_the_same_when_the_model_gets_a_pass_in_parts,
    leaves_the_model_as_found,
    leaves_the_images_as_found,
    is_refused_with_less_access_than_it_needs,
    keeps_the_query_budget,
    books_its_passes,
    breaks_a_half_space_near_its_closed_form,
    breaks_the_same_half_space_behind_scaled_logits_or_shows_that_it_is_blind,
    aims_at_the_class_it_is_told,
    starts_from_the_points_it_is_given,
)
