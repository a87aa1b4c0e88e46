"""PGD adversarial training: the feature it learns, in closed form, and that it keeps to its ball and its seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from siegebench.defenses import _adversarial
from torch import Tensor

from siegebench.classifier import Classifier, Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.train import Recipe, accuracy, train

from .two_features import EPS, ONE, RECIPE, against_the_other_class, build, granted, linear, model, two_features


def test_it_learns_the_robust_feature_and_plain_training_the_other() -> None:
    data = two_features()
    plain = model()
    train(plain, data, Recipe(**RECIPE), 0)
    assert accuracy(plain, data) == 1.0
    assert against_the_other_class(plain, data, EPS) < 0.2
    robust = build("pgd_at", eps=EPS, step=EPS / 4, steps=8, recipe=RECIPE).apply(model(), granted(data), ONE)
    right = float((torch.arange(len(data)) % 20 < 18).double().mean())  # what the robust feature alone says
    assert accuracy(robust, data) == pytest.approx(right)
    assert against_the_other_class(robust, data, EPS) == pytest.approx(right)


def test_training_depends_on_its_seed_alone_and_starts_from_new_weights() -> None:
    data, entry = two_features(128), build("pgd_at", recipe={"epochs": 1, "batch": 32})

    def weights(seed: int, elsewhere: int, start: int = 3) -> Tensor:
        torch.manual_seed(elsewhere)  # the global generator must not matter
        given = Network(linear(), num_classes=2, rebuild=linear).fresh(start)
        draws = Draws(seed, torch.zeros(1, dtype=torch.long))
        trained = entry.apply(given, granted(data), draws)
        return torch.cat([p.detach().flatten() for p in trained.parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert torch.equal(weights(0, 1), weights(0, 1, start=4))
    assert not torch.equal(weights(0, 1), weights(1, 1))


class Recorded:
    """Stands in for `train`: asks the hook for the images of some epochs."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def __call__(self, net: Classifier, data: ImageSet, recipe: Recipe, seed: int, **hooks: Any) -> None:
        places = torch.arange(8)
        net.register_forward_hook(lambda module, _args, _out: self.modes.append(module.training))
        for epoch in range(recipe.epochs):
            net.train()
            self.seen.append(hooks["images"](data.pixels(places), data.labels[places], places, epoch))
            assert net.training


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_eps_grows_and_the_mode_is_the_one_asked_for(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, recorded = two_features(64), Recorded()
    entry = build("pgd_at", eps=0.1, step=0.1, steps=4, batch_norm=mode, eps_warmup=0.5, recipe={"epochs": 8})
    monkeypatch.setattr(_adversarial, "train", recorded)
    entry.fit(entry.structure(model()), granted(data), ONE)
    sizes = [float((x - data.pixels(slice(0, 8))).abs().max()) for x in recorded.seen]
    assert sizes == pytest.approx([0.025, 0.05, 0.075, *[0.1] * 5])
    assert recorded.modes == [mode == "train"] * 8 * 4


def test_the_best_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = two_features(64)
    entry = build("pgd_at", keep_best=True, recipe={"epochs": 3})
    states: list[dict[str, Tensor]] = []

    def three_epochs(net: Classifier, *_args: object, after: Any, **_hooks: object) -> None:
        for epoch in range(3):
            net.load_state_dict(net.fresh(epoch).state_dict())
            states.append({k: v.clone() for k, v in net.state_dict().items()})
            after(epoch)

    score = iter([30, 30, 50, 50, 40, 40])  # two parts of the clean budget an epoch
    monkeypatch.setattr(_adversarial, "train", three_epochs)
    monkeypatch.setattr(_adversarial, "right", lambda *_args: next(score))
    trained = entry.apply(model(), granted(data, "train", "clean", "val"), ONE)
    assert all(torch.equal(v, states[1][k]) for k, v in trained.state_dict().items())


def test_without_keep_best_the_clean_budget_is_not_read() -> None:
    build("pgd_at", recipe={"epochs": 1}).apply(model(), granted(two_features(64), "train"), ONE)
    with pytest.raises(ContractError, match="clean"):
        build("pgd_at", keep_best=True).apply(model(), granted(two_features(64), "train"), ONE)


def test_training_calls_each_hook_with_the_network_in_train_mode() -> None:
    data, net, calls = two_features(64), model(), []

    def images(x: Tensor, y: Tensor, places: Tensor, epoch: int) -> Tensor:
        assert net.training
        assert torch.equal(y, data.labels[places])
        calls.append((epoch, len(x)))
        return torch.zeros_like(x)

    def loss(z: Tensor, y: Tensor, x: Tensor, places: Tensor) -> Tensor:
        assert not bool(x.any())  # the images that the network has seen
        return z.square().mean()

    train(
        net,
        data,
        Recipe(epochs=2, batch=32),
        0,
        images=images,
        loss=loss,
        after=lambda _epoch: net.train(False) and None,
    )
    assert calls == [(0, 32), (0, 32), (1, 32), (1, 32)]
