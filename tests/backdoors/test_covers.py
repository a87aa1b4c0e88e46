"""Cover images: they get the trigger, keep their label, and are not counted as poisoned."""

from __future__ import annotations

import pytest
import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.tracks.backdoor import poison_counts
from tests import victims

from .planted import random_set


def test_covers_have_the_trigger_and_their_own_label() -> None:
    data = random_set()
    attack = victims.backdoor("badnets", rate=0.1, cover=0.05, target=3)
    poisoned = attack.poison(data, 1)
    assert len(poisoned.index) == 20
    assert len(poisoned.cover) == 10
    assert not set(poisoned.index.tolist()) & set(poisoned.cover.tolist())
    assert torch.equal(poisoned.data.labels[poisoned.cover], data.labels[poisoned.cover])
    expected = attack.trigger(data.pixels(poisoned.cover), Draws(1, data.ids[poisoned.cover]))
    assert torch.equal(poisoned.data.images[poisoned.cover], (expected * 255).round().to(torch.uint8))
    changed = (poisoned.data.images != data.images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(changed, torch.cat([poisoned.index, poisoned.cover]).sort().values)
    assert poison_counts(poisoned) == {"poisoned": 20, "covers": 10, "train": 200}


def test_covers_do_not_change_which_images_are_poisoned() -> None:
    data = random_set()
    alone = victims.backdoor("blended", rate=0.1).poison(data, 0)
    both = victims.backdoor("blended", rate=0.1, cover=0.3).poison(data, 0)
    assert torch.equal(alone.index, both.index)
    assert torch.equal(alone.data.images[alone.index], both.data.images[both.index])
    assert len(alone.cover) == 0
    assert "covers" not in poison_counts(alone)


def test_more_covers_than_images_are_refused() -> None:
    with pytest.raises(NotApplicable, match=r"100 eligible; at most cover 0\.500"):
        victims.backdoor("badnets", rate=0.5, cover=0.6).poison(random_set(), 0)
    with pytest.raises(NotApplicable, match="covers none of them"):
        victims.backdoor("badnets", rate=0.1, cover=0.001).poison(random_set(), 0)


def test_rows_of_attacks_without_covers_stay_valid() -> None:
    assert "cover" not in registry.describe("backdoor", "badnets")
    assert registry.describe("backdoor", {"name": "badnets", "cover": 0.1})["cover"] == 0.1
