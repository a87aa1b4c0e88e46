"""What every entry owes, one function a clause. `siegebench.testing` runs them.

A clause takes a Case and raises ContractError with what it found. The first clause of a kind is the ground that the
others stand on. Models and images are tiny (`siegebench.specimens`), so that the whole contract takes seconds.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.cells import canonical
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, DataError, ModelError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.specimens import (
    CLASSES,
    NEAREST,
    SIZE,
    halfspace,
    images,
    network,
    other_global_numbers,
    planted_set,
    state_of,
    victim,
)
from siegebench.threat import ACCESSES, NORMS, TOLERANCE, Norm, ThreatModel
from siegebench.types import Classifier, DatasetDetector, Granted, InputDetector, Verdict
from siegebench.weights import load_weights, save_weights

T = TypeVar("T")
EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 5.0}
WITHIN = {"gradient": 1.5, "score": 4.0, "label": 4.0}  # times the nearest distance: there an attack must succeed
QUICK = {"steps": 10, "queries": 200, "searches": 2, "restarts": 2, "epochs": 1, "overlays": 8}
QUERIES = 37  # a budget that no attack is tuned to
RANKED_BY_ATTACKS = {"white_box", "query", "transfer"}


class NotChecked(Exception):
    """The clause cannot be tried here, for a stated reason."""


@dataclass
class Case:
    """An entry under test.

    Attributes:
        sees: the data that its card declares.
        control: a planted control need not work.
        spec: how the registry built it; None when it has no card.
        kept: what one clause computed and others use.
    """

    kind: str
    entry: Any
    sees: tuple[str, ...] = ()
    control: bool = False
    spec: dict[str, Any] | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quick = quick(self.entry)

    def granted(self) -> Granted:
        """Exactly what the card declares."""
        data = planted_set()
        parts = {"train": data, "clean": data.select(torch.arange(40)), "val": data.select(torch.arange(40, 80))}
        sources: dict[str, Callable[[], ImageSet]] = {k: partial(lambda v: v, v) for k, v in parts.items()}
        return Granted(type(self.entry).__name__, self.sees, **sources)


def quick(value: T) -> T:
    """A dataclass with the fields of QUICK lowered, nested ones too."""
    changes: dict[str, Any] = {}
    for f in fields(value):  # type: ignore[arg-type]
        old = getattr(value, f.name)
        if is_dataclass(old) and not isinstance(old, type):
            changes[f.name] = quick(old)
        elif type(old) is int and old > QUICK.get(f.name, old):
            changes[f.name] = QUICK[f.name]
    new: T = replace(value, **changes)  # type: ignore[type-var]
    if hasattr(value, "_name"):
        object.__setattr__(new, "_name", value._name)
    return new


def require(ok: object, message: str) -> None:
    """Raise ContractError unless ok."""
    if not bool(ok):
        raise ContractError(message)


def one_draw(seed: int = 0) -> Draws:
    """What defenses and detectors are given: one stream."""
    return Draws(seed, torch.zeros(1, dtype=torch.long))


# --------------------------------------------------------------------------------------------------------- attacks


def _threat(case: Case, norm: Norm, eps: float | None = None, queries: int | None = None) -> ThreatModel:
    return ThreatModel(
        norm=norm, eps=EPS[norm] if eps is None else eps, access=case.entry.access(), queries=queries
    )  # fmt: skip


def _attack(
    attack: Any, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, ids: Tensor | None = None
) -> tuple[Tensor, Oracle]:
    draws = Draws(0, torch.arange(len(x)) if ids is None else ids)
    oracle = Oracle(model, threat, draws)
    return attack(oracle, x.clone(), y.clone(), threat, draws), oracle


def _norms(case: Case) -> tuple[Norm, ...]:
    return tuple(case.entry.handles())


def returns_images_of_the_right_shape_range_and_budget(case: Case) -> None:
    require(_norms(case) and set(_norms(case)) <= set(NORMS), f"norms {_norms(case)} are not among {NORMS}")
    model, x, y = victim()
    for norm in _norms(case):
        case.kept[norm] = _attack(case.quick, model, x, y, _threat(case, norm))[0]
        _attack(case.quick, model, x, y, _threat(case, norm, 8 * EPS[norm]))  # large enough to meet the box


def changes_nothing_at_eps_0(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        out, _ = _attack(case.quick, model, x, y, _threat(case, norm, 0.0))
        if not case.entry.minimises():  # one that minimises may look beyond eps
            require(torch.equal(out, x), f"{norm}: moved a pixel by {float((out - x).abs().max()):.3g} at eps 0")


def gives_the_same_result_for_the_same_draws(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        with other_global_numbers(99):
            again, _ = _attack(case.quick, model, x, y, _threat(case, norm))
        require(torch.equal(again, case.kept[norm]), f"{norm}: a second run gave other images")


def treats_a_sample_alone_as_in_a_batch(case: Case) -> None:
    model, x, y = victim()
    ids = torch.arange(len(x))
    parts = {"in reverse order": [ids.flip(0)], "in batches of 1 and 5": [ids[2:3], ids[ids != 2]]}
    for norm in _norms(case):
        for how, places in parts.items():
            for i in places:
                out, _ = _attack(case.quick, model, x[i], y[i], _threat(case, norm), i)
                far = ops.size(out - case.kept[norm][i], "linf")
                # float64: what is left is the rounding of the victim's own kernels
                require(far.max() < 1e-7, f"{norm}: sample {int(i[far.argmax()])} comes out otherwise {how}")


def leaves_the_model_as_found(case: Case) -> None:
    model, x, y = victim()
    before = state_of(model)
    for norm in _norms(case):
        _attack(case.quick, model, x, y, _threat(case, norm))
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


def leaves_the_images_as_found(case: Case) -> None:
    model, x, y = victim()
    for norm in _norms(case):
        threat, draws = _threat(case, norm), Draws(0, torch.arange(len(x)))
        images_, labels = x.clone(), y.clone()
        case.quick(Oracle(model, threat, draws), images_, labels, threat, draws)
        require(torch.equal(images_, x) and torch.equal(labels, y), f"{norm}: changed x or y in place")


def is_refused_with_less_access_than_it_needs(case: Case) -> None:
    model, x, y = victim()
    need, norm = case.entry.access(), _norms(case)[0]
    for access in ACCESSES[ACCESSES.index(need) + 1 :]:
        try:
            _attack(case.quick, model, x, y, _threat(case, norm).with_access(access))
        except ContractError:
            continue
        raise ContractError(f"needs {need} access and ran with {access} access")


def keeps_the_query_budget(case: Case) -> None:
    if case.entry.access() == "gradient":
        return  # no query budget on the white-box track
    model, x, y = victim()
    for norm in _norms(case):
        for x_, y_ in ((x, y), (x[:1], y[:1])):
            _, oracle = _attack(case.entry, model, x_, y_, _threat(case, norm, queries=QUERIES))
            most = int(oracle.ledger.queries.max())
            require(most <= QUERIES, f"{norm}: {most} queries for one sample, {QUERIES} granted")


def books_its_passes(case: Case) -> None:
    if case.control:
        return  # a planted no-op asks nothing
    for norm in _norms(case):
        model, x, y = halfspace(norm)
        ledger = _attack(case.quick, model, x, y, _threat(case, norm, 0.9 * NEAREST[norm]))[1].ledger
        require(ledger.forwards.min() > 0, f"{norm}: no forward pass was booked for some samples")
        if case.entry.access() == "gradient":
            require(ledger.backwards.min() > 0, f"{norm}: no backward pass was booked for some samples")


def breaks_a_half_space_near_its_closed_form(case: Case) -> None:
    if case.control:
        return  # a planted control may be broken
    for norm in _norms(case):
        model, x, y = halfspace(norm)
        for share, attack in ((0.9, case.quick), (WITHIN[case.entry.access()], case.entry)):
            eps = share * NEAREST[norm]
            out, _ = _attack(attack, model, x, y, _threat(case, norm, eps))
            broken = (model(out).argmax(dim=1) != y) & (ops.size(out - x, norm) <= eps * (1 + TOLERANCE))
            found = f"{norm}: {int(broken.sum())} of {len(x)} broken at {share} times the smallest distance"
            require(broken.all() if share > 1 else not broken.any(), found)


# -------------------------------------------------------------------------------------------------------- measures


def _measured(case: Case, model: Classifier, x: Tensor, y: Tensor) -> dict[str, Any]:
    norm: Norm = case.entry.norms[0]
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(len(x)))
    found: dict[str, Any] = case.quick.run(Oracle(model, threat, draws), x, y, threat, draws)
    return found


def returns_finite_metrics_and_well_formed_flags(case: Case) -> None:
    found = case.kept["found"] = _measured(case, *victim())
    require(set(found) == {"metrics", "flags"}, f"returned {sorted(found)}, expected flags and metrics")
    bad = [k for k, v in found["metrics"].items() if not math.isfinite(float(v))]
    require(not bad, f"metric {bad[:1]} is not finite")
    for flag in found["flags"]:
        require(set(flag) == {"id", "severity", "evidence"}, f"flag {flag} needs id, severity, evidence")
        require(flag["severity"] in ("info", "flag", "fail"), f"flag severity {flag['severity']!r}")
    canonical(found)


def measures_the_same_for_the_same_draws(case: Case) -> None:
    model, x, y = victim()
    before = state_of(model)
    with other_global_numbers(99):
        again = _measured(case, model, x, y)
    require(canonical(again) == canonical(case.kept["found"]), "a second run gave other numbers")
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


# -------------------------------------------------------------------------------------------------------- defenses


def _look(model: Classifier, x: Tensor, look: int = 0, ids: Tensor | None = None) -> Tensor:
    draws = Draws(0, torch.arange(len(x)) if ids is None else ids).at(look)
    logits: Tensor = model(x, draws)
    return logits


def applies_with_the_data_its_card_declares(case: Case) -> None:
    deployed = case.kept["deployed"] = case.quick.apply(network(), case.granted(), one_draw())
    z = _look(deployed, images())
    require(z.shape == (6, CLASSES), f"logits {tuple(z.shape)} for 6 images and {CLASSES} classes")
    require(torch.isfinite(z).all(), "logits are not finite")
    require(deployed.num_classes == CLASSES, f"num_classes is {deployed.num_classes}, not {CLASSES}")
    require(not any(m.training for m in deployed.modules()), "the defended model is not in eval mode")


def leaves_the_given_model_as_found(case: Case) -> None:
    model = network()
    before = state_of(model)
    deployed = case.quick.apply(model, case.granted(), one_draw())
    _look(deployed, images())
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the given model")


def is_as_random_as_it_declares(case: Case) -> None:
    model, x = case.kept["deployed"], images(12)
    require(model.randomized == case.entry.randomized, f"the model says randomized = {model.randomized}")
    with torch.no_grad(), other_global_numbers(99):
        first, again, other = _look(model, x), _look(model, x), _look(model, x, 1)
    require(torch.equal(first, again), "two looks with the same draws differ; noise must come from draws")
    with torch.no_grad():
        free = model(x)
    if case.entry.randomized:
        require(not torch.equal(first, other), "declares randomized = True, and two looks are the same")
        require(not torch.equal(free, model(x)), "without draws two looks must differ (Draws.fresh)")
    else:
        require(torch.equal(first, other), "declares randomized = False, and its answers depend on the draws")
        require(torch.equal(first, free), "declares randomized = False, and answers otherwise without draws")


def lets_gradients_through_as_it_declares(case: Case) -> None:
    model, y = case.kept["deployed"], torch.arange(6)
    leaf = images().requires_grad_(True)
    draws = Draws(0, torch.arange(6))
    call = model if case.entry.differentiable else model.surrogate
    name = "forward" if case.entry.differentiable else "surrogate"
    z = call(leaf, draws)
    if not case.entry.differentiable:
        exact = model(leaf.detach(), draws)
        require(torch.allclose(z, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max())), "surrogate: other logits")
    require(z.requires_grad, f"no gradient passes through {name}; declare differentiable = False, give a surrogate")
    (g,) = torch.autograd.grad(ops.margin(z, y).sum(), leaf)
    require(torch.isfinite(g).all(), f"the gradient through {name} is not finite")
    lost = (ops.size(g, "linf") == 0).sum()
    require(lost == 0, f"the gradient through {name} is zero for {int(lost)} of 6 images")


def works_in_float64_and_on_one_image(case: Case) -> None:
    model, x = copy.deepcopy(case.kept["deployed"]).double(), images().double()
    with torch.no_grad():
        z = _look(model, x)
        require(z.dtype == torch.float64, f"float64 images gave {z.dtype} logits")
        for i in range(len(x)):
            alone = _look(model, x[i : i + 1], ids=torch.tensor([i]))
            require(torch.allclose(alone[0], z[i], rtol=1e-6, atol=1e-8), f"image {i} alone gets other logits")


def keeps_its_trained_state_when_saved(case: Case) -> None:
    deployed, x = case.kept["deployed"], images()
    again = case.quick.structure(network())
    if case.entry.trains:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.safetensors"
            save_weights(path, deployed.state_dict())
            again.load_state_dict(load_weights(path))
    with torch.no_grad():
        require(
            torch.allclose(_look(again, x), _look(deployed, x), rtol=1e-5, atol=1e-6),
            "the structure with the saved weights gives other logits: some state is not in state_dict",
        )


def trains_the_same_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again = case.quick.apply(network(), case.granted(), one_draw())
    old, new = case.kept["deployed"].state_dict(), again.state_dict()
    other = [k for k in old if not torch.equal(old[k], new[k])]
    require(not other, f"a second run gave another {other[:1]}")


def has_adaptive_attacks_that_can_be_built(case: Case) -> None:
    for spec in case.entry.adaptive:
        registry.build("attack", spec)
    model = network()
    if not case.entry.trains and case.entry.wrap(model) is model:
        return  # nothing to adapt to
    if set(case.entry.tracks) & RANKED_BY_ATTACKS:
        require(case.entry.adaptive, f"declares no adaptive attack, and may be ranked in {case.entry.tracks[0]}")


# ------------------------------------------------------------------------------------------------------- backdoors


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
        replace(case.entry, target=CLASSES).poison(planted_set(), 0)
    except ContractError:
        return
    raise ContractError(f"accepts the target {CLASSES} of a set with classes 0..{CLASSES - 1}")


# ------------------------------------------------------------------------------------------------------- detectors


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


# ---------------------------------------------------------------------------------------------------------- models


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
    leaf = case.kept["x"].clone().requires_grad_(True)
    z = case.kept["model"](leaf)
    (g,) = torch.autograd.grad(ops.margin(z, torch.arange(3)).sum(), leaf)
    require(torch.isfinite(g).all() and (ops.size(g, "linf") > 0).all(), "the gradient is zero or not finite")


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


# -------------------------------------------------------------------------------------------------------- datasets


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


# --------------------------------------------------------------------------------------------- entries with a card


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


Clause = Callable[[Case], None]
CLAUSES: dict[str, tuple[Clause, ...]] = {
    "attack": (
        returns_images_of_the_right_shape_range_and_budget, changes_nothing_at_eps_0,
        gives_the_same_result_for_the_same_draws, treats_a_sample_alone_as_in_a_batch, leaves_the_model_as_found,
        leaves_the_images_as_found, is_refused_with_less_access_than_it_needs, keeps_the_query_budget,
        books_its_passes, breaks_a_half_space_near_its_closed_form,
    ),
    "measure": (returns_finite_metrics_and_well_formed_flags, measures_the_same_for_the_same_draws),
    "defense": (
        applies_with_the_data_its_card_declares, leaves_the_given_model_as_found, is_as_random_as_it_declares,
        lets_gradients_through_as_it_declares, works_in_float64_and_on_one_image, keeps_its_trained_state_when_saved,
        trains_the_same_for_the_same_draws, has_adaptive_attacks_that_can_be_built,
    ),
    "backdoor": (
        poisons_exactly_its_share, labels_poisons_by_its_rule, leaves_the_source_data_unchanged,
        stamps_any_size_in_range, does_not_depend_on_how_images_are_listed, refuses_targets_outside_the_classes,
    ),
    "detector": (
        gives_finite_scores_from_the_data_its_card_declares, scores_the_same_for_the_same_draws,
        leaves_the_judged_model_as_found, scores_an_input_alone_as_in_a_batch, gives_a_well_formed_verdict,
    ),
    "model": (
        builds_a_classifier, answers_for_an_image_alone_as_in_a_batch, lets_gradients_reach_the_image,
        gives_features_of_each_image, builds_anew_from_a_seed,
    ),
    "dataset": (
        loads_both_splits, loads_the_same_images_again, keeps_test_images_out_of_the_training_set,
        refuses_an_unknown_split,
    ),
}  # fmt: skip
REGISTERED: tuple[Clause, ...] = (is_rebuilt_from_its_description, has_presets_that_can_be_built)
