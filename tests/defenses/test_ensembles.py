"""Ensembles: how members vote, what their features are, and that dverge makes them vulnerable to different things."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Classifier, Network
from siegebench.errors import ConfigError, NotApplicable
from siegebench.train import accuracy
from siegebench.types import Defense
from tests import kit

from .grey_digits import ONE, granted
from .test_pgd_at import linear, two_features

FAST = {"epochs": 10, "batch": 64, "lr": 0.05, "weight_decay": 0.0, "augment": "none"}


def linear_model() -> Network:
    return Network(linear(), num_classes=2, mean=(0.5,) * 3, std=(0.25,) * 3, rebuild=linear)


def cnn() -> Network:
    return Network(kit.small_cnn(), num_classes=10, rebuild=kit.small_cnn)


def test_the_vote_is_the_log_of_the_mean_softmax_and_bpda_follows_the_mean_logits() -> None:
    x = kit.grey_images(4).requires_grad_(True)
    vote = registry.build(Defense, {"name": "concat_ensemble", "members": 2, "combine": "probabilities"}).wrap(cnn())
    for member in vote.members:  # type: ignore[union-attr]
        member.net[-1].weight.data *= 50  # confident
    first, second = (member(x) for member in vote.members)  # type: ignore[operator,union-attr]
    expected = ((first.softmax(1) + second.softmax(1)) / 2).log()
    found = vote(x)
    assert torch.allclose(found.exp(), expected.exp(), atol=1e-5)
    assert bool(torch.isfinite(found).all())  # no clamp is needed
    through = vote.backward_model(x)
    assert torch.allclose(through, found, atol=1e-4)
    (g,) = torch.autograd.grad(through[:, 0].sum(), x)
    (mean,) = torch.autograd.grad(((first + second) / 2)[:, 0].sum(), x)
    assert torch.allclose(g, mean, atol=1e-5)


def test_the_mean_of_the_logits() -> None:
    x = kit.grey_images(3)
    vote = registry.build(Defense, {"name": "dverge", "members": 2, "combine": "logits"}).wrap(cnn())
    assert torch.allclose(vote(x), torch.stack([m(x) for m in vote.members]).mean(0))  # type: ignore[union-attr,operator]


def test_one_linear_layer_reads_the_features_of_all_members() -> None:
    data = two_features(128)

    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))

    short = {**FAST, "epochs": 1, "lr": 1e-6}  # the members learn nothing
    entry = registry.build(Defense, {"name": "concat_ensemble", "members": 2, "recipe": short, "head": FAST})
    deployed: Any = entry.apply(Network(net(), num_classes=2, rebuild=net), granted(train=data), ONE)
    x = data.pixels()
    g = torch.cat([member.features(x) for member in deployed.members], dim=1)
    assert g.shape == (128, 10)
    assert torch.equal(deployed.features(x), g)
    assert torch.allclose(deployed(x), deployed.head(g))
    one, two = (member.net[1].weight for member in deployed.members)
    assert not torch.equal(one, two)
    assert accuracy(deployed, data) > 0.9


def test_frozen_members_keep_their_batch_norms_while_the_layer_is_trained() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    wrapped: Any = registry.build(Defense, "concat_ensemble").wrap(Network(net(), num_classes=10, rebuild=net))
    wrapped.train()
    wrapped(kit.grey_images(8))
    assert wrapped.training
    assert all(int(m.net[1].num_batches_tracked) == 0 for m in wrapped.members)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())

    with pytest.raises(NotApplicable, match="no linear layer"):
        registry.build(Defense, "concat_ensemble").wrap(Network(net(), num_classes=10, rebuild=net))


# -------------------------------------------------------------------------------------------------------------- dverge


def dverge(**parameters: Any) -> Any:
    return registry.build("defense", {"name": "dverge", **parameters})


def test_distilled_images_carry_the_features_of_the_other_image() -> None:
    entry, model, x = dverge(eps=0.1, step=0.01), cnn().eval(), kit.grey_images(8)
    x_t, code = x.flip(0), sys.modules[type(entry).__module__]
    for layer in code.layers(model, x):
        h_t = code.output(model, layer, x_t)

        def far(z: Tensor, layer: nn.Module = layer, h_t: Tensor = h_t) -> float:
            return float((code.output(model, layer, z) - h_t).detach().square().sum())

        made = entry.distil(model, layer, x, x_t)
        assert float((made - x).abs().max()) <= 0.1 + 1e-6
        assert far(made) < 0.7 * far(x)
    assert all(p.requires_grad for p in model.parameters())  # as found


def test_layers_whose_weights_are_only_read_are_left_out() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.mean(dim=1)  # the rows of 8x8 images
            z: Tensor = self.last(self.mix(tokens, tokens, tokens)[0].flatten(1))  # out_proj is never called
            return z

    code, model = sys.modules[type(dverge()).__module__], Network(Attention(), num_classes=2)
    assert code.layers(model, kit.grey_images(1)) == [model.net.last]
    assert model.training


def test_each_member_learns_the_images_of_the_others_only() -> None:
    code = sys.modules[type(dverge()).__module__]

    class Marks(Classifier):  # logits say which member saw which images
        def __init__(self, mark: int) -> None:
            super().__init__()
            self.mark, self.num_classes, self.card = mark, 2, cnn().card

        def forward(self, x: Tensor, draws: Any = None) -> Tensor:
            return torch.stack([torch.full((len(x),), float(self.mark)), x.flatten(1)[:, 0]], dim=1)

    members = [Marks(j) for j in range(3)]
    x = torch.arange(3.0).repeat_interleave(2).view(6, 1, 1, 1)  # two images distilled from each member
    seen = code.Crossed(members, 3)(x).int().tolist()
    assert seen == [[j, i] for j in range(3) for i in range(3) if i != j for _ in range(2)]
    both = torch.cat([x, 10 + x])  # with adversarial images of each member for itself
    assert code.Crossed(members, 6)(both).int().tolist() == seen + [[j, 10 + j] for j in range(3) for _ in range(2)]


def test_members_become_vulnerable_to_different_things() -> None:
    data = two_features(256)

    def transfer(name: str, **parameters: Any) -> float:
        """Accuracy of each member on images made against the other, Linf 0.2, in closed form."""
        entry = registry.build(Defense, {"name": name, "members": 2, "recipe": FAST, **parameters})
        deployed: Any = entry.apply(linear_model(), granted(train=data), ONE)
        right = []
        for a, b in (deployed.members, reversed(list(deployed.members))):
            w = (a.net[1].weight[1] - a.net[1].weight[0]).view(1, 3, 2, 2) * (2.0 * data.labels - 1)[
                :, None, None, None
            ]
            right.append((b(data.pixels() - 0.2 * w.sign()).argmax(1) == data.labels).double().mean())
        return float(torch.stack(right).mean())

    assert transfer("concat_ensemble", combine="probabilities") < 0.3
    assert transfer("dverge", pretraining=FAST, eps=0.2, step=0.04, steps=8) > 0.8


def test_dverge_with_adversarial_images_and_what_it_refuses() -> None:
    data = two_features(64)
    short = {"epochs": 1, "batch": 32}
    entry = dverge(members=2, pretraining=short, recipe=short, steps=2, attack={"name": "pgd", "steps": 2})
    assert bool(torch.isfinite(entry.apply(linear_model(), granted(train=data), ONE)(data.pixels())).all())
    with pytest.raises(ConfigError, match="at least 2"):
        dverge(members=1)
    with pytest.raises(ConfigError, match="handles l0, not linf"):
        dverge(attack="loap")
