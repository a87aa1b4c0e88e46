"""Backdoor detectors on planted answers first, then on networks that learned a backdoor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from siegebench import registry
from siegebench.classifier import Network
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Verdict
from tests import victims


def detector(name: str, **parameters: Any) -> Any:
    return registry.build("detector", {"name": name, **parameters})


def images(n: int, size: int = 8, seed: int = 0, high: int = 256, classes: int = 10) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, high, (n, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(x, torch.arange(n) % classes, 3 * torch.arange(n), classes, "random")


def only(**sets: ImageSet) -> Granted:
    """Exactly these sets; anything else that is read raises."""
    return Granted("test", tuple(sets), **{k: (lambda v=v: v) for k, v in sets.items()})


def auroc(positive: Tensor, negative: Tensor) -> float:
    return float(roc_auc_score([1] * len(positive) + [0] * len(negative), torch.cat([positive, negative])))


# ---------------------------------------------------------------------------------------------------------------- STRIP


class Keyhole(nn.Module):
    """Certain of class 0 when the first pixel is saturated; otherwise logit c is the brightness of pixel c."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes, self.seen = classes, 0
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        z = self.scale * x.flatten(1)[:, 1 : 1 + self.classes]
        sure = torch.zeros_like(z).index_fill(1, torch.tensor(0), 100.0)
        return torch.where((x.flatten(1)[:, :1] >= 1), sure, z)


def test_strip_ranks_a_planted_trigger_above_everything() -> None:
    net = Keyhole()
    score = detector("strip", overlays=30).fit(
        Network(net, num_classes=10), only(clean=images(50, high=100)), victims.ONE
    )
    x = images(40, seed=1, high=100).pixels()
    triggered = x.clone()
    triggered[:, 0, 0, 0] = 1
    net.seen = 0
    hit = score(triggered, Draws(0, torch.arange(40)))
    assert net.seen == 30 * 40  # N forward passes an image
    clean = score(x, Draws(0, torch.arange(40)))
    assert hit.shape == (40,)
    torch.testing.assert_close(hit, torch.zeros(40), atol=1e-6, rtol=0)  # certain under every overlay: entropy 0
    assert float(clean.max()) < -0.1


def test_strip_is_minus_the_mean_entropy() -> None:
    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), -1)

    score = detector("strip", overlays=7).fit(Network(Uniform(), num_classes=10), only(clean=images(5)), victims.ONE)
    expected = torch.full((3,), -math.log(10))
    torch.testing.assert_close(score(images(3).pixels(), Draws(0, torch.arange(3))), expected)

    # one clean image: every overlay is that image, and the entropy can be computed by hand
    net, clean, x = Network(Keyhole(), num_classes=10), images(1, seed=5, high=60), images(4, seed=6, high=60).pixels()
    p = net((x + 0.5 * clean.pixels()).clamp(0, 1)).softmax(1)
    by_hand = (p * p.log()).sum(1).detach()
    got = detector("strip", overlays=3, alpha=0.5).fit(net, only(clean=clean), victims.ONE)(
        x, Draws(0, torch.arange(4))
    )
    torch.testing.assert_close(got, by_hand)


def test_strip_scores_an_image_alone_as_in_any_batch() -> None:
    score = detector("strip", overlays=9).fit(Network(Keyhole(), num_classes=10), only(clean=images(30)), victims.ONE)
    x, draws = images(12, seed=2).pixels(), Draws(3, torch.arange(100, 112))
    together = score(x, draws)
    back = torch.arange(11, -1, -1)
    torch.testing.assert_close(score(x[back], draws[back])[back], together)
    torch.testing.assert_close(score(x[4:5], draws[4:5]), together[4:5])
    assert not torch.allclose(score(x, Draws(4, torch.arange(100, 112))), together)  # overlays are drawn by the seed


@pytest.mark.parametrize(("name", "alpha", "least"), [("badnets", 1.0, 0.95), ("blended", 0.5, 0.8)])
def test_strip_notices_triggers(name: str, alpha: float, least: float) -> None:
    model, poisoned = victims.victim(name)
    sets = victims.digits()
    score = detector("strip", overlays=40, alpha=alpha).fit(
        model, victims.granted(poisoned, sets, "clean"), victims.ONE
    )
    hit = score(*victims.stamped(victims.backdoor(name), sets[3], 100))
    clean = score(sets[3].pixels(slice(0, 100)), Draws(0, sets[3].ids[:100]))
    assert auroc(hit, clean) > least


# ------------------------------------------------------------------------------------------------ activation clustering


class Features(nn.Module):
    """Features are the pixels themselves."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def blobs(share: float, n: int = 100, classes: int = 3) -> tuple[ImageSet, Tensor]:
    """Each class one cloud of features, except that `share` of class 0 lies elsewhere; (the set, which are those)."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n * classes) % classes
    x = 100 + 40 * labels[:, None] + 12 * torch.randn(n * classes, 48, generator=g)
    odd = torch.zeros(n * classes, dtype=torch.bool)
    odd[(labels == 0).nonzero().squeeze(1)[: round(share * n)]] = True
    x[odd, :24] += 90
    x = x.clamp(0, 255).round().to(torch.uint8).view(-1, 3, 4, 4)
    return ImageSet(x, labels, torch.arange(len(labels)), classes, "blobs"), odd


def cluster_scores(data: ImageSet, seed: int = 0) -> Tensor:
    model = Network(Features(data.images.shape[-1], data.num_classes), num_classes=data.num_classes).eval()
    draws = Draws(seed, torch.zeros(1, dtype=torch.long))
    return detector("activation_clustering").score(model, only(train=data), draws)


def test_activation_clustering_finds_a_planted_cluster() -> None:
    data, odd = blobs(0.2)
    score = cluster_scores(data)
    assert score.shape == (len(data),)
    assert bool((score[odd] > 0.3).all())
    assert float(score[~odd].max()) < float(score[odd].min())
    assert bool((score[(data.labels == 0) & ~odd] == -1).all())


def test_activation_clustering_flags_no_cluster_above_its_share() -> None:
    data, odd = blobs(0.45)
    score = cluster_scores(data)
    assert bool((score[odd] < 0).all())  # not flagged, by construction of the method
    assert bool((score[odd] > -1).all())
    assert bool((score[(data.labels == 0) & ~odd] == -1).all())


def test_activation_clustering_does_not_see_the_order() -> None:
    data, _ = blobs(0.2)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(cluster_scores(data.select(order)), cluster_scores(data)[order])


def test_activation_clustering_without_anything_to_cluster() -> None:
    flat = ImageSet(torch.full((30, 3, 4, 4), 7, dtype=torch.uint8), torch.arange(30) % 3, torch.arange(30), 3, "flat")
    assert bool((cluster_scores(flat) == -1).all())
    few = images(4, size=4, classes=3)  # classes of one and two images
    assert bool((cluster_scores(few) == -1).all())


def test_activation_clustering_finds_poisons_at_a_low_rate() -> None:
    model, poisoned = victims.victim("badnets", rate=0.05)
    assert poisoned is not None
    sets = victims.digits()
    score = detector("activation_clustering").score(model, victims.granted(poisoned, sets, "train"), victims.ONE)
    bad = torch.zeros(len(score), dtype=torch.bool)
    bad[poisoned.index] = True
    mislabelled = bad & (sets[0].labels != poisoned.data.labels)
    assert float((score[mislabelled] > 0).double().mean()) > 0.8
    assert auroc(score[mislabelled], score[~bad]) > 0.9


# ------------------------------------------------------------------------------------------------------- Neural Cleanse


class Regions(nn.Module):
    """Logit t is the mean brightness of region t of the picture, scaled: its smallest trigger grows with the region."""

    def __init__(self, widths: list[int], size: int = 10) -> None:
        super().__init__()
        weight = torch.zeros(len(widths), size * size)
        start = 0
        for t, width in enumerate(widths):
            weight[t, start : start + width] = 1 / width
            start += width
        self.weight = nn.Parameter(40 * weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1).flatten(1) @ self.weight.T


PLANTED, HONEST = [14, 16, 15, 2, 17, 13], [14, 16, 15, 12, 17, 13]


def regions(widths: list[int]) -> Network:
    return Network(Regions(widths), num_classes=len(widths))


def dark(n: int = 40) -> ImageSet:
    return images(n, size=10, high=60, classes=6)


def cleanse(model: Network, **parameters: Any) -> Verdict:
    verdict = detector("neural_cleanse", batch=8, **parameters).judge(model, only(clean=dark()), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


def test_neural_cleanse_finds_the_planted_target() -> None:
    verdict = cleanse(regions(PLANTED))
    assert verdict.backdoored
    assert verdict.targets == (3,)
    assert verdict.score > 4
    honest = cleanse(regions(HONEST))
    assert not honest.backdoored
    assert honest.targets == ()
    assert honest.score < 2


def test_neural_cleanse_inverts_triggers_of_the_right_place_and_size() -> None:
    nc = detector("neural_cleanse", batch=8)
    sizes, masks = nc._invert(regions(PLANTED), dark(), torch.arange(6), 0)
    torch.testing.assert_close(masks.flatten(1).sum(1).double(), sizes)
    weight = Regions(PLANTED).weight > 0
    inside = (masks.flatten(1) * weight).sum(1) / masks.flatten(1).sum(1)
    assert float(inside.min()) > 0.8  # hardly anything is painted outside the target's region
    assert bool((sizes <= weight.sum(1)).all())  # and less than the whole region is needed
    order = torch.tensor(PLANTED).argsort()[:2]
    assert sizes.argsort()[0] == order[0]


def test_neural_cleanse_treats_each_target_alone() -> None:
    model, clean = regions(PLANTED), dark()
    together = detector("neural_cleanse", batch=8, steps=80).sizes(model, clean, 7)
    alone = detector("neural_cleanse", batch=8, steps=80, together=1).sizes(model, clean, 7)
    assert bool((together < 100).all())
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)


def test_finished_targets_leave_the_batch() -> None:
    rows: list[int] = []

    class Counting(Regions):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    def run(stall: int) -> tuple[Tensor, int]:
        rows.clear()
        model = Network(Counting(PLANTED), num_classes=6)
        return detector("neural_cleanse", batch=8, stall=stall).sizes(model, dark(), 0), sum(rows)

    full, cost = run(1000)
    assert cost == 300 * 6 * 8
    early, cheaper = run(40)
    assert cheaper < 0.9 * cost
    torch.testing.assert_close(early, full, rtol=0.25, atol=0.5)


def test_neural_cleanse_on_a_model_that_no_trigger_moves() -> None:
    class Stubborn(Regions):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * super().forward(x) + torch.tensor([9.0, 0, 0, 0, 0, 0])

    nc = detector("neural_cleanse", batch=8, steps=20)
    sizes = nc.sizes(Network(Stubborn(PLANTED), num_classes=6), dark(), 0)
    assert bool((sizes[1:] == 100).all())  # the whole picture
    verdict = nc.judge(Network(Stubborn(PLANTED), num_classes=6), only(clean=dark()), victims.ONE)
    assert math.isfinite(verdict.score)


def test_neural_cleanse_leaves_the_model_as_found() -> None:
    model = regions(PLANTED).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cleanse(model, steps=5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_neural_cleanse_needs_three_classes() -> None:
    with pytest.raises(NotApplicable, match="at least 3"):
        cleanse(regions([5, 6]))


@pytest.mark.slow
def test_neural_cleanse_on_trained_networks() -> None:
    # 8x8 digits. Ten classes make the median absolute deviation, and with it the index, a noisy number: what is safe is
    # the order of the sizes, and that a backdoored model stands out further than its clean twin
    sets = victims.tiny_digits()
    attack = victims.backdoor("badnets", side=8, margin=0)  # 2x2 pixels
    poisoned = attack.poison(sets[0], 0)
    recipe = Recipe(epochs=10, batch=64, augment="none")
    bad, good = victims.tiny_net(), victims.tiny_net()
    train(bad, poisoned.data, recipe, 0)
    train(good, sets[0], recipe, 0)
    assert accuracy(bad, sets[3]) > 0.95
    assert victims.success_rate(bad, attack, sets[3]) > 0.9
    nc, clean = detector("neural_cleanse"), sets[1]
    caught = nc.judge(bad, only(clean=clean), victims.ONE)
    assert caught.backdoored
    assert 0 in caught.targets
    assert caught.score > 2.5
    assert nc.judge(good, only(clean=clean), victims.ONE).score < caught.score
    sizes, twins = nc.sizes(bad, clean, 1), nc.sizes(good, clean, 1)
    assert int(sizes.argmin()) == 0
    assert float(sizes[0]) < 0.5 * float(sizes[1:].min())
    assert float(sizes[0]) < 0.5 * float(twins.min())
