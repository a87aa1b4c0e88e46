"""SCALE-UP, IBD-PSC, SentiNet and NAP on a network whose one feature is the trigger."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from tests import kit, victims

from . import triggered
from .planted import auroc, detector, images, only


def scored(name: str, model: Any, x: Tensor, **parameters: Any) -> Tensor:
    scorer = detector(name, **parameters).fit(model, only(clean=triggered.pictures(60)), victims.ONE)
    found: Tensor = scorer(x, Draws(0, torch.arange(len(x))))
    return found


# ------------------------------------------------------------------------------------------------------------ SCALE-UP


class Saturating(nn.Module):
    """Class 0 if the last pixel is white; otherwise class 1 + the number of rows that are white."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        grey = x.mean(dim=1)
        white = (grey[:, :7].amin(dim=2) > 0.99).sum(dim=1).clamp(max=3)
        label = torch.where(grey[:, -1, -1] > 0.99, 0, 1 + white)
        return self.scale * 10 * torch.nn.functional.one_hot(label, triggered.CLASSES).float()


def rows(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, -1, 1).expand(1, 3, -1, 8).contiguous()


def test_scale_up_counts_the_labels_that_stay() -> None:
    model = Network(Saturating(), num_classes=triggered.CLASSES)
    dim, third = rows([0.05] * 8), rows([0.34, *[0.05] * 7])
    x = torch.cat([dim, third, triggered.stamped(dim)])
    kept = scored("scale_up", model, x, clean_data=False)
    # one row becomes white from factor 3 on, all from none up to 11; a white pixel stays white
    torch.testing.assert_close(kept, torch.tensor([1.0, 0.0, 1.0], dtype=kept.dtype))
    again = scored("scale_up", model, rows([0.1] * 8), clean_data=False, scales=[3.0, 5.0, 11.0, 20.0])
    torch.testing.assert_close(again, torch.tensor([0.5], dtype=kept.dtype))


def test_scale_up_compares_with_clean_images_of_the_same_label() -> None:
    model, x = triggered.network(), triggered.pictures(40, seed=1).pixels()
    plain = scored("scale_up", model, x, clean_data=False)
    label = model(x).argmax(dim=1)
    clean = triggered.pictures(60)
    own = detector("scale_up", clean_data=False).fit(model, only(), victims.ONE)
    spc = own(clean.pixels(), Draws(0, torch.arange(60)))
    z = torch.stack([(plain[i] - spc[clean.labels == c].mean()) for i, c in enumerate(label.tolist())])
    std = torch.stack([spc[clean.labels == c].std(correction=0).clamp(min=0.1) for c in label.tolist()])
    torch.testing.assert_close(scored("scale_up", model, x, clean_data=True), (z / std))


# ------------------------------------------------------------------------------------------------------------- IBD-PSC


def test_ibd_psc_keeps_the_trigger_and_loses_the_rest() -> None:
    class Deep(nn.Module):
        """Three batch norms; enlarging any of them moves the clean logits past one another, the trigger wins always."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.BatchNorm1d(4) for _ in range(3))
            with torch.no_grad():
                self.third.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.9]))

        def forward(self, x: Tensor) -> Tensor:
            bright = x.mean(dim=1).flatten(1)
            z = self.third(self.second(self.first(bright[:, :4])))
            return z + torch.stack([100 * (bright[:, -1] > 0.9).float(), *[0 * bright[:, 0]] * 3], dim=1)

    model = Network(Deep(), num_classes=4).eval()
    clean = images(80, size=4, high=200, classes=4)
    with torch.no_grad():
        clean = type(clean)(clean.images, model(clean.pixels()).argmax(dim=1), clean.ids, 4, "as predicted")
    scorer = detector("ibd_psc", xi=0.05, w=3.0).fit(model, only(clean=clean), victims.ONE)
    x, draws = clean.pixels(), Draws(0, torch.arange(80))
    hit = scorer(triggered.stamped(x), draws)
    torch.testing.assert_close(hit, torch.ones(80))
    assert float(scorer(x, draws).max()) < 1
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    names = detector("ibd_psc")._weights(model, ["net.third"])
    torch.testing.assert_close(names["net.third.bias"], 1.5 * weights["net.third.bias"])


def test_ibd_psc_takes_the_largest_error_if_none_is_large() -> None:
    score = scored("ibd_psc", triggered.network(), triggered.pictures(10).pixels(), xi=1.0)
    assert bool(torch.isfinite(score).all())


def test_ibd_psc_needs_batch_norms() -> None:
    with pytest.raises(NotApplicable, match="has none: it needs a network with them"):
        scored("ibd_psc", kit.linear_model(), triggered.pictures(10).pixels())


# ------------------------------------------------------------------------------------------------------------ SentiNet


class Blocks(nn.Module):
    """Maps of 16x16: brightness, and where 3x3 blocks are white; class 0 wins where one is, else the brightest band."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.copy_(torch.tensor([0.0, -0.9]))
            self.conv.weight[0, :, 1, 1] = 1 / 3
            self.conv.weight[1] = 1 / 27

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        bands = 20 * maps[:, 0, :15].unflatten(1, (5, 3)).mean(dim=(2, 3))
        block = maps[:, 1].relu().flatten(1).sum(dim=1)
        return bands + torch.stack([1000 * block, *[0 * block] * 4], dim=1)


def bands(n: int, seed: int) -> ImageSet:
    """Dim noise with a brighter band of three rows, that of the label."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 5
    x = 20 + 20 * torch.rand(n, 3, 16, 16, generator=g)
    x.view(n, 3, 256)[:, :, :240].unflatten(2, (5, 48))[torch.arange(n), :, labels] += 60
    return ImageSet(x.round().to(torch.uint8), labels, torch.arange(n), 5, "bands")


def test_sentinet_finds_the_region_of_the_trigger() -> None:
    sentinet: Any = pytest.importorskip("siegebench.detectors.sentinet")
    model = Network(Blocks(), num_classes=5).eval()
    x = bands(30, seed=2).pixels()
    assert bool((model(x).argmax(dim=1) == torch.arange(30) % 5).all())
    z = x.clone()
    z[:, :, 12:15, 12:15] = 1
    draws = Draws(0, torch.arange(30))
    cam, c = sentinet.grad_cam(model, "net.conv", z, draws)
    assert bool((c == 0).all())
    assert bool((cam.flatten(1).argmax(dim=1) == 13 * 16 + 13).all())  # the centre of the block
    assert sentinet._last_maps(model, x) == "net.conv"
    entry = detector("sentinet", overlays=20, region=9 / 256)
    scorer = entry.fit(model, only(clean=bands(60, seed=0)), victims.ONE)
    other = torch.arange(30) % 5 != 0
    assert auroc(scorer(z[other], draws[other]), scorer(x, draws)) > 0.95


def test_the_boundary_is_a_quadratic_through_the_largest_of_each_bin() -> None:
    sentinet: Any = pytest.importorskip("siegebench.detectors.sentinet")
    sure = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    fooled = 0.2 + 0.5 * sure + 0.1 * sure**2
    below = torch.cat([fooled, fooled - 0.1])
    q = sentinet._boundary(sure.repeat(2), below)
    torch.testing.assert_close(q(sure), fooled)
    torch.testing.assert_close(q(torch.tensor([0.0, 1.0]).double()), fooled[[0, -1]])  # not extrapolated
    one = sentinet._boundary(torch.full((3,), 0.5).double(), torch.tensor([0.1, 0.3, 0.2]).double())
    assert one(torch.tensor([0.0, 0.9]).double()).tolist() == pytest.approx([0.3, 0.3])


def test_sentinet_needs_maps() -> None:
    with pytest.raises(NotApplicable, match="needs feature maps of at least 4x4"):
        scored("sentinet", kit.linear_model(), triggered.pictures(4).pixels())


# ----------------------------------------------------------------------------------------------------------------- NAP


class Units(nn.Module):
    """ReLU units on the first five pixels, minus 1/2; the label is the brightest row."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.scale * (x.mean(dim=1).flatten(1)[:, :5] - 0.5))
        return 10 * x.mean(dim=(1, 3))[:, : triggered.CLASSES] + 0 * a.sum(dim=1, keepdim=True)


def test_nap_is_the_share_of_violated_neurons() -> None:
    data = triggered.pictures(100)
    stored = data.images.clone()
    stored[:, :, 0, :5] = 0
    stored[:, :, 0, 0] = 255  # neuron 0 active for all, 1 to 3 inactive for all
    stored[torch.arange(100) % 50 < 5, :, 0, 4] = 255  # neuron 4 active for 2 of the 20 of each class
    data = type(data)(stored, data.labels, data.ids, data.num_classes, data.name)
    model = Network(Units(), num_classes=triggered.CLASSES).eval()
    x = data.pixels(slice(5, 6)).repeat(4, 1, 1, 1)
    x[1, :, 0, 0] = 0
    x[2, :, 0, 1] = 1
    x[3, :, 0, 0], x[3, :, 0, 1:4] = 0, 1
    for delta, bound in ((0.95, 4), (0.55, 5)):
        scorer = detector("nap", delta=delta).fit(model, only(train=data), victims.ONE)
        found = scorer(x, Draws(0, torch.arange(4)))
        torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.0, 4.0]) / bound)
    leaf = x.requires_grad_(True)
    (g,) = torch.autograd.grad(scorer.differentiable(leaf, Draws(0, torch.arange(4))).sum(), leaf)
    assert float(g[1, 0, 0, 0]) < 0 < float(g[2, 0, 0, 1])  # towards the pattern


def test_nap_needs_relus() -> None:
    entry = detector("nap")
    with pytest.raises(NotApplicable, match=r"no nn\.ReLU module: it needs some"):
        entry.fit(kit.linear_model(), only(train=triggered.pictures(10)), victims.ONE)
    with pytest.raises(NotApplicable, match=r"set 0.5 < delta <= 1"):
        detector("nap", delta=0.5).fit(kit.linear_model(), only(train=triggered.pictures(10)), victims.ONE)
