"""Randomised smoothing on a half-space, whose smoothed radius is known, and the counts that it rests on."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest, norm
from siegebench.certifiers import randomized_smoothing as rs
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network, Wrapped
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.testing.certifiers import linear
from siegebench.testing.specimens import NEAREST
from siegebench.threat import ThreatModel
from siegebench.types import Attack, Certifier
from tests import kit

FAR = NEAREST["l2"]


def certifier(**parameters: float) -> rs.RandomizedSmoothing:
    made = registry.build(Certifier, {"name": "randomized_smoothing", **parameters})
    assert isinstance(made, rs.RandomizedSmoothing)
    return made


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(seed, torch.arange(n))


class Seen(nn.Module):
    """Keeps the images that it is given; class 0 where the first pixel is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.clone())
        z = x[:, 0, 0, 0]
        return torch.stack([z, -z, torch.full_like(z, -9)], dim=1)


def test_the_radius_on_a_half_space_is_its_distance() -> None:
    model, x, y = linear("l2")
    radii = [0.9 * FAR, 0.95 * FAR, FAR]
    found = certifier(sigma=FAR, n=6000)(model, x, "l2", radii, draws(8))
    assert torch.equal(found.prediction, y)
    assert found.holds[0].all(), "p_A is Phi(1); 6,000 samples find 92 % of the radius"
    assert not found.holds[2].any()
    in_linf = certifier(sigma=FAR, n=6000)(model, x, "linf", [r / x[0].numel() ** 0.5 for r in radii], draws(8))
    assert torch.equal(in_linf.holds, found.holds)


def test_a_certificate_is_wrong_as_rarely_as_it_says() -> None:
    model, x, y = linear("l2")
    many, alpha = 1200, 0.05
    made = certifier(sigma=FAR / 0.3, n0=10, n=100, alpha=alpha)  # p_A is Phi(0.3), 0.62
    found = made(model, x[:1].expand(many, *x.shape[1:]).contiguous(), "l2", [FAR], draws(many))
    wrong = float((found.holds[0] & (found.prediction == y[0])).double().mean())
    assert 0.01 < wrong < alpha + 3 * (alpha * (1 - alpha) / many) ** 0.5  # the test is discrete, a little below alpha


@pytest.mark.parametrize("k", [0, 1, 50, 99, 100])
def test_the_bound_is_the_exact_one_sided_interval(k: int) -> None:
    alpha = 0.001
    low = binomtest(k, 100).proportion_ci(1 - 2 * alpha, "exact").low  # two-sided: each side fails with alpha
    assert float(rs.lower_bound(torch.tensor([k]), 100, alpha)) == pytest.approx(low, rel=1e-9)
    largest = float(rs.lower_bound(torch.tensor([1000]), 1000, alpha))
    assert norm.ppf(largest) == pytest.approx(2.46, abs=0.005)


def test_the_class_and_its_probability_rest_on_different_samples_without_clipping() -> None:
    net = Seen()
    x = torch.ones(2, 3, 4, 4)
    certifier(sigma=0.5, n0=30, n=60)(Network(net, num_classes=3), x, "l2", [0.1], draws(2))
    first, second = net.images[0], torch.cat(net.images[1:])
    assert len(first) == 60
    assert len(second) == 120
    every = torch.cat([first, second]).flatten(1)
    assert len(every.unique(dim=0)) == 180
    assert float(every.std()) == pytest.approx(0.5, abs=0.02)
    assert float(every.amax()) > 2


def test_counts_do_not_depend_on_the_size_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = linear("l2")
    whole = rs.votes(model, x, 1.0, 250, draws(8), "a")
    assert whole.sum(dim=1).tolist() == [250] * 8
    for at_once in (7, 130, 401):
        monkeypatch.setattr(rs, "at_once", lambda x, device, k=at_once: k)
        assert torch.equal(rs.votes(model, x, 1.0, 250, draws(8), "a"), whole)
    assert not torch.equal(rs.votes(model, x, 1.0, 250, draws(8), "b"), whole)


def test_what_is_not_finite_votes_for_nothing() -> None:
    class Broken(Seen):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return torch.where(x[:, :1, 0, 0] > 0, z, torch.nan)

    counts = rs.votes(Network(Broken(), num_classes=3), torch.zeros(1, 3, 4, 4), 1.0, 400, draws(1), "a")
    assert 150 < int(counts[0, 0]) < 250
    assert counts[0, 1:].sum() == 0


def test_it_abstains_where_two_classes_are_as_probable() -> None:
    model, x = Network(Seen(), num_classes=3), torch.zeros(200, 3, 4, 4)
    made = certifier(n=200, alpha=0.05)
    found = made(model, x, "l2", [0.0], draws(200))
    assert float((found.prediction == -1).double().mean()) > 0.9
    named = made.predict(model, x, draws(200))
    assert float((named != -1).double().mean()) < 0.09  # the two-sided test errs with probability 0.05


def test_attacks_need_the_backward_model() -> None:
    model, x, y = linear("l2")
    made = certifier(sigma=0.1, votes=20, m=4)
    deployed, threat = made.predictor(model), ThreatModel(norm="l2", eps=1.5 * FAR)
    plain = {"name": "pgd", "loss": "ce", "steps": 10, "early_stop": False, "random_start": False}
    lost = {}
    for name, attack in (("plain", plain), ("bpda", {"name": "bpda", "attack": plain})):
        oracle = Oracle(deployed, threat, draws(8))
        x_adv = registry.build(Attack, attack)(oracle, x, y, threat, draws(8))
        lost[name] = int(made.refutes(model, x_adv, y, draws(8, 1)).sum())
    assert lost == {"plain": 0, "bpda": 8}


def test_the_backward_model_is_the_mean_softmax() -> None:
    model, x = kit.cnn_model(), kit.grey_images(3, size=16)
    smoothed = certifier(sigma=1e-6, m=5).predictor(model)
    z = smoothed.backward_model(x, draws(3))
    expected = model(x).softmax(dim=1).log() + torch.log(torch.tensor(5.0))
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=0)


def test_the_noise_of_a_network_that_is_randomised_itself_does_not_depend_on_the_batch() -> None:
    class Noisy(Wrapped):
        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            assert draws is not None
            return super().forward(x + draws.normal(tuple(x.shape[1:])).to(x.dtype))

    model, x, _ = linear("l2")
    noisy = Noisy(model)
    noisy.randomized = True
    whole = rs.votes(noisy, x, 1.0, 250, draws(8), "a")
    assert torch.equal(rs.votes(noisy, x[5:], 1.0, 250, draws(8)[5:], "a"), whole[5:])
