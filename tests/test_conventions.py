"""Networks that get another form of input or labels than they were made for: the flag names the form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from siegebench.cells import Cell
from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.tracks.conventions import IMAGENET, convention_flags
from siegebench.workspace import Settings, Workspace

CLASSES = 8
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)


def colours(n: int, classes: int = CLASSES) -> ImageSet:
    """Plain images; the class is the place of the colour on a line through the cube."""
    y = torch.arange(n) % classes
    t = (y + 0.5)[:, None] / classes
    rgb = torch.cat([t, 0.5 + 0 * t, 1 - t], dim=1)
    images = (255 * rgb).round().to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2).contiguous()
    return ImageSet(images, y, torch.arange(n), classes, "colours")


class Nearest(nn.Module):
    """The class whose colour is nearest to that of the image."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        self.before, self.after = before, after
        centres = colours(classes, classes).pixels().mean(dim=(2, 3))
        self.centres = nn.Parameter(centres, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rgb = self.before(x).mean(dim=(2, 3))
        return self.after(-torch.cdist(rgb, self.centres))


def flags_of(net: nn.Module, data: ImageSet, folder: Path, defense: str = "none") -> dict[str, str]:
    ws = Workspace(Settings(root=str(folder), device="cpu"))
    victim = Network(net, num_classes=data.num_classes).eval()
    clean = victim(data.pixels()).argmax(dim=1) == data.labels
    described = {"name": defense, "version": 1}
    cell = Cell(track="white_box", data={"digest": "d"}, model={"name": "given"}, defense=described)
    return {flag.id: flag.evidence for flag in convention_flags(ws, cell, victim, data, clean)}


SHUFFLED = torch.tensor([3, 6, 1, 7, 0, 2, 5, 4])
FORMS: dict[str, tuple[Nearest, str]] = {
    "bgr": (Nearest(lambda x: x.flip(1)), "channel order BGR"),
    "signed": (Nearest(lambda x: (x + 1) / 2), "pixels in [-1, 1]"),
    "bytes": (Nearest(lambda x: x / 255), "pixels in [0, 255]"),
    "signed twice": (Nearest(lambda x: 2 * x - 1), "pixels scaled to [-1, 1] once less"),
    "bytes twice": (Nearest(lambda x: 255 * x), "pixels scaled to [0, 255] once less"),
    "not normalised": (Nearest(lambda x: x * STD + MEAN), "normalised with the mean/std of ImageNet"),
    "normalised twice": (Nearest(lambda x: (x - MEAN) / STD), "normalised once less, with the mean/std of ImageNet"),
    "one higher": (Nearest(after=lambda z: z.roll(-1, dims=1)), "labels one higher than the outputs"),
    "one lower": (Nearest(after=lambda z: z.roll(1, dims=1)), "labels one lower than the outputs"),
    "shuffled": (Nearest(after=lambda z: z[:, SHUFFLED]), "another order of the classes"),
}


@pytest.mark.parametrize("wrong", FORMS)
def test_the_form_that_the_network_was_made_for_is_named_first(wrong: str, tmp_path: Path) -> None:
    net, name = FORMS[wrong]
    found = flags_of(net, colours(96), tmp_path)
    assert f"labels. {name}: " in found["input_convention"]
    assert "-> 64 of 64 correct" in found["input_convention"]
    if "chance_accuracy" in found:
        assert f"the best is {name}: " in found["chance_accuracy"]


def test_folders_sorted_as_text_are_named(tmp_path: Path) -> None:
    """A network trained on class folders in the order 0, 1, 10, 11, 2, ..., and the other way round."""
    text = sorted(range(12), key=str)
    for order, name in ((text, "outputs"), ([text.index(c) for c in range(12)], "labels")):
        found = flags_of(Nearest(after=lambda z, order=order: z[:, order], classes=12), colours(120, 12), tmp_path)  # type: ignore[misc]
        assert f"labels. {name} sorted as text (0, 1, 10, ...): " in found["input_convention"], name


def test_right_and_defended_networks_are_not_flagged(tmp_path: Path) -> None:
    data = colours(96)
    assert flags_of(Nearest(), data, tmp_path) == {}
    assert flags_of(FORMS["bgr"][0], data, tmp_path, defense="jpeg") == {}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_weak_network_with_the_right_form_is_not_flagged(share: float, tmp_path: Path) -> None:
    """A third of the images is hopeless, whatever their form."""
    data = colours(128)
    lost = torch.rand(128, generator=torch.Generator().manual_seed(1)) > share
    labels = torch.where(lost, (data.labels + 1 + torch.arange(128) % 7) % 8, data.labels)
    weak = ImageSet(data.stored, labels, data.ids, 8, "weak")
    assert "input_convention" not in flags_of(Nearest(), weak, tmp_path)


def test_accuracy_at_chance_is_flagged_and_says_that_nothing_helped(tmp_path: Path) -> None:
    constant = Nearest(after=lambda z: 0 * z)
    found = flags_of(constant, colours(96), tmp_path)
    assert [*found] == ["chance_accuracy"]
    assert found["chance_accuracy"].startswith("12 of 96 clean images are correct, 12.5 %; chance is 12.5 %. Of ")
    assert "tried on 64 images, none is better" in found["chance_accuracy"]


def test_a_few_images_prove_nothing(tmp_path: Path) -> None:
    """5 of 6 right in two classes may be chance; it is no reason for a warning."""
    data = colours(6, 2)
    labels = data.labels.clone()
    labels[0] = 1 - labels[0]
    assert flags_of(Nearest(classes=2), ImageSet(data.stored, labels, data.ids, 2, "few"), tmp_path) == {}


def test_a_constant_answer_in_another_order_is_no_better_than_chance(tmp_path: Path) -> None:
    """All answers are class 0 and most images are of class 1: shifted labels would only name the largest class."""
    data = colours(100)
    labels = torch.where(torch.arange(100) < 60, 1, data.labels)
    skewed = ImageSet(data.stored, labels, data.ids, 8, "skewed")
    assert [*flags_of(Nearest(after=lambda z: 0 * z), skewed, tmp_path)] == ["chance_accuracy"]


def test_a_network_that_refuses_other_inputs_is_tried_in_the_forms_that_it_takes(tmp_path: Path) -> None:
    def strict(x: Tensor) -> Tensor:
        if bool((x < 0).any()) or bool((x > 1).any()):
            raise ValueError("expected images in [0, 1]")
        return x.flip(1)

    assert "channel order BGR" in flags_of(Nearest(strict), colours(96), tmp_path)["input_convention"]
