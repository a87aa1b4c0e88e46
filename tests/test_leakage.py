"""Scores of recovered images, and gradients for each image by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from siegebench import leakage
from siegebench.draws import Draws
from siegebench.per_image import batched, flat, per_image
from siegebench.testing.specimens import images, network
from siegebench.types import Recovered


def test_gradients_are_those_of_each_image_alone() -> None:
    model, x, y = network(), images(5), torch.tensor([0, 3, 3, 9, 1])  # batch norms, in eval mode
    found = per_image(model, x, F.one_hot(y, 10).float())
    model.requires_grad_(True)
    for i in range(len(x)):
        alone = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        for (name, g), expected in zip(found.items(), alone, strict=True):
            assert torch.allclose(g[i], expected, atol=1e-5), name
    whole = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    mean = flat(batched(model, x[None], F.one_hot(y, 10).float()[None]))[0]
    assert torch.allclose(mean, torch.cat([g.flatten() for g in whole]), atol=1e-5)


def gallery_of(x: torch.Tensor, others: int = 20) -> torch.Tensor:
    rest = leakage.summary(Draws(9, torch.arange(others)).uniform(tuple(x.shape[-3:])))
    return rest.expand(x.shape[0] * x.shape[1], -1, -1)


def test_a_permuted_client_is_matched_and_identified() -> None:
    x = Draws(1, torch.arange(6)).uniform((3, 32, 32)).view(2, 3, 3, 32, 32)
    y = torch.eye(10)[torch.arange(6)].view(2, 3, 10)
    order = torch.tensor([2, 0, 1])
    found = leakage.scores(Recovered(x[:, order], y[:, order]), x, y, gallery_of(x))
    assert found.identified is not None
    assert found.identified.all()
    assert found.label_right is not None
    assert found.label_right.all()
    assert found.psnr is not None
    assert (found.psnr == leakage.MOST_PSNR).all()
    labels = leakage.scores(Recovered(labels=y[:, order]), x, y, gallery_of(x))
    assert labels.identified is None
    assert labels.label_l1 is not None
    assert labels.label_l1.max() == 0


def test_the_same_image_for_everybody_identifies_nobody() -> None:
    x = Draws(1, torch.arange(200)).uniform((3, 32, 32))[:, None]
    y = torch.eye(10)[torch.arange(200) % 10][:, None]
    same = x.mean(dim=0, keepdim=True).expand_as(x)
    found = leakage.scores(Recovered(Draws(2, torch.arange(200)).uniform((1, 3, 32, 32))), x, y, gallery_of(x, 49))
    assert found.identified is not None
    assert found.identified.double().mean() < 0.08  # chance is 1 in 50
    flat_images = leakage.scores(Recovered(torch.full_like(same, 0.5)), x, y, gallery_of(x, 49))
    assert flat_images.identified is not None
    assert not flat_images.identified.any()  # ties do not count
    noisy = leakage.scores(Recovered((x + 0.1).clamp(max=1)), x, y, gallery_of(x, 49))
    assert noisy.psnr is not None
    assert 19 < noisy.psnr.median() < 21.5


def test_a_gallery_has_the_class_first_and_does_not_depend_on_the_batch() -> None:
    public, labels = torch.arange(100) % 10, torch.tensor([3, 7])
    index = leakage.gallery(public, labels, 15, Draws(0, torch.tensor([11, 5])))
    assert (public[index[0]] == 3).sum() == 10  # all there are
    assert (public[index[1]] == 7).sum() == 10
    assert all(len(set(row.tolist())) == 15 for row in index)
    alone = leakage.gallery(public, labels[1:], 15, Draws(0, torch.tensor([5])))
    assert torch.equal(alone[0], index[1])


def test_mixtures_have_the_labels_of_their_parts() -> None:
    x, y = images(4), torch.eye(10)[:4]
    mixed_x, mixed_y = leakage.mixed(x, y, Draws(0, torch.arange(4)))
    weight = mixed_y[torch.arange(4), torch.arange(4)]
    assert torch.allclose(mixed_y.sum(dim=1), torch.ones(4))
    expected = weight.view(-1, 1, 1, 1) * x + (1 - weight).view(-1, 1, 1, 1) * x.roll(1, 0)
    assert torch.allclose(mixed_x, expected)
