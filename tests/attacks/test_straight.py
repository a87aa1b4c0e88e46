"""Steps and cuts get the gradient of the identity; values stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from attacks._aliases import aliases
from attacks._straight import Straight
from siegebench.classifier import Network
from tests import fakes, kit


class Twice(Function):
    """A function whose gradient is wrong; of the form in which the context is set up apart."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.zeros_like(g)


turned = fakes._Turned.apply


class Holder:
    """An object with aliases: in a list, a dict, and its class."""

    of_the_class = fakes._Turned.apply

    def __init__(self) -> None:
        self.listed, self.named = [fakes._Turned.apply], {"turned": fakes._Turned.apply}

    def of_instance(self, x: Tensor) -> Tensor:
        return self.named["turned"](self.listed[0](self.of_the_class(x)))


def enclosed() -> Callable[[Tensor], Tensor]:
    inside = fakes._Turned.apply

    def change(x: Tensor) -> Tensor:
        return inside(turned(x))

    return change


class Changed(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.weight = torch.linspace(-1, 1, 3 * 64).view(-1, 1) * torch.ones(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.change(x).flatten(1) @ self.weight
        return z


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return 3 * x


def hooked(x: Tensor) -> Tensor:
    x = x.clone()
    if x.requires_grad:
        x.register_hook(torch.zeros_like)
    return x


# an operation on images, and the number that each pixel is multiplied by if its steps are the identity
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "round": (lambda x: (15 * x).round() / 15, 1.0),
    "torch.floor": (lambda x: torch.floor(15 * x), 15.0),
    "in place": (lambda x: (15 * x).floor_() / 15, 1.0),
    "sign": (lambda x: (x - 0.5).sign(), 1.0),
    "whole division": (lambda x: x // 0.1, 10.0),
    "remainder": (lambda x: x - x % 0.1, 1.0),
    "bytes": (lambda x: (255 * x).byte().float() / 255, 1.0),
    "to uint8": (lambda x: (255 * x).to(torch.uint8) / 255, 1.0),
    "bits": (lambda x: ((255 * x).to(torch.uint8) >> 4 << 4).to(x) / 255, 1.0),
    "mask of bits": (lambda x: ((255 * x).byte() & 240).double().to(x), 255.0),
    "above": (lambda x: (x > 0.5).float(), 1.0),
    "below": (lambda x: 1 - (x < 0.5).to(x), 1.0),
    "detach": (lambda x: 2 * x.detach(), 2.0),
    "data": (lambda x: 2 * x.data, 2.0),
    "no_grad": (without_grad, 3.0),
    "hook": (hooked, 1.0),
    "function": (lambda x: fakes._Turned.apply(x), 1.0),
    "function with a context apart": (lambda x: Twice.apply(x), 2.0),
    "function under another name": (lambda x: turned(x), 1.0),
    "functions in a closure and of a module": (enclosed(), 1.0),
    "functions that an object keeps": (Holder().of_instance, 1.0),
    "ReLU as a mask": (lambda x: x * (x > -1).float(), 1.0),
    "mask before what it lets through": (lambda x: (x > -1) * (3 * x), 3.0),
    "mask as another type": (lambda x: (x >= -1).to(x)[:, :, :] * (3 * x), 3.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gets_the_gradient_of_the_identity(name: str) -> None:
    change, factor = OPERATIONS[name]
    net = Changed(change)
    model, x = Network(net, num_classes=2).eval(), kit.grey_images().requires_grad_(True)
    with torch.no_grad():
        expected = model(x)
    z = Straight(model)(x)
    assert torch.equal(z, expected)
    (g,) = torch.autograd.grad(z[:, 0].sum(), x)
    torch.testing.assert_close(g.flatten(1), factor * net.weight[:, 0].expand(len(x), -1))


def test_votes_get_the_gradient_of_the_scores() -> None:
    inner = kit.small_cnn()

    class Votes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(inner(x).argmax(dim=1), 10).to(x)

    x = kit.grey_images().requires_grad_(True)
    z = Straight(Network(Votes(), num_classes=10))(x)
    assert z.detach().unique().tolist() == [0, 1]
    (g,) = torch.autograd.grad(z[:, 3].sum(), x)
    (exact,) = torch.autograd.grad(inner(x)[:, 3].sum(), x)
    torch.testing.assert_close(g, exact)


def test_an_honest_network_has_its_own_gradient() -> None:
    model, x = kit.cnn_model(), kit.grey_images().requires_grad_(True)
    (g,) = torch.autograd.grad(Straight(model)(x)[:, 0].sum(), x)
    (exact,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    assert torch.equal(g, exact)


def test_functions_of_other_threads_stay_and_all_are_put_back() -> None:
    before, seen = Function.__dict__["apply"], []

    def elsewhere() -> None:
        x = torch.ones(1, requires_grad=True)
        (g,) = torch.autograd.grad(fakes._Turned.apply(x), x)
        seen.append(float(g))

    def change(x: Tensor) -> Tensor:
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        return x

    Straight(Network(Changed(change), num_classes=2))(kit.grey_images().requires_grad_(True))
    assert seen == [-1.0]
    assert Function.__dict__["apply"] is before


class Odd:
    """Refuses every question."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_odd_objects_beside_a_network_are_left_alone() -> None:
    net = Changed(lambda x: turned(x))
    net.listed = [Odd(), net]  # type: ignore[assignment]
    found = aliases(Network(net, num_classes=2))
    assert [of for of, _, _ in found] == [fakes._Turned]
