"""The contract of defenses, one function per clause."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.testing.specimens import (
    CLASSES,
    Case,
    doubled,
    images,
    input_gradient,
    network,
    one_draw,
    other_global_numbers,
    planted_set,
    require,
    slopes_of,
    state_of,
)
from siegebench.tracks import TRACKS
from siegebench.tracks.evasion import AttackBoard
from siegebench.weights import load_weights, save_weights


def _logits(model: Classifier, x: Tensor, k: int = 0, ids: Tensor | None = None) -> Tensor:
    draws = Draws(0, torch.arange(len(x)) if ids is None else ids).at(k)
    logits: Tensor = model(x, draws)
    return logits


def applies_with_the_data_its_card_declares(case: Case) -> None:
    deployed = case.kept["deployed"] = case.quick.apply(network(), case.granted(), one_draw())
    z = _logits(deployed, images())
    require(z.shape == (6, CLASSES), f"logits {tuple(z.shape)} for 6 images and {CLASSES} classes")
    require(torch.isfinite(z).all(), "logits are not finite")
    require(deployed.num_classes == CLASSES, f"num_classes is {deployed.num_classes}, not {CLASSES}")
    require(not any(m.training for m in deployed.modules()), "the defended model is not in eval mode")


def changes_the_model(case: Case) -> None:
    if case.spec is not None and {"reference", "identity"} & registry.traits("defense", case.spec["name"]):
        return  # the undefended model, or one that says it answers alike
    plain, deployed = network(), case.kept["deployed"]
    x = torch.cat([images(), planted_set().pixels(slice(0, 10))])
    same = torch.equal(_logits(plain, x), _logits(deployed, x)) and torch.equal(_slope(plain, x), _slope(deployed, x))
    require(not same, f"logits and gradients of the defended model equal those of the given one on {len(x)} images")


def _slope(model: Classifier, x: Tensor) -> Tensor:
    """Gradients of the margin as an attack sees them; zero if there are none."""
    leaf = slopes_of(x, model).clone().requires_grad_(True)
    value = ops.margin(_logits(model, leaf), torch.arange(len(x)) % CLASSES).sum()
    g = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(leaf) if g is None else g


def leaves_the_given_model_as_found(case: Case) -> None:
    model = network()
    before = state_of(model)
    deployed = case.quick.apply(model, case.granted(), one_draw())
    _logits(deployed, images())
    require(state_of(model) == before, "changed weights, modes, gradient flags or hooks of the given model")


def is_as_random_as_it_declares(case: Case) -> None:
    model, x = case.kept["deployed"], images(12)
    require(model.randomized == case.entry.randomized, f"the model says randomized = {model.randomized}")
    with torch.no_grad(), other_global_numbers(99):
        first, again, other = _logits(model, x), _logits(model, x), _logits(model, x, 1)
    require(torch.equal(first, again), "two passes with the same draws differ; noise must come from draws")
    with torch.no_grad():
        free = model(x)
    if case.entry.randomized:
        require(not torch.equal(first, other), "declares randomized = True, but two passes are equal")
        require(not torch.equal(free, model(x)), "without draws two passes must differ (Draws.fresh)")
    else:
        require(torch.equal(first, other), "declares randomized = False, but its outputs depend on the draws")
        require(torch.equal(first, free), "declares randomized = False, but its outputs differ without draws")


def lets_gradients_through_as_it_declares(case: Case) -> None:
    model, x, draws = case.kept["deployed"], images(), Draws(0, torch.arange(6))
    if case.entry.differentiable:
        input_gradient(lambda leaf: model(leaf, draws), x, "forward (declares differentiable = True)", model)
        return
    _, z = input_gradient(lambda leaf: model.backward_model(leaf, draws), x, "the backward model", model)
    exact = model(x, draws).detach()
    near = torch.allclose(z, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    require(near, "the backward model gives other logits than forward")


def works_in_float64_and_on_one_image(case: Case) -> None:
    model, x = copy.deepcopy(case.kept["deployed"]).double(), doubled(images())
    with torch.no_grad():
        z = _logits(model, x)
        require(z.dtype == torch.float64, f"float64 images or weights gave {z.dtype} logits")
        for i in range(len(x)):
            alone = _logits(model, x[i : i + 1], ids=torch.tensor([i]))
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
            torch.allclose(_logits(again, x), _logits(deployed, x), rtol=1e-5, atol=1e-6),
            "the structure with the saved weights gives other logits: some state is not in state_dict",
        )


def trains_the_same_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again = case.quick.apply(network(), case.granted(), one_draw())
    old, new = case.kept["deployed"].state_dict(), again.state_dict()
    other = [k for k in old if not torch.equal(old[k], new[k])]
    require(not other, f"a second run gave another {other[:1]}")


def names_tracks_that_exist(case: Case) -> None:
    strangers = [track for track in case.entry.tracks if track not in TRACKS]
    require(not strangers, f"tracks: {strangers[:1]} is none of {', '.join(TRACKS)}")


def has_adaptive_attacks_that_can_be_built(case: Case) -> None:
    for spec in case.entry.adaptive:
        registry.build("attack", spec)
    model = network()
    if not case.entry.trains and case.entry.wrap(model) is model:
        return  # nothing to adapt to
    if any(issubclass(TRACKS[track], AttackBoard) for track in case.entry.tracks):
        require(case.entry.adaptive, f"declares no adaptive attack, but may be ranked in {case.entry.tracks[0]}")


CLAUSES = (
    applies_with_the_data_its_card_declares,
    changes_the_model,
    leaves_the_given_model_as_found,
    is_as_random_as_it_declares,
    lets_gradients_through_as_it_declares,
    works_in_float64_and_on_one_image,
    keeps_its_trained_state_when_saved,
    trains_the_same_for_the_same_draws,
    names_tracks_that_exist,
    has_adaptive_attacks_that_can_be_built,
)
