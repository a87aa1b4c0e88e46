"""Small random networks for the tests of bounds, and the exact answers for the smallest."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from siegebench.classifier import Network

ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, lambda: nn.LeakyReLU(0.1), nn.Softplus)


class Residual(nn.Module):
    """x + f(x), or x * sigmoid(f(x)) with a gate."""

    def __init__(self, inner: nn.Module, gate: bool = False) -> None:
        super().__init__()
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x).sigmoid() if self.gate else self.inner(x) + x


def dense(seed: int, inside: int = 4, width: int = 6, classes: int = 3, depth: int = 2) -> Network:
    """A random network of linear layers on images [1, 2, 2]; its activation depends on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        act = ACTIVATIONS[seed % len(ACTIVATIONS)]
        layers: list[nn.Module] = [nn.Flatten()]
        for k in range(depth):
            layers += [nn.Linear(inside if k == 0 else width, width), act()]
            if seed % 3 == 0 and k:
                layers[-2] = Residual(layers[-2])
        net = nn.Sequential(*layers, nn.Linear(width, classes))
    return _frozen(net, classes)


def convolutional(seed: int, size: int = 6, classes: int = 3) -> Network:
    """A random network of convolutions, batch norm, pooling, a sum or a gate, on images [3, size, size]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        act = ACTIVATIONS[seed % len(ACTIVATIONS)]
        pool = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.MaxPool2d(3, 2, 1))[seed % 4]
        norm = nn.BatchNorm2d(4)
        norm.running_mean, norm.running_var = torch.randn(4), 0.5 + torch.rand(4)
        with torch.no_grad():
            norm.weight.normal_()
            norm.bias.normal_()
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), norm, act(), Residual(nn.Conv2d(4, 4, 3, padding=1), gate=seed % 5 == 0),
            act(), pool, nn.Flatten(), nn.Linear(36, classes),
        )  # fmt: skip
    return _frozen(net, classes, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def _frozen(net: nn.Module, classes: int, **how: tuple[float, ...]) -> Network:
    return Network(net, num_classes=classes, **how).double().eval().requires_grad_(False)


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_margin(model: Network, x: Tensor, eps: float, y: int, k: int) -> float:
    """The smallest z_y - z_k of a ReLU network of linear layers over the Linf ball around one image, by a MILP."""
    layers = [m for m in model.net if isinstance(m, nn.Linear)]  # type: ignore[union-attr]
    low, high = (x.flatten() - eps).clamp(0, 1).numpy(), (x.flatten() + eps).clamp(0, 1).numpy()
    lower, upper = [low], [high]  # of all variables so far: the input, then for each layer a and its phases
    rows: list[tuple[dict[int, float], float, float]] = []
    at, l, u = np.arange(len(low)), low, high
    count = len(low)
    integral = [np.zeros(count)]
    for layer in layers[:-1]:
        w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        middle, far = w @ (l + u) / 2 + b, np.abs(w) @ (u - l) / 2
        zl, zu = middle - far, middle + far
        width = len(b)
        out, phase = count + np.arange(width), count + width + np.arange(width)
        count += 2 * width
        lower += [np.zeros(width), np.where(zl >= 0, 1.0, 0.0)]
        upper += [np.maximum(zu, 0), np.where(zu <= 0, 0.0, 1.0)]
        integral += [np.zeros(width), np.ones(width)]
        for i in range(width):
            z = dict(zip(at.tolist(), (-w[i]).tolist(), strict=True))
            rows.append(({**z, int(out[i]): 1.0}, b[i], np.inf))  # a >= z
            rows.append(({**z, int(out[i]): 1.0, int(phase[i]): -zl[i]}, -np.inf, b[i] - zl[i]))  # a <= z - l (1 - p)
            rows.append(({int(out[i]): 1.0, int(phase[i]): -max(zu[i], 0.0)}, -np.inf, 0.0))  # a <= u p
        at, l, u = out, np.maximum(zl, 0), np.maximum(zu, 0)
    last = layers[-1]
    c = np.zeros(count)
    c[at] = (last.weight[y] - last.weight[k]).detach().numpy()
    matrix = np.zeros((len(rows), count))
    for i, (row, _, _) in enumerate(rows):
        matrix[i, list(row)] = list(row.values())
    found = milp(
        c, constraints=LinearConstraint(matrix, [r[1] for r in rows], [r[2] for r in rows]),
        bounds=Bounds(np.concatenate(lower), np.concatenate(upper)), integrality=np.concatenate(integral),
    )  # fmt: skip
    assert found.success, found.message
    return float(found.fun + last.bias[y] - last.bias[k])
