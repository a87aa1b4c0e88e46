"""The diagnosis of masked gradients: silent on an honest network, loud on every planted fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.train import Recipe, train
from siegebench.types import Measure
from tests import fakes, kit

EPS: dict[Norm, float] = {"linf": 32 / 255, "l2": 1.0, "l1": 10.0}


def digits(split: str) -> ImageSet:
    whole = registry.build("dataset", "digits").load(split)  # type: ignore[attr-defined]
    small = whole.images[:, :, ::2, ::2].contiguous()
    return ImageSet(small, whole.labels, whole.ids, 10, f"digits {split}")


@pytest.fixture(scope="module")
def model() -> Classifier:
    cnn = kit.cnn_model()
    cnn.requires_grad_(True)
    train(cnn, digits("train"), Recipe(epochs=10, batch=64, lr=5e-3, augment="none"), 0)
    return cnn.requires_grad_(False)


@pytest.fixture(scope="module")
def batch(model: Classifier) -> tuple[Tensor, Tensor]:
    """Correctly classified digits."""
    data = digits("test")
    x, y = data.pixels(), data.labels
    right = model(x).argmax(1) == y
    return x[right][:64], y[right][:64]


def measure(
    model: Classifier, batch: tuple[Tensor, Tensor], norm: Norm = "linf", eps: float | None = None, **parameters: Any
) -> tuple[dict[str, float], dict[str, str], Oracle]:
    """(metrics, severity of each flag, oracle)"""
    entry = registry.build("measure", {"name": "masking", **parameters})
    assert isinstance(entry, Measure)
    x, y = batch
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm] if eps is None else eps), Draws(0, torch.arange(len(x)))
    oracle = Oracle(model, threat, draws)
    found = entry.run(oracle, x, y, threat, draws)
    assert all(flag["evidence"] for flag in found["flags"])
    return found["metrics"], {flag["id"]: flag["severity"] for flag in found["flags"]}, oracle


class Noisy(Wrapped):
    """Noise on the logits, from draws when there are some and from a private generator otherwise."""

    def __init__(self, inner: Classifier, declared: bool) -> None:
        super().__init__(inner)
        self.randomized = declared
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z = self.inner(x)
        noise = torch.randn(z.shape, generator=self.generator) if draws is None else draws.normal((z.shape[1],))
        return z + 0.1 * noise


class Through(Wrapped):
    """Logits put through a function; the surrogate may be another one."""

    def __init__(self, inner: Classifier, change: Any, surrogate: Any = None) -> None:
        super().__init__(inner)
        self.change, self.instead = change, surrogate or change

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z: Tensor = self.change(self.inner(x), x)
        return z

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        z: Tensor = self.instead(self.inner(x), x)
        return z


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_honest_network_raises_no_flag(norm: Norm, model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    metrics, flags, oracle = measure(model, batch, norm)
    assert flags == {}
    assert metrics["zero_gradient_ce"] == metrics["zero_gradient_margin"] == metrics["look_spread"] == 0
    curve = [v for k, v in metrics.items() if k.startswith("sweep@")]
    assert len(curve) == 6
    assert curve[0] == 1.0
    assert curve[-1] == 0.0
    assert curve == sorted(curve, reverse=True)
    assert f"sweep@{EPS[norm]:.6g}" in metrics
    # the cost is bounded, and only the first images pay
    assert int(oracle.ledger.forwards.max() + oracle.ledger.backwards.max()) <= 1300
    assert int(oracle.ledger.forwards[32:].max()) == 0


def test_inflated_logits_saturate_the_softmax(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    metrics, flags, _ = measure(registry.build("defense", "logit_scaling").wrap(model), batch)  # type: ignore[attr-defined]
    assert flags == {"saturated_softmax": "flag"}
    assert metrics["zero_gradient_ce"] > 0.5
    assert metrics["zero_gradient_margin"] == 0


@pytest.mark.parametrize("name", ["bit_depth", "jpeg"])
def test_rounding_with_a_surrogate_is_flagged(name: str, model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    victim = registry.build("defense", name).wrap(model)  # type: ignore[attr-defined]
    kept = victim(batch[0]).argmax(1) == batch[1]
    metrics, flags, _ = measure(victim, (batch[0][kept], batch[1][kept]))
    assert flags == {"zero_gradients": "flag"}
    assert metrics["zero_gradient_margin"] == 1
    assert metrics["zero_gradient_surrogate"] == 0


def test_rounding_without_a_surrogate_fails(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    class Rounded(Wrapped):
        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            z: Tensor = self.inner((x * 31).round() / 31)
            return z

        def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            return self(x)

    victim = Rounded(model)
    kept = victim(batch[0]).argmax(1) == batch[1]
    _, flags, _ = measure(victim, (batch[0][kept], batch[1][kept]))
    assert flags["zero_gradients"] == "fail"
    assert flags["eps_sweep_not_zero"] == "fail"
    assert flags["loss_not_increasing"] == "flag"


def test_randomness_must_be_declared(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    metrics, flags, _ = measure(Noisy(model, declared=False), batch)
    assert flags["randomness_undeclared"] == "fail"
    assert metrics["look_spread"] > 0.001
    _, flags, oracle = measure(Noisy(model, declared=True), batch)
    assert flags == {}
    _, _, plain = measure(model, batch)
    assert int(oracle.ledger.forwards.sum()) > 3 * int(plain.ledger.forwards.sum())  # means over looks


def test_outputs_that_are_not_finite_fail(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    dead = Through(model, lambda z, x: torch.where(z == z.amin(dim=1, keepdim=True), torch.nan, z))
    metrics, flags, _ = measure(dead, batch)
    assert flags == {"nan": "fail"}
    assert metrics == {}


def test_gradients_that_are_not_finite_fail(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    # the root of zero has an infinite slope; times zero it is NaN
    steep = Through(model, lambda z, x: z + (0 * x.flatten(1).sum(dim=1, keepdim=True)).sqrt())
    metrics, flags, _ = measure(steep, batch)
    assert flags == {"nan": "fail"}
    assert metrics["zero_gradient_margin"] == 0


def test_probabilities_are_not_logits(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    _, flags, _ = measure(Through(model, lambda z, x: z.softmax(dim=1)), batch)
    assert flags["not_logits"] == "flag"
    shifted = Through(model, lambda z, x: z.softmax(dim=1) + 1)
    assert "not_logits" not in measure(shifted, batch)[1]


def test_a_surrogate_that_points_the_wrong_way_is_found(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    downhill = Through(model, lambda z, x: z, lambda z, x: z.detach() - (z - z.detach()))
    metrics, flags, _ = measure(downhill, batch)
    assert flags["eps_sweep_not_zero"] == "fail"
    assert flags["loss_not_increasing"] == "flag"
    assert metrics["loss_risen"] < 0.5
    assert "zero_gradients" not in flags


HONEST: dict[str, Any] = {
    "blurred": lambda inner: Before(inner, lambda x: nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
    "temperature": lambda inner: Through(inner, lambda z, x: z / 3),
    "robust": lambda inner: inner,  # at an eps that leaves most images
}


class Before(Wrapped):
    """Images put through a function first, with noise or without."""

    def __init__(self, inner: Classifier, change: Any, noise: float = 0.0) -> None:
        super().__init__(inner)
        self.change, self.noise, self.randomized = change, noise, noise > 0

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        if draws is not None and self.noise:
            x = x + self.noise * draws.normal(tuple(x.shape[1:])).to(x)
        z: Tensor = self.inner(self.change(x))
        return z

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self(x, draws)


@pytest.mark.parametrize("name", HONEST)
def test_honest_models_raise_no_flag(name: str, model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    victim = HONEST[name](model)
    kept = victim(batch[0]).argmax(1) == batch[1]
    metrics, flags, _ = measure(victim, (batch[0][kept], batch[1][kept]), eps=4 / 255 if name == "robust" else None)
    assert flags == {}
    assert metrics["slope_correlation"] > 0.8
    assert metrics["slope_signs"] > 0.8
    assert name != "robust" or metrics[f"sweep@{4 / 255:.6g}"] > 0.5


@pytest.mark.parametrize("name", ["high_frequency", "reversed"])
def test_a_gradient_that_does_not_foretell_the_margin_is_found(
    name: str, model: Classifier, batch: tuple[Tensor, Tensor]
) -> None:
    turned = Through(model, lambda z, x: z.detach() - (z - z.detach()))
    victim = turned if name == "reversed" else fakes.FAKES[name](model)
    metrics, flags, _ = measure(victim, batch, samples=12, steps=5, restarts=1, tries=2)
    assert flags["gradient_mismatch"] == "flag"
    assert metrics["slope_correlation"] < 0.2


def test_random_points_that_break_more_than_the_gradient_are_found(
    model: Classifier, batch: tuple[Tensor, Tensor]
) -> None:
    downhill = Through(model, lambda z, x: z, lambda z, x: z.detach() - (z - z.detach()))
    metrics, flags, _ = measure(downhill, batch, steps=5, restarts=1)
    assert flags["chance_beats_gradient"] == "fail"
    assert metrics["broken_by_chance_only"] > 0.05


class Valleys(nn.Module):
    """The loss rises from where an attack starts to the nearest end; only one end of both pixels is high enough."""

    def forward(self, x: Tensor) -> Tensor:
        moved = x.flatten(1)[:, :2] - 0.5
        wrong = torch.where(moved < 0, -moved, moved / 2).sum(dim=1) - 0.17
        return torch.stack([torch.zeros_like(wrong), wrong], dim=1)


def test_restarts_that_still_gain_are_found() -> None:
    x, y = torch.full((32, 3, 8, 8), 0.5), torch.zeros(32, dtype=torch.long)
    metrics, flags, _ = measure(Network(Valleys(), num_classes=2), (x, y), eps=0.1, restarts=1)
    assert flags["restarts_still_gain"] == "flag"
    assert 2 / 32 <= metrics["gain_of_twice_the_restarts"] <= 0.5
    _, flags, _ = measure(Network(Valleys(), num_classes=2), (x, y), eps=0.1, steps=4, restarts=20)
    assert "restarts_still_gain" not in flags


def test_a_model_that_resists_without_its_randomness_is_found(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    rounded = Before(model, lambda x: (x * 15).round() / 15, noise=0.01)
    metrics, flags, _ = measure(rounded, batch, samples=12, steps=8, restarts=1, tries=2)
    assert flags["frozen_noise_resists"] == "flag"
    assert metrics["broken_frozen"] < 0.5 < metrics["broken_inside"]
    metrics, flags, _ = measure(Before(model, lambda x: x, noise=0.01), batch, samples=12, averaged=1)
    assert flags == {}
    assert metrics["broken_frozen"] > 0.9
    assert metrics["agreement_of_means"] > 0.5


class Mirrored(Wrapped):
    """The sign of every value is drawn anew: gradients of two passes have nothing in common."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.randomized = True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        assert draws is not None
        z: Tensor = self.inner(x * draws.sign(tuple(x.shape[1:])).to(x))
        return z

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self(x, draws)


def test_noise_that_hides_the_gradient_is_found(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    metrics, flags, _ = measure(Mirrored(model), batch, samples=12, steps=3, restarts=1, tries=1, averaged=1)
    assert flags["too_few_passes"] == "flag"
    assert abs(metrics["agreement_of_means"]) < 0.1


class Shell(nn.Module):
    """Wrong only where the mean pixel has moved by 0.010 to 0.030: attacks with long steps jump over it."""

    def forward(self, x: Tensor) -> Tensor:
        moved = x.flatten(1).mean(dim=1) - 0.5
        wrong = 0.010 - (moved - 0.020).abs() + 1e-3 * moved
        return torch.stack([torch.zeros_like(wrong), wrong], dim=1)


def test_accuracy_that_comes_back_with_eps_is_found() -> None:
    x, y = torch.full((16, 3, 8, 8), 0.5), torch.zeros(16, dtype=torch.long)
    metrics, flags, _ = measure(Network(Shell(), num_classes=2), (x, y), eps=8 / 255)
    assert metrics["sweep@0.0313725"] == 0
    assert metrics["sweep@1"] == 1
    assert flags["not_monotone"] == "fail"
    assert flags["eps_sweep_not_zero"] == "fail"


class OnePixel(nn.Module):
    """The loss is the mean pixel, the gradient that of the lowest pixel: every step moves one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        low = pixels.min(dim=1).values
        wrong = 100 * (pixels.mean(dim=1) - 0.5).detach() + (low - low.detach()) - 20
        return torch.stack([torch.zeros_like(wrong), wrong], dim=1)


def test_an_attack_that_gains_from_more_steps_is_found() -> None:
    x, y = torch.full((16, 3, 8, 8), 0.5), torch.zeros(16, dtype=torch.long)
    metrics, flags, _ = measure(Network(OnePixel(), num_classes=2), (x, y), eps=0.1, steps=2)
    assert flags["loss_still_rising"] == "flag"
    # two steps move a pixel each by eps (1.25 eps, cut); four move four by 0.625 eps
    assert metrics["gain_of_twice_the_steps"] == pytest.approx(2.5 / 2 - 1, rel=1e-3)


def test_the_sweep_ends_at_the_whole_box_and_stays_in_it(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    seen: list[Tensor] = []
    watched = Through(model, lambda z, x: (seen.append(x.detach()), z)[1])
    metrics, _, _ = measure(watched, (batch[0][:1], batch[1][:1]), eps=0.3)
    swept = [float(k.removeprefix("sweep@")) for k in metrics if k.startswith("sweep@")]
    assert swept == pytest.approx([0, 0.15, 0.3, 0.6, 1.0])  # 4 x 0.3 is more than the box
    assert min(float(x.amin()) for x in seen) >= 0
    assert max(float(x.amax()) for x in seen) <= 1


def test_no_images_and_no_budget_are_no_error(model: Classifier, batch: tuple[Tensor, Tensor]) -> None:
    assert measure(model, (batch[0][:0], batch[1][:0]))[:2] == ({}, {})
    metrics, flags, _ = measure(model, batch, eps=0.0)
    assert flags == {}
    assert metrics["sweep@1"] == 0
    assert len(measure(model, (batch[0][:1], batch[1][:1]))[1]) == 0
