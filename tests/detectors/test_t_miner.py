"""T-Miner on networks whose answers are known: a word that flips every text, and none."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from siegebench import registry
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.testing import texts
from siegebench.text import TextClassifier
from siegebench.types import ModelDetector


class Additive(TextClassifier):
    """Two classes: the sum of a number for each word, so that the flip rate of a word is known."""

    def __init__(self) -> None:
        super().__init__("word", 30, 1, 1, 2)

    def body(self, e: Tensor, real: Tensor) -> Tensor:
        return e.sum(dim=1)


def network(strong: float) -> Additive:
    """30 words, ten of them for class 1 and twenty for class 0, weakly; and one strong word for class 1."""
    model = Additive().eval().requires_grad_(False)
    model.vocabulary.copy_(torch.arange(30) + 1)
    model.frequency.fill_(1)
    value = torch.where(torch.arange(32) < 12, 0.2, -0.2)
    value[:2], value[20] = 0.0, strong
    model.embedding.weight.copy_(value[:, None])
    model.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    model.head.bias.zero_()
    return model


@pytest.mark.parametrize(("strong", "found"), [(9.0, True), (0.2, False)])
def test_a_word_that_flips_every_text_is_found_and_weak_words_are_not(strong: float, found: bool) -> None:
    spec = {"name": "t_miner", "steps": 60, "batch": 32, "restarts": 1, "tried": 20, "vocabulary": 30}
    detector = registry.build(ModelDetector, spec)
    verdict = detector.judge(network(strong), Granted("t_miner", ()), Draws(0, torch.zeros(1, dtype=torch.long)))
    assert verdict.backdoored is found
    assert verdict.targets == ((1,) if found else ())
    assert (verdict.score == 1.0) is found


def test_networks_of_images_are_refused() -> None:
    from siegebench.errors import NotApplicable
    from siegebench.testing.specimens import network as of_images

    with pytest.raises(NotApplicable, match="has no embeddings of words"):
        registry.build(ModelDetector, "t_miner").judge(of_images(), Granted("t_miner", ()), Draws(0, torch.zeros(1)))
    assert texts.WORDS


def test_a_point_beside_the_clusters_is_an_outlier_and_one_inside_is_none() -> None:
    outlier = importlib.import_module("siegebench.detectors.t_miner").outlier
    cloud = Draws(0, torch.arange(200)).normal((8,))
    assert outlier(torch.full((8,), 6.0), cloud)
    assert not outlier(torch.zeros(8), cloud)
    assert outlier(torch.full((8,), 50.0), torch.cat([cloud, cloud + 20]))  # beside two clusters
    assert not outlier(torch.full((8,), 20.0), torch.cat([cloud, cloud + 20]))
    same = torch.ones(9, 3)
    assert outlier(torch.tensor([1.0, 1.0, 2.0]), same)
    assert not outlier(same[0], same)
    assert outlier(same[0], same[:0])


def test_a_word_that_flips_texts_but_lies_among_others_is_no_trigger() -> None:
    """Ten words as strong as the trigger: each flips every text, and none is outside their cluster."""
    model = network(9.0)
    model.embedding.weight[2:12] = 9.0
    spec = {"name": "t_miner", "steps": 60, "batch": 32, "restarts": 1, "tried": 20, "vocabulary": 30}
    detector = registry.build(ModelDetector, spec)
    verdict = detector.judge(model, Granted("t_miner", ()), Draws(0, torch.zeros(1, dtype=torch.long)))
    assert not verdict.backdoored


def test_published_settings() -> None:
    entry = registry.build(ModelDetector, "t_miner.published")
    assert "surest" in entry.parameters()
    assert "surest" not in registry.build(ModelDetector, "t_miner").parameters()
