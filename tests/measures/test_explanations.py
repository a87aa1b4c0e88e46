"""Maps in closed form, their comparison, the derivatives of the softened network, and attacks on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from siegebench.measures import _maps
from siegebench.measures.explanations import Explanations, SoftReLU, sharpen, softened
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, train
from tests import kit, victims

from .planted import affine, built, two_classes


def of(measure: Explanations, model: Classifier, x: Tensor, eps: float = 8 / 255) -> tuple[dict[str, Any], Oracle]:
    threat, draws = ThreatModel(norm="linf", eps=eps), Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    return measure(oracle, x, model(x).argmax(dim=1), threat, draws), oracle


def test_correlations_agree_with_scipy_also_with_ties() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 6, (5, 7, 7), generator=g).double() for _ in range(2))
    for i in range(5):
        exact = scipy.stats.spearmanr(a[i].flatten(), b[i].flatten()).statistic
        assert _maps.spearman(a, b)[i].item() == pytest.approx(exact)
    torch.testing.assert_close(_maps.spearman(a, a), torch.ones(5).double())
    assert bool(_maps.spearman(a, torch.ones_like(b)).isnan().all())


def test_overlap_counts_shared_pixels() -> None:
    a = torch.arange(100.0).view(1, 10, 10)
    assert _maps.overlap(a, a).item() == 1
    assert _maps.overlap(a, -a).item() == 0
    moved = a.flatten().roll(5).view(1, 10, 10)  # the strongest ten are five further on, five of them at the start
    assert _maps.overlap(a, moved).item() == 0.5


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "integrated"])
def test_maps_of_a_linear_model_are_exact(method: Any) -> None:
    model, x, _, _ = two_classes()
    measure, c = Explanations(method=method), torch.ones(len(x), dtype=torch.long)
    threat, draws = ThreatModel(), Draws(0, torch.arange(len(x)))
    found = measure._scored(Oracle(model, threat, draws), x, c)
    w = model.net.weight[1].view(1, 3, 8, 8)  # type: ignore[union-attr, index, operator]
    exact = (w if method == "gradient" else w * x).abs().sum(dim=1).expand(len(x), 8, 8)
    torch.testing.assert_close(found, exact / exact.sum(dim=(1, 2), keepdim=True))
    leaf = x.clone().requires_grad_(True)
    torch.testing.assert_close(measure._map(model, leaf, c, model(leaf)).detach(), found)


def test_a_softened_network_has_second_derivatives_and_becomes_the_network() -> None:
    model = kit.cnn_model().double()
    soft = softened(model)
    assert not [m for m in soft.modules() if isinstance(m, nn.ReLU)]
    assert [m for m in model.modules() if isinstance(m, nn.ReLU)], "the model itself does not change"
    x = kit.grey_images(2).double()
    c = torch.tensor([0, 1])
    sharpen(soft, 1e4)
    torch.testing.assert_close(soft(x), model(x), atol=1e-3, rtol=0)
    sharpen(soft, 3.0)
    wanted = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    for method in ("gradient", "gradient_x_input", "integrated"):
        measure = Explanations(method=method)  # type: ignore[arg-type]

        def loss(image: Tensor, measure: Explanations = measure) -> Tensor:
            return (measure._map(soft, image, c, soft(image)) - wanted).square().sum()

        leaf = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(loss(leaf), leaf)
        u = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
        up, down = (loss((x + s * 1e-6 * u).requires_grad_(True)).item() for s in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(float((g * u).sum()), rel=1e-3)


def test_soft_relu_is_softplus_with_this_sharpness() -> None:
    layer, v = SoftReLU(), torch.linspace(-1, 1, 9)
    sharpen(layer, 5.0)
    torch.testing.assert_close(layer(v), torch.log1p(torch.exp(5 * v)) / 5)


def test_passes_are_counted() -> None:
    model, x = kit.cnn_model(), kit.grey_images(4)
    _, oracle = of(Explanations(steps=2), model, x)
    # clean: logits and a map; each of four images: a map and an answer; two steps of each of three goals
    assert oracle.ledger.forwards.tolist() == [2 + 4 * 2 + 3 * 2] * 4
    assert oracle.ledger.backwards.tolist() == [5 + 2 * (2 + 2 + 1)] * 4
    _, oracle = of(Explanations(method="integrated", steps=2), model, x)
    assert oracle.ledger.forwards.tolist() == [1 + 8 + 4 * 9 + 2 * (9 + 9 + 1)] * 4
    assert oracle.ledger.backwards.tolist() == [5 * 8 + 2 * (9 + 9 + 1)] * 4


def test_constant_models_are_flagged_and_other_norms_refused() -> None:
    found, _ = of(Explanations(steps=2), affine(torch.zeros(2, 192), torch.tensor([1.0, 0.0])), kit.grey_images(3))
    assert found["metrics"] == {}
    assert [f["id"] for f in found["flags"]] == ["zero_maps"]
    threat, draws = ThreatModel(norm="l1", eps=1.0), Draws(0, torch.arange(2))
    model, x = kit.linear_model(), kit.grey_images(2)
    with pytest.raises(NotApplicable, match="linf, l2"):
        Explanations()(Oracle(model, threat, draws), x, torch.zeros(2, dtype=torch.long), threat, draws)


def test_the_map_of_a_linear_model_cannot_be_moved() -> None:
    """Its gradient is the same everywhere."""
    model, x, _, _ = two_classes()
    found, _ = of(Explanations(method="gradient", steps=4), model, x)
    for goal in ("map", "answer", "noise"):
        assert found["metrics"][f"{goal}_own_map"] == pytest.approx(1.0)
    assert found["metrics"]["answer_same_answer"] < found["metrics"]["noise_same_answer"]


@pytest.mark.slow
def test_maps_move_while_answers_stay_and_the_reverse() -> None:
    train_set, _, _, test = victims.tiny_digits()
    model = victims.tiny_net(0)
    train(model, train_set, Recipe(epochs=6, batch=64, augment="none"), 0)
    x = test.pixels(slice(64))
    found, _ = of(built("explanations"), model.requires_grad_(False), x[model(x).argmax(1) == test.labels[:64]], 0.1)
    print({k: round(v, 3) for k, v in found["metrics"].items()})
    m = found["metrics"]
    assert m["map_same_answer"] > 0.9
    assert m["map_target_map"] > m["noise_target_map"] + 0.1
    assert m["answer_own_map"] > m["answer_only_own_map"]
    assert m["answer_same_answer"] < m["noise_same_answer"]
