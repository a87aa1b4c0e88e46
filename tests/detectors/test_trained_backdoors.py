"""What the detectors of models say about trained networks: digits with and without BadNets, and published ones.

    pytest -s -m slow tests/detectors/test_trained_backdoors.py

The pages in docs/replications take their numbers from here. -s prints the score and the targets of each.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from siegebench.classifier import Network
from siegebench.data import ImageSet
from siegebench.train import Recipe, accuracy, train
from siegebench.types import Verdict
from tests import victims
from tests.published import NETWORKS
from tests.test_published import images, loaded

from .planted import detector, only

pytestmark = pytest.mark.slow

# 8 x 8 pixels: few steps are enough. The trigger has four of them.
DIGITS: dict[str, dict[str, Any]] = {
    "neural_cleanse": {"steps": 150, "batch": 16},
    "k_arm.small": {"bound": 0.06},
    "mm_bd.small": {},
    "df_tnd.small": {},
    "umd.small": {},
    "smoothinv.small": {"eps": 2},
}
WEAK = ("mm_bd.small", "df_tnd.small", "umd.small")  # do not tell the two digits networks apart, as their pages say
PUBLISHED = {  # file: target
    "badnets_8": 8, "l0_inv_0": 0, "l2_inv_0": 0, "gtsrbbadnets_8": 8, "gtsrbtrojan_wm_2": 2,
}  # fmt: skip


@cache
def digits(poisoned: bool, seed: int = 0) -> Network:
    sets = victims.tiny_digits()
    attack = victims.backdoor("badnets", side=8, margin=0)  # 2 x 2 pixels, target 0
    model = victims.tiny_net(seed)
    train(
        model,
        attack.poison(sets[0], seed).data if poisoned else sets[0],
        Recipe(epochs=10, batch=64, augment="none"),
        seed,
    )
    assert accuracy(model, sets[3]) > 0.95
    assert not poisoned or victims.success_rate(model, attack, sets[3]) > 0.9
    return model


def judged(name: str, model: Network, clean: ImageSet, **parameters: Any) -> Verdict:
    verdict = detector(name, **parameters).judge(model, only(clean=clean), victims.ONE)
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("name", DIGITS)
def test_a_backdoored_network_scores_higher_than_its_clean_twin(name: str) -> None:
    clean = victims.tiny_digits()[1]
    bad, good = (judged(name, digits(poisoned), clean, **DIGITS[name]) for poisoned in (True, False))
    for word, verdict in (("badnets", bad), ("clean", good)):
        print(f"\ndigits, {name}, {word}: score {verdict.score:.2f}, {verdict.backdoored}, targets {verdict.targets}")
    assert bad.score > good.score or name in WEAK


def published(file: str) -> tuple[Network, ImageSet]:
    """(the network, 200 clean test images)"""
    known = f"I-BAU/{file}_02_ckpt.pth"
    x, y = images(NETWORKS[known], 200)
    stored = (x * 255).round().to(torch.uint8)
    return loaded(known), ImageSet(stored, y, torch.arange(len(x)), 43 if "gtsrb" in file else 10, file)


@pytest.mark.parametrize("file", PUBLISHED)
def test_df_tnd_raises_the_logit_of_the_target_most(file: str) -> None:
    model, clean = published(file)
    r = detector("df_tnd.small").increase(model.requires_grad_(False).eval(), clean.pixels(slice(0, 10)))[0]
    print(f"\n{file}, df_tnd.small: {[(int(t), round(float(r[t]), 1)) for t in r.argsort(descending=True)[:3]]}")
    assert int(r.argmax()) == PUBLISHED[file]


@pytest.mark.parametrize("file", PUBLISHED)
def test_k_arm_names_the_target_of_published_networks(file: str) -> None:
    verdict = judged("k_arm.small", *published(file))
    print(f"\n{file}, k_arm.small: score {verdict.score:.2f}, targets {verdict.targets}, true {PUBLISHED[file]}")
    assert verdict.targets == (PUBLISHED[file],)
