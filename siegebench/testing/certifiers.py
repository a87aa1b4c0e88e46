"""The contract of certifiers, one function per clause; on a small convolutional network and on linear ones.

The distance of an image to the boundary of a linear network is known. A certificate must end there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.specimens import (
    EPS,
    NEAREST,
    Case,
    halfspace,
    images,
    network,
    other_global_numbers,
    require,
    state_of,
)
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Certificate
from siegebench.types.certifiers import ABSTAINED

FACTORS = (0.1, 0.5, 0.999, 1.001, 2.0)  # radii on linear networks, as parts of the distance to the boundary
STEPS = 20


def linear(norm: Norm) -> tuple[Classifier, Tensor, Tensor]:
    """(linear network made of layers of torch, images, labels); every image is NEAREST[norm] from the other class."""
    model, x, y = halfspace(norm, n=8)
    d, classes = x[0].numel(), model.num_classes
    zero = torch.zeros(1, *x.shape[1:], dtype=x.dtype)
    with torch.no_grad():
        b = model(zero)[0]
        w = model(torch.eye(d, dtype=x.dtype).view(d, *x.shape[1:])) - b
        layer = nn.Linear(d, classes, dtype=x.dtype)
        layer.weight.copy_(w.T)
        layer.bias.copy_(b)
    made = Network(nn.Sequential(nn.Flatten(), layer), num_classes=classes).double()
    made.kind = model.kind
    return made.eval().requires_grad_(False), x, y


def _norms(case: Case) -> list[Norm]:
    return sorted(case.entry.norms)


def _certified(case: Case, model: Classifier, x: Tensor, norm: Norm, factors: tuple[float, ...]) -> Certificate:
    radii = [f * NEAREST[norm] for f in factors]
    found: Certificate = case.quick(model, x, norm, radii, Draws(0, torch.arange(len(x))))
    return found


def _frozen() -> Classifier:
    return network().eval().requires_grad_(False)


def _on_network(case: Case, norm: Norm, index: Tensor | None = None) -> Certificate:
    x = images(12)
    ids = torch.arange(len(x)) if index is None else index
    radii = [0.1 * EPS[norm], EPS[norm], 4 * EPS[norm]]
    found: Certificate = case.quick(_frozen(), x[ids], norm, radii, Draws(0, ids))
    return found


def returns_a_certificate_of_the_right_shape(case: Case) -> None:
    require(case.entry.norms, "it declares no norms")
    for norm in _norms(case):
        case.kept[norm] = _on_network(case, norm)  # its __call__ checks the rest


def certifies_nothing_beyond_the_boundary_of_a_linear_network(case: Case) -> None:
    for norm in _norms(case):
        model, x, y = linear(norm)
        case.kept["linear", norm] = _certified(case, model, x, norm, FACTORS)
    for norm in _norms(case):
        found, (_, x, y) = case.kept["linear", norm], linear(norm)
        wrong = (found.prediction != y) & (found.prediction != ABSTAINED)
        require(not wrong.any(), f"{norm}: the prediction of {int(wrong.sum())} of {len(x)} images is wrong")
        for factor, holds in zip(FACTORS, found.holds, strict=True):
            told = f"{norm}: {int(holds.sum())} of {len(x)} images certified at {factor} times the distance"
            require(factor < 1 or not holds.any(), f"{told} to the boundary")


def certifies_images_far_from_the_boundary(case: Case) -> None:
    if case.control:
        return
    for norm in _norms(case):
        found = case.kept["linear", norm].holds[0]
        told = f"{norm}: {int(found.sum())} of {len(found)} images of a linear network are certified"
        require(found.all(), f"{told} at {FACTORS[0]} times their distance to the boundary")


def predicts_what_its_predictor_predicts(case: Case) -> None:
    for norm in _norms(case):
        model, x, _ = linear(norm)
        pairs = [(model, x, case.kept["linear", norm])]
        if not case.entry.statistical:  # samples may disagree where two classes are close
            pairs.append((_frozen(), images(12), case.kept[norm]))
        for of, seen, found in pairs:
            deployed = case.quick.predictor(of)
            with torch.no_grad():
                z = deployed(seen, Draws(1, torch.arange(len(seen))))
            other = (found.prediction != ABSTAINED) & (found.prediction != z.argmax(dim=1))
            told = f"{norm}: {int(other.sum())} of {len(seen)} predictions are not those of the predictor"
            require(not other.any(), told)
        same = case.quick.predictor(model) is model
        require(same != case.entry.deploys, f"declares deploys = {case.entry.deploys}; its predictor says otherwise")
        random = case.quick.predictor(model).randomized
        require(random == case.entry.randomized, f"the predictor says randomized = {random}")


def gives_the_same_certificate_for_the_same_draws(case: Case) -> None:
    for norm in _norms(case):
        with other_global_numbers(99):
            again = _on_network(case, norm)
        same = torch.equal(again.holds, case.kept[norm].holds)
        same = same and torch.equal(again.prediction, case.kept[norm].prediction)
        require(same, f"{norm}: a second run gave another certificate")


def treats_an_image_alone_as_in_a_batch(case: Case) -> None:
    for norm in _norms(case):
        for i in (torch.tensor([3]), torch.tensor([7, 5])):
            alone, found = _on_network(case, norm, i), case.kept[norm]
            same = torch.equal(alone.holds, found.holds[:, i]) and torch.equal(alone.prediction, found.prediction[i])
            require(same, f"{norm}: image {int(i[0])} gets another certificate in another batch")


def leaves_the_model_as_found(case: Case) -> None:
    model, x = _frozen(), images(4)
    before, draws = state_of(model), Draws(0, torch.arange(4))
    for norm in _norms(case):
        case.quick(model, x, norm, [EPS[norm]], draws)
        case.quick.predictor(model)(x, draws)
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the model")


def tells_when_a_certificate_is_broken(case: Case) -> None:
    for norm in _norms(case):
        model, x, y = linear(norm)
        across = x.clone()
        for c in (0, 1):  # the images of the other class, at least twice the distance away from their own
            across[y == c] = x[y != c]
        draws = Draws(3, torch.arange(len(x)))
        missed = int((~case.quick.refutes(model, across, y, draws)).sum())
        false = int(case.quick.refutes(model, x, y, draws).sum())
        require(missed == 0, f"{norm}: {missed} of {len(x)} images of the other class do not refute a certificate")
        require(false == 0, f"{norm}: {false} of {len(x)} unchanged images refute their own certificate")


def is_not_broken_by_attacks(case: Case) -> None:
    """PGD in the ball of every radius, on the network and beyond the known boundary."""
    attack = registry.build(Attack, {"name": "pgd", "steps": STEPS, "loss": "margin"})
    x, ids = images(12), torch.arange(12)
    for norm in _norms(case):
        model = _frozen()
        deployed, found = case.quick.predictor(model), case.kept[norm]
        for factor, holds in zip((0.1, 1.0, 4.0), found.holds, strict=True):
            rows = holds.nonzero().squeeze(1)
            if len(rows) == 0 or norm not in attack.handles():
                continue
            threat = ThreatModel(norm=norm, eps=factor * EPS[norm])
            draws, y = Draws(5, ids[rows]), found.prediction[rows]
            oracle = Oracle(deployed, threat, draws).backward_model()
            tried = replace(threat, eps=threat.eps * (1 - 1e-6))
            x_adv = attack(oracle, x[rows], y, tried, draws)
            broken = int(case.quick.refutes(model, x_adv, y, draws).sum())
            told = f"{norm} {threat.eps:.4g}: an attack breaks {broken} of {len(rows)} certificates"
            require(broken == 0, told)


CLAUSES = (
    returns_a_certificate_of_the_right_shape,
    certifies_nothing_beyond_the_boundary_of_a_linear_network,
    certifies_images_far_from_the_boundary,
    predicts_what_its_predictor_predicts,
    gives_the_same_certificate_for_the_same_draws,
    treats_an_image_alone_as_in_a_batch,
    leaves_the_model_as_found,
    tells_when_a_certificate_is_broken,
    is_not_broken_by_attacks,
)
