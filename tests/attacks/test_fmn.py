"""FMN against closed forms, the path of the paper, C&W and Foolbox."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from siegebench.attacks.cw import CW
from siegebench.attacks.fmn import FMN
from torch import Tensor

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.testing.specimens import victim
from siegebench.threat import Norm
from tests import kit

from .planted import Recording, convolutional, nearest, run, wrong


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
    watched = Recording(model)
    run(FMN(steps=steps), watched, x, y, norm)
    for i in range(len(x)):
        x0, delta, eps, best = x[i : i + 1], torch.zeros_like(x[:1]), math.inf, math.inf
        for k in range(steps):
            torch.testing.assert_close(watched.seen[k][i : i + 1], x0 + delta, rtol=0, atol=1e-10)
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
