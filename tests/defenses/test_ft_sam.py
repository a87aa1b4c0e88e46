"""FT-SAM: the perturbation in closed form, and a step along the gradient at the perturbed weights."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted
from siegebench.types import Defense

from . import planted


def test_the_worst_step_is_on_the_boundary_of_its_neighbourhood() -> None:
    module = __import__(registry.entry_class("defense", "ft_sam").__module__, fromlist=["x"])
    random = torch.Generator().manual_seed(0)
    theta = [torch.randn(*s, generator=random) for s in ((3, 4), (5,))]
    g = tuple(torch.randn(w.shape, generator=random) for w in theta)
    e = module.worst_step(theta, g, 2.0)
    size = torch.cat([(a / w.abs()).flatten() for a, w in zip(e, theta, strict=True)]).norm()
    torch.testing.assert_close(size, torch.tensor(2.0))
    gain = sum(float((a * h).sum()) for a, h in zip(e, g, strict=True))
    for _ in range(50):  # no other point of the ellipsoid gains more to first order
        u = torch.randn(17, generator=random)
        u = 2 * u / u.norm()
        other = sum(
            float((a.view_as(w) * w.abs() * h).sum()) for a, w, h in zip(u.split([12, 5]), theta, g, strict=True)
        )
        assert other <= gain + 1e-5


def test_a_step_is_taken_along_the_gradient_at_the_perturbed_weights() -> None:
    def rebuild() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))

    model, data, rho, lr = Network(rebuild(), num_classes=2).double(), planted.data(16), 0.5, 0.1
    tuning = {
        "epochs": 1,
        "batch": 16,
        "optimiser": "sgd",
        "lr": lr,
        "momentum": 0,
        "weight_decay": 0,
        "augment": "none",
    }
    defense = registry.build(Defense, {"name": "ft_sam", "rho": rho, "tuning": tuning})
    after = defense.apply(model, Granted("test", ("clean",), clean=partial(lambda v: v, data)), planted.ONE)

    w, b = (p.detach().clone().requires_grad_(True) for p in model.net.parameters())
    x, y = data.pixels(dtype=torch.float64).flatten(1), data.labels
    g = torch.autograd.grad(F.cross_entropy(x @ w.T + b, y), (w, b))
    norm = (w * g[0]).square().sum().add((b * g[1]).square().sum()).sqrt()
    w2, b2 = (p + rho * p.square() * h / norm for p, h in zip((w, b), g, strict=True))
    at = torch.autograd.grad(F.cross_entropy(x @ w2.T + b2, y), (w2, b2))
    for found, p, h in zip(after.parameters(), (w, b), at, strict=True):
        torch.testing.assert_close(found, (p - lr * h).detach(), rtol=1e-6, atol=1e-8)
