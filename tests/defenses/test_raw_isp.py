"""The RAW pipeline: the camera and its inverse, what is trained, and one artifact for several networks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from siegebench import registry
from siegebench.cells import Cell
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError
from siegebench.train import Recipe
from siegebench.workspace import Settings, Workspace
from tests import kit

from .grey_digits import ONE, defense, granted

module = sys.modules[type(defense("raw_isp")).__module__]
camera = sys.modules["siegebench.defenses._camera"]
SMALL: dict[str, object] = {
    "width": 8,
    "unet": 4,
    "patch": 16,
    "recipe": vars(Recipe(epochs=1, batch=64, lr=5e-3, augment="none")),
}


def photographs(n: int = 6, size: int = 24) -> Tensor:
    """Smooth random images with all colours, float64."""
    small = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return F.interpolate(small, (size, size), mode="bicubic").clamp(0.02, 0.98)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def test_developing_with_the_same_camera_gives_the_image_back() -> None:
    y, draws = photographs(), Draws(0, torch.arange(6))
    known = camera.Camera.drawn(draws, torch.float64)
    raw = camera.unprocess(y, known)
    assert raw.shape == (6, 4, 24, 24)
    assert bool((raw >= 0).all() and (raw <= 1).all())
    back = camera.develop(raw, known)
    assert psnr(back, y) > 38
    other = camera.develop(raw, camera.Camera.mean(raw))
    assert 15 < psnr(other, y) < psnr(back, y)


def test_grey_stays_grey_and_a_plain_image_is_exact() -> None:
    y = torch.full((2, 3, 8, 8), 0.4, dtype=torch.float64)
    known = camera.Camera.drawn(Draws(3, torch.arange(2)), torch.float64)
    raw = camera.unprocess(y, known)
    ratio = raw[:, 1] / raw[:, 0]  # green against red: the white balance
    assert torch.allclose(ratio, (known.gains[:, 0] / known.gains[:, 1])[:, None, None].expand_as(ratio))
    assert torch.allclose(camera.develop(raw, known), y, atol=1e-9)


def test_demosaicing_is_that_of_malvar_he_and_cutler() -> None:
    """A mosaic of a linear ramp of grey is reproduced exactly: the filters have gain 1 and no first moment."""
    ramp = torch.linspace(0.1, 0.9, 16, dtype=torch.float64).expand(1, 1, 16, 16)
    mosaic = F.pixel_unshuffle(ramp, 2)
    found = camera._demosaiced(mosaic)
    expected = mosaic[:, None].expand(-1, 3, -1, -1, -1)
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_training_learns_both_directions_and_leaves_the_network(train_set: ImageSet) -> None:
    data, model = train_set.select(torch.arange(160)), kit.cnn_model()
    entry = defense("raw_isp", **{**SMALL, "recipe": vars(Recipe(epochs=4, batch=16, lr=5e-3, augment="none"))})
    made = entry.apply(model, granted("train", train=data), ONE)
    y = train_set.select(torch.arange(512, 576)).pixels()
    r = camera.unprocess(y, camera.Camera.drawn(Draws(5, torch.arange(64)), y.dtype))

    @torch.no_grad()
    def errors(defended: Classifier) -> tuple[float, float]:
        p = entry.shared(defended)
        return float((p.to_raw(y) - r).square().mean()), float((p.developed(r) - y).abs().mean())  # type: ignore[union-attr, operator]

    for trained, untrained in zip(errors(made), errors(entry.structure(model)), strict=True):
        assert trained < 0.7 * untrained
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in made.inner.state_dict().items())  # type: ignore[union-attr]


def test_two_networks_share_one_artifact(tmp_path: Path, train_set: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    ws, data = Workspace(Settings(root=str(tmp_path), device="cpu")), train_set.select(torch.arange(64))
    monkeypatch.setattr(ws, "granted", lambda *_: granted("train", train=data))
    entry = registry.describe("defense", {"name": "raw_isp", **SMALL})
    ws.held["d"] = data
    cell = Cell(track="white_box", data={"train_digest": "d", "digest": "d"}, model={"name": "a"}, defense=entry)
    first, second = kit.cnn_model(0), kit.cnn_model(1)
    made = [ws.defended(cell, first), ws.defended(replace(cell, model={"name": "b"}), second)]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    same, other = (m.state_dict() for m in made)
    assert all(torch.equal(v, other[k]) for k, v in same.items() if k.startswith("transform."))
    assert any(not torch.equal(v, other[k]) for k, v in same.items())
    ws.defended(replace(cell, defense={**entry, "patch": 8}), first)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_patches_are_parts_of_the_images() -> None:
    x = torch.arange(2 * 3 * 6 * 8, dtype=torch.float32).view(2, 3, 6, 8)
    cut = module._patches(x, 4, Draws(0, torch.arange(2)))
    assert cut.shape == (2, 3, 4, 4)
    for whole, part in zip(x, cut, strict=True):
        spots = [(i, j) for i in range(3) for j in range(5) if torch.equal(whole[:, i : i + 4, j : j + 4], part)]
        assert len(spots) == 1
    assert torch.equal(module._patches(x, 9, Draws(0, torch.arange(2))), x)


def test_a_width_that_the_network_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 4"):
        defense("raw_isp", unet=6)
