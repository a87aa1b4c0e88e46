"""MI-FGSM, DeepFool, FMN and NRF against closed forms, hand computations and planted victims."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from siegebench.attacks.cw import CW
from siegebench.attacks.deepfool import DeepFool
from siegebench.attacks.fab import to_hyperplane
from siegebench.attacks.fmn import FMN
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.nrf import NRF
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.testing.specimens import victim
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 2.0, "l1": 20.0}


class Seen(Wrapped):
    """Remembers the images it is shown."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.images: list[Tensor] = []

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self.images.append(x.detach().clone())
        return self.inner(x)


def frozen(net: nn.Module, classes: int) -> Classifier:
    return Network(net, num_classes=classes).eval().requires_grad_(False)


def nearest(model: Classifier, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Distance to the nearest hyperplane of a linear model within the box: min over k, each by its own projection."""
    w, z, out = model.net.layer.weight, model(x), []  # type: ignore[union-attr]
    for k in range(model.num_classes):
        gap = (z.gather(1, y[:, None]) - z[:, k : k + 1]).squeeze(1)
        d = to_hyperplane(x.flatten(1), w[k] - w[y], gap, norm)
        there = ((w[k] - w[y]) * d).sum(1) >= gap * (1 - 1e-4) - 1e-6  # the box may end before
        out.append(torch.where((y != k) & there, ops.size(d, norm), torch.inf))
    return torch.stack(out).amin(dim=0)


def wrong(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def run(
    attack: Attack, model: Classifier, x: Tensor, y: Tensor, norm: Norm = "l2", eps: float = 0.5
) -> tuple[Tensor, Oracle]:
    return kit.attack_with(attack, model, x, y, ThreatModel(norm=norm, eps=eps))


def convolutional(n: int) -> tuple[Classifier, Tensor, Tensor]:
    """A float64 network whose answers are spread over its classes, grey images, and what it calls them."""
    model, _, _ = victim()
    x = kit.grey_images(n, 16).double()
    return model, x, model(x).argmax(1)


def constant() -> Classifier:
    """Class 0 whatever it sees, without a gradient."""
    model = kit.linear_model()
    with torch.no_grad():
        model.net.layer.weight.zero_()  # type: ignore[union-attr]
    return model


ALL: dict[str, Attack] = {
    "mifgsm": MIFGSM(),
    "mifgsm-margin-early": MIFGSM(loss="margin", early_stop=True),
    "deepfool": DeepFool(steps=8),
    "deepfool-3": DeepFool(targets=3),
    "fmn": FMN(steps=30),
    "nrf": NRF(steps=25, noise_steps=15),
    "nrf-robust-away": NRF(steps=25, noise_steps=15, channels="robust", towards=False),
}


# ------------------------------------------------------------------------------------------------------------ MI-FGSM


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mu", [1.0, 0.5])
def test_mifgsm_is_the_recursion_of_the_paper(cnn: Classifier, norm: Norm, mu: float) -> None:
    model, x = cnn.double(), kit.grey_images(4, 16).double()
    y, steps, eps = model(x).argmax(1), 5, 1e-4
    x_adv, _ = run(MIFGSM(steps=steps, mu=mu), model, x, y, norm, eps)
    assert not bool(wrong(model, x_adv, y).any())  # too small a ball: the last iterate comes back
    for i in range(len(x)):
        x_t, g = x[i : i + 1].clone(), torch.zeros_like(x[:1])
        for _ in range(steps):
            leaf = x_t.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y[i : i + 1]), leaf)
            g = mu * g + grad / grad.abs().sum()
            x_t = x_t + eps / steps * (g.sign() if norm == "linf" else g / g.square().sum().sqrt())
        torch.testing.assert_close(x_adv[i : i + 1], x_t, rtol=0, atol=1e-12)


def test_mifgsm_carries_its_momentum_over_a_ridge() -> None:
    """Two steps up, then the gradient turns: the sum still points up, without momentum the path turns at once."""

    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.mean(dim=(1, 2, 3))
            other = -10 - (s - 0.52).abs()  # rises until the mean is 0.52, falls beyond
            return torch.stack([torch.zeros_like(s), other], dim=1)

    model, x, y = frozen(Ridge(), 2), torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    ends = {mu: float(run(MIFGSM(steps=3, step=0.015, mu=mu, loss="margin"), model, x, y, "linf", 0.1)[0].mean())
            for mu in (0.0, 1.0)}  # fmt: skip
    assert ends[0.0] == pytest.approx(0.515, abs=1e-6)  # 0.515, 0.530, back to 0.515
    assert ends[1.0] == pytest.approx(0.545, abs=1e-6)  # the sum of the three signs is still positive


def test_mifgsm_counts_and_keeps_what_it_broke(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    eps = 1.5 * float(nearest(linear, x, y, "linf").max())
    whole, oracle = run(MIFGSM(loss="margin"), linear, x, y, "linf", eps)
    assert oracle.ledger.forwards.tolist() == [11] * 8
    assert oracle.ledger.backwards.tolist() == [10] * 8
    assert bool(wrong(linear, whole, y).all())
    first, oracle = run(MIFGSM(loss="margin", early_stop=True), linear, x, y, "linf", eps)
    assert bool(wrong(linear, first, y).all())
    assert bool((ops.size(first - x, "linf") < ops.size(whole - x, "linf")).any())
    assert int(oracle.ledger.forwards.max()) <= 11
    assert torch.equal(oracle.ledger.forwards, oracle.ledger.backwards.clamp(max=10) + (oracle.ledger.forwards == 11))


def test_mifgsm_without_any_gradient_leaves() -> None:
    model, x = constant(), kit.grey_images(3)
    x_adv, oracle = run(MIFGSM(), model, x, model(x).argmax(1), "linf", 0.1)
    assert torch.equal(x_adv, x)
    assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [1, 1, 1]


# ----------------------------------------------------------------------------------------------------------- DeepFool


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_goes_straight_to_the_nearest_hyperplane(linear: Classifier, norm: Norm) -> None:
    model, x = linear.double(), kit.grey_images(16).double()
    y = model(x).argmax(1)
    x_adv, oracle = run(DeepFool(), model, x, y, norm)
    assert bool(wrong(model, x_adv, y).all())
    torch.testing.assert_close(ops.size(x_adv - x, norm), 1.02 * nearest(model, x, y, norm), rtol=1e-9, atol=0)
    assert oracle.ledger.forwards.tolist() == [1 + 1 + 1] * 16
    assert oracle.ledger.backwards.tolist() == [9] * 16


def test_deepfool_prefers_the_nearest_class_to_the_likeliest() -> None:
    """Class 1 has the higher logit and a flat boundary far away, class 2 a steep one near by."""
    net = kit.Linear(classes=3, size=4)
    with torch.no_grad():
        net.layer.weight.zero_()
        net.layer.weight[1, 0], net.layer.weight[2, 1] = 1.0, 10.0
        net.layer.bias.copy_(torch.tensor([0.0, -1.0 - 0.5, -2.0 - 5.0]))
    model, x = frozen(net, 3), torch.full((1, 3, 4, 4), 0.5)
    y = torch.zeros(1, dtype=torch.long)
    assert model(x).tolist() == [[0.0, -1.0, -2.0]]
    near, _ = run(DeepFool(), model, x, y)
    assert float(ops.size(near - x, "l2")) == pytest.approx(0.2 * 1.02, rel=1e-4)
    assert model(near).argmax(1).tolist() == [2]
    alone, _ = run(DeepFool(targets=1), model, x, y)  # only class 1 is tried: half a unit of room, one is needed
    assert torch.equal(alone, x)


def test_deepfool_curves_towards_a_bent_boundary() -> None:
    model, x, y = convolutional(8)
    x_adv, oracle = run(DeepFool(), model, x, y)
    assert bool(wrong(model, x_adv, y).all())
    assert int(oracle.ledger.forwards.max()) > 3  # some take several steps
    again, _ = run(FMN(), model, x, y)
    assert float((ops.size(x_adv - x, "l2") / ops.size(again - x, "l2")).median()) < 1.5


@pytest.mark.parametrize("attack", [DeepFool(), FMN()], ids=["deepfool", "fmn"])
def test_pixels_at_the_edge_of_the_box_move_and_stay_inside(linear: Classifier, attack: Attack) -> None:
    x = kit.grey_images(8).round()  # every pixel is 0 or 1
    y = linear(x).argmax(1)
    x_adv, _ = run(attack, linear, x, y)
    assert bool(wrong(linear, x_adv, y).all())
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert float((ops.size(x_adv - x, "l2") / nearest(linear, x, y, "l2")).median()) < 1.1


@pytest.mark.parametrize(
    ("attack", "passes"), [(DeepFool(), (2, 9)), (FMN(), (1, 1)), (NRF(noise_steps=2, steps=3), (6, 5))]
)
def test_the_clean_image_comes_back_where_there_is_no_gradient(attack: Attack, passes: tuple[int, int]) -> None:
    model, x = constant(), kit.grey_images(3)
    x_adv, oracle = run(attack, model, x, model(x).argmax(1))
    assert torch.equal(x_adv, x)
    assert (oracle.ledger.forwards.tolist(), oracle.ledger.backwards.tolist()) == tuple([n] * 3 for n in passes)


# ---------------------------------------------------------------------------------------------------------------- FMN


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_finds_the_smallest_perturbation_of_a_linear_model(linear: Classifier, norm: Norm) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    x_adv, oracle = run(FMN(), linear, x, y, norm)
    assert bool(wrong(linear, x_adv, y).all())
    ratio = ops.size(x_adv - x, norm) / nearest(linear, x, y, norm)
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.median()) < 1.02
    assert float(ratio.max()) < 1.1
    assert oracle.ledger.forwards.tolist() == oracle.ledger.backwards.tolist() == [100] * 16


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_walks_the_path_of_the_paper(norm: Norm) -> None:
    """Every image shown to the model, against the recursion written out for one sample."""
    (model, x, y), steps = convolutional(3), 12
    watched = Seen(model)
    run(FMN(steps=steps), watched, x, y, norm)
    for i in range(len(x)):
        x0, delta, eps, best = x[i : i + 1], torch.zeros_like(x[:1]), math.inf, math.inf
        for k in range(steps):
            torch.testing.assert_close(watched.images[k][i : i + 1], x0 + delta, rtol=0, atol=1e-10)
            share = (1 + math.cos(math.pi * k / steps)) / 2
            alpha, gamma = 0.003 + 0.297 * share, 0.001 + 0.049 * share
            leaf = (x0 + delta).requires_grad_(True)
            z = model(leaf)[0]
            others = torch.cat([z[: y[i]], z[y[i] + 1 :]])
            m = others.max() - z[y[i]]
            t = 0.25 * max(0.0, math.cos(math.pi * k / steps)) * float(z.detach().std())
            loss = m if t < 1e-6 else t * (others / t).exp().sum().log() - z[y[i]]
            (g,) = torch.autograd.grad(loss, leaf)
            far = float(delta.abs().max() if norm == "linf" else delta.norm())
            slack = 1e-5 * float(z.detach().abs().max())
            if m > slack:
                best = min(best, far)
                eps = min((1 - gamma) * eps, best)
            elif best < math.inf:
                eps = (1 + gamma) * eps
            else:
                eps = far + float((m.detach().abs() + 2 * slack) / (g.abs().sum() if norm == "linf" else g.norm()))
            delta = (x0 + delta + alpha * g / g.norm()).clamp(0, 1) - x0
            delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / float(delta.norm()))


def test_fmn_comes_nearer_with_more_steps() -> None:
    model, x, y = convolutional(8)
    far = [ops.size(run(FMN(steps=steps), model, x, y)[0] - x, "l2").mean() for steps in (10, 40, 160)]
    assert float(far[0]) > 0
    assert far[0] > far[1] > far[2]


def test_fmn_beats_cw_at_a_fraction_of_its_passes() -> None:
    model, x, y = victim()
    ours, oracle = run(FMN(), model, x, y)
    other, dear = run(CW(), model, x, y)
    assert int(oracle.ledger.forwards.max()) < float(dear.ledger.forwards.double().mean()) / 2
    assert bool(wrong(model, ours, y).all())
    far, beyond = (ops.size(x_adv - x, "l2").masked_fill(~wrong(model, x_adv, y), torch.inf) for x_adv in (ours, other))
    assert float(far.median()) < 1.01 * float(beyond.median())


# ---------------------------------------------------------------------------------------------------------------- NRF


class Maps(nn.Module):
    """One convolution that copies the colours, then a tail that the test gives."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.tail = tail
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.conv(x))


class Supported(nn.Module):
    """Noise in the first channel speaks for class 0, in the second for class 1; the third does not matter."""

    def forward(self, z: Tensor) -> Tensor:
        spread = (z - z.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(2, 3))
        level = (z.mean(dim=(2, 3)) - 0.5).abs()
        return torch.stack([1 + 4 * level[:, 0], 4 * level[:, 1]], dim=1) + 0 * spread[:, :2]


def test_nrf_tells_channels_that_noise_supports_from_those_that_it_destroys() -> None:
    model = frozen(Maps(Supported()), 2)
    x, y = kit.grey_images(6), torch.zeros(6, dtype=torch.long)
    draws = Draws(0, torch.arange(6))
    oracle = Oracle(model, ThreatModel(norm="l2", eps=0.5), draws)
    robust = NRF()._robust(oracle, x, y, draws)
    assert robust.shape == (6, 3, 1, 1)
    assert bool(robust[:, 0].all())
    assert not bool(robust[:, 1].any())
    assert oracle.ledger.forwards.tolist() == [201] * 6
    assert oracle.ledger.backwards.tolist() == [200] * 6


@pytest.mark.parametrize("towards", [True, False])
def test_nrf_adds_the_unit_vector_of_the_chosen_channels_to_the_gradient(cnn: Classifier, towards: bool) -> None:
    model, x = cnn.double(), kit.grey_images(5, 16).double()
    y, mask = model(x).argmax(1), torch.rand(5, 16, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    attack = NRF(towards=towards)
    head, tail = model.net[:3], model.net[3:]
    for i in range(5):
        leaf = x[i : i + 1].clone().requires_grad_(True)
        z = head(leaf)
        f = 0.1 * (-ops.margin(tail(z), y[i : i + 1])).clamp(min=0)
        (g,) = torch.autograd.grad(f.sum(), z, retain_graph=True)
        u = (g * mask[i]) / (g * mask[i]).norm()
        (expected,) = torch.autograd.grad(z, leaf, g + u if towards else g - u)
        first = attack_gradient(attack, model, x[i : i + 1], y[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-12)


def attack_gradient(attack: NRF, model: Classifier, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    from functools import partial

    from siegebench.attacks.nrf import _edited

    oracle = Oracle(model, ThreatModel(norm="l2", eps=0.5), Draws(0, torch.arange(len(x))))
    tap = partial(_edited, edit=partial(attack._lean, mask=mask))
    return oracle.tapped(tap).gradient(x, partial(attack._hinge, y=y))[0]


def test_nrf_breaks_a_network_and_every_variant_goes_its_own_way() -> None:
    (model, x, y), out = convolutional(4), {}
    for channels, towards in (("non_robust", True), ("non_robust", False), ("robust", True)):
        attack = NRF(channels=channels, towards=towards, steps=100, noise_steps=50, noise_lr=0.4)  # type: ignore[arg-type]
        out[channels, towards], oracle = run(attack, model, x, y)
        assert int(oracle.ledger.forwards.max()) <= 151
        assert torch.equal(oracle.ledger.forwards, oracle.ledger.backwards + 1)
    best, _ = run(FMN(), model, x, y)
    assert bool(wrong(model, out["non_robust", True], y).all())
    assert float((ops.size(out["non_robust", True] - x, "l2") / ops.size(best - x, "l2")).median()) < 1.5
    assert not torch.equal(out["non_robust", True], out["non_robust", False])
    assert not torch.equal(out["non_robust", True], out["robust", True])


def test_nrf_on_a_model_without_convolutions_uses_the_image_as_features(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = run(NRF(), linear, x, y)
    assert bool(wrong(linear, x_adv, y).all())
    assert float((ops.size(x_adv - x, "l2") / nearest(linear, x, y, "l2")).median()) < 1.2


def test_nrf_refuses_maps_without_extent() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 3))
    model, x = frozen(net, 3), kit.grey_images(2)
    with pytest.raises(NotApplicable, match="single numbers"):
        run(NRF(), model, x, model(x).argmax(1))


# ------------------------------------------------------------------------------------------------------------ the tap


def test_a_tapped_pass_is_booked_and_leaves_no_hook(cnn: Classifier) -> None:
    x, draws, seen = kit.grey_images(4, 16), Draws(0, torch.arange(4)), []
    oracle = Oracle(cnn, ThreatModel(norm="l2", eps=0.5), draws)
    view = oracle[torch.tensor([1, 3])].tapped(lambda z: seen.append(z.shape) or 0 * z)  # type: ignore[func-returns-value]
    flat = view.logits(x[[1, 3]])
    assert seen == [(2, 16, 4, 4)]
    assert torch.equal(flat[0], flat[1])  # the tap replaced what the tail sees
    view.gradient(x[[1, 3]], lambda z: z[:, 0])
    assert oracle.ledger.forwards.tolist() == oracle.ledger.queries.tolist() == [0, 2, 0, 2]
    assert oracle.ledger.backwards.tolist() == [0, 1, 0, 1]
    assert not any(m._forward_hooks for m in cnn.modules())
    assert torch.equal(oracle.logits(x), cnn(x))  # the tap is the view's alone


def test_a_tap_needs_gradient_access_and_maps_that_can_be_told_apart(cnn: Classifier) -> None:
    x, draws = kit.grey_images(2, 16), Draws(0, torch.arange(2))
    with pytest.raises(ContractError, match="features"):
        Oracle(cnn, ThreatModel(norm="l2", eps=0.5, access="score"), draws).tapped(lambda z: z)

    class Twice(Wrapped):
        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            return self.inner(x) + self.inner(x.flip(3))

    oracle = Oracle(Twice(cnn), ThreatModel(norm="l2", eps=0.5), draws)
    with pytest.raises(NotApplicable, match="more than once"):
        oracle.tapped(lambda z: z).logits(x)
    assert not any(m._forward_hooks for m in cnn.modules())


# ----------------------------------------------------------------------------------------------------------- all four


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ALL for norm in ALL[name].handles()])
def test_a_batch_of_six_is_six_batches_of_one(name: str, norm: Norm) -> None:
    attack = ALL[name]
    model, x, y = convolutional(6)
    threat, draws = ThreatModel(norm=norm, eps=EPS[norm]), Draws(0, torch.arange(6))
    oracle = Oracle(model, threat, draws)
    whole = attack(oracle, x, y, threat, draws)
    assert float((whole - x).abs().max()) > 0
    for i in torch.tensor([4, 0, 5, 2]).split(1):
        single = Oracle(model, threat, draws[i])
        alone = attack(single, x[i], y[i], threat, draws[i])
        torch.testing.assert_close(alone, whole[i], rtol=0, atol=1e-10)
        for count in ("forwards", "backwards", "queries"):
            assert torch.equal(getattr(single.ledger, count), getattr(oracle.ledger, count)[i])


@pytest.mark.parametrize("name", ["deepfool", "fmn", "nrf", "mifgsm-margin-early"])
def test_the_logit_scaling_control_is_broken(name: str) -> None:
    inner, x, y = convolutional(6)
    model = registry.build("defense", {"name": "logit_scaling", "factor": 2.0**13}).wrap(inner)  # type: ignore[attr-defined]
    norm: Norm = "linf" if name.startswith("mifgsm") else "l2"
    x_adv, _ = run(ALL[name], model, x, y, norm, EPS[norm])
    assert bool(wrong(model, x_adv, y).all())
    if name in ("deepfool", "fmn"):  # the very same perturbation
        torch.testing.assert_close(x_adv, run(ALL[name], inner, x, y)[0], rtol=0, atol=1e-9)


def test_mifgsm_on_cross_entropy_is_fooled_by_the_control() -> None:
    inner, x, y = convolutional(6)
    model = registry.build("defense", {"name": "logit_scaling", "factor": 2.0**20}).wrap(inner)  # type: ignore[attr-defined]
    fooled, _ = run(MIFGSM(), model, x, y, "linf", EPS["linf"])
    assert torch.equal(fooled, x)  # saturated: no gradient, no step


def test_cards_build_and_refuse_what_makes_no_sense() -> None:
    assert registry.build("attack", "mifgsm.margin") == MIFGSM(loss="margin")
    assert registry.build("attack", "fmn.thorough") == FMN(steps=1000)
    assert registry.build("attack", "nrf.rf2") == NRF(channels="robust", towards=False)
    for spec in ({"name": "mifgsm", "mu": 1.5}, {"name": "deepfool", "eta": 0}, {"name": "fmn", "gamma": 2},
                 {"name": "nrf", "channels": "odd"}, {"name": "fmn", "steps": 0}):  # fmt: skip
        with pytest.raises(ConfigError):
            registry.build("attack", spec)
    model, x = frozen(kit.Linear(classes=2), 2), kit.grey_images(2)
    y = model(x).argmax(1)
    with pytest.raises(NotApplicable, match="3 classes"):
        run(MIFGSM(loss="dlr"), model, x, y, "linf", 0.1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fmn_is_not_above_cw_and_foolbox_on_resnet20() -> None:
    folder = os.environ.get("SIEGEBENCH_DATA", "")
    if not (Path(folder) / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the folder with real data and weights: set SIEGEBENCH_DATA")
    foolbox = pytest.importorskip("foolbox")
    data = registry.build("dataset", "cifar10_jpeg").load("test")
    model = registry.build("model", "cifar_resnet20").build(num_classes=10, size=32).eval().requires_grad_(False)
    x, y = data.pixels(slice(200, 240)), data.labels[200:240]
    keep = (~wrong(model, x, y)).nonzero().squeeze(1)[:16]
    x, y = x[keep], y[keep]

    def median(x_adv: Tensor) -> float:
        return float(torch.where(wrong(model, x_adv, y), ops.size(x_adv - x, "l2"), torch.inf).median())

    ours, cheap = median(run(FMN(), model, x, y)[0]), run(CW(searches=1), model, x, y)[0]
    ddn, _, _ = foolbox.attacks.DDNAttack(steps=100)(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)
    print(f"median L2: fmn {ours:.4f}, cw 1x100 {median(cheap):.4f}, foolbox ddn {median(ddn):.4f}")
    assert ours < median(cheap)
    assert ours < 1.02 * median(ddn)
