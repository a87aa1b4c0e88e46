"""DBD and its parts: the contrastive loss, views, MixMatch's loss and the split, in closed form and planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from siegebench import contrastive, registry
from siegebench.draws import Draws
from siegebench.train import Recipe, accuracy
from siegebench.types import Defense

from . import planted

MODULE: Any = __import__(registry.entry_class("defense", "dbd").__module__, fromlist=["x"])
SIMCLR: Any = __import__(MODULE.__name__.replace(".dbd", "._simclr"), fromlist=["x"])


def test_the_contrastive_loss() -> None:
    h = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])  # two pairs of equal views
    e = torch.exp(torch.tensor(1 / 0.5))
    torch.testing.assert_close(contrastive.nt_xent(h, 0.5), -torch.log(e / (e + 2)))


def test_views_are_images_that_depend_on_the_image_alone() -> None:
    x, draws = planted.data().pixels(), Draws(0, planted.data().ids)
    first = contrastive.views(x, draws)
    assert first.shape == x.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    torch.testing.assert_close(contrastive.views(x[5:9], draws[torch.arange(5, 9)]), first[5:9])
    assert not torch.equal(contrastive.views(x, draws.child("again")), first)
    whole = torch.full((200, 3, 8, 8), 0.5)
    changed = contrastive.views(whole, Draws(1, torch.arange(200)))  # of one colour: only the colours change
    assert float((changed - changed.mean(dim=(2, 3), keepdim=True)).abs().max()) < 1e-5
    untouched = (changed == 0.5).flatten(1).all(dim=1).double().mean()
    assert 0.05 < float(untouched) < 0.4  # 16 % are not jittered and not grey; grey of grey is the same


def test_the_symmetric_cross_entropy() -> None:
    z, y = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([2])
    p = F.softmax(z, dim=1)[0]
    expected = -0.1 * p[2].log() - torch.log(torch.tensor(1e-4)) * (p[0] + p[1])
    torch.testing.assert_close(SIMCLR.symmetric(z, y)[0], expected)


def test_the_loss_of_mixmatch() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    labelled = torch.tensor([True, False])
    expected = -(target[0] * F.log_softmax(z[0], dim=0)).sum() + 3 * 0.25
    torch.testing.assert_close(MODULE.mixmatch_loss(z, target, labelled, 3.0), expected)
    torch.testing.assert_close(MODULE.sharpened(torch.tensor([[0.6, 0.4]]), 0.5), torch.tensor([[9 / 13, 4 / 13]]))


def test_images_with_wrong_labels_are_not_believed() -> None:
    data = planted.data()
    labels = data.labels.clone()
    labels[:12] = 1 - labels[:12]
    dbd: Any = registry.build(Defense, {"name": "dbd", "credible": 0.7})
    kept = dbd.believed(planted.model(), replace(data, labels=labels))
    assert kept.tolist() == [False] * 12 + [True] * 28


def test_the_head_is_trained_and_nothing_else() -> None:
    model, data = planted.model(), planted.data()
    with torch.no_grad():
        model.net[-1].weight.zero_()  # type: ignore[index, union-attr, operator]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    recipe = Recipe(epochs=10, batch=20, lr=0.3, augment="none")
    SIMCLR.fit_head(model, data, recipe, lambda z, y: SIMCLR.symmetric(z, y).mean(), 0)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["net.5.weight", "net.5.bias"]
    assert accuracy(model, data) == 1
    assert all(p.requires_grad for p in model.parameters())


def test_it_learns_although_labels_are_wrong() -> None:
    data = planted.data()
    labels = data.labels.clone()
    labels[:8] = 1 - labels[:8]
    recipe = {"epochs": 8, "batch": 20, "lr": 0.01, "augment": "none"}
    features = {"epochs": 2, "batch": 20, "lr": 0.01, "augment": "none"}
    spec = {"name": "dbd", "recipe": recipe, "features": features, "head": {**recipe, "lr": 0.1}}
    noisy = replace(data, labels=labels)
    granted = planted.Granted("test", ("train",), train=lambda: noisy)
    model = registry.build(Defense, spec).apply(planted.model(), granted, planted.ONE)
    assert not isinstance(model, nn.Sequential)
    assert accuracy(model, data) > 0.9
