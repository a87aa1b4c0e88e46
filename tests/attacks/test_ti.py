"""TI blurs the gradient with a Gaussian of sum one."""

from __future__ import annotations

import pytest
import torch
from siegebench.attacks.mifgsm import MIFGSM
from siegebench.attacks.ti import TI, gaussian

from siegebench.errors import ConfigError


def test_ti_blurs_the_gradient_with_a_gaussian_of_sum_one() -> None:
    kernel = gaussian(7)
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[3, 3] / kernel[3, 4]) == pytest.approx(torch.tensor(0.5).exp().item())  # points are 1 apart
    impulse = torch.zeros(1, 3, 9, 9)
    impulse[0, 1, 4, 4] = 1.0
    blurred = TI(attack=MIFGSM()).blurred(impulse)
    torch.testing.assert_close(blurred[0, 1, 1:8, 1:8], kernel.float())
    assert float(blurred[0, [0, 2]].abs().max()) == 0
    with pytest.raises(ConfigError, match="odd"):
        TI(attack=MIFGSM(), side=4)
