"""MI-FGSM is the recursion of the paper."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.mifgsm import MIFGSM
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier
from siegebench.threat import Norm
from tests import kit

from .planted import EPS, constant, convolutional, frozen, nearest, run, wrong


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


def test_mifgsm_on_cross_entropy_is_fooled_by_the_control() -> None:
    inner, x, y = convolutional(6)
    model = registry.build("defense", {"name": "logit_scaling", "factor": 2.0**20}).wrap(inner)  # type: ignore[attr-defined]
    fooled, _ = run(MIFGSM(), model, x, y, "linf", EPS["linf"])
    assert torch.equal(fooled, x)  # saturated: no gradient, no step
