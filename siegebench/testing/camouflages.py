"""The contract of camouflages, one function per clause; on a tiny stage whose victim sees red paint as a vehicle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Network
from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.render.maps import Maps
from siegebench.testing.specimens import Case, other_global_numbers, require, state_of
from siegebench.threat import ThreatModel
from siegebench.types.camouflages import GREY, Stage, Texture

SCENES, SIZE = 4, 12


class _Red(nn.Module):
    """Logits (0, 8 (red - blue)) of the mean colour of the picture's middle."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([8.0, 0.0, -8.0]))

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, :, 3:-3, 3:-3].mean(dim=(2, 3)) @ self.weight
        return torch.stack([torch.zeros_like(z), z], dim=1)


def red_victim() -> Classifier:
    """A classifier that sees a vehicle where the paint is more red than blue."""
    return Network(_Red(), num_classes=2).eval().requires_grad_(False)


def scenes(count: int = SCENES) -> Maps:
    """Scenes with a square of paint in the middle, each with another part of the surface."""
    inside = torch.arange(3, SIZE - 3)
    y, x = torch.meshgrid(inside, inside, indexing="ij")
    place = (y * SIZE + x).flatten()
    uv = torch.stack([x.flatten(), y.flatten()], dim=1) * 0.5
    paint = torch.zeros(SIZE, SIZE)
    paint[3:-3, 3:-3] = 1
    behind = torch.linspace(0.1, 0.6, SIZE).view(1, 1, SIZE) * torch.tensor([0.8, 1.0, 0.5]).view(3, 1, 1)
    n = (count, 1, 1)
    return Maps(
        a=(behind.expand(3, SIZE, SIZE) * (1 - paint)).repeat(count, 1, 1, 1),
        m=torch.full((count, len(place), 3), 0.8),
        uv=uv.repeat(*n) + torch.arange(count).view(n), place=place.repeat(count, 1), paint=paint.repeat(*n),
        vehicle=paint.repeat(*n), box=torch.tensor([[3.0, 3, SIZE - 3, SIZE - 3]]).repeat(count, 1),
        middle=torch.tensor([[SIZE / 2, SIZE / 2, 0.5]]).repeat(count, 1), labels=torch.ones(count, dtype=torch.long),
        ids=torch.arange(count), ss=1,
    )  # fmt: skip


def stage(case: Case, victim: Classifier | None = None) -> Stage:
    """The tiny stage, with the access that the entry declares."""
    maps = scenes()
    oracle = Oracle(victim or red_victim(), ThreatModel(access=case.entry.needs), Draws(0, maps.ids))
    return Stage(maps, oracle, (1,), torch.tensor([[0.2, 0.3, 0.1], [0.5, 0.6, 0.3]]))


def _painted(case: Case, seed: int = 0, victim: Classifier | None = None) -> Texture:
    found: Texture = case.quick(stage(case, victim), Draws(seed, torch.zeros(1, dtype=torch.long)))
    return found


def returns_a_texture_of_the_right_shape_and_range(case: Case) -> None:
    case.kept["texture"] = _painted(case)  # its __call__ checks the rest


def gives_the_same_texture_for_the_same_draws(case: Case) -> None:
    with other_global_numbers(99):
        again = _painted(case)
    require(torch.equal(again.pixels, case.kept["texture"].pixels), "a second run gave another texture")


def leaves_the_victim_and_the_scenes_as_they_were(case: Case) -> None:
    victim = red_victim()
    before, on = state_of(victim), stage(case, victim)
    kept = {name: value.clone() for name, value in on.maps.tensors().items()}
    case.quick(on, Draws(0, torch.zeros(1, dtype=torch.long)))
    require(state_of(victim) == before, "the victim was changed")
    changed = [name for name, value in on.maps.tensors().items() if not torch.equal(value, kept[name])]
    require(not changed, f"the maps were changed: {', '.join(changed)}")


def uses_the_access_that_it_declares(case: Case) -> None:
    on = stage(case)
    case.quick(on, Draws(0, torch.zeros(1, dtype=torch.long)))
    passes = int(on.oracle.ledger.forwards.sum())
    if case.entry.needs == "none":  # the oracle refuses passes
        require(passes == 0, f"it made {passes} passes without access")
    else:
        require(passes > 0, f"it declares {case.entry.needs} access and never asked the victim")


def hides_a_vehicle_better_than_grey_paint(case: Case) -> None:
    if case.entry.needs == "none" or case.control:
        return  # made without the victim
    maps = scenes()
    grey = Texture(torch.full((3, 1, 1), GREY), 1.0)
    with torch.no_grad():
        z = [red_victim()(texture.on(maps)) for texture in (grey, case.kept["texture"])]
    before, after = (float(one.softmax(dim=1)[:, 1].mean()) for one in z)
    require(after < before - 0.02, f"the mean score for vehicle is {after:.3f}, with grey paint {before:.3f}")


CLAUSES = (
    returns_a_texture_of_the_right_shape_and_range,
    gives_the_same_texture_for_the_same_draws,
    leaves_the_victim_and_the_scenes_as_they_were,
    uses_the_access_that_it_declares,
    hides_a_vehicle_better_than_grey_paint,
)
