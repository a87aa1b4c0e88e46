"""Pictures of every kind of file become the 8-bit pixels that they mean, or are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image
from siegebench.zoo._images import decode

from siegebench.errors import DataError
from tests.zoo.pictures import png16, saved, tiff

GREY = np.array([[0, 1, 128], [200, 254, 255]], dtype=np.uint8)
WIDE = GREY.astype(np.uint16) * 257  # the same picture with 16 bits


def pixels(blob: bytes, channels: Any = 3) -> Any:
    (image,) = decode([("a.tif", blob)], channels=channels)
    return image.numpy()


@pytest.mark.parametrize(
    "blob",
    [
        saved(GREY),
        saved(WIDE),
        png16(WIDE),
        saved(WIDE, "TIFF"),
        tiff(WIDE.astype(">u2")),
        tiff(WIDE.astype("<u2")),
        tiff(65535 - WIDE, white_is_zero=True),
        tiff(255 - GREY, white_is_zero=True),
        tiff(WIDE.astype("<i4")),
        tiff(WIDE.astype("<u4")),
        b"P5\n3 2\n65535\n" + WIDE.astype(">u2").tobytes(),
        tiff((GREY / 255).astype("<f4")),
        saved((GREY / 255).astype(np.float32), "TIFF"),
        png16(np.stack([WIDE] * 3, -1)),
        saved(Image.fromarray(GREY).convert("LA")),
        saved(Image.fromarray(GREY).convert("RGBA")),
        saved(Image.fromarray(np.stack([GREY] * 3, -1)), "WEBP", lossless=True),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_one_picture_in_many_files(blob: bytes, channels: int) -> None:
    assert np.array_equal(pixels(blob, channels), np.stack([GREY] * channels))


def test_sixteen_bits_are_rounded_to_the_nearest_level() -> None:
    levels = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], dtype=np.uint16)
    assert pixels(saved(levels), 1).tolist() == [[[0, 0, 1, 1, 2, 254, 255, 255]]]


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (tiff(np.array([[0.0, 255.0]], "<f4")), r"a\.tif: a float image with values from 0 to 255; expected \[0, 1\]"),
        (tiff(np.array([[-0.1, 1.0]], "<f4")), "values from -0.1 to 1"),
        (tiff(np.array([[np.nan, 0.5]], "<f4")), "values from nan to nan"),
        (tiff(np.array([[0, 65536]], "<i4")), "an integer image with values from 0 to 65536; expected 16 bits"),
        (tiff(np.array([[-3, 9]], "<i2")), "values from -3 to 9"),
        (tiff(GREY.astype("<i4")), "16 or 32 bits and values from 0 to 255; expected 0 to 65535. It would be black"),
        (saved((GREY // 255).astype(np.uint16)), "values from 0 to 1; expected 0 to 65535"),
        (b"", r"a\.tif: not a readable image \(an empty file\); replace it"),
        (b"text", r"not a readable image \(Pillow does not know its format\)"),
    ],
)
def test_unknown_scale_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pixels(blob)


def test_transparency_is_ignored_as_torchvision_does() -> None:
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[..., 0], clear[1, :, 3] = 200, 255
    palette = Image.fromarray(clear[..., :3]).quantize(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for blob in (saved(clear), saved(palette, transparency=0), saved(palette, transparency=b"\x40\xff")):
            assert (pixels(blob)[0] == 200).all()


def test_other_modes() -> None:
    one = saved(Image.fromarray(GREY > 100))
    assert pixels(one, 1).tolist() == [[[0, 0, 255], [255, 255, 255]]]
    ink = saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")
    assert pixels(ink).flatten().tolist() == [255, 0, 0]
    assert pixels(ink, 1).tolist() == [[[76]]]  # 0.299 * 255


def test_the_first_picture_of_several_is_read() -> None:
    red, green = (Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    for form in ("GIF", "TIFF"):
        assert pixels(saved(red, form, save_all=True, append_images=[green]))[:, 0, 0].tolist() == [255, 0, 0]


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert pixels(saved(GREY, "PNG", exif=exif)).shape == (3, 2, 3)
