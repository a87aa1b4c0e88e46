"""The no-box attack: what its auto-encoders learn, where its two stages lead, and that nobody is asked."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from siegebench.attacks._autoencoder import AutoEncoder, arranged
from siegebench.attacks.no_box import NoBox
from siegebench.attacks.uniform_noise import UniformNoise
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.testing import check_entry
from siegebench.threat import ThreatModel
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Attack, Lesson
from tests import kit, victims

THREAT = ThreatModel(norm="linf", eps=0.3, access="none")


SMALL = {
    "per_class": 6,
    "decoders": 8,
    "width": 8,
    "epochs": 60,
    "lr": 3e-3,
    "step": 0.02,
    "steps": 25,
    "ila_steps": 20,
}


def no_box(**parameters: Any) -> Any:
    return NoBox(**{**SMALL, **parameters})


def learnt(**parameters: Any) -> Any:
    """The auto-encoders."""
    data = victims.tiny_digits()[0]
    draws = Draws(0, data.ids)
    return no_box(**parameters).learn(Oracle(untrained(), THREAT, draws), data, THREAT, draws)


@cache
def prototypical() -> Any:
    return learnt()


def untrained() -> Classifier:
    return victims.tiny_net(9).eval()


@cache
def network() -> Classifier:
    model = victims.tiny_net()
    train(model, victims.tiny_digits()[0], Recipe(epochs=6, batch=64, augment="none"), 0)
    return model.requires_grad_(False)


def held_out() -> tuple[Tensor, Tensor, Tensor]:
    data = victims.tiny_digits()[3].select(torch.arange(150))
    return data.pixels(), data.labels, data.ids


def attacked(attack: Attack, lesson: Lesson = None, threat: ThreatModel = THREAT) -> tuple[Tensor, Oracle]:
    x, y, ids = held_out()
    draws = Draws(0, ids)
    oracle = Oracle(network(), threat, draws)
    return attack(oracle, x, y, threat, draws, lesson), oracle


def test_each_decoder_turns_an_image_into_the_prototype_of_its_class() -> None:
    (one,) = prototypical()
    x, y = one.images.flatten(0, 1), torch.arange(10).repeat_interleave(6)
    p = one.prototypes
    distance = (one.net(x)[:, None] - p).square().mean(dim=(3, 4, 5))  # [n, classes, decoders]
    named = distance.argmin(dim=1)
    assert float((named == y[:, None]).double().mean()) > 0.95
    own = distance.gather(1, y[:, None, None].expand(-1, 1, 8)).mean()
    apart = (p[:, None] - p).square().mean(dim=(2, 3, 4, 5)).sum() / 90  # between prototypes of two classes
    assert own < 0.25 * apart
    x, y, _ = held_out()  # and of images that the attacker does not own
    distance = (one.net(x)[:, None] - p).square().mean(dim=(3, 4, 5))
    assert float((distance.mean(dim=2).argmin(dim=1) == y).double().mean()) > 0.6


def test_the_first_decoders_take_the_images_in_turn_and_the_rest_any_mix() -> None:
    (one,) = prototypical()
    shrunk = F.adaptive_avg_pool2d(one.images.flatten(0, 1), one.prototypes.shape[-2:]).unflatten(0, (10, 6))
    assert torch.equal(one.prototypes[:, :6], shrunk)
    for k in (6, 7):
        which = (one.prototypes[:, k, None] - shrunk).abs().flatten(2).amax(dim=2).argmin(dim=1)
        assert torch.equal(one.prototypes[:, k], shrunk[torch.arange(10), which])
        assert len(which.unique()) > 1


def test_the_attacker_owns_few_images_of_the_training_split() -> None:
    data = victims.tiny_digits()[0]
    own = NoBox(per_class=3)._owned(data, Draws(0, data.ids))
    assert own.shape == (10, 3)
    assert torch.equal(data.labels[own], torch.arange(10)[:, None].expand(10, 3))
    assert len(own.unique()) == 30
    other = NoBox(per_class=3)._owned(data, Draws(1, data.ids))
    assert not torch.equal(other, own)
    few = data.select(torch.cat([(data.labels == c).nonzero()[:2, 0] for c in range(10)]))
    shown = NoBox(per_class=5)._owned(few, Draws(0, few.ids))
    assert all(len(row.unique()) == 2 for row in shown)
    lacking = data.select((data.labels != 4).nonzero().squeeze(1))
    with pytest.raises(NotApplicable, match="no image of class 4"):
        NoBox()._owned(lacking, Draws(0, lacking.ids))


@pytest.mark.parametrize("method", ["rotation", "jigsaw"])
def test_an_auto_encoder_without_labels_undoes_what_was_done_to_the_image(method: Any) -> None:
    (one,) = learnt(method=method, epochs=50, augment="none")
    x = one.images.flatten(0, 1)
    which = torch.arange(len(x)) % 3 + 1
    changed = arranged(x, method, which)
    undone = one.net(changed)[:, 0]
    assert float((undone - x).square().mean()) < 0.5 * float((changed - x).square().mean())


def test_arrangements() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    turned = arranged(x, "rotation", torch.tensor([1, 3]))
    assert torch.equal(turned, torch.stack([x[0].rot90(1, (1, 2)), x[1].rot90(3, (1, 2))]))
    moved = arranged(x, "jigsaw", torch.tensor([1, 2]))
    assert torch.equal(moved[0], torch.cat([x[0, :, :, 2:], x[0, :, :, :2]], dim=2))
    assert torch.equal(moved[1], torch.cat([x[1, :, 2:], x[1, :, :2]], dim=1))
    for how in ("rotation", "jigsaw"):
        assert torch.equal(arranged(x, how, torch.zeros(2, dtype=torch.long)), x)
    with pytest.raises(NotApplicable, match="square"):
        arranged(x[..., :3], "rotation", torch.tensor([1, 3]))


def test_one_decoder_returns_whole_images_and_several_are_kept_apart() -> None:
    x = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    assert AutoEncoder(4, 1)(x).shape == (2, 1, 3, 20, 24)
    net = AutoEncoder(4, 3).eval()
    before = net(x)
    assert before.shape == (2, 3, 3, 5, 6)
    with torch.no_grad():
        net.decoder[3].weight[:3] += 1.0  # the three channels of the first decoder
    after = net(x)
    assert not torch.allclose(after[:, 0], before[:, 0])
    assert torch.equal(after[:, 1:], before[:, 1:])


class Weighted(nn.Module):
    """Features w * x: the best direction is known."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = w

    def encode(self, x: Tensor) -> Tensor:
        return self.w * x


def test_the_second_stage_goes_as_far_as_it_can_along_the_first() -> None:
    x = kit.grey_images(4, 8)
    w = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    guide = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    threat = ThreatModel(eps=0.1, access="none")
    found = no_box().along(Weighted(w), x, guide, threat)
    best = threat.project(x + 0.1 * (w.square() * (guide - x)).sign(), x)  # <w (x' - x), w (guide - x)> is linear
    torch.testing.assert_close(found, best)

    (one,) = prototypical()
    x, _, _ = held_out()
    x, guide = x[:20], held_out()[0][20:40]
    found = no_box().along(one.net, x, guide, THREAT)
    v = ops.normalise(one.net.encode(guide) - one.net.encode(x), "l2")
    way = ops.flat((one.net.encode(found) - one.net.encode(x)) * v).sum(dim=1)
    noisy = THREAT.project(x + 0.3 * Draws(0, torch.arange(20)).sign((3, 8, 8)), x)
    chance = ops.flat((one.net.encode(noisy) - one.net.encode(x)) * v).sum(dim=1)
    assert bool((way > 0).all())
    assert float(way.mean()) > 3 * float(chance.abs().mean())


def test_the_first_stage_confuses_the_classes_of_the_auto_encoder() -> None:
    attack = no_box()
    (one,) = prototypical()
    x, y, ids = held_out()
    wide = ThreatModel(eps=0.3, access="none")
    found = attack._attack(one, x, y, wide, Draws(0, ids))
    named = [
        (one.net(image)[:, None] - one.prototypes).square().mean(dim=(2, 3, 4, 5)).argmin(1) for image in (x, found)
    ]
    before, after = ((n == y).double().mean() for n in named)
    assert after < before - 0.4


def test_beats_noise_on_a_network_it_has_never_met_and_asks_nobody() -> None:
    assert accuracy(network(), victims.tiny_digits()[3]) > 0.9
    _, y, _ = held_out()
    found, oracle = attacked(no_box(), prototypical())
    noisy, _ = attacked(UniformNoise())
    held = [float((network()(images).argmax(1) == y).double().mean()) for images in (found, noisy)]
    assert held[0] < held[1] - 0.2
    for counts in (oracle.ledger.forwards, oracle.ledger.backwards, oracle.ledger.queries):
        assert int(counts.sum()) == 0
    # nor while it learns
    data = victims.tiny_digits()[0]
    asked = Oracle(network(), THREAT, Draws(0, data.ids))
    NoBox(**{**SMALL, "epochs": 1}).learn(asked, data, THREAT, Draws(0, data.ids))
    assert int(asked.ledger.forwards.sum()) == 0


def test_classes_may_be_divided_among_auto_encoders() -> None:
    few: dict[str, Any] = {"together": 3, "epochs": 1, "steps": 3, "ila_steps": 3}
    attack, surrogates = no_box(**few), learnt(**few)
    assert [len(one.images) for one in surrogates] == [4, 3, 3]
    assert [one.first for one in surrogates] == [0, 4, 7]
    _, y, ids = held_out()
    found, _ = attacked(attack, surrogates)
    x = held_out()[0]
    assert float(ops.size(found - x, "linf").min()) > 0.05
    last = y >= 7  # what the others do has no say
    alone = attack._attack(surrogates[2], x[last], y[last] - 7, THREAT, Draws(0, ids[last]))
    assert torch.equal(found[last], alone)


def test_it_must_learn_first() -> None:
    with pytest.raises(ContractError, match="call learn first"):
        attacked(NoBox())


@pytest.mark.parametrize("name", ["no_box.rotation", "no_box.jigsaw"])
def test_the_methods_without_labels_keep_the_contract(name: str) -> None:
    spec = {"name": name, "epochs": 2, "steps": 6, "ila_steps": 6}
    assert not [f"{c.name}: {c.detail}" for c in check_entry(spec) if not c.passed]


def test_images_are_those_of_the_set() -> None:
    data: ImageSet = victims.tiny_digits()[0]
    (one,) = prototypical()
    every = data.pixels().flatten(1)
    for image in one.images.flatten(0, 1)[:5].flatten(1):
        assert bool((every == image).all(dim=1).any())
