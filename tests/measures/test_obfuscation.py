"""Obfuscation: what is hidden keeps its label and comes back with the right key only."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from tests import kit, victims

from .planted import built, resnet20, run


@cache
def scans() -> tuple[ImageSet, Classifier, Tensor, Tensor]:
    """(training digits 8x8, a network trained on them, 16 test images that it gets right, their labels)"""
    data, _, _, test = victims.tiny_digits()
    model = victims.tiny_net()
    train(model, data, Recipe(epochs=6, batch=64, augment="none"), 0)
    model.requires_grad_(False)
    x, y = test.pixels(), test.labels
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:16]
    return data, model, x[right], y[right]


def learnt(seed: int = 0, **parameters: Any) -> Any:
    """(the key, the second key)"""
    data, model, _, _ = scans()
    threat, draws = ThreatModel(), Draws(seed, data.ids)
    return built("obfuscation", **parameters).learn(Oracle(model, threat, draws), data, threat, draws)


def test_what_is_hidden_keeps_its_label_and_comes_back_with_the_right_key_only() -> None:
    _, model, x, y = scans()
    keys = learnt(epochs=8)
    measure = built("obfuscation", keep=0.1)  # the logits of so small a network need a larger weight
    metrics, oracle = run(measure, model, x, y, lesson=keys)
    assert metrics["accuracy"] >= 0.9
    assert metrics["accuracy_start"] < 0.5
    assert metrics["accuracy_cipher"] < 0.5
    assert metrics["rmse_to_image"] > 0.25
    assert metrics["key_psnr"] > 20
    assert metrics["decode_psnr"] > 17
    assert metrics["decode_psnr_wrong_key"] < metrics["decode_psnr"] - 8
    assert set(oracle.ledger.backwards.tolist()) == {200}
    assert set(oracle.ledger.forwards.tolist()) == {203}
    assert run(measure, model, x, y, lesson=keys)[0] == metrics

    def hidden(at: slice) -> Tensor:
        few: Any = built("obfuscation", steps=5)
        oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(16)[at]))
        found: Tensor = few._descend(oracle, x[at], x[at], y[at], keys[0])
        return found

    torch.testing.assert_close(hidden(slice(3, 4)), hidden(slice(16))[3:4], atol=1e-3, rtol=0)  # alone as in a batch


def test_each_term_of_the_descent_does_its_part() -> None:
    _, model, x, y = scans()
    keys = learnt(epochs=3)

    def with_(**changes: Any) -> dict[str, float]:
        return run(built("obfuscation", **{"steps": 60, "keep": 0.1, **changes}), model, x, y, lesson=keys)[0]

    plain = with_()
    assert with_(keep=0)["accuracy"] < plain["accuracy"]
    assert with_(decode=1e-9)["decode_psnr"] < plain["decode_psnr"] - 3
    near = with_(start="image", steps=1)
    assert near["rmse_to_image"] < 0.1
    assert near["accuracy_start"] == 1


def test_a_key_is_repeatable_and_its_own() -> None:
    (key, wrong), (again, _), (other, _) = learnt(epochs=1), learnt(epochs=1), learnt(seed=1, epochs=1)
    for name, value in key.state_dict().items():
        assert value.equal(again.state_dict()[name])
    assert not key.order.equal(wrong.order)
    assert not key.order.equal(other.order)
    before = torch.get_rng_state()
    learnt(epochs=1)
    assert torch.get_rng_state().equal(before)


def test_the_cipher_is_undone_by_its_inverse_and_hides() -> None:
    key, _ = learnt(epochs=1)
    x = kit.grey_images(4, size=12)
    hidden = key.encrypt(x)
    squares = torch.nn.functional.pixel_unshuffle(hidden, 4)
    back = (0.5 + key.sign * (squares - 0.5))[:, key.order.argsort()]
    # inverting is its own inverse, but the sign belongs to the place after the shuffle
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(back, 4), x)
    assert sorted(key.order.tolist()) == list(range(48))
    odd = kit.grey_images(2, size=10)
    assert key.encrypt(odd).shape == key(odd).shape == odd.shape
    assert float(ops.size(key.encrypt(odd) - odd, "l2").min()) > 1


def test_variance_and_psnr_have_their_closed_forms() -> None:
    from siegebench.measures.obfuscation import _psnr, _variance  # type: ignore[import-not-found]

    x = kit.grey_images(3).double()
    sums = torch.nn.functional.unfold(x, 4).view(3, 3, 16, -1).sum(dim=2)
    torch.testing.assert_close(_variance(x), sums.var(dim=2).sum(dim=1))
    assert float(_variance(torch.full((1, 3, 8, 8), 0.7).double())) == pytest.approx(0, abs=1e-12)
    assert _psnr(x, x + 0.1) == pytest.approx(20)
    assert _psnr(x, x) == 100


def test_cards_build_and_refuse_what_makes_no_sense() -> None:
    assert built("level_set_traversal.paper").steps == 400
    assert built("fooling_images.evolution").method == "evolution"
    assert built("obfuscation.from_image").start == "image"
    for spec in ({"name": "level_set_traversal", "threshold": 2}, {"name": "fooling_images", "method": "luck"},
                 {"name": "obfuscation", "epochs": 0}):  # fmt: skip
        with pytest.raises(ConfigError):
            registry.build("measure", spec)
    _, model, x, y = scans()
    with pytest.raises(ContractError, match="call learn first"):
        run(built("obfuscation"), model, x, y)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_resnet20_reads_what_is_hidden() -> None:
    model, x, y = resnet20()
    data: Any = registry.build("dataset", "cifar10_jpeg")
    train_set, threat = data.load("train"), ThreatModel()
    draws = Draws(0, train_set.ids)
    measure = built("obfuscation")
    keys = measure.learn(Oracle(model, threat, draws), train_set, threat, draws)
    metrics, _ = run(measure, model, x, y, lesson=keys)
    print({name: round(value, 4) for name, value in metrics.items()})
    assert metrics["accuracy"] >= 0.9
    assert metrics["accuracy_cipher"] < 0.5
    assert metrics["decode_psnr"] > metrics["decode_psnr_wrong_key"] + 10
