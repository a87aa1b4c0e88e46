"""Transfer: attacks that are made on one network to be met by another, and the track that measures them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from siegebench.attacks.di import DI
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.ti import TI, gaussian
from siegebench.attacks.vmi import VMI
from siegebench.leaderboard import rank

from siegebench import api
from siegebench.classifier import Classifier, Ensemble
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.store import Store
from siegebench.threat import ThreatModel
from siegebench.workspace import Settings, Workspace
from tests import kit, runs


@pytest.fixture(scope="module", autouse=True)
def _outsider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    with runs.known(tmp_path_factory.mktemp("site"), patch):
        yield


@pytest.fixture
def cnn() -> Classifier:
    return kit.cnn_model()


# ------------------------------------------------------------------------------------------------------------- attacks


def test_di_shrinks_to_the_size_it_is_told_and_keeps_the_image_whole() -> None:
    x = torch.ones(200, 3, 40, 40)
    seen = DI(attack=MIFGSM(), p=1.0, shrink=0.5).diverse(x, Draws(0, torch.arange(200)))
    side = seen[:, 0].mean(dim=(1, 2)).sqrt()  # what is white, as a share of the sides
    assert 0.47 < float(side.min()) < 0.55
    assert 0.95 < float(side.max()) < 1.03
    corners = (seen[:, 0, 0, 0] > 0.5).double().mean(), (seen[:, 0, -1, -1] > 0.5).double().mean()
    assert all(0 < float(share) < 0.3 for share in corners)  # it lies everywhere
    half = DI(attack=MIFGSM(), p=0.5, shrink=0.5).diverse(x, Draws(0, torch.arange(200)))
    untouched = float((half == x).flatten(1).all(dim=1).double().mean())
    assert 0.4 < untouched < 0.6
    assert torch.allclose(DI(attack=MIFGSM(), p=1.0, shrink=1.0).diverse(x, Draws(0, torch.arange(200))), x, atol=1e-5)


def test_di_moves_gradients_with_the_image(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    draws = Draws(0, torch.arange(6))
    di = DI(attack=MIFGSM(), p=1.0, shrink=0.6)
    oracle = Oracle(cnn, ThreatModel(), draws).seen_through(di.diverse)
    looks = oracle._looks()
    g, z, _ = oracle.gradient(x, lambda z: F.cross_entropy(z, y, reduction="none"))
    leaf = x.clone().requires_grad_(True)
    expected = cnn(di.diverse(leaf, looks))
    F.cross_entropy(expected, y, reduction="sum").backward()
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(g, leaf.grad)
    again, _, _ = oracle.gradient(x, lambda z: F.cross_entropy(z, y, reduction="none"))
    assert not torch.equal(again, g)  # another look, another place
    assert oracle.ledger.forwards.tolist() == [2] * 6
    assert oracle.ledger.backwards.tolist() == [2] * 6


def test_ti_blurs_the_gradient_with_a_gaussian_of_sum_one() -> None:
    kernel = gaussian(7)
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[3, 3] / kernel[3, 4]) == pytest.approx(torch.tensor(0.5).exp().item())  # points are 1 apart
    impulse = torch.zeros(1, 3, 9, 9)
    impulse[0, 1, 4, 4] = 1.0
    blurred = TI(attack=MIFGSM()).blurred(impulse)
    torch.testing.assert_close(blurred[0, 1, 1:8, 1:8], kernel.float())
    assert float(blurred[0, [0, 2]].abs().max()) == 0
    with pytest.raises(ConfigError, match="odd"):
        TI(attack=MIFGSM(), side=4)


def test_wrappers_that_change_nothing_give_what_is_inside(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=8 / 255)
    plain, _ = kit.attack_with(MIFGSM(), cnn, x, y, threat)
    nested, _ = kit.attack_with(TI(attack=DI(attack=MIFGSM(), p=0.0), side=1), cnn, x, y, threat)
    assert torch.equal(nested, plain)
    changed, _ = kit.attack_with(TI(attack=DI(attack=MIFGSM(), p=1.0, shrink=0.7), side=5), cnn, x, y, threat)
    assert not torch.equal(changed, plain)


def test_vmi_without_variance_is_the_momentum_attack(cnn: Classifier) -> None:
    x = kit.grey_images(6, 16)
    y = cnn(x).argmax(1)
    threat = ThreatModel(eps=4 / 255)
    found, oracle = kit.attack_with(VMI(steps=5, neighbours=3, beta=1e-6), cnn, x, y, threat)
    plain, _ = kit.attack_with(MIFGSM(steps=5), cnn, x, y, threat)
    broken = cnn(found).argmax(1) != y
    where = broken | (cnn(plain).argmax(1) == y)  # elsewhere mifgsm came back with an earlier point
    torch.testing.assert_close(found[where], plain[where], atol=1e-4, rtol=0)
    assert oracle.ledger.forwards.tolist() == [5 + 4 * 3] * 6
    assert oracle.ledger.backwards.tolist() == [5 + 4 * 3] * 6
    tuned, _ = kit.attack_with(VMI(steps=5, neighbours=3), cnn, x, y, threat)
    assert not torch.equal(tuned, found)


# --------------------------------------------------------------------------------------------------------------- track


def transfer(**changes: object) -> dict[str, object]:
    out = runs.board(**{"track": "transfer", "surrogates": [runs.MODEL], "attacks": ["mifgsm"], **changes})
    del out["measures"]
    return out


def test_images_are_made_on_the_surrogates_and_judged_by_the_victim(tmp_path: Path) -> None:
    eps = {"norm": "linf", "eps": "64/255"}
    file = runs.suite(tmp_path / "s.yaml", transfer(threats=[eps]), runs.board(attacks=["mifgsm"], threats=[eps]))
    suite = load_suite(str(file))
    settings = Settings(root=str(tmp_path / "store"), threads=1)
    outcome = api.run(suite, settings, how="serial")
    assert not outcome.failed
    (made,) = [r for r in outcome.results if r.cell.track == "transfer"]
    (direct,) = [r for r in outcome.results if r.cell.track == "white_box" and r.cell.attack is not None]
    assert made.cell.surrogates is not None
    assert made.cell.surrogates[0]["train_seed"] != made.cell.model["train_seed"]
    assert made.counts["backwards_per_sample"] > 0

    # by hand: the attack on the surrogate alone, the victim's answers
    ws = Workspace(Settings(root=str(tmp_path / "store"), threads=1, specs=plan(suite).specs))
    victim, surrogate = ws.victim(made.cell), ws.surrogate(made.cell)
    data = ws.evaluated(made.cell.data)
    x, y = data.pixels(), data.labels
    right = (victim(x).argmax(1) == y).nonzero().squeeze(1)
    from siegebench.draws import derive_seed

    draws = Draws(derive_seed(made.cell.seed, "attack"), data.ids)[right]
    threat = ThreatModel(**(made.cell.threat or {}))
    x_adv = MIFGSM()(Oracle(surrogate, threat, draws), x[right], y[right], threat, draws)
    held = torch.zeros(len(x), dtype=torch.bool)
    held[right] = victim(x_adv).argmax(1) == y[right]
    assert held.tolist() == made.outcome("robust").tolist()
    assert (made.value("robust_acc") or 0) >= (direct.value("robust_acc") or 0)  # a stranger's images are weaker
    assert held.sum() < len(right)  # and not without effect

    # a second run computes nothing; the board says where the images come from
    assert api.run(suite, settings, how="serial").ended == {"cached": 3}
    board = next(b for b in rank.boards(Store(settings.root).rows()) if b.track == "transfer")
    assert "Transfer from" in board.title
    assert board.lines[0].rank == (1, 1)


def test_several_surrogates_answer_with_their_mean() -> None:
    one, two = kit.cnn_model(0), kit.cnn_model(1)
    x = kit.grey_images(3, 16)
    torch.testing.assert_close(Ensemble([one, two])(x), (one(x) + two(x)) / 2)


def test_a_victim_that_is_its_own_surrogate_is_refused(tmp_path: Path) -> None:
    kit.data_folder()
    file = runs.suite(
        tmp_path / "s.yaml", transfer(surrogates=["cifar_resnet20"]),
        data={"set": "cifar10_jpeg", "count": 20}, models=["cifar_resnet56", "cifar_resnet20"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"s\.yaml:\d+:\d+: model 'cifar_resnet20' is one of the surrogates too"):
        plan(load_suite(str(file)))
