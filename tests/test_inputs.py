"""What users bring is either attacked correctly, or refused in one line that says what was expected."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import siegebench as sb
from siegebench.classifier import Network
from siegebench.direct import AttackReport, WeakAttack
from siegebench.draws import Draws, content_ids
from siegebench.errors import ConfigError
from siegebench.inputs import as_images, as_labels
from siegebench.oracle import Oracle
from siegebench.threat import ThreatModel
from tests import kit
from tests.brought import Around, N, batch, pgd, victim, wrong

# ---------------------------------------------------------------------------------------------------- images and labels


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16, np.int64, np.int32, list])
def test_integers_of_every_kind_are_labels(kind: Any) -> None:
    x, y = batch()
    given: Any = y.to(kind) if isinstance(kind, torch.dtype) else y.tolist() if kind is list else y.numpy().astype(kind)
    for attack in (sb.attack("pgd", steps=2), sb.attack("square", queries=20)):
        assert torch.equal(attack(victim(), x, given, eps="8/255"), attack(victim(), x, y, eps="8/255"))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([10] * N, "the model has the classes 0..9, found 10 to 10"),
        ([1, 2, 3, 4, 5, 10], "subtract 1 if the classes count from 1"),
        ([-1] * N, "found -1 to -1"),
        ([-100] * N, "found -100"),
        ([0] * (N + 1), "expected 6 integers"),
        (np.eye(10)[:N], "one-hot rows (6, 10); use y.argmax(1)"),
        ([0.0] * N, "found torch.float64"),
        ([True] * N, "found torch.bool"),
        (["cat"] * N, "expected a tensor or a numpy array"),
    ],
)
@pytest.mark.parametrize("attack", ["pgd", "square", "hopskipjump", "fgsm"])
def test_labels_that_do_not_fit_are_refused(labels: Any, words: str, attack: str) -> None:
    norm, eps = ("l2", 1) if attack == "hopskipjump" else ("linf", "8/255")
    with pytest.raises(ConfigError) as error:
        sb.attack(attack)(victim(), batch()[0], labels, norm=norm, eps=eps)
    assert words in str(error.value)


def test_arrays_are_images_and_the_last_axis_is_no_channel() -> None:
    x, y = batch()
    assert torch.equal(pgd(victim(), x.numpy(), y.numpy()), pgd(victim(), x, y))
    assert torch.equal(pgd(victim(), x.double(), y), pgd(victim(), x, y)), "the model computes in float32"
    with pytest.raises(ConfigError, match=r"the channels come last: use x.permute\(0, 3, 1, 2\)"):
        pgd(victim(), x.permute(0, 2, 3, 1), y)
    with pytest.raises(ConfigError, match="divide by 255"):
        pgd(victim(), (x * 255).byte(), y)
    with pytest.raises(ConfigError, match=r"expected \[n, 3, H, W\], found \(6, 1, 8, 8\)"):
        as_images(x[:, :1], sb.load_data("digits", count=2).kind)
    assert as_images(x.half()).dtype == torch.float32
    assert as_labels(torch.tensor([], dtype=torch.long), 0, 10).shape == (0,)


def test_an_empty_batch_comes_back_empty() -> None:
    x, y = batch()
    for name in ("pgd", "square", "autoattack"):
        assert sb.attack(name)(victim(), x[:0], y[:0], eps="8/255").shape == (0, 3, 8, 8)
    assert len(pgd(victim(), x[:0], y[:0], report=True).success) == 0


def test_images_and_model_are_left_alone_by_a_model_that_writes_into_its_input() -> None:
    x, y = batch()

    class Writes(sb.Classifier):
        num_classes, card = 10, sb.Network(victim(), num_classes=10).card

        def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
            return Writes.net(x.sub_(0.5).div_(0.5).mul_(0.5).add_(0.5))

    Writes.net = victim()  # type: ignore[attr-defined]
    inside = Around(lambda net, x: net(x.mul_(1.0).sub_(0.5).add_(0.5)))
    for model in (inside, Writes()):
        for name in ("pgd", "deepfool", "square"):
            given = x.clone()
            x_adv = sb.attack(name)(model, given, y, eps="16/255")
            assert torch.equal(given, x), f"{name} changed the images"
            assert wrong(x_adv, y) == N, name


# --------------------------------------------------------------------------------------------------------- the context


def test_the_callers_context_changes_nothing() -> None:
    x, y = batch()
    expected = pgd(victim(), x, y)
    assert wrong(expected, y) == N
    with torch.inference_mode():
        made_inside = victim()
        assert torch.equal(pgd(victim(), x.clone(), y.clone()), expected)
        assert torch.equal(pgd(made_inside, x, y), expected)
    assert torch.equal(pgd(made_inside, x, y), expected), "weights made in inference mode"
    with torch.no_grad():
        assert torch.equal(pgd(victim(), x, y), expected)


def test_the_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    x, y = batch(12)
    whole = pgd(victim(), x, y)
    parts = torch.cat([pgd(victim(), x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)])
    assert torch.equal(parts, whole)
    assert torch.equal(pgd(victim(), x.flip(0), y.flip(0)).flip(0), whole)
    same = sb.attack("pgd", steps=1)(victim(), x[:1].repeat(2, 1, 1, 1), y[:1].repeat(2), eps="8/255", ids=[3, 4])
    assert not torch.equal(same[0], same[1]), "ids= decides"
    assert len(content_ids(kit.grey_images(64)).unique()) == 64
    one = content_ids(x)
    x[0, 2, 7, 7] += 1e-6
    assert content_ids(x)[0] != one[0]
    assert torch.equal(content_ids(x)[1:], one[1:])


def test_the_budget_is_named_when_none_is_given(caplog: pytest.LogCaptureFixture) -> None:
    x, y = batch()
    with caplog.at_level(logging.WARNING, logger="siegebench"):
        sb.attack("fgsm")(victim(), x, y)
    assert "attack fgsm: no eps was given; the budget is linf 8/255" in caplog.text
    with pytest.raises(ConfigError, match="norm 'l2' needs eps="):
        sb.attack("pgd")(victim(), x, y, norm="l2")


# ------------------------------------------------------------------------------------------------- the gradients it saw


def test_a_report_says_what_happened() -> None:
    x, y = batch()
    report = pgd(victim(), x, (y + torch.tensor([1, 0, 0, 0, 0, 0])) % 10, report=True)
    assert isinstance(report, AttackReport)
    assert report.clean.tolist() == [False] + [True] * 5
    assert bool(report.success.all())
    assert float(report.distance.max()) <= 16 / 255 + 1e-6
    assert bool((report.forwards > 0)[1:].all())
    assert report.flags == []
    assert "linf 16/255, gradient access: 5 of 5 correctly classified images (6 in all)" in str(report)
    aimed = sb.attack("pgd", steps=30)(victim(), x, y, eps=0.5, target="next", report=True)
    assert torch.equal(victim()(aimed.x_adv).argmax(1) == (y + 1) % 10, aimed.success)
    far = sb.attack("deepfool")(victim(), x, y, norm="l2", eps=1e-3, report=True)
    assert not bool(far.success.any()), "a minimum-norm attack succeeds only within eps"


def test_an_attack_starts_from_given_points() -> None:
    x, y = batch()
    near = sb.attack("pgd", steps=5)(victim(), x, y, eps="16/255")
    again = sb.attack("pgd", steps=1, step=1e-9)(victim(), x, y, eps="16/255", start=near, report=True)
    assert bool(again.success.all())
    assert torch.allclose(again.x_adv, near, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot start from given points"):
        sb.attack("fgsm")(victim(), x, y, eps="16/255", start=near)
    with pytest.raises(ConfigError, match="start: expected images"):
        pgd(victim(), x, y, start=near[:2])


SHORT: dict[str, dict[str, Any]] = {"fab": {"steps": 20, "targets": 3}}  # not its 1,800 passes


@pytest.mark.parametrize(
    "cut",
    [
        lambda net, x: net(x.detach()),
        lambda net, x: torch.no_grad()(net)(x),
        lambda net, x: net((x * 255).round() / 255),
    ],
)
@pytest.mark.parametrize("name", ["pgd", "torchattacks/PGD", "apgd", "fab"])
def test_cut_gradients_are_reported(cut: Any, name: str) -> None:
    if name.startswith("torchattacks"):
        pytest.importorskip("torchattacks")
    x, y = batch()
    with pytest.warns(WeakAttack, match="gradients of Around were exactly zero.*no_grad"):
        report = sb.attack(name, **SHORT.get(name, {}))(Around(cut), x, y, eps="1/255", report=True)
    assert [flag.id for flag in report.flags] == ["blind_attack"]


@pytest.mark.parametrize("name", ["pgd", "fab", "deepfool", "fmn", "apgd", "torchattacks/PGD"])
def test_undefined_gradients_become_zero_and_are_reported(name: str) -> None:
    """A square root at a black pixel has the gradient 0 * inf; every other pixel has a useful one."""
    if name.startswith("torchattacks"):
        pytest.importorskip("torchattacks")
    x = kit.grey_images(N)
    x[:, :, 0, 0] = 0
    y = victim()(x).argmax(1)
    model = Around(lambda net, x: net(x.sqrt() ** 2))
    with pytest.warns(WeakAttack, match="gradients of Around had NaN or infinite values"):
        x_adv = sb.attack(name, **SHORT.get(name, {}))(model, x, y, eps="32/255")
    assert wrong(x_adv, y) == N


def test_the_oracle_counts_undefined_gradients_of_each_sample() -> None:
    x = kit.grey_images(3)
    x[1, :, 0, 0] = 0
    model = Network(Around(lambda net, x: net(x.sqrt())), num_classes=10).eval().requires_grad_(False)
    oracle = Oracle(model, ThreatModel(), Draws(0, torch.arange(3)))
    g, _, _ = oracle.gradient(x, lambda z: z[:, 0])
    assert bool(torch.isfinite(g).all())
    assert g[1, :, 0, 0].tolist() == [0, 0, 0]
    assert bool((g[1, :, 1:] != 0).all())
    assert oracle.ledger.undefined.tolist() == [0, 1, 0]
    leaf = x.clone().requires_grad_(True)
    oracle(leaf)[:, 0].sum().backward()
    assert torch.equal(leaf.grad, g)  # type: ignore[arg-type]
    assert oracle.ledger.undefined.tolist() == [0, 2, 0]
