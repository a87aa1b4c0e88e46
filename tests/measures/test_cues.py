"""The changes of images that leave one cue, and classifiers that use one cue only."""

from __future__ import annotations

import pytest
import torch
from siegebench.measures.cues import high_pass, low_pass, scrambled
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from tests import kit

from .planted import built, measured

DRAWS = Draws(0, torch.arange(6))


@pytest.mark.parametrize("side", [8, 10])
def test_tiles_are_moved_and_nothing_is_lost(side: int) -> None:
    x = kit.grey_images(6, side)
    out = scrambled(x, 4, DRAWS)
    assert torch.equal(out.flatten(2).sort(dim=2).values, x.flatten(2).sort(dim=2).values)
    assert torch.equal(out[..., 8:, :], x[..., 8:, :])
    tiles = [t[..., :8, :8].unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(6, 16, -1)
             for t in (x, out)]  # fmt: skip
    where = (tiles[1][:, :, None] == tiles[0][:, None]).all(dim=3)
    assert bool((where.sum(dim=2) == 1).all()), "each tile is one of the image, whole"
    assert len({tuple(row.tolist()) for row in where.long().argmax(dim=2)}) == 6, "each image has an order of its own"
    assert torch.equal(scrambled(x[2:4], 4, DRAWS[2:4]), out[2:4])


def test_low_and_high_frequencies_add_up() -> None:
    x = kit.grey_images(3, 16).double()
    low = low_pass(x, 4)
    torch.testing.assert_close(low + high_pass(x, low), x + x.mean(dim=(2, 3), keepdim=True))
    torch.testing.assert_close(low_pass(low, 4), low)
    torch.testing.assert_close(low_pass(x, 0), x.mean(dim=(2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(low_pass(x, 16), x)
    wave = torch.cos(2 * torch.pi * 5 * torch.arange(16).double() / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(low_pass(wave, 5), wave)
    torch.testing.assert_close(low_pass(wave, 4), torch.zeros_like(wave))


class Means(nn.Module):
    """Class 1 where the image is bright (`texture`), or where its left half is brighter than the right (`shape`)."""

    def __init__(self, cue: str) -> None:
        super().__init__()
        self.cue, self.none = cue, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        left, right = x[..., :half].mean(dim=(1, 2, 3)), x[..., half:].mean(dim=(1, 2, 3))
        s = left + right - 1 if self.cue == "texture" else left - right
        return torch.stack([-s, s], dim=1) + self.none


def test_each_cue_is_kept_by_the_classifier_that_uses_it() -> None:
    x = 0.2 + 0.02 * torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    bright = x + 0.5 * y.view(-1, 1, 1, 1)
    got, _ = measured(built("cues"), Network(Means("texture"), num_classes=2).eval(), bright, y)
    assert got["clean_acc"] == got["scrambled_kept"] == got["grey_kept"] == got["low_2_kept"] == 1
    assert got["high_2_kept"] == 1, "the mean of the image stays"
    assert got["silhouette_kept"] < 0.8, "a silhouette has no brightness"
    assert got["commonest_kept"] == 0.5

    sided = x.clone()
    sided[y == 1, ..., :8] += 0.5
    sided[y == 0, ..., 8:] += 0.5
    got, _ = measured(built("cues"), Network(Means("shape"), num_classes=2).eval(), sided, y)
    assert got["clean_acc"] == got["silhouette_kept"] == got["grey_kept"] == got["low_2_kept"] == 1
    assert got["scrambled_kept"] < 0.8, "tiles have no place"
    assert got["high_8_kept"] < 0.9, "sides are low frequencies"


def test_images_smaller_than_the_grid_are_refused() -> None:
    with pytest.raises(NotApplicable, match="8x8 pixels have no 9x9 tiles"):
        measured(built("cues", tiles=9), kit.linear_model(), kit.grey_images(2), torch.zeros(2, dtype=torch.long))
