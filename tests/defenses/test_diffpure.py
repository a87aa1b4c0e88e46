"""DiffPure: exact for a distribution whose noise is known, gradients through every step, and a model of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ModelError
from siegebench.train import Recipe
from tests import kit

from .grey_digits import ONE, defense, granted

module = sys.modules[type(defense("diffpure")).__module__]
ABAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


class Gaussian(nn.Module):
    """The best prediction of the noise if the images in [-1, 1] are N(0, s^2): x_t sqrt(1 - abar) / var(x_t)."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = s
        self.register_buffer("abar", ABAR.clone())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = self.abar[t].view(-1, 1, 1, 1)  # type: ignore[index]
        return x * (1 - a).sqrt() / (a * self.s**2 + 1 - a)


def test_a_distribution_with_known_noise_is_kept() -> None:
    """Images of N(0, s^2) stay so; others are drawn to the mean as far as the noise hides them."""
    purifier, draws = module.Purifier(Gaussian(0.3), 100, 100).double(), Draws(0, torch.arange(200))
    x = 0.5 + 0.15 * draws.normal((3, 8, 8), purpose="images").double()
    out = 2 * purifier(x, draws) - 1
    assert float(out.std()) == pytest.approx(0.3, rel=0.03)
    constant = torch.full_like(x, 0.9)  # 0.8 in [-1, 1]: the posterior mean given x_t, averaged over the noise
    a = float(ABAR[99])
    expected = 0.8 * a * 0.3**2 / (a * 0.3**2 + 1 - a)
    assert float((2 * purifier(constant, draws) - 1).mean()) == pytest.approx(expected, abs=0.01)


def test_few_steps_reach_the_end_and_noise_is_fresh() -> None:
    purifier, x = module.Purifier(Gaussian(0.3), 100, 7).double(), kit.grey_images(4).double()
    assert purifier.levels[0] == 100
    assert purifier.levels[-1] == 0
    assert len(purifier.levels) == 8
    draws = Draws(0, torch.arange(4))
    assert torch.equal(purifier(x, draws), purifier(x, draws))
    assert not torch.isclose(purifier(x, draws), purifier(x, draws.at(1))).any()


def test_the_gradient_goes_through_every_step() -> None:
    purifier, draws = module.Purifier(Gaussian(0.3), 100, 5).double(), Draws(0, torch.arange(1))
    x = kit.grey_images(1, 2).double()
    assert torch.autograd.gradcheck(lambda leaf: purifier(leaf, draws), x.requires_grad_(True))


def test_the_trained_model_predicts_noise_and_leaves_the_network(train_set: ImageSet) -> None:
    model = kit.cnn_model()
    entry = defense("diffpure", width=8, recipe=vars(Recipe(epochs=4, batch=64, lr=5e-3, augment="none")))
    made = entry.apply(model, granted("train", train=train_set.select(torch.arange(320))), ONE)
    purifier = entry.shared(made)
    x, draws = 2 * train_set.select(torch.arange(400, 464)).pixels() - 1, Draws(1, torch.arange(64))
    noise, t = draws.normal((3, 16, 16)), torch.full((64,), 100)
    with torch.no_grad():
        error = float((purifier.noise_in(purifier.diffused(x, t, noise), t) - noise).square().mean())  # type: ignore[union-attr, operator]
    assert error < 0.9  # 1 if nothing is predicted
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in made.inner.state_dict().items())  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_model_of_ones_own(tmp_path: Path) -> None:
    path, x = tmp_path / "noise.pt", kit.grey_images(3)
    torch.jit.trace(Gaussian(0.3).float(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))).save(str(path))
    entry = defense("diffpure", file=str(path))
    assert not entry.trains
    assert len(entry.identity()["sha256"]) == 64
    assert "file" not in registry.description_of("defense", entry)
    draws, model = Draws(0, torch.arange(3)), kit.cnn_model()
    found = entry.apply(model, granted("none"), ONE)(x, draws)
    assert torch.allclose(found, model(module.Purifier(Gaussian(0.3).float(), 100, 5)(x, draws)), atol=1e-5)
    with pytest.raises(ModelError, match="no such file"):
        defense("diffpure", file=str(tmp_path / "absent.pt")).identity()
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(ModelError, match="not a TorchScript module"):
        defense("diffpure", file=str(tmp_path / "text.pt")).wrap(model)
