"""The contract of detectors, one function per clause."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.testing.specimens import (
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
from siegebench.types import DatasetDetector, InputDetector, Scorer, TrainedDetector, Verdict


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


def keeps_what_it_learns_in_its_network(case: Case) -> None:
    detector, granted = case.quick, case.granted()
    if not isinstance(detector, TrainedDetector):
        return
    state = detector.trained(granted, one_draw(), torch.device("cpu")).state_dict()
    loaded = detector.network(granted).eval()
    loaded.load_state_dict(state)
    again = detector.scorer(loaded, network(), granted, one_draw())(images(12), Draws(1, torch.arange(12)))
    require(torch.allclose(again, case.kept["scores"], atol=1e-5), "scores with the weights loaded are other scores")


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


def lets_gradients_through_if_it_offers_them(case: Case) -> None:
    scorer = case.kept.get("scorer")
    if not isinstance(scorer, Scorer):
        return
    x, draws = images(12).requires_grad_(True), Draws(1, torch.arange(12))
    scores = scorer.differentiable(x, draws)
    require(scores.shape == (12,), f"the backward model gives scores {tuple(scores.shape)}, expected (12,)")
    require(scores.requires_grad, "a Scorer without a gradient; return a plain function, or give a backward model")
    (g,) = torch.autograd.grad(scores.sum(), x)
    require(torch.isfinite(g).all(), "the gradient of the scores is not finite")
    still = int((g.flatten(1).abs().amax(dim=1) == 0).sum())
    require(still < len(x) / 2, f"the gradient of the scores is zero for {still} of {len(x)} images")


def gives_a_well_formed_verdict(case: Case) -> None:
    verdict = case.kept.get("verdict")
    if verdict is None:
        return
    require(isinstance(verdict, Verdict), f"judge returned {type(verdict).__name__}, expected a Verdict")
    require(type(verdict.score) is float, f"score is {type(verdict.score).__name__}, expected float")
    require(type(verdict.backdoored) is bool, f"backdoored is {type(verdict.backdoored).__name__}, expected bool")
    bad = [t for t in verdict.targets if not 0 <= t < CLASSES]
    require(not bad, f"target {bad[:1]} is not a class")


CLAUSES = (
    gives_finite_scores_from_the_data_its_card_declares,
    scores_the_same_for_the_same_draws,
    keeps_what_it_learns_in_its_network,
    leaves_the_judged_model_as_found,
    scores_an_input_alone_as_in_a_batch,
    lets_gradients_through_if_it_offers_them,
    gives_a_well_formed_verdict,
)
