"""The adversarial patch: what it learns, and poses that keep to the area and to the image."""

from __future__ import annotations

import math

import pytest
import torch
from siegebench.attacks.adversarial_patch import AdversarialPatch

from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.testing.specimens import planted_set
from tests import kit

from .patches import SIZE, STILL, box, changed, grey, l0, scores, signs, taught


def test_a_picture_that_covers_the_image_is_the_sign_pattern_of_a_linear_model() -> None:
    w = signs()
    attack = AdversarialPatch(
        target=1, shape="square", resolution=SIZE, smallest=1.0, steps=60, lr=0.05, batch=8, images=20, **STILL
    )
    picture, _ = taught(attack, scores(w, 0.0), 1.0)
    assert torch.equal(picture, (w > 0).float())
    x, y = grey(3)
    x_adv, _ = kit.attack_with(attack, scores(w, 0.0), x, y, l0(1.0), lesson=picture)
    torch.testing.assert_close(x_adv, (w > 0).float().expand(3, -1, -1, -1), rtol=0, atol=1e-5)
    away, _ = taught(AdversarialPatch(**{**vars(attack), "target": None}), scores(w, 5.0), 1.0)  # all are called 0
    assert torch.equal(away, (w > 0).float())
    other, _ = taught(AdversarialPatch(**{**vars(attack), "target": 0}), scores(w, 0.0), 1.0)
    assert torch.equal(other, (w < 0).float())


@pytest.mark.parametrize("shape", ["circle", "square"])
@pytest.mark.parametrize("eps", [1 / 16, 1 / 4, 1.0])
def test_poses_keep_to_the_area_and_to_the_image(shape: str, eps: float) -> None:
    attack = AdversarialPatch(shape=shape, smallest=0.5)
    x = torch.full((200, 3, 16, 20), 0.5)
    picture = torch.rand(3, 8, 8) * 0.2  # no grey
    out = attack.wear(eps, picture, x, Draws(0, torch.arange(200)), 0)
    count = changed(out, x).flatten(1).sum(1)
    assert int(count.max()) <= eps * 320
    assert int(count.min()) >= math.floor(0.25 * eps * 320)
    assert int(count.max()) > 0.9 * eps * 320
    assert len(set(count.tolist())) > 5
    if eps < 0.1:
        for mask in changed(out, x):
            _, _, height, width = box(mask)
            assert int(mask.sum()) >= 0.5 * height * width, "compact"
            if shape == "circle":
                assert abs(height - width) <= 2
        touched = changed(out, x).any(dim=0)
        assert float(touched.double().mean()) > 0.8, "far more than the middle is reached"


def test_a_still_square_is_the_picture_itself() -> None:
    attack = AdversarialPatch(shape="square", resolution=6, smallest=1.0, **STILL)
    x, picture = torch.full((400, 3, 9, 9), 0.5), torch.rand(3, 6, 6) * 0.4
    draws = Draws(3, torch.arange(400))
    out = attack.wear(36 / 81, picture, x, draws, 0)
    middles = (3 + 3 * draws.uniform((), 0, "row"), 3 + 3 * draws.uniform((), 0, "column"))
    hits = 0
    for i in range(400):
        r, c, height, width = box(changed(out[i : i + 1], x[:1])[0])
        assert (height, width) == (6, 6)
        assert abs(r + 3 - float(middles[0][i])) <= 0.5 + 1e-4
        assert abs(c + 3 - float(middles[1][i])) <= 0.5 + 1e-4
        off = max(abs(r + 3 - float(middles[0][i])), abs(c + 3 - float(middles[1][i])))
        far = float((out[i, :, r : r + 6, c : c + 6] - picture).abs().max())
        assert far <= 2 * off * 0.4 + 1e-4
        hits += off < 0.1
    assert hits > 0


def test_a_target_is_not_taught_by_its_own_images_and_must_exist() -> None:
    attack = AdversarialPatch(steps=1, batch=4, images=80, target=3)
    _, oracle = taught(attack, kit.cnn_model(), 0.1)
    data = planted_set(80, SIZE)
    assert bool(((oracle.ledger.forwards > 0) == (data.labels != 3)).all())
    with pytest.raises(NotApplicable, match="no class"):
        taught(AdversarialPatch(target=10), kit.cnn_model(), 0.1)
