"""WaNet: the size of the warp, its smoothness, and the noise of cover images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from siegebench.types import BackdoorAttack
from tests import victims

from .planted import constant, draws


def displaced(attack: BackdoorAttack, size: int, role: str = "test") -> Tensor:
    """How far pixels move along rows and columns, [2, size, size], read from two images that are ramps."""
    ramp = torch.linspace(0, 1, size, dtype=torch.float64)
    images = torch.stack([ramp[:, None].expand(size, size), ramp[None, :].expand(size, size)])
    x = images[:, None].expand(-1, 3, -1, -1)
    moved = attack.stamp(x, draws(x), role=role)[:, 0]  # type: ignore[arg-type]
    return (moved - images) * (size - 1)


@pytest.mark.parametrize("size", [8, 32, 64, 224])
def test_the_mean_displacement_is_that_of_the_parameter(size: int) -> None:
    moved = displaced(victims.backdoor("wanet", displacement=0.5), size)
    inner = moved[:, size // 8 : -size // 8, size // 8 : -size // 8]  # edges are clamped
    field = victims.backdoor("wanet", displacement=0.5).field(torch.zeros(1, 3, size, size))  # type: ignore[attr-defined]
    assert float(field.abs().mean()) == pytest.approx(0.5 * size / 32, rel=0.01)
    assert float(inner.abs().mean()) == pytest.approx(0.5 * size / 32, rel=0.4)


def test_the_warp_is_smooth_and_the_noise_is_not() -> None:
    attack = victims.backdoor("wanet")
    warp, noisy = displaced(attack, 32), displaced(attack, 32, "cover")
    step = (warp[..., 1:] - warp[..., :-1]).abs().mean()
    assert float(step) < 0.2 * float(warp.abs().mean())
    inner = (noisy - warp)[:, 4:-4, 4:-4]
    assert float(inner.abs().mean()) == pytest.approx(0.75, rel=0.1)  # U(-1.5, 1.5)
    assert float(inner.abs().max()) <= 1.5 + 1e-9


def test_constant_images_do_not_change_and_the_field_depends_on_its_seed_alone() -> None:
    x = constant(0.3)
    attack = victims.backdoor("wanet")
    torch.testing.assert_close(attack.stamp(x, draws(x)), x)
    assert torch.equal(displaced(attack, 32), displaced(victims.backdoor("wanet", rate=0.01), 32))
    assert not torch.equal(displaced(attack, 32), displaced(victims.backdoor("wanet", pattern_seed=1), 32))
