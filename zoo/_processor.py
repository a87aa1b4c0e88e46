"""Preprocessing as image processors of Hugging Face describe it in `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from siegebench.errors import ModelError, shortened

from ._whole import Channels

GIVE = "give `mean`, `std` and `input_size`"
# what cannot be written as a size and a normalisation, if it is on
UNKNOWN = ("rescale_offset", "do_flip_channel_order", "do_pad", "do_color_quantize", "do_convert_grayscale")


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of pixels in [0, 1].

    Attributes:
        size: (height, width) of its images.
        mean, std: normalisation.
    """

    size: tuple[int, int] | None
    mean: Channels
    std: Channels


def preprocessing(config: Mapping[str, Any], where: object) -> Preprocessing:
    """The preprocessing of an image processor.

    A processor multiplies pixels of 0..255 by `rescale_factor`, subtracts `image_mean` and divides by `image_std`; here
    both are for pixels in [0, 1]. The size is that of the centre crop if there is one, else that of resizing. A resize
    to a larger size before the crop is left to the data set (`size` and `fit`).

    Raises:
        ModelError: for settings that this cannot express, with what to give instead.
    """
    on = [key for key in UNKNOWN if config.get(key)]
    if on:
        raise ModelError(f"{where}: {on[0]} is {shortened(config[on[0]])}, which is not known here; {GIVE}")
    factor = float(config.get("rescale_factor", 1 / 255)) * 255 if config.get("do_rescale", True) else 255.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = (_numbers(config, key, where) for key in ("image_mean", "image_std"))
        if config.get("include_top"):  # of EfficientNet: divided by the std twice
            std = (std[0] ** 2, std[1] ** 2, std[2] ** 2)
    if factor <= 0 or min(std) <= 0:
        raise ModelError(f"{where}: rescale_factor and image_std are not above 0; {GIVE}")
    return Preprocessing(
        _size(config, where), tuple(_short(m / factor) for m in mean), tuple(_short(s / factor) for s in std)
    )


def _short(value: float) -> float:
    """Without the rounding of 255 / 255."""
    return float(f"{value:.9g}")


def _numbers(config: Mapping[str, Any], key: str, where: object) -> tuple[float, float, float]:
    value = config.get(key)
    if isinstance(value, (int, float)):
        value = [value] * 3
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, (int, float)) for v in value):
        raise ModelError(f"{where}: {key} is {shortened(value)}, expected three numbers; {GIVE}")
    red, green, blue = (float(v) for v in value)
    return red, green, blue


def _size(config: Mapping[str, Any], where: object) -> tuple[int, int] | None:
    """The size of the centre crop, else of resizing; None if images are not resized."""
    for switch, key in (("do_center_crop", "crop_size"), ("do_resize", "size")):
        value = config.get(key)
        if not config.get(switch, key == "size") or value is None:
            continue
        if isinstance(value, (int, float)):
            value = {"height": value, "width": value}
        if isinstance(value, Mapping):
            edge = value.get("shortest_edge")
            height, width = value.get("height", edge), value.get("width", edge)
            if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
                return height, width
        raise ModelError(f"{where}: {key} is {shortened(value)}, expected height and width; {GIVE}")
    return None
