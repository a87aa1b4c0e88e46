"""The contract of corruptions, one function per clause; on square and non-square images."""

from __future__ import annotations

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.errors import DataError
from siegebench.metrics import SEVERITIES
from siegebench.testing.specimens import Case, NotChecked, images, other_global_numbers, require

SHAPES = ((16, 16), (24, 40))


def _images(shape: tuple[int, int]) -> Tensor:
    """Images that are neither black nor white, so that every change is visible."""
    x = 0.2 + 0.6 * images(8, max(shape))[2:, :, : shape[0], : shape[1]]
    return x.contiguous()


def _corrupted(case: Case, x: Tensor, severity: int, ids: Tensor | None = None) -> Tensor:
    out: Tensor = case.entry(x, severity, Draws(0, torch.arange(len(x)) if ids is None else ids))
    return out


def returns_images_of_the_right_shape_and_range(case: Case) -> None:
    for shape in SHAPES:
        for severity in SEVERITIES:
            try:
                case.kept[shape, severity] = _corrupted(case, _images(shape), severity)  # its __call__ checks the rest
            except DataError as error:  # it reads files that the user provides
                raise NotChecked(str(error)) from None


def changes_the_images(case: Case) -> None:
    for shape in SHAPES:
        far = (case.kept[shape, SEVERITIES[-1]] - _images(shape)).abs().flatten(1).amax(dim=1)
        require((far > 0).all(), f"{int((far == 0).sum())} of {len(far)} images are unchanged at the highest severity")


def gives_the_same_images_for_the_same_draws(case: Case) -> None:
    for shape in SHAPES:
        with other_global_numbers(99):
            again = _corrupted(case, _images(shape), 3)
        require(torch.equal(again, case.kept[shape, 3]), "a second run gave other images")


def treats_an_image_alone_as_in_a_batch(case: Case) -> None:
    for shape in SHAPES:
        x = _images(shape)
        for i in (torch.tensor([3]), torch.tensor([5, 2])):
            far = (_corrupted(case, x[i], 3, i) - case.kept[shape, 3][i]).abs().amax()
            require(far < 1e-4, f"image {int(i[0])} differs by {float(far):.2g} in another batch")


def works_in_float64(case: Case) -> None:
    out = _corrupted(case, _images(SHAPES[0]).double(), 3)
    require(out.dtype == torch.float64, f"float64 images gave {out.dtype}")


CLAUSES = (
    returns_images_of_the_right_shape_and_range,
    changes_the_images,
    gives_the_same_images_for_the_same_draws,
    treats_an_image_alone_as_in_a_batch,
    works_in_float64,
)
