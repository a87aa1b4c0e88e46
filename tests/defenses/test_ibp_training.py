"""IBP training: on a linear network its bounds are exact, so that it learns the robust feature."""

from __future__ import annotations

import pytest
import torch
from siegebench.certifiers.ibp import IBP

from siegebench.draws import Draws, derive_seed
from siegebench.train import Recipe, accuracy, renew, train

from .two_features import EPS, ONE, RECIPE, against_the_other_class, build, granted, model, two_features


def test_it_learns_the_robust_feature_and_can_prove_it() -> None:
    data = two_features()
    trained = build("ibp_training", eps=EPS, kappa=0.0, recipe=RECIPE).apply(model(), granted(data), ONE)
    right = float((torch.arange(len(data)) % 20 < 18).double().mean())  # what the robust feature alone says
    assert accuracy(trained, data) == pytest.approx(right)
    assert against_the_other_class(trained, data, EPS) == pytest.approx(right)
    x = data.pixels()
    found = IBP()(trained.requires_grad_(False), x, "linf", [0.9 * EPS], Draws(0, data.ids))
    proved = found.holds[0] & (found.prediction == data.labels)
    assert float(proved.double().mean()) == pytest.approx(right)


def test_with_the_clean_loss_alone_it_is_standard_training() -> None:
    data, recipe = two_features(128), {"epochs": 2, "batch": 32}
    trained = build("ibp_training", eps=EPS, kappa=1.0, recipe=recipe).apply(model(), granted(data), ONE)
    plain, seed = model(), derive_seed(ONE.seed, "ibp_training")
    renew(plain, seed)
    train(plain, data, Recipe(**recipe), seed)  # type: ignore[arg-type]
    for a, b in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_eps_grows_and_the_clean_loss_loses_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    from siegebench.defenses import ibp_training

    seen: list[float] = []
    real = ibp_training.Ball

    def ball(x: torch.Tensor, norm: str, eps: float, low: float, high: float) -> object:
        seen.append(eps)
        return real(x, norm, eps, low, high)

    monkeypatch.setattr(ibp_training, "Ball", ball)
    recipe = {"epochs": 5, "batch": 64}
    build("ibp_training", eps=0.1, start=0.2, ramp=0.4, recipe=recipe).apply(
        model(), granted(two_features(128)), ONE
    )  # 10 steps: clean until the third, then growing over four
    assert seen == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])
