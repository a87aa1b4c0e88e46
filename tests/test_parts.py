"""A pass in parts gives what the whole pass gives, and no attack needs to know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from siegebench import ops
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.config import load_suite
from siegebench.direct import attack
from siegebench.draws import Draws
from siegebench.evaluation import evaluate
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.prepare import slices
from siegebench.registry import build
from siegebench.settings import Settings
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack
from siegebench.workspace import Workspace
from tests import kit, runs


class Noisy(Wrapped):
    """Adds noise to the images, a fresh draw in each pass."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.randomized = True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x + 0.1 * draws.normal(tuple(x.shape[1:])).to(x.dtype))


def oracle_of(model: Classifier, n: int, most: int | None) -> Oracle:
    return Oracle(model, ThreatModel(eps=0.1), Draws(0, torch.arange(n)), most=most)


@given(n=st.integers(0, 500), size=st.integers(1, 300), step=st.integers(1, 40))
def test_parts_follow_on_one_another_and_hold_whole_samples(n: int, size: int, step: int) -> None:
    n *= step
    found = slices(n, size, step)
    assert [at.start for at in found] == [0, *(at.stop for at in found[:-1])]
    assert found[-1].stop == n
    assert all((at.stop - at.start) % step == 0 for at in found)
    part = max(size // step, 1) * step
    assert all(at.stop - at.start == part for at in found[:-1])
    assert found[-1].stop - found[-1].start <= 1.25 * part
    if len(found) > 1:
        assert found[-1].stop - found[-1].start > 0.25 * part


def test_the_model_never_gets_more_images_than_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = kit.cnn_model(), kit.grey_images(40), torch.zeros(40, dtype=torch.long)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    oracle = oracle_of(model, 40, 8)
    oracle.logits(x)
    oracle.gradient(x, lambda z: ops.margin(z, y))
    assert sizes == 2 * [8, 8, 8, 8, 8]
    sizes.clear()
    monkeypatch.setattr("siegebench.prepare.CPU_NUMBERS", 16 * x[0].numel())  # what fits the caches
    attack("fgsm")(model, x, y, eps=0.05)
    assert sizes[-3:] == [16, 16, 8]
    assert max(sizes) == 16


def test_a_pass_that_is_not_made_in_parts_is_refused_when_it_is_large() -> None:
    x, y = kit.grey_images(12), torch.zeros(12, dtype=torch.long)
    oracle = oracle_of(kit.cnn_model(), 12, 4)
    oracle.gradient(x, lambda z: ops.margin(z, y))
    with pytest.raises(torch.OutOfMemoryError, match="12 images"):
        oracle.tapped(lambda z: z).gradient(x, lambda z: ops.margin(z, y))
    with pytest.raises(torch.OutOfMemoryError, match="12 images"):
        oracle(x.clone().requires_grad_(True))
    oracle[:5].tapped(lambda z: z).gradient(x[:5], lambda z: ops.margin(z, y[:5]))
    one = oracle[:1]  # it cannot get fewer
    assert one(x.clone().requires_grad_(True)).shape == (12, 10)


@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "randomised"])
@pytest.mark.parametrize("view", ["plain", "repeated", "twice", "averaged", "changed", "backward", "tapped"])
def test_gradients_in_parts_are_those_of_the_whole_pass(noisy: bool, view: str) -> None:
    model = kit.cnn_model().double()
    model = Noisy(model) if noisy else model
    n = 11
    x, y = kit.grey_images(n).double(), torch.arange(n) % 10
    index = torch.arange(n)
    found = []
    for most in (None, 3):
        oracle = base = oracle_of(model, n, most)
        if view == "repeated":
            oracle, index = base.repeat(2), torch.arange(n).repeat_interleave(2)
        elif view == "twice":  # by an index, in two parts
            index = torch.arange(n).repeat(2)
            oracle = base[index]
        elif view == "averaged":
            oracle = base.averaged(3)
        elif view == "changed":
            oracle = base.seen_through(lambda x, draws: x * draws.uniform((1, 1, 1)).to(x.dtype)).filtered(torch.sign)
        elif view == "backward":
            oracle = base.backward_model()
        elif view == "tapped":  # whole, since a tap may see all images
            oracle = oracle_of(model, n, None).tapped(lambda a: 0.5 * a)
        own, scale = y[index], 1 + torch.arange(len(index)).double()[:, None]

        def losses(z: Tensor, own: Tensor = own, scale: Tensor = scale) -> Tensor:
            return torch.stack([ops.margin(z * scale, own), ops.cross_entropy(z, own), 0 * z[:, 0]], dim=1)

        for _ in range(2):  # the noise of the second pass is another
            out = (*oracle.gradients(x[index], losses), oracle.logits(x[index]))
        ledger = base.ledger
        found.append((*out, ledger.forwards, ledger.backwards, ledger.queries, ledger.blind))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_a_limit_of_queries_is_the_same_in_parts() -> None:
    model, x = kit.cnn_model(), kit.grey_images(11)
    for most in (None, 3):
        threat = ThreatModel(eps=0.1, queries=4)
        oracle = Oracle(model, threat, Draws(0, torch.arange(11)), most=most).repeat(2)
        for _ in range(2):
            oracle.gradient(x.repeat_interleave(2, dim=0), lambda z: z[:, 0])
        assert oracle.left().tolist() == 22 * [0]


@pytest.mark.parametrize("name", ["pgd", "apgd", "cw", "fmn", "nes", "square", "hopskipjump", "deepfool", "fab"])
def test_attacks_find_the_same_in_parts(name: str) -> None:
    model = kit.cnn_model().double()
    x = kit.grey_images(13).double()
    y, entry = model(x).argmax(1), build(Attack, name)
    norm: Norm = "l2" if name in ("cw", "deepfool", "hopskipjump") else "linf"
    limit = None if entry.access() == "gradient" else 60
    threat = ThreatModel(norm=norm, eps=0.05, access=entry.access(), queries=limit)
    draws, found = Draws(0, torch.arange(13)), []
    quick = build(Attack, {"name": name, **({"steps": 12} if hasattr(entry, "steps") else {})})
    for most in (None, 4, 4):
        oracle = Oracle(model, threat, draws, most=most)
        found.append((quick(oracle, x, y, threat, draws), oracle.ledger.forwards, oracle.ledger.backwards))
    for whole, parts, again in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)
        assert torch.equal(parts, again)


def test_a_row_does_not_depend_on_how_many_images_are_attacked_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {"name": "torchattacks/BIM", "steps": 2, "batched": True}  # its passes are not made in parts
    board = runs.board(attacks=["pgd", "fmn", foreign], measures=[], threats=[{"norm": "linf", "eps": "4/255"}])
    rows: dict[int, list[Any]] = {}
    with runs.known(tmp_path / "site", monkeypatch):
        suite = load_suite(str(runs.suite(tmp_path / "s.yaml", board)))
        cells = [c for c in plan(suite).cells if c.attack is not None]
        for batch in (4, 256):
            own = Settings(root=str(tmp_path / "store"), threads=1, device="cpu", dtype="float64", batch=batch)
            ws = Workspace(replace(own, suite=suite.origin))
            rows[batch] = [evaluate(cell, ws) for cell in cells]
    for few, many in zip(rows[4], rows[256], strict=True):
        assert few.status == many.status == "ok"
        assert few.samples == many.samples
        assert few.metrics.keys() == many.metrics.keys()
        for name, metric in few.metrics.items():
            assert metric["value"] == pytest.approx(many.metrics[name]["value"], rel=1e-9)
        if "options" not in (
            few.cell.attack or {}
        ):  # a foreign attack asks for all images of a batch while one is left
            assert few.counts == many.counts


class Watching(TorchDispatchMode):
    """Counts the gradients of convolutions, for images and for weights."""

    def __init__(self) -> None:
        super().__init__()
        self.images = self.weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            images, weights, bias = args[-1]
            self.images += images
            self.weights += weights or bias
        return func(*args, **(kwargs or {}))


def test_no_gradient_of_a_weight_is_computed() -> None:
    net = kit.small_cnn().train()  # trainable, as a user has it
    x, y = kit.grey_images(6), torch.zeros(6, dtype=torch.long)
    with Watching() as seen:
        nn.functional.cross_entropy(net(x), y).backward()
    assert seen.weights > 0  # what is looked for can be seen
    net.zero_grad()
    for name in ("pgd", "torchattacks/PGD"):
        with Watching() as seen:
            attack(name)(net, x, y, eps=0.05)
        assert seen.images > 0
        assert seen.weights == 0
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    model = Network(net, num_classes=10).eval()
    oracle = oracle_of(model, 6, None)  # also of weights that are not frozen
    with Watching() as seen:
        oracle.gradient(x, lambda z: ops.margin(z, y))
    assert (seen.images, seen.weights) == (2, 0)


def test_no_gradient_of_a_weight_is_computed_for_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runs.known(tmp_path / "site", monkeypatch):
        suite = load_suite(str(runs.suite(tmp_path / "s.yaml", runs.board(attacks=["pgd"], measures=[]))))
        (cell,) = (c for c in plan(suite).cells if c.attack is not None and c.attack["name"] == "pgd")
        settings = Settings(root=str(tmp_path / "store"), threads=1, device="cpu")
        assert evaluate(cell, Workspace(settings)).status == "ok"  # trains the network
        with Watching() as seen:
            assert evaluate(cell, Workspace(settings)).status == "ok"
    assert seen.images > 0
    assert seen.weights == 0
