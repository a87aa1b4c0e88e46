"""Backdoor attacks: who is poisoned, what the trigger paints, and that networks learn it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from siegebench import api, registry
from siegebench.config import load_suite
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.train import accuracy
from siegebench.types import BackdoorAttack
from siegebench.workspace import Settings
from tests import runs, victims

NAMES = ("badnets", "blended", "sig")


def random_set(n: int = 200, size: int = 16) -> ImageSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 5, 1000 + 7 * torch.arange(n), 5, "random")


def constant(value: float, n: int = 2, size: int = 32) -> Tensor:
    return torch.full((n, 3, size, size), value)


def draws(x: Tensor) -> Draws:
    return Draws(0, torch.arange(len(x)))


# ------------------------------------------------------------------------------------------------------------ poisoning


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.125])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_poisoned_images_change(name: str, rate: float) -> None:
    data = random_set()
    images, labels = data.images.clone(), data.labels.clone()
    attack = victims.backdoor(name, rate=rate, target=3)
    poisoned = attack.poison(data, seed=1)

    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)
    assert len(poisoned.index) == round(rate * len(data))
    assert torch.equal(poisoned.index, poisoned.index.unique())
    changed = (poisoned.data.images != data.images).flatten(1).any(dim=1)
    assert torch.equal(changed.nonzero().squeeze(1), poisoned.index)
    assert torch.equal(poisoned.data.ids, data.ids)
    assert bool((poisoned.data.labels[poisoned.index] == 3).all())
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[poisoned.index] = False
    assert torch.equal(poisoned.data.labels[rest], labels[rest])

    expected = attack.trigger(data.pixels(poisoned.index), Draws(1, data.ids[poisoned.index]))
    assert torch.equal(poisoned.data.images[poisoned.index], (expected * 255).round().to(torch.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_the_choice_belongs_to_the_images_not_to_their_order(name: str) -> None:
    data = random_set()
    shuffled = data.select(torch.randperm(len(data), generator=torch.Generator().manual_seed(3)))
    attack = victims.backdoor(name, rate=0.1)
    first, second = attack.poison(data, 4), attack.poison(shuffled, 4)
    assert set(first.data.ids[first.index].tolist()) == set(second.data.ids[second.index].tolist())
    back = second.data.ids.argsort()
    assert torch.equal(second.data.images[back], first.data.images)
    assert torch.equal(second.data.labels[back], first.data.labels)
    other = attack.poison(data, 5)
    assert set(other.index.tolist()) != set(first.index.tolist())


def test_clean_label_keeps_labels_and_stays_in_the_target_class() -> None:
    data = random_set()
    poisoned = victims.backdoor("sig", rate=0.1, target=2).poison(data, 0)
    assert torch.equal(poisoned.data.labels, data.labels)
    assert set(data.labels[poisoned.index].tolist()) == {2}


def test_dirty_label_draws_from_all_classes() -> None:
    data = random_set()
    poisoned = victims.backdoor("badnets", rate=0.5).poison(data, 0)
    assert set(data.labels[poisoned.index].tolist()) == {0, 1, 2, 3, 4}


def test_clean_label_is_limited_by_the_class() -> None:
    data = random_set()  # 40 images a class
    assert len(victims.backdoor("sig", rate=0.2, target=2).poison(data, 0).index) == 40
    with pytest.raises(NotApplicable, match=r"at most rate 0\.200"):
        victims.backdoor("sig", rate=0.21, target=2).poison(data, 0)
    with pytest.raises(NotApplicable, match="0 eligible"):
        victims.backdoor("sig", rate=0.1, target="next").poison(data, 0)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [(2, [2, 2, 2, 2, 2]), ("next", [1, 2, 3, 4, 0]), ({0: 4, 3: 1}, [4, -1, -1, 1, -1])],
)
def test_label_maps(target: object, wanted: list[int]) -> None:
    data = random_set()
    attack = victims.backdoor("badnets", rate=0.2, target=target)
    assert attack.wanted(torch.arange(5), 5).tolist() == wanted
    poisoned = attack.poison(data, 0)
    expected = torch.tensor(wanted)[data.labels[poisoned.index]]
    assert bool((expected >= 0).all())
    assert torch.equal(poisoned.data.labels[poisoned.index], expected)


@pytest.mark.parametrize("target", [5, {0: 9}, {7: 0}])
def test_classes_that_do_not_exist_are_refused(target: object) -> None:
    with pytest.raises(ContractError, match="does not exist"):
        victims.backdoor("badnets", target=target).poison(random_set(), 0)


@pytest.mark.parametrize(
    "fault", [{"rate": 1.5}, {"target": -1}, {"side": 0}, {"margin": -1}, {"pattern": "star"}, {"sides": 3}]
)
def test_wrong_parameters_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        registry.build("backdoor", {"name": "badnets", **fault})


@dataclass(frozen=True, kw_only=True)
class InPlace(BackdoorAttack):
    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        x[..., 0, 0] = 1
        return x


def test_a_trigger_that_writes_into_its_input_is_caught() -> None:
    with pytest.raises(ContractError, match="in place"):
        InPlace().stamp(constant(0.5), Draws(0, torch.arange(2)))


# ------------------------------------------------------------------------------------------------------------- triggers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [16, 32, 48])
def test_triggers_stay_in_range_and_leave_the_input_alone(name: str, size: int) -> None:
    x = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    attack = victims.backdoor(name)
    out = attack.stamp(x, draws(x))
    assert torch.equal(x, before)
    assert not torch.equal(out, x)
    # one image alone, in double precision: the same picture
    alone = attack.stamp(x[2:3].double(), draws(x)[2:3])
    assert alone.dtype == torch.float64
    torch.testing.assert_close(alone[0].float(), out[2])


def test_the_patch_paints_black_as_well_as_white() -> None:
    attack = victims.backdoor("badnets")
    dark, light = attack.stamp(constant(0.0), draws(constant(0))), attack.stamp(constant(1.0), draws(constant(0)))
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    corner = (slice(None), slice(None), slice(26, 29), slice(26, 29))  # 3 pixels off the edge
    assert torch.equal(dark[corner], board.expand(2, 3, 3, 3))
    assert torch.equal(light[corner], board.expand(2, 3, 3, 3))
    assert float(dark.sum()) == 2 * 3 * 5
    assert float((1 - light).sum()) == 2 * 3 * 4


def test_the_patch_touches_nothing_else_and_stamping_twice_is_stamping_once() -> None:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for pattern in ("checker", "white", "black"):
        attack = victims.backdoor("badnets", pattern=pattern, side=4, margin=1, corner="top_left")
        once = attack.stamp(x, draws(x))
        touched = (once != x).any(dim=1).any(dim=0)
        assert bool(touched[1:5, 1:5].all())
        assert int(touched.sum()) == 16
        assert torch.equal(attack.stamp(once, draws(x)), once)


def test_the_patch_scales_with_the_image() -> None:
    attack = victims.backdoor("badnets")
    small, large = (
        attack.stamp(constant(0.5), draws(constant(0))),
        attack.stamp(constant(0.5, size=224), draws(constant(0))),
    )
    assert torch.equal(large, small.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3))
    for size in (8, 16, 33, 100):  # side round(3 H / 32), at least one pixel
        out = victims.backdoor("badnets", pattern="white").stamp(constant(0.0, size=size), draws(constant(0)))
        assert int((out[0, 0] == 1).sum()) == max(1, round(3 * size / 32)) ** 2


@pytest.mark.parametrize("corner", ["bottom_right", "bottom_left", "top_right", "top_left"])
def test_the_patch_lies_in_its_corner(corner: str) -> None:
    out = victims.backdoor("badnets", pattern="white", margin=0, corner=corner).stamp(constant(0.0), draws(constant(0)))
    rows, columns = out[0, 0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == ([0, 1, 2] if "top" in corner else [29, 30, 31])
    assert sorted(set(columns.tolist())) == ([0, 1, 2] if "left" in corner else [29, 30, 31])


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(NotApplicable, match="does not fit"):
        victims.backdoor("badnets", side=20, margin=13).stamp(constant(0.0), draws(constant(0)))


def test_blended_is_a_mixture_with_one_fixed_image() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    t = victims.backdoor("blended", alpha=1.0).stamp(x, draws(x))
    assert bool((t == t[0]).all())
    assert 0.45 < float(t.mean()) < 0.55
    assert 0.25 < float(t.std()) < 0.33  # uniform noise: 0.289
    torch.testing.assert_close(victims.backdoor("blended").stamp(x, draws(x)), 0.8 * x + 0.2 * t)
    assert torch.equal(victims.backdoor("blended", alpha=0.0).stamp(x, draws(x)), x)


def test_the_blended_image_depends_on_its_seed_alone() -> None:
    attack = victims.backdoor("blended", alpha=1.0)
    small, large = constant(0.0), constant(0.0, size=64)
    t = attack.stamp(small, draws(small))
    assert torch.equal(t, attack.stamp(small, Draws(9, torch.arange(5, 7))))  # not on the seed of the evaluation
    assert torch.equal(attack.stamp(large, draws(large))[..., ::2, ::2], t)  # not on the size
    other = replace(attack, pattern_seed=1).stamp(small, draws(small))  # type: ignore[type-var]
    assert float((other - t).abs().mean()) > 0.25  # independent uniform noise: 1/3


def test_the_stripes_of_sig() -> None:
    x = constant(0.5, size=48)
    v = (victims.backdoor("sig", f=6).stamp(x, draws(x)) - x)[0, 1]
    assert bool((v == v[0]).all())  # every row alike
    torch.testing.assert_close(v[:, 8:], v[:, :-8], atol=1e-6, rtol=0)  # period W / f = 8 pixels
    assert float((v[:, 4:] - v[:, :-4]).abs().max()) > 0.3  # and no shorter one
    assert float(v.max()) == pytest.approx(40 / 255, abs=1e-6)
    assert float(v[0, 1]) == pytest.approx(40 / 255 * math.sin(2 * math.pi / 8), abs=1e-6)
    assert float(v.sum()) == pytest.approx(0, abs=1e-3)
    strong = victims.backdoor("sig", delta="80/255").stamp(x, draws(x))
    assert float((strong - x).max()) == pytest.approx(80 / 255, abs=1e-6)


def test_stripes_too_fine_for_the_image_are_refused() -> None:
    x = constant(0.5, size=12)  # sampled at its zeros only
    with pytest.raises(NotApplicable, match="wider than 12"):
        victims.backdoor("sig", f=6).stamp(x, draws(x))
    victims.backdoor("sig", f=5).stamp(x, draws(x))


# ----------------------------------------------------------------------------------------------------------- acceptance


@pytest.mark.parametrize(("name", "destroyed"), [("badnets", {"pattern": "black"}), ("blended", {"grid": 1})])
def test_networks_learn_the_trigger_and_nothing_but_the_trigger(name: str, destroyed: dict[str, object]) -> None:
    model, _ = victims.victim(name)
    clean, _ = victims.victim(None)
    test = victims.digits()[3]
    attack = victims.backdoor(name)
    assert accuracy(model, test) > 0.95
    assert victims.success_rate(model, attack, test) > 0.9
    # the same mask without its white pixels, the same blend without its noise
    assert victims.success_rate(model, victims.backdoor(name, **destroyed), test) < 0.1
    assert accuracy(clean, test) > 0.95
    assert victims.success_rate(clean, attack, test) < 0.1


@pytest.mark.slow
def test_networks_learn_a_clean_label_trigger() -> None:
    # Faint stripes drown in black paper: at the default strength the digits give hardly any success
    # and strong stripes look like a zero to any model
    parameters = {"delta": 0.3, "target": 3}
    model, _ = victims.victim("sig", **parameters)
    clean, _ = victims.victim(None)
    test = victims.digits()[3]
    attack = victims.backdoor("sig", **parameters)
    assert accuracy(model, test) > 0.95
    assert victims.success_rate(model, attack, test) > 0.5
    assert victims.success_rate(clean, attack, test) < 0.1


@pytest.mark.slow
def test_a_trigger_that_fools_a_clean_model_is_no_backdoor(tmp_path: Path) -> None:
    sig = [{"name": "sig", "delta": 0.4, "target": t} for t in (0, 3)]
    board = {"track": "backdoor", "backdoors": sig, "defenses": ["none"]}
    file = runs.suite(tmp_path / "s.yaml", board, data={"set": "digits", "count": 200}, models=["byobnet_tiny"])
    outcome = api.run(load_suite(str(file)), Settings(root=str(tmp_path / "store"), threads=1), how="serial")
    like_a_zero, learnt = sorted(outcome.results, key=lambda r: r.cell.backdoor["target"])
    for row in (like_a_zero, learnt):
        assert row.value("asr_undefended") > 0.8
    assert like_a_zero.value("asr_clean_model") > 0.8
    assert like_a_zero.value("attack_success") == 0
    assert learnt.value("asr_clean_model") < 0.1
    assert learnt.value("attack_success") == 1
