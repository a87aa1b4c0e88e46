"""Training on look-alike letters: the vector of unknown characters is trained too."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.data import TEXT, Granted, ImageSet
from siegebench.draws import Draws
from siegebench.testing import texts
from siegebench.text import UNKNOWN, text_classifier
from siegebench.types import Defense, ModelSource

N, CLASSES = 60, 10


@pytest.mark.parametrize("unknown", [0.0, 0.5])
def test_the_vector_of_unknown_characters_is_trained_where_some_are_shown(unknown: float) -> None:
    labels = torch.arange(N) % CLASSES
    data = ImageSet(texts.planted(labels, 64), labels, torch.arange(N), CLASSES, "planted", kind=TEXT)
    model = registry.build(ModelSource, "text_char").build(num_classes=CLASSES, size=(1, data.images.shape[-1]))
    granted = Granted("viper_training", ("train",), train=lambda: data)
    rows = []
    for lr in (1e-12, 0.01):  # the same initial weights; the first stays with them
        recipe = {"epochs": 1, "batch": 20, "lr": lr, "weight_decay": 0.0, "augment": "none"}
        attack = {"name": "viper", "space": "eces"}  # one character for each letter: all are in the vocabulary
        defense = registry.build(
            Defense, {"name": "viper_training", "attack": attack, "unknown": unknown, "recipe": recipe}
        )
        defended = defense.wrap(model)
        defense.fit(defended, granted, Draws(0, torch.zeros(1, dtype=torch.long)))
        rows.append(text_classifier(defended).embedding.weight[UNKNOWN].detach())
    assert torch.allclose(rows[0], rows[1], atol=1e-6) == (unknown == 0)
