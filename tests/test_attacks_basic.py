"""FGSM, PGD, C&W, EOT and BPDA against closed forms and planted victims."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from siegebench.attacks.apgd import APGD
from siegebench.attacks.bpda import BPDA
from siegebench.attacks.cw import CW
from siegebench.attacks.eot import EOT
from siegebench.attacks.fgsm import FGSM
from siegebench.attacks.pgd import PGD
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit

NORMS: tuple[Norm, ...] = ("linf", "l2")
DUAL = {"linf": 1, "l2": 2}


class Scaled(Wrapped):
    """The logits times k: looks robust to cross-entropy, is not."""

    def __init__(self, inner: Classifier, k: float) -> None:
        super().__init__(inner)
        self.k = k

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.k * self.inner(x, draws)


class Noisy(Wrapped):
    """Adds noise to the logits, a fresh draw at each look."""

    def __init__(self, inner: Classifier, scale: float) -> None:
        super().__init__(inner)
        self.scale, self.randomized = scale, True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x) + self.scale * draws.normal((self.num_classes,), purpose="noise")

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner.surrogate(x) + self.scale * draws.normal((self.num_classes,), purpose="noise")


class Rounding(Wrapped):
    """Rounds the pixels to a few grey levels; the surrogate lets the gradient through."""

    def __init__(self, inner: Classifier, levels: int) -> None:
        super().__init__(inner)
        self.steps = levels - 1

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner((x * self.steps).round() / self.steps)

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        rounded = (x * self.steps).round() / self.steps
        return self.inner(x + (rounded - x).detach())


class Recording(Wrapped):
    """Remembers every image it is shown, and its logits."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.inner(x)


def two_classes() -> Classifier:
    return Network(kit.Linear(classes=2), num_classes=2).eval().requires_grad_(False)


def smallest(model: Classifier, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Distance to the nearest boundary of a linear model: gap of the logits over the dual norm of the weights."""
    layer = model.net.layer
    z = model(x)
    gap = z.gather(1, y[:, None]) - z
    dual = (layer.weight[None] - layer.weight[y][:, None]).norm(p=DUAL[norm], dim=2)
    return (gap / dual).scatter(1, y[:, None], torch.inf).amin(dim=1)


def one_by_one(attack: Attack, model: Classifier, x: Tensor, y: Tensor, norm: Norm, eps: Tensor) -> Tensor:
    """Each sample attacked with a radius of its own."""
    out = []
    for i in range(len(x)):
        threat = ThreatModel(norm=norm, eps=float(eps[i]))
        draws = Draws(0, torch.tensor([i]))
        out.append(attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws))
    return torch.cat(out)


def wrong(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) != y


WITHIN_EPS: dict[str, Attack] = {
    "fgsm": FGSM(),
    "fgsm-margin": FGSM(loss="margin"),
    "pgd": PGD(),
    "pgd-margin": PGD(loss="margin"),
    "pgd-fixed-start": PGD(random_start=False, steps=7),
}
ALL = {**WITHIN_EPS, "cw": CW(searches=3, steps=20)}


# ----------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", WITHIN_EPS)
def test_breaks_just_above_the_smallest_radius_and_not_below(name: str, norm: Norm) -> None:
    model, x = two_classes(), kit.grey_images(16)
    y = model(x).argmax(1)
    radius = smallest(model, x, y, norm)
    assert float(radius.min()) > 1e-3
    assert bool(wrong(model, one_by_one(WITHIN_EPS[name], model, x, y, norm, 1.05 * radius), y).all())
    assert not bool(wrong(model, one_by_one(WITHIN_EPS[name], model, x, y, norm, 0.95 * radius), y).any())


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_margin_with_ten_classes(linear: Classifier, norm: Norm) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    radius = smallest(linear, x, y, norm)
    attack = PGD(loss="margin", restarts=2)
    assert bool(wrong(linear, one_by_one(attack, linear, x, y, norm, 1.05 * radius), y).all())
    assert not bool(wrong(linear, one_by_one(attack, linear, x, y, norm, 0.95 * radius), y).any())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 1.0)])
def test_fgsm_takes_the_steepest_step_of_full_length(linear: Classifier, norm: Norm, eps: float) -> None:
    x = kit.grey_images(4)
    y = linear(x).argmax(1)
    z = linear(x)
    second = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    w = (linear.net.layer.weight[second] - linear.net.layer.weight[y]).view_as(x)
    direction = w.sign() if norm == "linf" else w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv, _ = kit.attack_with(FGSM(loss="margin"), linear, x, y, ThreatModel(norm=norm, eps=eps))
    torch.testing.assert_close(x_adv, x + eps * direction)


def test_cw_finds_the_smallest_perturbation_of_a_linear_model(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = smallest(linear, x, y, "l2")
    x_adv, oracle = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert bool(wrong(linear, x_adv, y).all())
    ratio = ops.size(x_adv - x, "l2") / radius
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.median()) < 1.02
    assert float(ratio.max()) < 1.05
    assert int(oracle.ledger.forwards.max()) <= 900
    assert torch.equal(oracle.ledger.forwards, oracle.ledger.backwards)


@pytest.mark.parametrize(("c0", "searches"), [(1e-4, 9), (1.0, 9), (100.0, 16)])
def test_cw_searches_its_constant_from_either_side(linear: Classifier, c0: float, searches: int) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(c0=c0, searches=searches), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert float((ops.size(x_adv - x, "l2") / smallest(linear, x, y, "l2")).median()) < 1.05


def test_cw_keeps_the_confidence_it_is_asked_for(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(kappa=2.0, searches=6), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    reached = ops.margin(linear(x_adv), y)
    assert float(reached.min()) >= 2.0 - 1e-3
    assert float(reached.median()) < 2.5


def test_cw_moves_pixels_at_the_edge_of_the_box_and_stays_inside(linear: Classifier) -> None:
    x = kit.grey_images(8).round()  # every pixel is 0 or 1
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(lr=0.1, steps=200), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert bool(wrong(linear, x_adv, y).all())
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    # half of the entries may not go where the unbounded optimum is
    assert float((ops.size(x_adv - x, "l2") / smallest(linear, x, y, "l2")).median()) < 2.0


def test_cw_returns_the_clean_image_where_it_finds_nothing() -> None:
    model, x = two_classes(), kit.grey_images(4)
    constant = Network(model.net, num_classes=2).eval()
    with torch.no_grad():
        constant.net.layer.weight.zero_()
    y = constant(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(searches=2, steps=10), constant, x, y, ThreatModel(norm="l2", eps=0.5))
    assert torch.equal(x_adv, x)


def test_cw_makes_progress_where_all_logits_are_negative(linear: Classifier) -> None:
    """The hinge must be masked with -inf: masked with 0 it vanishes on such a model."""
    x = kit.grey_images(8)
    with torch.no_grad():
        y = linear(x).argmax(1)
        linear.net.layer.bias -= 1000.0
    x_adv, _ = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    assert float((ops.size(x_adv - x, "l2") / smallest(linear, x, y, "l2")).median()) < 1.05


# -------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", WITHIN_EPS)
def test_radius_zero_changes_nothing(cnn: Classifier, name: str, norm: Norm) -> None:
    x = kit.grey_images(4)
    x_adv, _ = kit.attack_with(WITHIN_EPS[name], cnn, x, cnn(x).argmax(1), ThreatModel(norm=norm, eps=0.0))
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("name", ALL)
def test_same_draws_same_result(linear: Classifier, name: str) -> None:
    x, threat = kit.grey_images(8), ThreatModel(norm="l2", eps=0.1)
    y = linear(x).argmax(1)
    first, again, other = (kit.attack_with(ALL[name], linear, x, y, threat, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in ("fgsm", "fgsm-margin", "pgd-fixed-start", "cw"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_eight_is_eight_batches_of_one(cnn: Classifier, name: str, norm: Norm) -> None:
    if norm not in ALL[name].handles():
        pytest.skip("cw is an L2 attack")
    model = cnn.double()
    x = kit.grey_images(8, 16).double()
    y = model(x).argmax(1)
    threat = ThreatModel(norm=norm, eps={"linf": 0.1, "l2": 2.0}[norm])
    draws = Draws(0, torch.arange(8))
    oracle = Oracle(model, threat, draws)
    whole = ALL[name](oracle, x, y, threat, draws)
    for i in torch.randperm(8, generator=torch.Generator().manual_seed(0)).split(1):
        single = Oracle(model, threat, draws[i])
        alone = ALL[name](single, x[i], y[i], threat, draws[i])
        torch.testing.assert_close(alone, whole[i], rtol=0, atol=1e-12)
        for count in ("forwards", "backwards", "queries"):
            assert torch.equal(getattr(single.ledger, count), getattr(oracle.ledger, count)[i])


def test_counts(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    radius = smallest(linear, x, y, "linf")
    hopeless = ThreatModel(eps=0.5 * float(radius.min()))
    for attack, forwards, backwards in (
        (FGSM(), 1, 1),
        (PGD(steps=5), 6, 5),
        (PGD(steps=5, restarts=3), 18, 15),
    ):
        _, oracle = kit.attack_with(attack, linear, x, y, hopeless)
        assert oracle.ledger.forwards.tolist() == [forwards] * 8
        assert oracle.ledger.backwards.tolist() == [backwards] * 8


def test_broken_samples_leave_at_once_and_only_survivors_go_to_the_next_restart(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = smallest(linear, x, y, "linf")
    threat = ThreatModel(eps=float(radius.median()))
    attack = PGD(steps=10, restarts=2, loss="margin")
    x_adv, oracle = kit.attack_with(attack, linear, x, y, threat)
    broken = wrong(linear, x_adv, y)
    assert 0 < int(broken.sum()) < 16
    assert oracle.ledger.forwards[~broken].tolist() == [22] * int((~broken).sum())
    assert bool((oracle.ledger.forwards[broken] < 22).all())
    assert int(oracle.ledger.forwards[broken].min()) <= 11


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_returns_its_first_misclassified_iterate_or_the_one_of_highest_loss(cnn: Classifier, norm: Norm) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    for eps in ({"linf": 0.02, "l2": 0.5}[norm], {"linf": 0.2, "l2": 5.0}[norm]):
        outcomes = []
        for i in range(len(x)):
            model = Recording(cnn)
            threat, draws = ThreatModel(norm=norm, eps=eps), Draws(0, torch.tensor([i]))
            # steps of twice the radius: the iterates jump from side to side, the last is often not the best
            attack = PGD(steps=7, restarts=2, step=2 * eps)
            x_adv = attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws)
            seen = torch.cat(model.seen)
            hits = wrong(cnn, seen, y[i].expand(len(seen)))
            if bool(hits.any()):
                assert int(hits.nonzero()[0]) == len(seen) - 1  # nothing was asked after the first success
                assert torch.equal(x_adv[0], seen[-1])
            else:
                loss = ops.cross_entropy(cnn(seen), y[i].expand(len(seen)))
                assert len(seen) == 16
                assert torch.equal(x_adv[0], seen[loss.argmax()])
            outcomes.append(bool(hits.any()))
    assert any(outcomes)


@pytest.mark.parametrize("attack", [PGD(steps=7, early_stop=False), APGD(steps=7, early_stop=False)])
def test_without_early_stop_the_misclassified_point_of_highest_loss_comes_back(cnn: Classifier, attack: Attack) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    broken = 0
    for i in range(len(x)):
        model = Recording(cnn)
        threat, draws = ThreatModel(eps=0.2), Draws(0, torch.tensor([i]))
        x_adv = attack(Oracle(model, threat, draws), x[i : i + 1], y[i : i + 1], threat, draws)
        seen, label = torch.cat(model.seen), y[i].expand(8)
        assert len(seen) == 8
        hits = wrong(cnn, seen, label)
        if bool(hits.any()):
            loss = ops.cross_entropy(cnn(seen), label).masked_fill(~hits, -torch.inf)
            assert torch.equal(x_adv[0], seen[loss.argmax()])
            broken += 1
    assert broken > 0


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_starts_uniformly_in_the_ball(norm: Norm) -> None:
    model = Recording(kit.linear_model())
    x = torch.full((400, 3, 8, 8), 0.5)
    y = torch.zeros(400, dtype=torch.long)
    eps = {"linf": 0.1, "l2": 1.0}[norm]
    kit.attack_with(PGD(steps=1), model, x, y, ThreatModel(norm=norm, eps=eps))
    delta = (model.seen[0] - x).flatten(1)
    share = (delta.abs() / eps if norm == "linf" else (delta.norm(dim=1) / eps) ** delta.shape[1]).flatten()
    assert float(share.max()) <= 1 + 1e-4
    for p in (0.1, 0.5, 0.9):  # uniform on [0, 1]
        assert abs(float(share.quantile(p)) - p) < 0.09
    assert abs(float(delta.mean())) < 0.02 * eps


def test_step_is_two_and_a_half_radii_over_the_steps_unless_given(linear: Classifier) -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    y = linear(x).argmax(1)
    for attack, step in ((PGD(steps=25, random_start=False), 0.001), (PGD(step=0.0005, random_start=False), 0.0005)):
        model = Recording(linear)
        kit.attack_with(attack, model, x, y, ThreatModel(eps=0.01))
        assert float((model.seen[1] - model.seen[0]).abs().max()) == pytest.approx(step, rel=1e-3)


def test_dlr_needs_three_classes() -> None:
    model, x = two_classes(), kit.grey_images(2)
    for attack in (FGSM(loss="dlr"), PGD(loss="dlr")):
        with pytest.raises(NotApplicable, match="3 classes"):
            kit.attack_with(attack, model, x, model(x).argmax(1), ThreatModel(eps=0.1))


def test_built_from_a_suite() -> None:
    attack = registry.build("attack", {"name": "pgd", "step": "2/255", "steps": 10})
    assert isinstance(attack, PGD)
    assert attack.step == pytest.approx(2 / 255)
    strong = registry.build("attack", "pgd.strong")
    assert isinstance(strong, PGD)
    assert (strong.steps, strong.restarts) == (100, 10)
    for wrong_spec in ({"name": "pgd", "steps": 0}, {"name": "pgd", "loss": "cross"}, {"name": "cw", "c0": -1}):
        with pytest.raises(ConfigError):
            registry.build("attack", wrong_spec)


# -------------------------------------------------------------------------------------------------- planted victims


@pytest.mark.parametrize("norm", NORMS)
def test_scaled_logits_hide_from_cross_entropy_and_from_nothing_else(linear: Classifier, norm: Norm) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = smallest(linear, x, y, norm)
    keep = radius > radius.median()  # the control needs logits that are apart
    x, y, radius = x[keep], y[keep], radius[keep]
    model = Scaled(linear, 100.0)
    threat = ThreatModel(norm=norm, eps=1.2 * float(radius.max()))
    fooled = {loss: wrong(linear, kit.attack_with(PGD(loss=loss), model, x, y, threat)[0], y) for loss in ops.LOSSES}
    assert not bool(fooled["ce"].any())
    assert bool(fooled["margin"].all())
    assert bool(fooled["dlr"].all())
    assert bool(wrong(linear, kit.attack_with(PGD(), linear, x, y, threat)[0], y).all())  # unscaled it breaks


def majority_wrong(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    draws = Draws(99, torch.arange(len(x)))
    return torch.stack([model(x, draws.at(k)).argmax(1) != y for k in range(41)]).double().mean(0) > 0.5


def test_eot_is_not_fooled_by_a_lucky_look(linear: Classifier) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    gap = -ops.margin(linear(x), y)
    model = Noisy(linear, 0.7 * float(gap.median()))
    threat = ThreatModel(eps=2.5 * float(smallest(linear, x, y, "linf").max()))
    steps = PGD(steps=40, loss="margin")
    plain, _ = kit.attack_with(steps, model, x, y, threat)
    averaged, oracle = kit.attack_with(EOT(attack=steps, looks=64), model, x, y, threat)
    held, held_eot = ~majority_wrong(model, plain, y), ~majority_wrong(model, averaged, y)
    assert int(held.sum()) >= 8  # one wrong look and plain PGD stops
    assert int(held_eot.sum()) <= int(held.sum()) - 6
    assert bool((oracle.ledger.forwards % 64 == 0).all())


def test_bpda_passes_a_rounding_that_stops_plain_gradients(linear: Classifier) -> None:
    x = kit.grey_images(16)
    model = Rounding(linear, 8)
    y = model(x).argmax(1)
    threat = ThreatModel(eps=0.15)
    attack = PGD(loss="margin")
    plain, _ = kit.attack_with(attack, model, x, y, threat)
    through, _ = kit.attack_with(BPDA(attack=attack), model, x, y, threat)
    assert int(wrong(model, plain, y).sum()) <= 2
    assert bool(wrong(model, through, y).all())


def test_wrappers_compose_and_pass_on_what_the_attack_inside_says(linear: Classifier) -> None:
    spec = {"name": "eot", "looks": 32, "attack": {"name": "bpda", "attack": {"name": "pgd", "loss": "margin"}}}
    attack = registry.build("attack", spec)
    assert isinstance(attack, EOT)
    assert isinstance(attack.attack, BPDA)
    described = registry.describe("attack", spec)
    assert described["attack"]["attack"]["steps"] == 20
    assert registry.describe("attack", registry.rebuild("attack", described) and spec) == described
    model, x = Noisy(Rounding(linear, 8), 1.0), kit.grey_images(8)
    y = model.inner(x).argmax(1)
    threat = ThreatModel(eps=0.2)
    assert bool(majority_wrong(model, kit.attack_with(attack, model, x, y, threat)[0], y).all())
    for alone in (EOT(attack=PGD(loss="margin"), looks=32), PGD(loss="margin")):
        assert int(majority_wrong(model, kit.attack_with(alone, model, x, y, threat)[0], y).sum()) <= 2

    class Inner(CW):
        needs = "label"

    for wrapper in (EOT(attack=Inner()), BPDA(attack=Inner())):
        assert (wrapper.access(), wrapper.handles(), wrapper.minimises()) == ("label", ("l2",), True)


# ------------------------------------------------------------------------------------------- against other libraries


def median_l2(model: Classifier, x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    """Median distance, infinite where an image is not misclassified."""
    far = ops.size(x_adv - x, "l2")
    return float(torch.where(wrong(model, x_adv, y), far, torch.inf).median())


def foreign_medians(model: Classifier, x: Tensor, y: Tensor) -> dict[str, float]:
    """C&W of the libraries on the bare model: 9 searches of 100 steps where they search, 900 steps where not."""
    torchattacks = pytest.importorskip("torchattacks")
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    class Bare(nn.Module):  # the library moves the model to training mode and back
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return model(x)

    out = {
        f"torchattacks {steps}": median_l2(model, x, torchattacks.CW(Bare().eval(), steps=steps)(x, y), y)
        for steps in (100, 900)
    }
    victim = PyTorchClassifier(
        model=Bare(), loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=10, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    attack = evasion.CarliniL2Method(victim, binary_search_steps=9, max_iter=100, batch_size=len(x), verbose=False)
    out["art"] = median_l2(model, x, torch.from_numpy(attack.generate(x.numpy(), y.numpy())), y)
    return out


def test_cw_is_not_above_the_libraries_on_a_linear_model(linear: Classifier) -> None:
    x = kit.grey_images(8)
    y = linear(x).argmax(1)
    x_adv, _ = kit.attack_with(CW(), linear, x, y, ThreatModel(norm="l2", eps=0.5))
    own = median_l2(linear, x, x_adv, y)
    for name, other in foreign_medians(linear, x, y).items():
        assert own <= other, (name, own, other)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_cw_is_not_above_the_libraries_on_resnet20() -> None:
    folder = os.environ.get("SIEGEBENCH_DATA", "")
    if not (Path(folder) / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the folder with real data and weights: set SIEGEBENCH_DATA")
    data = registry.build("dataset", "cifar10_jpeg").load("test")
    model = registry.build("model", "cifar_resnet20").build(num_classes=10, size=32).eval().requires_grad_(False)
    x, y = data.pixels(slice(100, 132)), data.labels[100:132]  # others than those that CW's defaults were chosen on
    keep = (~wrong(model, x, y)).nonzero().squeeze(1)[:16]
    x, y = x[keep], y[keep]
    x_adv, oracle = kit.attack_with(CW(), model, x, y, ThreatModel(norm="l2", eps=0.5))
    own = median_l2(model, x, x_adv, y)
    assert math.isfinite(own)
    assert int(oracle.ledger.forwards.max()) <= 900
    others = foreign_medians(model, x, y)
    print(f"median L2: own {own:.4f}", {k: round(v, 4) for k, v in others.items()})
    for name, other in others.items():
        assert own <= other, (name, own, other)
