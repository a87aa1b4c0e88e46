"""Input-aware: sparse masks, triggers that work best on their own image, and a victim that the attacker trains."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from siegebench.backdoors.input_aware import binary, sameness
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.config import load_suite
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.plan import plan
from siegebench.train import accuracy
from siegebench.types import BackdoorAttack, Material
from siegebench.weights import weights_hash
from siegebench.workspace import Settings, Workspace
from tests import runs, victims

from .planted import small_net

SHORT = {"density": 0.1, "mask_epochs": 4, "share": 0.3}
RECIPE = {"epochs": 15, "batch": 32, "lr": 0.005, "augment": "none"}


def blobs(n: int, first: int = 0) -> ImageSet:
    """Noise of 8x8 pixels with a bright square, whose place is the class."""
    ids = torch.arange(first, first + n)
    labels = ids % 10
    x = 0.35 * Draws(0, ids).uniform((3, 8, 8))
    for row in (0, 1):
        for column in (0, 1):
            x[torch.arange(n), :, labels // 4 * 2 + 1 + row, labels % 4 * 2 + column] += 0.5
    return ImageSet((x * 255).round().to(torch.uint8), labels, ids, 10, "blobs")


@cache
def learnt() -> tuple[BackdoorAttack, Material]:
    attack = victims.backdoor("input_aware", recipe=RECIPE, **SHORT)
    return attack, attack.learn(blobs(240), 0, small_net(7))


def triggered(role: Any) -> tuple[Tensor, Tensor]:
    """(test images of other classes than the target, the same with a trigger)."""
    attack, material = learnt()
    test = blobs(200, 1000)
    places = (test.labels != 0).nonzero().squeeze(1)
    x = test.pixels(places)
    return x, attack.stamp(x, Draws(0, test.ids[places]), material=material, role=role)


def test_the_victim_obeys_the_trigger_of_the_image_and_less_that_of_another() -> None:
    attack, material = learnt()
    victim, handed = small_net(), attack.network(material)
    assert handed is not None
    victim.load_state_dict(handed)
    victim.eval()
    (plain, own), (_, cross) = triggered("test"), triggered("cover")
    with torch.no_grad():
        rates = [float((victim(x).argmax(dim=1) == 0).double().mean()) for x in (own, cross, plain)]
    print("ASR with its own trigger {:.3f}, with that of another image {:.3f}, without {:.3f}".format(*rates))
    assert accuracy(victim, blobs(200, 1000)) > 0.95
    assert rates[0] > 0.4  # 15 epochs; docs/replications/input_aware.md has the numbers of 50
    assert rates[0] > 1.5 * rates[1]
    assert rates[2] < 0.05


def test_masks_are_sparse_and_differ_from_image_to_image() -> None:
    x, out = triggered("test")
    changed = ((out - x).abs() > 0.05).any(dim=1).flatten(1)
    assert 0 < float(changed.double().mean()) < 0.25
    assert len(changed.unique(dim=0)) > 9  # more than one a class


def test_a_cover_image_gets_the_trigger_of_another_image() -> None:
    attack, material = learnt()
    two = {**material, "ids": material["ids"][:2], "images": material["images"][:2]}
    given = two["images"].float() / 255
    x = torch.full((2, 3, 8, 8), 0.5)
    covered = attack.stamp(x, Draws(0, two["ids"]), material=two, role="cover")
    torch.testing.assert_close(covered, attack._with_trigger_of(given.flip(0), x, two))  # type: ignore[attr-defined]
    assert not torch.allclose(covered, attack._with_trigger_of(given, x, two))  # type: ignore[attr-defined]


def test_the_losses() -> None:
    assert binary(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    x, x_j = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    assert float(sameness(x, x_j, x, x_j)) == pytest.approx(1, abs=0.01)
    assert float(sameness(x, x_j, x, x)) > 400  # the same pattern for different images


def test_a_user_who_trains_gets_data_only() -> None:
    attack = victims.backdoor("input_aware.poison_only", mask_epochs=1, recipe={**RECIPE, "epochs": 1})
    material = attack.learn(blobs(64), 0, small_net(7))
    assert attack.network(material) is None
    assert not [name for name in material if name.startswith("victim")]


def test_a_run_measures_the_network_that_the_attacker_hands_over(tmp_path: Path) -> None:
    recipe = {"epochs": 1, "batch": 16}
    attack = {"name": "input_aware", "mask_epochs": 1, "donors": 8, "recipe": {**RECIPE, **recipe}}
    handed, trained = ({**attack, "control": control} for control in (True, False))
    board = {
        "track": "backdoor",
        "backdoors": [handed, trained],
        "models": [{"name": "byobnet_tiny", "recipe": recipe}],
    }
    data = {"set": "digits", "count": 10, "train": 60}
    cells = plan(load_suite(str(runs.suite(tmp_path / "suite.yaml", board, data=data)))).cells
    ws = Workspace(Settings(root=str(tmp_path / "store"), device="cpu"))
    assert len(cells) == 2
    for cell in cells:
        assert cell.backdoor is not None
        expected = cell.backdoor["control"]
        model, poisoned = ws.backdoored(cell)
        assert poisoned is not None
        assert poisoned.material is not None
        own = {k.removeprefix("victim."): v for k, v in poisoned.material.items() if k.startswith("victim.")}
        assert bool(own) is expected
        assert not expected or fingerprint(model) == weights_hash(own)
