"""What every corruption keeps, over all the cards of the folder."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import ContractError, DataError
from siegebench.types import Corruption

from .pictures import draws, planted

FOLDER = Path(__file__).resolve().parents[2] / "corruptions"
CARDS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
HENDRYCKS = {
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
}  # fmt: skip
SIZES = ((32, 32), (48, 64), (160, 160))
# At some size the published constants do not move an image further from the original at every step:
NOT_RISING = {
    "elastic_transform": "large parts move at the lower severities, small ones at the higher",
    "frost": "the image itself gets less weight, the frost hardly more",
    "frost_synthetic": "mixed as frost",
    "glass_blur": "32 pixels: the first three differ in the blur, which smooths what was scattered",
    "motion_blur": "32 pixels: the third and fourth severity differ in weights of exp(-18) only",
    "snow": "a higher threshold from the second to the third severity",
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for the photographs of frost: other images under their names."""
    folder = tmp_path_factory.mktemp("frost")
    g = np.random.default_rng(0)
    for k, name in enumerate(("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")):
        pixels = g.integers(60 + 20 * k, 255, (315 + 40 * k, 560, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def made(name: str, photographs: Path | None = None, **params: Any) -> Corruption:
    module, _, cls = CARDS[name]["entry"].partition(":")
    if name == "frost" and photographs:
        params["folder"] = str(photographs)
    entry = getattr(importlib.import_module(f"siegebench.corruptions.{module}"), cls)(**params)
    assert isinstance(entry, Corruption)
    return entry


def test_all_fifteen_are_there_with_their_groups() -> None:
    assert set(CARDS) >= HENDRYCKS
    groups: dict[str, set[str]] = {}
    for name, card in CARDS.items():
        assert card["kind"] == "corruption"
        assert card["name"] == name
        groups.setdefault(type(made(name)).group, set()).add(name)  # type: ignore[attr-defined]
    assert set(groups) == {"noise", "blur", "weather", "digital", "light"}
    assert groups["noise"] == {"gaussian_noise", "shot_noise", "impulse_noise"}
    assert groups["weather"] == {"snow", "frost", "frost_synthetic", "fog", "brightness"}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CARDS)
def test_keeps_the_contract_and_a_sample_alone_is_as_in_a_batch(
    name: str, size: tuple[int, int], photographs: Path
) -> None:
    entry, x = made(name, photographs), planted(3, *size)
    for severity in (2, 5) if size[0] < 100 else (5,):
        out = entry(x, severity, draws(3))  # checks shape, type, range and that x is as it was
        assert torch.equal(out, entry(x, severity, draws(3)))
        assert not torch.equal(out, x)
        alone = entry(x[2:], severity, draws(3)[torch.tensor([2])])
        torch.testing.assert_close(alone[0], out[2], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CARDS)
def test_float64_and_float32_agree(name: str, photographs: Path) -> None:
    entry, x = made(name, photographs), planted(2, 40, 40)
    out = entry(x.double(), 3, draws(2))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), entry(x, 3, draws(2)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CARDS)
def test_small_long_black_white_and_no_images(name: str, photographs: Path) -> None:
    entry = made(name, photographs)
    for shape in ((8, 8), (9, 70), (66, 300)):
        x = planted(2, *shape)
        x[0], x[1, :, ::2] = 0.0, 1.0
        for severity in (1, 5):
            entry(x, severity, draws(2))
    assert entry(planted(0, 32, 32), 1, draws(0)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", CARDS)
def test_severities_move_further_from_the_image(name: str, photographs: Path) -> None:
    entry, rising = made(name, photographs), []
    for n, size in ((8, (32, 32)), (3, (112, 112))):
        x = planted(n, *size)
        far = [float((entry(x, severity, draws(n)) - x).abs().mean()) for severity in range(1, 6)]
        assert min(far) > 0.001
        rising.append(all(a + 1e-6 < b for a, b in pairwise(far)))
        assert rising[-1] or name in NOT_RISING, far
    assert not (all(rising) and name in NOT_RISING), "rises at both sizes: take it off the list"


@pytest.mark.parametrize("name", ["gaussian_noise", "fog", "glass_blur", "motion_blur", "snow", "elastic_transform"])
def test_draws_decide(name: str) -> None:
    entry, x = made(name), planted(1, 32, 32).expand(2, -1, -1, -1)
    out = entry(x, 4, draws(2))
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out, entry(x, 4, draws(2, seed=1)))


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_other_severities_are_refused(severity: Any) -> None:
    with pytest.raises(ContractError, match="severity is"):
        made("contrast")(planted(1, 8, 8), severity, draws(1))


def test_a_broken_contract_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Corruption):
        how: str

        def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
            if self.how == "in place":
                return x.mul_(0.5)
            return {"pixels in": x + 1, "NaN": x / 0 * 0, "returned torch": x.double(), "(1, 3, 4": x[..., :4, :]}[
                self.how
            ]

    for how in ("in place", "pixels in", "NaN", "returned torch"):
        with pytest.raises(ContractError, match=how):
            Broken(how=how)(planted(1, 8, 8), 1, draws(1))


def test_frost_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)
    with pytest.raises(DataError, match=r"frost1\.png.*hendrycks/robustness.*folder: FOLDER.*SIEGEBENCH_DATA"):
        made("frost")(planted(1, 32, 32), 1, draws(1))
    (tmp_path / "frost").mkdir()
    (tmp_path / "frost" / "frost1.png").write_bytes(b"no image")
    monkeypatch.setenv("SIEGEBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"lacks frost2\.png"):
        made("frost")(planted(1, 32, 32), 1, draws(1))
    for name in ("frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        (tmp_path / "frost" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        made("frost")(planted(1, 32, 32), 1, draws(1))
