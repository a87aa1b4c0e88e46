"""prepare: the same function in fewer passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.draws import Draws
from siegebench.prepare import fold, in_batches, prepare


class Branching(nn.Module):
    """conv -> norm -> relu -> conv -> norm, with options that make folding wrong."""

    def __init__(self, *, reads_conv: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.reads_conv, self.twice = reads_conv, twice
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv1(x)
        x = self.bn1(raw).relu()
        x = self.bn2(self.conv2(x))
        if self.twice:
            x = self.bn2(self.conv2(x))
        if self.reads_conv:
            x = x + raw
        return self.head(x.mean(dim=(2, 3)))


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics far from the initial ones, as training leaves them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=g))
                module.running_var.copy_(torch.rand(module.num_features, generator=g) + 0.5)
                module.weight.copy_(torch.randn(module.num_features, generator=g))
                module.bias.copy_(torch.randn(module.num_features, generator=g))
    return net.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Shift(Wrapped):
    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.inner(x * 0.5, draws)


class Noise(Wrapped):
    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.randomized = True

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = draws or Draws.fresh(len(x))
        return self.inner(x + 0.1 * draws.normal(tuple(x.shape[1:])), draws)


@pytest.mark.parametrize("around", [lambda m: m, Shift, Noise], ids=["bare", "wrapped", "randomised"])
def test_prepared_model_is_the_same_function_without_batch_norms(
    x: Tensor, around: Callable[[Classifier], Classifier]
) -> None:
    model = around(Network(trained(Branching()), num_classes=10).eval())
    ready = prepare(model, x)
    draws = Draws(3, torch.arange(len(x)))
    assert norms(ready) == 0
    torch.testing.assert_close(ready(x, draws), model(x, draws), rtol=1e-4, atol=1e-5)
    assert not ready.training
    assert not any(p.requires_grad for p in ready.parameters())


def test_preparing_leaves_the_model_as_it_was(x: Tensor) -> None:
    model = Network(trained(Branching()), num_classes=10).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prepare(model, x)
    assert model.training
    assert norms(model) == 2
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradient_of_the_prepared_model(x: Tensor) -> None:
    model = Network(trained(Branching()), num_classes=10).double().eval()

    def gradient(m: Classifier) -> Tensor:
        leaf = x.double().requires_grad_(True)
        return torch.autograd.grad(m(leaf).logsumexp(1).sum(), leaf)[0]

    torch.testing.assert_close(gradient(prepare(model, x.double())), gradient(model))


@pytest.mark.parametrize("architecture", ["test_byobnet", "test_efficientnet", "test_resnet", "repvgg_a0"])
def test_timm_networks_fold(x: Tensor, architecture: str) -> None:
    import timm

    net = trained(timm.create_model(architecture, num_classes=10))
    model = Network(net, num_classes=10).double().eval()
    sample = nn.functional.interpolate(x, 64).double()
    ready = prepare(model, sample)
    assert norms(ready) < norms(model) / 2
    torch.testing.assert_close(ready(sample), model(sample))


def test_a_convolution_that_is_read_elsewhere_too_is_not_folded(x: Tensor) -> None:
    model = Network(trained(Branching(reads_conv=True)), num_classes=10).eval()
    ready = prepare(model, x)
    assert norms(ready) == 2
    torch.testing.assert_close(ready(x), model(x), rtol=1e-4, atol=1e-5)


def test_modules_called_twice_stay(x: Tensor) -> None:
    model = Network(trained(Branching(twice=True)), num_classes=10).eval()
    assert fold(model, x) == 1
    assert norms(model) == 1


def test_hooks_keep_their_place(x: Tensor) -> None:
    net = trained(Branching())
    net.bn1.register_forward_hook(lambda m, args, out: out * 2)
    model = Network(net, num_classes=10).eval()
    ready = prepare(model, x)
    assert norms(ready) == 1
    torch.testing.assert_close(ready(x), model(x), rtol=1e-4, atol=1e-5)


def test_five_dimensional_weights_do_not_stop_channels_last(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    net.register_buffer("volume", torch.zeros(1, 2, 3, 4, 5))
    ready = prepare(Network(net, num_classes=10).eval(), x)
    assert ready.net[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("out of memory (host)")])
def test_batches_halve_until_they_fit_and_stay_there(error: RuntimeError) -> None:
    tried = []

    def part(at: slice) -> list[int]:
        tried.append(at.stop - at.start)
        if at.stop - at.start > 5:
            raise error
        return list(range(at.start, at.stop))

    out = in_batches(part, 23, 16)
    assert [i for p in out for i in p] == list(range(23))
    assert tried == [16, 8, 4, 4, 4, 4, 4, 3]


def test_other_errors_and_a_single_sample_that_does_not_fit_are_passed_on() -> None:
    def part(at: slice) -> None:
        raise RuntimeError("shape mismatch")

    def never(at: slice) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_batches(part, 4, 2)
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(never, 4, 2)
    assert in_batches(never, 0, 2) == []
