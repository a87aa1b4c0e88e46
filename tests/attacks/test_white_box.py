"""Gradient attacks together: closed forms, counts, batches, planted victims."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.cw import CW
from siegebench.attacks.deepfool import DeepFool
from siegebench.attacks.fgsm import FGSM
from siegebench.attacks.fmn import FMN
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.nrf import NRF
from siegebench.attacks.pgd import PGD
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier, Wrapped
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from tests import kit

from .planted import (
    EPS,
    NORMS,
    constant,
    convolutional,
    frozen,
    nearest,
    nearest_boundary,
    one_by_one,
    run,
    two_classes,
    wrong,
)


class Scaled(Wrapped):
    """The logits times k: looks robust to cross-entropy, is not."""

    def __init__(self, inner: Classifier, k: float) -> None:
        super().__init__(inner)
        self.k = k

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.k * self.inner(x, draws)


WITHIN_EPS: dict[str, Attack] = {
    "fgsm": FGSM(),
    "fgsm-margin": FGSM(loss="margin"),
    "pgd": PGD(),
    "pgd-margin": PGD(loss="margin"),
    "pgd-fixed-start": PGD(random_start=False, steps=7),
}


ALL = {**WITHIN_EPS, "cw": CW(searches=3, steps=20)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", WITHIN_EPS)
def test_breaks_just_above_the_smallest_radius_and_not_below(name: str, norm: Norm) -> None:
    model, x = two_classes(), kit.grey_images(16)
    y = model(x).argmax(1)
    radius = nearest_boundary(model, x, y, norm)
    assert float(radius.min()) > 1e-3
    assert bool(wrong(model, one_by_one(WITHIN_EPS[name], model, x, y, norm, 1.05 * radius), y).all())
    assert not bool(wrong(model, one_by_one(WITHIN_EPS[name], model, x, y, norm, 0.95 * radius), y).any())


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
    radius = nearest_boundary(linear, x, y, "linf")
    hopeless = ThreatModel(eps=0.5 * float(radius.min()))
    for attack, forwards, backwards in (
        (FGSM(), 1, 1),
        (PGD(steps=5), 6, 5),
        (PGD(steps=5, restarts=3), 18, 15),
    ):
        _, oracle = kit.attack_with(attack, linear, x, y, hopeless)
        assert oracle.ledger.forwards.tolist() == [forwards] * 8
        assert oracle.ledger.backwards.tolist() == [backwards] * 8


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


@pytest.mark.parametrize("norm", NORMS)
def test_scaled_logits_hide_from_cross_entropy_and_from_nothing_else(linear: Classifier, norm: Norm) -> None:
    x = kit.grey_images(16)
    y = linear(x).argmax(1)
    radius = nearest_boundary(linear, x, y, norm)
    keep = radius > radius.median()  # the control needs logits that are apart
    x, y, radius = x[keep], y[keep], radius[keep]
    model = Scaled(linear, 100.0)
    threat = ThreatModel(norm=norm, eps=1.2 * float(radius.max()))
    fooled = {loss: wrong(linear, kit.attack_with(PGD(loss=loss), model, x, y, threat)[0], y) for loss in ops.LOSSES}
    assert not bool(fooled["ce"].any())
    assert bool(fooled["margin"].all())
    assert bool(fooled["dlr"].all())
    assert bool(wrong(linear, kit.attack_with(PGD(), linear, x, y, threat)[0], y).all())  # unscaled it breaks


MORE: dict[str, Attack] = {
    "mifgsm": MIFGSM(),
    "mifgsm-margin-early": MIFGSM(loss="margin", early_stop=True),
    "deepfool": DeepFool(steps=8),
    "deepfool-3": DeepFool(targets=3),
    "fmn": FMN(steps=30),
    "nrf": NRF(steps=25, noise_steps=15),
    "nrf-robust-away": NRF(steps=25, noise_steps=15, channels="robust", towards=False),
}


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


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in MORE for norm in MORE[name].handles()])
def test_a_batch_of_six_is_six_batches_of_one(name: str, norm: Norm) -> None:
    attack = MORE[name]
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
    x_adv, _ = run(MORE[name], model, x, y, norm, EPS[norm])
    assert bool(wrong(model, x_adv, y).all())
    if name in ("deepfool", "fmn"):  # the very same perturbation
        torch.testing.assert_close(x_adv, run(MORE[name], inner, x, y)[0], rtol=0, atol=1e-9)


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
