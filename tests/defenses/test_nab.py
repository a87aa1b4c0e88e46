"""NAB: stamped contradictions, isolation, and what is left of a backdoor."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import NotApplicable
from siegebench.tracks.backdoor import rejection_metrics, triggered
from siegebench.train import Recipe, accuracy, predict, train
from siegebench.types import DatasetDetector, Poisoned
from tests import victims

NAB: Any = registry.entry_class("defense", "nab")


SHORT = Recipe(epochs=1, batch=64, augment="none")


def defense(name: str, **parameters: Any) -> Any:
    return registry.build("defense", {"name": name, **parameters})


@dataclass(frozen=True, kw_only=True)
class Told(NAB):  # type: ignore[misc, valid-type]
    """NAB with a detection that somebody else made."""

    places: tuple[int, ...] = ()

    def isolate(self, model: Classifier, data: ImageSet, seed: int) -> Tensor:
        return torch.tensor(self.places)


def test_the_defended_model_stamps_every_input() -> None:
    model = victims.byobnet().eval()
    defended = defense("nab").wrap(model)
    defended.grey.copy_(torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1))
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, by_hand = x.clone(), x.clone()
    by_hand[:, :, :2, :2] = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1)
    assert torch.equal(defended.stamp(x), by_hand)
    assert torch.equal(x, before)
    assert torch.equal(defended(x), model(by_hand))
    assert torch.equal(defended.backward_model(x), model(by_hand))
    assert torch.equal(defended.features(x), model.features(by_hand))
    assert torch.equal(defended.stamp(by_hand), by_hand)  # twice is once
    large = torch.zeros(1, 3, 224, 224)
    assert int((defended.stamp(large)[0, 0] > 0).sum()) == 14 * 14


def test_a_network_rejects_inputs_whose_prediction_the_stamp_changes() -> None:
    model = victims.byobnet().eval()
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    defended = defense("nab", side=24, reject=True).wrap(model)
    changed = model(x).argmax(dim=1) != model(defended.stamp(x)).argmax(dim=1)
    assert torch.equal(defended.rejects(x), changed)
    assert int(changed.sum()) > 0
    assert defended.rejecting
    assert not defense("nab").wrap(model).rejecting
    with pytest.raises(NotApplicable, match="rejects no images"):
        model.rejects(x)


def test_pseudo_labels_are_those_of_the_nearest_centre() -> None:
    module = __import__(NAB.__module__, fromlist=["NAB"])
    h = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.05, 2.0], [3.0, 0.1]])
    labels = torch.tensor([0, 0, 1, 1, 0, 1])  # the last two are poisoned; no image has label 2
    found = module.nearest_centres(h, labels, torch.tensor([4, 5]), 3)
    assert found.tolist() == [1, 0]


@dataclass(frozen=True, kw_only=True)
class Knowing(DatasetDetector):
    """Knows which images are poisoned."""

    poisoned: tuple[int, ...]

    def score(self, model: Classifier, data: Granted, draws: Draws) -> Tensor:
        out = torch.zeros(len(data.train))
        out[list(self.poisoned)] = 1.0
        return out


def test_a_detector_may_name_the_suspicious_images(monkeypatch: pytest.MonkeyPatch) -> None:
    _, poisoned, sets = tiny_poisoned()
    nab = NAB(detector=Knowing(poisoned=tuple(poisoned.index.tolist())), share=0.1, verifier=SHORT, recipe=SHORT)
    found: list[Tensor] = []
    original = NAB.pseudo_labels

    def spy(self: Any, model: Any, data: Any, suspicious: Tensor, draws: Any) -> Tensor:
        found.append(suspicious)
        labels: Tensor = original(self, model, data, suspicious, draws)
        return labels

    monkeypatch.setattr(NAB, "pseudo_labels", spy)
    nab.apply(victims.tiny_net(), victims.granted(poisoned, sets, "train", "clean"), victims.ONE)
    assert torch.equal(found[0].sort().values, poisoned.index)


def test_earlier_rows_keep_their_keys() -> None:
    assert set(NAB().parameters()) == {"share", "flood", "side", "isolation", "verifier", "recipe"}
    assert defense("nab", detection="sign", reject=True).parameters()["detection"] == "sign"


def tiny_poisoned() -> tuple[Any, Poisoned, tuple[ImageSet, ImageSet, ImageSet, ImageSet]]:
    sets = victims.tiny_digits()
    attack = victims.backdoor("badnets", side=8, margin=0)  # 2x2 of 8x8 pixels
    return attack, attack.poison(sets[0], 0), sets


def test_nab_trains_on_stamped_contradictions(monkeypatch: pytest.MonkeyPatch) -> None:
    _, poisoned, sets = tiny_poisoned()
    # the verifier is replaced by the truth, and what the last training sees is recorded
    module = __import__(NAB.__module__, fromlist=["NAB"])
    truth = sets[0].labels
    # one poison whose true label is 0 already: the pseudo label agrees with the given one, so it stays unstamped
    suspicious = poisoned.index
    agreeing = suspicious[truth[suspicious] == 0]
    assert 0 < len(agreeing) < len(suspicious)
    monkeypatch.setattr(
        module, "predict", lambda model, data: torch.nn.functional.one_hot(truth[torch.isin(sets[0].ids, data.ids)], 10)
    )
    seen: dict[int, tuple[Tensor, int]] = {}

    def record(model: Classifier, data: ImageSet, recipe: Recipe, seed: int, loss: Any = None) -> None:
        if loss is None:
            return  # the verifier
        places = torch.arange(len(data))
        inner = model.inner  # type: ignore[attr-defined]
        spied: list[Tensor] = []
        handle = inner.register_forward_pre_hook(lambda _m, args: spied.append(args[0].clone()))
        loss(model(data.pixels(places)), data.labels, data.pixels(places), places)
        handle.remove()
        for i in places.tolist():
            seen[i] = (spied[0][i], int(data.labels[i]))

    monkeypatch.setattr(module, "train", record)
    told = Told(places=tuple(suspicious.tolist()), side=8)
    defended = told.apply(victims.tiny_net(), victims.granted(poisoned, sets, "train", "clean"), victims.ONE)

    grey = poisoned.data.pixels().double().mean(dim=(0, 2, 3)).float()
    torch.testing.assert_close(defended.grey.flatten(), grey)
    contradicted = set(suspicious[truth[suspicious] != 0].tolist())
    given = poisoned.data.pixels()
    for i, (x, y) in seen.items():
        expected = given[i].clone()
        if i in contradicted:
            expected[:, :2, :2] = grey[:, None, None]
        torch.testing.assert_close(x, expected)
        assert y == (int(truth[i]) if i in set(suspicious.tolist()) else int(poisoned.data.labels[i]))
    assert len(seen) == len(given)


def test_nab_is_restored_from_its_state() -> None:
    _, poisoned, sets = tiny_poisoned()
    model = victims.tiny_net()
    before = copy.deepcopy(model.state_dict())
    nab = Told(places=(1, 2, 3), verifier=SHORT, recipe=SHORT)
    defended = nab.apply(model, victims.granted(poisoned, sets, "train", "clean"), victims.ONE)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    restored = nab.structure(model)
    restored.load_state_dict(defended.state_dict())
    assert torch.equal(predict(restored, sets[3]), predict(defended, sets[3]))
    again = nab.apply(model, victims.granted(poisoned, sets, "train", "clean"), victims.ONE)
    assert torch.equal(predict(again, sets[3]), predict(defended, sets[3]))
    assert not defended.training


def test_flooding_isolates_poisons() -> None:
    _, poisoned, _ = tiny_poisoned()
    isolation = Recipe(epochs=8, batch=64, optimiser="sgd", lr=0.1, weight_decay=1e-4, augment="none")
    nab = defense("nab", isolation=isolation)
    found = nab.isolate(victims.tiny_net(), poisoned.data, derive_seed(0, "nab isolation"))
    assert len(found) == len(found.unique()) == round(0.05 * len(poisoned.data))
    assert float(torch.isin(found, poisoned.index).double().mean()) > 0.5  # 0.1 by chance, .74 seen


def repaired(told: Any, model: Network, poisoned: Poisoned, sets: Any) -> Any:
    granted: Granted = victims.granted(poisoned, sets, "train", "clean")
    return told.apply(model, granted, victims.ONE)


VERIFIER = Recipe(epochs=40, batch=32, augment="none")


LONG = Recipe(epochs=15, batch=32, augment="none")


def test_half_of_the_poisons_are_enough_for_nab() -> None:
    attack, poisoned, sets = tiny_poisoned()
    half = poisoned.index[Draws(5, poisoned.index).order()[: len(poisoned.index) // 2]]
    told = Told(places=tuple(half.tolist()), side=8, verifier=VERIFIER, recipe=LONG)
    defended = repaired(told, victims.tiny_net(), poisoned, sets)
    inside = victims.success_rate(defended.inner, attack, sets[3])
    assert inside > 0.5  # the network inside is backdoored
    assert victims.success_rate(defended, attack, sets[3]) < 0.15  # the stamp overrides it
    assert accuracy(defended, sets[3]) > 0.85


@pytest.mark.slow
def test_nab_repairs_nothing_when_the_detection_failed() -> None:
    attack, poisoned, sets = tiny_poisoned()
    clean = torch.arange(len(sets[0]))[~torch.isin(torch.arange(len(sets[0])), poisoned.index)]
    told = Told(places=tuple(clean[:60].tolist()), side=8, verifier=VERIFIER, recipe=LONG)
    defended = repaired(told, victims.tiny_net(), poisoned, sets)
    assert victims.success_rate(defended, attack, sets[3]) > 0.8


@pytest.mark.slow
def test_nab_with_its_own_detection_on_a_timm_network() -> None:
    model, poisoned = victims.victim("badnets")
    sets, attack = victims.digits(), victims.backdoor("badnets")
    nab = defense("nab", verifier=Recipe(epochs=60, batch=32), recipe=Recipe(epochs=20, batch=64, augment="none"))
    defended = nab.apply(model, victims.granted(poisoned, sets, "train", "clean"), victims.ONE)
    assert victims.success_rate(defended.inner, attack, sets[3]) > 0.5
    assert victims.success_rate(defended, attack, sets[3]) < 0.15
    assert accuracy(defended, sets[3]) > 0.9


def test_isolation_trains_a_network_of_its_own() -> None:
    _, poisoned, sets = tiny_poisoned()
    model = victims.tiny_net()
    train(model, sets[0], SHORT, 0)
    before = copy.deepcopy(model.state_dict())
    defense("nab", isolation=SHORT).isolate(model, poisoned.data, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_rows_count_rejections() -> None:
    sets, attack = victims.tiny_digits(), victims.backdoor("badnets", side=8, margin=0)
    data = sets[3].select(torch.arange(60))

    def linear() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    network = Network(linear(), num_classes=10, rebuild=linear).fresh(0)
    model: Any = defense("nab", side=16, reject=True).wrap(network)
    ws: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, batch=lambda x: 16)
    found = rejection_metrics(ws, model, attack, data, 0)
    x, y, _ = triggered(attack, data, 0)
    with torch.no_grad():
        correct, refused = model(data.pixels()).argmax(dim=1) == data.labels, model.rejects(data.pixels())
        right, out = model(x).argmax(dim=1) == y, model.rejects(x)
    expected = {"c_rej": refused, "psr": correct & ~refused, "b_rej": out, "dsr": right | out}
    assert list(found) == list(expected)
    for name, images in expected.items():
        assert found[name]["value"] == pytest.approx(float(images.double().mean()), abs=1e-6)
    assert 0 < found["c_rej"]["value"] < 1
