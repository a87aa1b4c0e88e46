"""Frost: ice crystals on the lens, from photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from siegebench.draws import Draws
from siegebench.types import Corruption

from ._grey import as_channels
from ._pictures import crops, digest, find, picture
from ._severity import constants

FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
SOURCE = "ImageNet-C/create_c of github.com/hendrycks/robustness (Apache-2.0)"
# weights of the image and of the frost, for 224 and for 32 pixels
LARGE = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
SMALL = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
SHRUNK = 0.2  # scale of the photographs for images of up to 64 pixels


@dataclass(frozen=True, kw_only=True)
class Frost(Corruption):
    """x' = clip(a x + b f), f a random crop of one of five photographs of frost.

    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
    Constants: (a, b). The photographs are those of the official repository; the user provides them. They are shrunk to
    a fifth for images of up to 64 pixels, otherwise scaled like lengths, and never below the size of the image. The
    sixth photograph is not used: the published code never draws it. `frost_synthetic` needs no photographs.

    Random: photograph and crop, for each image. Cost: one look-up for each pixel.

    Differs from the paper: values are not truncated to 8 bits, which darkens by half a grey level on average.

    Attributes:
        folder: contains frost1.png, frost2.png, frost3.png, frost4.jpg and frost5.jpg; by default `frost` in the folder
            named by SIEGEBENCH_DATA.
    """

    group: ClassVar[str] = "weather"
    local: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str | None = None

    def identity(self) -> dict[str, str]:
        """What the images depend on besides the parameters: the sha256 of the photographs."""
        return {"photographs": digest(find(self.folder, FILES, "frost", SOURCE))}

    def run(self, x: Tensor, severity: int, draws: Draws) -> Tensor:
        """As in the base class.

        Raises:
            DataError: when the photographs are missing or cannot be read; says which files are expected where.
        """
        (a, b), scale = constants(x, severity, LARGE, SMALL)
        size = (x.shape[2], x.shape[3])
        shrunk = SHRUNK if min(size) <= 64 else scale
        pictures = [picture(file, shrunk, size) for file in find(self.folder, FILES, "frost", SOURCE)]
        which = draws.integers(len(pictures), purpose="photograph")
        u, v = (draws.uniform(purpose=p) for p in ("top", "left"))
        return (a * x + b * as_channels(crops(pictures, size, which, u, v).to(x), x.shape[1])).clamp(0, 1)
