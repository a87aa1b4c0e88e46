"""Backdoor attacks together: who is poisoned and how labelled, triggers in range, networks that learn them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from siegebench import api, registry
from siegebench.config import load_suite
from siegebench.draws import Draws
from siegebench.errors import ConfigError, ContractError, NotApplicable
from siegebench.train import accuracy
from siegebench.types import BackdoorAttack
from siegebench.workspace import Settings
from tests import runs, victims

from .planted import constant, draws, random_set

NAMES = ("badnets", "blended", "sig")


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
