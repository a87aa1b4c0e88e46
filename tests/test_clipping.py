"""A model that clips its images answers as before, and attacks still see how black and white pixels matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import siegebench as sb
from siegebench.classifier import Classifier, Network
from siegebench.clipping import Unclipped, clips
from siegebench.inputs import restored

CLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda x: x.clamp(0, 1),
    "clip after scaling": lambda x: (255 * x).clip(0, 255) / 255,
    "hardtanh": lambda x: nn.functional.hardtanh(2 * x - 1),
}


class Changed(nn.Module):
    """Changes the images, then sums the brightness of each third of the rows."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [0.0, 0.5, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x).mean(dim=1).unflatten(1, (3, -1)).flatten(2).sum(dim=2) @ self.weight.T


def network(change: Callable[[Tensor], Tensor]) -> Classifier:
    return Network(Changed(change), num_classes=3).requires_grad_(False).eval()


def black_and_white() -> Tensor:
    return (torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()


@pytest.mark.parametrize("name", CLIPS)
def test_gradients_at_black_and_white_pixels_are_those_just_inside(name: str) -> None:
    plain, model = network(lambda x: 2 * x if name == "hardtanh" else x), network(CLIPS[name])
    x = black_and_white()
    assert clips(model, x)
    mended = restored(model, x)
    assert isinstance(mended, Unclipped)
    assert torch.equal(mended(x), model(x))
    expected, found = (
        torch.autograd.grad(m(leaf)[:, 0].sum(), leaf)[0]
        for m, leaf in ((plain, x.clone().requires_grad_()), (mended, x.clone().requires_grad_()))
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "wrapped"),
    [
        (lambda x: x, False),
        (lambda x: x.clamp(-1, 2), False),
        (lambda x: x + 0 * x.clamp(0, 1), False),
        (lambda x: x.round(), False),  # no gradient at all
        (lambda x: x.detach(), False),
        (lambda x: (x * 3).clamp(0, 1), True),  # white is clipped further inside too, black is not
    ],
)
def test_only_models_that_clip_at_the_limits_are_wrapped(change: Callable[[Tensor], Tensor], wrapped: bool) -> None:
    model = network(change)
    mended = restored(model, black_and_white())
    assert isinstance(mended, Unclipped) is wrapped
    probe = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(mended(probe), model(probe))


def test_a_clip_hides_nothing_from_an_attack() -> None:
    weight = torch.randn(10, 3 * 8 * 8, generator=torch.Generator().manual_seed(1))

    class Linear(nn.Module):
        def __init__(self, clip: bool) -> None:
            super().__init__()
            self.clip, self.w = clip, nn.Parameter(weight)

        def forward(self, x: Tensor) -> Tensor:
            return (x.clamp(0, 1) if self.clip else x).flatten(1) @ self.w.T

    x = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    y = (x.flatten(1) @ weight.T).argmax(dim=1)
    for attack in ("fgsm", {"name": "pgd", "steps": 5, "random_start": False}):
        name, options = (attack, {}) if isinstance(attack, str) else (attack["name"], attack)
        run = sb.attack(str(name), **{k: v for k, v in dict(options).items() if k != "name"})
        plain, clipped = (run(Linear(clip).eval(), x, y, norm="linf", eps=0.05) for clip in (False, True))
        apart = (clipped - plain).abs() > 1e-5
        assert float(apart.float().mean()) < 0.001  # a sign may differ by rounding
        assert not torch.equal(plain, x)
