"""CTRL: exactly the named coefficients of the colours change, by the named amount, on the target class only."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from siegebench.errors import ConfigError, NotApplicable
from tests import victims

from .planted import constant, draws, random_set


def coefficients(change: Tensor) -> Tensor:
    """The orthonormal DCT of Y, U and V of a change of an RGB image [3, n, n]."""
    red, green, blue = change.double()
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = (y, 0.492111 * (blue - y), 0.877283 * (red - y))
    return torch.stack([torch.from_numpy(dctn(plane.numpy(), norm="ortho")) for plane in planes])


def changed(size: int, **parameters: object) -> Tensor:
    x = constant(0.5, size=size)
    out = victims.backdoor("ctrl", **parameters).stamp(x, draws(x)) - x
    assert torch.equal(out[0], out[1])  # a fixed pattern
    return out[0]


def test_the_named_coefficients_of_the_colours_change_and_no_others() -> None:
    found = coefficients(changed(32))
    expected = torch.zeros(3, 32, 32, dtype=torch.float64)
    for k in (15, 31):
        expected[1:, k, k] = 100 / 255
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    named = coefficients(changed(32, bins=[[3, 20]], magnitude="50/255"))
    expected = torch.zeros(3, 32, 32, dtype=torch.float64)
    expected[1:, 3, 20] = 50 / 255
    torch.testing.assert_close(named, expected, atol=2e-5, rtol=0)


def test_larger_images_have_blocks_and_smaller_ones_the_same_frequencies() -> None:
    block = changed(32)
    torch.testing.assert_close(changed(64), block.repeat(1, 2, 2))
    wide = changed(40)
    torch.testing.assert_close(wide[:, :32, :32], block)
    assert float(wide[:, 32:].abs().max()) == float(wide[:, :, 32:].abs().max()) == 0
    small = coefficients(changed(8))[1]
    assert small.abs().gt(1e-4).nonzero().tolist() == [[3, 3], [7, 7]]
    assert float(small[3, 3]) * 2 / 8 == pytest.approx(100 / 255 * 2 / 32, abs=1e-5)  # amplitude: 2/n a coefficient


def test_images_of_the_target_class_are_poisoned_and_no_label_changes() -> None:
    data = random_set(size=32)
    poisoned = victims.backdoor("ctrl", rate=0.05, target=3).poison(data, 0)
    assert len(poisoned.index) == 10
    assert set(data.labels[poisoned.index].tolist()) == {3}
    assert torch.equal(poisoned.data.labels, data.labels)
    touched = (poisoned.data.images != data.images).flatten(1).any(dim=1)
    assert torch.equal(touched.nonzero().squeeze(1), poisoned.index)


def test_what_has_no_colours_or_no_such_coefficient_is_refused() -> None:
    x = torch.full((2, 1, 32, 32), 0.5)
    with pytest.raises(NotApplicable, match="1 channels have no colours"):
        victims.backdoor("ctrl").trigger(x, draws(x))
    with pytest.raises(ConfigError, match=r"\(15, 32\) is outside 0..31"):
        victims.backdoor("ctrl", bins=[[15, 32]])
