"""Patches, patterns and stripes: planted optima, exact counts, poses within the budget, renderers against loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from siegebench.attacks import _patterns as patterns
from siegebench.attacks.adversarial_patch import AdversarialPatch
from siegebench.attacks.area_patch import AreaPatch
from siegebench.attacks.loap import LOAP, _most_promising, cut, largest_square, paste
from siegebench.attacks.rolling_shutter import DARK, GAMMA, RollingShutter, exposed, render
from torch import Tensor, nn

from siegebench import ops, registry
from siegebench.classifier import Classifier, Network, Wrapped
from siegebench.config import load_suite
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.testing.specimens import planted_set, victim
from siegebench.threat import ThreatModel
from siegebench.types import Attack
from tests import kit

SIZE = 12
square = partial(LOAP, loss="margin")  # cross-entropy is flat where the planted models are sure


class Scores(nn.Module):
    """Logits (0, w x - b): with a large b nothing is ever broken."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w.flatten() - self.b
        return torch.stack([torch.zeros_like(s), s], dim=1)


class Seen(Wrapped):
    """Remembers the images it is shown."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(inner)
        self.images: list[Tensor] = []

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        self.images.append(x.detach().clone())
        return self.inner(x)


def scores(w: Tensor, b: float) -> Classifier:
    return Network(Scores(w, b), num_classes=2).eval().requires_grad_(False)


def hill(row: int, column: int, size: int = SIZE) -> Tensor:
    """Positive weights [3, size, size] that fall from one pixel on: from anywhere a square can climb to it."""
    at = torch.arange(size)
    far = (at - row).abs()[:, None] + (at - column).abs()[None, :]
    return (0.7**far).expand(3, -1, -1).contiguous()


def grey(n: int = 6, size: int = SIZE) -> tuple[Tensor, Tensor]:
    return torch.full((n, 3, size, size), 0.5), torch.zeros(n, dtype=torch.long)


def l0(eps: float) -> ThreatModel:
    return ThreatModel(norm="l0", eps=eps)


def changed(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv != x).any(dim=1)


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """(row, column, height, width) of the smallest box around what is set."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return (
        int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- loap


@pytest.mark.parametrize(
    ("share", "height", "width", "side"),
    [(1 / 16, 32, 32, 8), (1 / 16, 48, 48, 12), (1, 8, 8, 8), (1 / 9, 3, 3, 1), (0.1, 16, 16, 5), (1, 4, 100, 4),
     (1e-4, 32, 32, 0)],
)  # fmt: skip
def test_the_largest_square_within_the_area(share: float, height: int, width: int, side: int) -> None:
    assert largest_square(share, height, width) == side


def test_cut_and_paste_are_those_of_a_loop() -> None:
    x, patch = torch.rand(5, 3, 7, 9), torch.rand(5, 3, 3, 3)
    place = torch.tensor([[0, 0], [4, 6], [1, 5], [4, 0], [2, 2]])
    out = paste(x, patch, place)
    for i, (r, c) in enumerate(place.tolist()):
        expected = x[i].clone()
        expected[:, r : r + 3, c : c + 3] = patch[i]
        assert torch.equal(out[i], expected)
        assert torch.equal(cut(x, place, 3)[i], x[i, :, r : r + 3, c : c + 3])
    assert torch.equal(cut(out, place, 3), patch)


@pytest.mark.parametrize(("location", "stride"), [("greedy", 2), ("full_search", 1), ("random_search", 1)])
@pytest.mark.parametrize("peak", [(6, 6), (2, 8), (10, 1)])
def test_the_square_ends_at_the_planted_place(location: str, stride: int, peak: tuple[int, int]) -> None:
    x, y = grey()
    attack = square(location=location, stride=stride, steps=120, step=0.1)
    x_adv, _ = kit.attack_with(attack, scores(hill(*peak), 1e3), x, y, l0(9 / SIZE**2))
    expected = x.clone()
    expected[:, :, peak[0] - 1 : peak[0] + 2, peak[1] - 1 : peak[1] + 2] = 1.0  # all weights are positive
    torch.testing.assert_close(x_adv, expected)


def test_squares_that_stay_are_worse() -> None:
    x, y = grey(32)
    model = scores(hill(4, 7), 1e3)
    loss = {
        location: ops.margin(model(kit.attack_with(square(location=location), model, x, y, l0(9 / SIZE**2))[0]), y)
        for location in ("fixed", "random", "random_search", "full_search", "greedy")
    }
    assert float(loss["full_search"].mean()) > float(loss["random"].mean()) + 0.1
    assert float(loss["random_search"].mean()) > float(loss["random"].mean()) + 0.1
    assert bool((loss["greedy"] >= loss["random"] - 1e-4).all())
    assert bool((loss["greedy"] >= loss["fixed"] - 1e-4).all())


def test_a_move_carries_the_content_and_compares_like_with_like() -> None:
    """Each step looks at one new content in five places; the next pass is at the best of them, with that content."""
    model = Seen(scores(hill(10, 10), 1e3))
    x, y = grey(1)
    x_adv, _ = kit.attack_with(square(steps=30, step=0.02, stride=1), model, x, y, l0(16 / SIZE**2))
    whole, looks = model.images[0::2], model.images[1::2]
    assert len(whole) == 31
    assert [len(images) for images in looks] == [5] * 30
    last, boxes = None, []
    for t in range(30):
        squares = []
        for image in looks[t]:
            r, c, height, width = box(changed(image[None], x)[0])
            assert (height, width) == (4, 4)
            squares.append(image[:, r : r + 4, c : c + 4])
        assert all(torch.equal(square, squares[0]) for square in squares), "the five places show one content"
        value = ops.margin(model.inner(looks[t]), y.expand(5))
        assert torch.equal(whole[t + 1][0], looks[t][value.argmax()]), "it goes on at the best of the five"
        assert last is None or float((squares[0] - last).abs().max()) <= 0.02 + 1e-6, "a step changes it by one step"
        last = squares[0]
        boxes.append(box(changed(whole[t + 1], x)[0])[:2])
    assert boxes[-1] == (8, 8)  # the corner of the image: the peak lies within
    assert len(set(boxes)) > 2
    assert torch.equal(x_adv, whole[30]), "the last step is looked at, and returned where it is the best"


@pytest.mark.parametrize(
    ("location", "forwards", "backwards"),
    [
        ("fixed", 2 * 6, 2 * 5),
        ("random", 2 * 6, 2 * 5),
        ("random_search", 2 * (6 + 2 * 5), 2 * 5),
        ("full_search", 2 * (6 + 5 * 5), 2 * 5),
        ("greedy", 2 * 6 + 1, 2 * 5 + 1),
    ],
)
def test_passes_are_counted_exactly(location: str, forwards: int, backwards: int) -> None:
    x, y = grey()
    attack = square(location=location, steps=5, attempts=2)
    _, oracle = kit.attack_with(attack, scores(hill(3, 3), 1e3), x, y, l0(9 / SIZE**2))
    assert oracle.ledger.forwards.tolist() == [forwards] * 6
    assert oracle.ledger.backwards.tolist() == [backwards] * 6


def test_a_broken_sample_leaves_at_once_and_the_last_step_counts() -> None:
    x, y = grey(8)
    w = torch.ones(3, SIZE, SIZE)
    full = 9 * 3 * 0.5  # what nine white pixels add
    model = scores(w, float(x[0].sum()) + full - 1e-3)  # only the very best content is enough
    attack = square(location="random", steps=1, step=1.0)
    x_adv, oracle = kit.attack_with(attack, model, x, y, l0(9 / SIZE**2))
    assert model(x_adv).argmax(1).tolist() == [1] * 8
    assert oracle.ledger.forwards.tolist() == [2] * 8
    _, oracle = kit.attack_with(square(step=1.0, steps=50), model, x, y, l0(9 / SIZE**2))
    assert oracle.ledger.forwards.tolist() == [1 + 5 + 1] * 8
    _, oracle = kit.attack_with(square(step=1.0, steps=4, early_stop=False), model, x, y, l0(9 / SIZE**2))
    assert oracle.ledger.forwards.tolist() == [5 + 5 * 4] * 8


def test_places_reach_the_last_row_and_column_and_spare_the_forbidden_box() -> None:
    x, y = grey(600)
    model = scores(hill(5, 5), 1e3)
    forbidden = (4, 4, 3, 3)
    for location, steps in (("random", 1), ("full_search", 12), ("random_search", 12), ("greedy", 1)):
        attack = square(location=location, steps=steps, forbidden=forbidden, stride=1)
        x_adv, _ = kit.attack_with(attack, model, x, y, l0(9 / SIZE**2))
        mask = changed(x_adv, x)
        assert not bool(mask[:, 4:7, 4:7].any()), location
        assert int(mask.flatten(1).sum(1).max()) == 9
        if location == "random":
            seen = {box(one)[:2] for one in mask}
            free = [p for p in itertools.product(range(10), repeat=2) if not (2 <= p[0] <= 6 and 2 <= p[1] <= 6)]
            assert seen == set(free)
    with pytest.raises(NotApplicable, match="no square"):
        kit.attack_with(square(forbidden=(0, 0, 12, 12)), model, x[:1], y[:1], l0(0.1))
    with pytest.raises(NotApplicable, match="touches"):
        kit.attack_with(square(location="fixed", forbidden=forbidden), model, x[:1], y[:1], l0(9 / SIZE**2))


def test_a_fixed_square_stays_where_it_was_put() -> None:
    x, y = grey(3)
    for place, expected in (((3, 3), (3, 3)), ((0, 7), (0, 7)), ((20, 2), (8, 2))):
        x_adv, _ = kit.attack_with(
            square(location="fixed", place=place, steps=4), scores(hill(5, 5), 1e3), x, y, l0(16 / SIZE**2)
        )
        assert {box(one) for one in changed(x_adv, x)} == {(*expected, 4, 4)}


def test_more_attempts_never_lower_the_loss() -> None:
    model, x = kit.cnn_model(), kit.grey_images(12, SIZE)
    y = model(x).argmax(1)
    for location in ("random", "greedy"):
        last = torch.full((12,), -torch.inf)
        for attempts in (1, 2, 4):
            x_adv, _ = kit.attack_with(LOAP(location=location, steps=3, attempts=attempts), model, x, y, l0(0.05))
            z = model(x_adv)
            now = torch.where(z.argmax(1) != y, torch.inf, ops.cross_entropy(z, y))
            assert bool((now >= last - 1e-6).all())
            last = now


def test_further_attempts_of_the_greedy_start_elsewhere() -> None:
    promise = torch.zeros(1, 6, 6)
    promise[0, 2, 2], promise[0, 2, 3], promise[0, 5, 5] = 3.0, 2.9, 1.0
    promise[0, 0, 0] = -torch.inf
    first, promise = _most_promising(promise, 2)
    second, promise = _most_promising(promise, 2)
    assert first.tolist() == [[2, 2]]
    assert second.tolist() == [[5, 5]]
    for _ in range(40):
        place, promise = _most_promising(promise, 2)
        assert place.tolist() != [[0, 0]]


def test_too_small_a_budget_changes_nothing() -> None:
    x, y = grey(2)
    x_adv, oracle = kit.attack_with(LOAP(), scores(hill(5, 5), 1e3), x, y, l0(0.5 / SIZE**2))
    assert torch.equal(x_adv, x)
    assert oracle.ledger.forwards.tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------- patterns for all images

STILL = {"rotation": 0.0, "brightness": 0.0}


def taught(attack: Attack, model: Classifier, eps: float, size: int = SIZE, n: int = 80) -> tuple[Tensor, Oracle]:
    """(the pattern that the attack learns, the oracle that it learns with)"""
    data = planted_set(n, size)
    draws = Draws(0, data.ids)
    oracle = Oracle(model, l0(eps), draws)
    return attack.learn(oracle, data, l0(eps), draws), oracle


def signs(seed: int = 0, size: int = SIZE) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 0.01 * (2.0 * torch.randint(0, 2, (3, size, size), generator=g) - 1)


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


@pytest.mark.parametrize("attack", [AdversarialPatch(steps=150), AreaPatch(steps=150, lr=0.03, element=4)])
def test_a_colour_is_learnt_whatever_the_pose(attack: Attack) -> None:
    """Weights that differ by channel only: the best pattern is one colour, wherever and however it is worn."""
    w = torch.tensor([0.01, -0.01, 0.01])[:, None, None].expand(3, SIZE, SIZE)
    pattern, _ = taught(attack, scores(w, 5.0), 1 / 4)
    middle = pattern[:, pattern.shape[1] // 4 : -pattern.shape[1] // 4, pattern.shape[2] // 4 : -pattern.shape[2] // 4]
    # a light below 1 dims white; black stays black
    assert float(middle[[0, 2]].min()) > 0.95
    assert float(middle[1].max()) < 0.05


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


def test_a_turned_picture_is_turned() -> None:
    """A quarter turn of all poses is a quarter turn of the picture."""
    x, picture = torch.full((1, 3, 8, 8), 0.5), torch.rand(3, 8, 8)
    down, right = patterns.around(x, torch.tensor([4.0]), Draws(0, torch.zeros(1, dtype=torch.long)), 0)
    seen = {}
    for angle in (0.0, 90.0):
        d, r = patterns.turned(down, right, torch.tensor([angle]))
        grid = torch.stack([r, d], dim=3) / 4
        seen[angle] = nn.functional.grid_sample(picture[None], grid, align_corners=False)[0]
    torch.testing.assert_close(seen[0.0], picture)
    turned = [torch.rot90(picture, k, (1, 2)) for k in (1, 3)]
    assert min(float((seen[90.0] - t).abs().max()) for t in turned) < 1e-4


@pytest.mark.parametrize("attack", [AdversarialPatch(), AdversarialPatch(shape="square"), AreaPatch(element=3)])
def test_the_way_back_through_the_pose_is_the_derivative(attack: AdversarialPatch | AreaPatch) -> None:
    pattern = 0.2 + 0.5 * torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    x = kit.grey_images(2, 7).double()
    worn = partial(attack.wear, 0.4, x=x, draws=Draws(0, torch.arange(2)), step=3)
    assert torch.autograd.gradcheck(lambda p: worn(p), pattern.requires_grad_(True))


@pytest.mark.parametrize(
    "attack", [AdversarialPatch(steps=5, batch=7, images=30), AreaPatch(steps=5, batch=7, images=30)]
)
def test_what_learning_costs(attack: AdversarialPatch | AreaPatch) -> None:
    model = kit.cnn_model()
    pattern, oracle = taught(attack, model, 0.1)
    assert int(oracle.ledger.forwards.sum()) == 30 + 5 * 7
    assert int(oracle.ledger.backwards.sum()) == 5 * 7
    assert int((oracle.ledger.forwards > 0).sum()) == 30
    x = kit.grey_images(4, SIZE)
    _, oracle = kit.attack_with(attack, model, x, model(x).argmax(1), l0(0.1), lesson=pattern)
    assert int(oracle.ledger.forwards.sum()) == 0
    assert torch.equal(pattern, taught(attack, model, 0.1)[0])


def test_a_target_is_not_taught_by_its_own_images_and_must_exist() -> None:
    attack = AdversarialPatch(steps=1, batch=4, images=80, target=3)
    _, oracle = taught(attack, kit.cnn_model(), 0.1)
    data = planted_set(80, SIZE)
    assert bool(((oracle.ledger.forwards > 0) == (data.labels != 3)).all())
    with pytest.raises(NotApplicable, match="no class"):
        taught(AdversarialPatch(target=10), kit.cnn_model(), 0.1)


@pytest.mark.parametrize("attack", [AdversarialPatch(), AreaPatch()])
def test_nothing_is_worn_before_it_is_learnt(attack: Attack) -> None:
    x, y = grey(1)
    with pytest.raises(ContractError, match="learn"):
        kit.attack_with(attack, kit.cnn_model(), x, y, l0(0.1))


def test_elements_repeat_and_have_a_phase_of_their_own() -> None:
    attack = AreaPatch(element=5, **STILL)
    texture, x = torch.rand(3, 5, 5), torch.full((8, 3, 17, 20), 0.5)
    out = attack.wear(1.0, texture, x, Draws(0, torch.arange(8)), 0)
    torch.testing.assert_close(out[:, :, 5:], out[:, :, :-5])
    torch.testing.assert_close(out[:, :, :, 5:], out[:, :, :, :-5])
    assert float((out[0] - out[1]).abs().max()) > 0.01
    one = attack.wear(1.0, torch.full((3, 5, 5), 0.3), x, Draws(0, torch.arange(8)), 0)
    torch.testing.assert_close(one, torch.full_like(x, 0.3))
    # bilinear over the seam: the mean over a whole period is that of the element
    torch.testing.assert_close(out[:, :, :5, :5].mean((2, 3)), texture.mean((1, 2)).expand(8, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eps", [1 / 100, 1 / 20, 1 / 5, 2 / 5, 1.0])
def test_the_area_is_exactly_the_budget(eps: float) -> None:
    x = torch.full((100, 3, 20, 30), 0.5)
    out = AreaPatch(element=4).wear(eps, torch.rand(3, 4, 4) * 0.3, x, Draws(0, torch.arange(100)), 0)
    assert changed(out, x).flatten(1).sum(1).tolist() == [math.floor(eps * 600 + 1e-6)] * 100


def test_more_area_does_more_and_an_optimised_element_more_than_a_random_one() -> None:
    w = 0.01 * torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, SIZE, SIZE)
    model, last = scores(w, 5.0), -torch.inf
    x, y = kit.grey_images(40, SIZE), torch.zeros(40, dtype=torch.long)
    for eps in (1 / 100, 1 / 20, 1 / 10, 1 / 5, 2 / 5, 1.0):
        found = {}
        for optimise in (True, False):
            attack = AreaPatch(optimise=optimise, element=4, steps=60, lr=0.03)
            texture, oracle = taught(attack, model, eps)
            assert (int(oracle.ledger.forwards.sum()) > 0) is optimise
            x_adv, _ = kit.attack_with(attack, model, x, y, l0(eps), lesson=texture)
            found[optimise] = float(ops.margin(model(x_adv), y).mean())
        assert found[True] > last
        assert found[True] > found[False]
        last = found[True]


def test_a_learnt_pattern_breaks_what_a_random_one_does_not() -> None:
    model = kit.cnn_model().double()
    x = planted_set(40, 16).pixels(slice(None), torch.float64)
    y = model(x).argmax(1)
    wrong = {}
    for name, attack in {
        "random": AreaPatch(optimise=False, element=8),
        "area": AreaPatch(element=8, steps=80, lr=0.05),
        "picture": AdversarialPatch(steps=80, resolution=12),
    }.items():
        pattern, _ = taught(attack, model, 1 / 4, 16)
        x_adv, _ = kit.attack_with(attack, model, x, y, l0(1 / 4), lesson=pattern)
        wrong[name] = float(ops.margin(model(x_adv), y).mean())
    assert wrong["area"] > wrong["random"]
    assert wrong["picture"] > wrong["random"]


# ---------------------------------------------------------------------------------------------------- rolling shutter


def test_the_exposure_is_that_of_a_loop_and_a_phase_is_a_roll() -> None:
    signal, phase = torch.rand(3, 2, 13), torch.tensor([0, 5, 12])
    got = exposed(signal, phase, 10, 4)
    for i, c, row in itertools.product(range(3), range(2), range(10)):
        expected = sum(float(signal[i, c, (row + j - int(phase[i])) % 13]) for j in range(4)) / 4
        assert float(got[i, c, row]) == pytest.approx(expected, abs=1e-6)
    for i in range(3):
        rolled = exposed(signal[i : i + 1].roll(int(phase[i]), 2), torch.tensor([0]), 10, 4)
        torch.testing.assert_close(rolled[0], got[i])


def test_the_picture_is_that_of_a_loop() -> None:
    x, signal, phase = torch.rand(2, 3, 5, 4), torch.rand(2, 3, 7), torch.tensor([1, 4])
    x[0, :, 0], x[1, :, 1] = 0.0, 1.0
    out = render(x, signal, phase, 0.7, 3)
    for i, c, row, column in itertools.product(range(2), range(3), range(5), range(4)):
        g = sum(float(signal[i, c, (row + j - int(phase[i])) % 7]) for j in range(3)) / 3
        full = float(x[i, c, row, column]) ** GAMMA
        ambient = ((1 - 0.7) ** (1 / GAMMA) * float(x[i, c, row, column])) ** GAMMA
        expected = ((ambient + g * (full - ambient)) * (1 - DARK) + DARK) ** (1 / GAMMA)
        assert float(out[i, c, row, column]) == pytest.approx(expected, abs=2e-6)
    full_light = render(x, torch.ones(2, 3, 7), phase, 0.7, 3)
    assert float((full_light - x).abs().max()) < 0.002  # what keeps the root from zero, at black
    assert torch.equal(full_light[1, :, 1], x[1, :, 1])
    none = render(x, torch.zeros(2, 3, 7), phase, 1.0, 3)
    assert float(none.max()) < 0.002


def test_the_derivative_of_the_picture() -> None:
    x = kit.grey_images(2, 5).double()
    for light in (0.3, 1.0):
        signal = (0.1 + 0.8 * torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(1))).double()
        phase = torch.tensor([2, 6])
        assert torch.autograd.gradcheck(
            lambda f, light=light, phase=phase: render(x, f, phase, light, 4), signal.requires_grad_(True)
        )
    black = torch.zeros(1, 3, 5, 5)
    signal = torch.zeros(1, 3, 8, requires_grad=True)
    (g,) = torch.autograd.grad(render(black, signal, torch.tensor([0]), 1.0, 4).sum(), signal)
    assert bool(torch.isfinite(g).all())


def test_the_best_light_of_a_model_of_colours_is_found() -> None:
    """Red speaks for the wrong class, green and blue against it: red stays, the others go dark, at every phase."""
    w = 0.01 * torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, SIZE, SIZE)
    x, y = kit.grey_images(8, SIZE), torch.zeros(8, dtype=torch.long)
    expected = x * torch.tensor([1.0, 0.3 ** (1 / GAMMA), 0.3 ** (1 / GAMMA)])[:, None, None]
    x_adv, oracle = kit.attack_with(RollingShutter(steps=30, step=0.1, phases=3), scores(w, 5.0), x, y, l0(1.0))
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-4)
    assert oracle.ledger.forwards.tolist() == [90] * 8
    assert oracle.ledger.backwards.tolist() == [90] * 8
    towards, _ = kit.attack_with(RollingShutter(steps=30, step=0.1, target=0), scores(w, 5.0), x, y, l0(1.0))
    expected = x * torch.tensor([0.3 ** (1 / GAMMA), 1.0, 1.0])[:, None, None]
    torch.testing.assert_close(towards, expected, rtol=0, atol=1e-4)
    mono, _ = kit.attack_with(RollingShutter(steps=30, step=0.1, colour=False), scores(w, 5.0), x, y, l0(1.0))
    torch.testing.assert_close(mono, x * 0.3 ** (1 / GAMMA), rtol=0, atol=1e-4)
    with pytest.raises(NotApplicable, match="no class"):
        kit.attack_with(RollingShutter(target=2), scores(w, 5.0), x, y, l0(1.0))


@pytest.mark.parametrize("light", [0.3, 1.0])
def test_rows_have_one_gain_within_what_the_light_allows(light: float) -> None:
    model, x = kit.cnn_model().double(), kit.grey_images(6, 16).double()
    y = model(x).argmax(1)
    x_adv, _ = kit.attack_with(RollingShutter(light=light, steps=8), model, x, y, l0(1.0))
    gain = (x_adv**GAMMA - DARK) / (1 - DARK) / x**GAMMA
    torch.testing.assert_close(gain, gain[..., :1].expand_as(gain), rtol=1e-6, atol=1e-9)
    assert float(gain.min()) >= 1 - light - 1e-6
    assert float(gain.max()) <= 1 + 1e-6
    assert float(gain[..., 0].std(dim=2).min()) > 0  # stripes


def test_with_less_than_all_pixels_a_band_is_lit() -> None:
    x = kit.grey_images(60, 16)
    y = torch.zeros(60, dtype=torch.long)
    w = signs(1, 16)
    x_adv, _ = kit.attack_with(RollingShutter(steps=2), scores(w, 5.0), x, y, l0(0.3))
    rows = changed(x_adv, x)
    assert bool((rows.all(dim=2) == rows.any(dim=2)).all())
    lit = rows.any(dim=2)
    assert lit.sum(1).tolist() == [4] * 60  # of 16
    first = lit.int().argmax(1)
    assert set(first.tolist()) == set(range(13))
    assert bool((lit == (torch.arange(16) - first[:, None]).clamp(-1, 4).remainder(5).lt(4)).all())
    nothing, _ = kit.attack_with(RollingShutter(steps=2), scores(w, 5.0), x, y, l0(0.05))
    assert torch.equal(nothing, x)


def test_an_optimised_signal_beats_a_random_one_at_phases_it_has_not_seen() -> None:
    model, x = victim()[0], kit.grey_images(32, 16).double()
    y = model(x).argmax(1)
    loss = {}
    for steps in (1, 30):
        attack = RollingShutter(steps=steps, step=0.05 if steps > 1 else 1e-9, light=1.0, phases=2)
        x_adv, _ = kit.attack_with(attack, model, x, y, l0(1.0))
        loss[steps] = ops.cross_entropy(model(x_adv), y)
    assert bool((loss[30] > loss[1]).double().mean() > 0.9)


# ----------------------------------------------------- figures of docs/replications: pytest -s -m slow prints them


@cache
def resnet20() -> tuple[Classifier, Tensor, Tensor, ImageSet]:
    """(published network, its first 64 rightly classified test images, their labels, 5,000 training images)"""
    if not (kit.data_folder() / "weights" / "resnet20-12fca82f.th").is_file():
        pytest.skip("needs the weights of the published ResNet-20")
    source = registry.build("dataset", "cifar10_jpeg")
    model = registry.build("model", "cifar_resnet20").build(num_classes=10, size=32).eval().requires_grad_(False)
    test, train = source.load("test"), source.load("train")
    x, y = test.pixels(slice(0, 128)), test.labels[:128]
    keep = (model(x).argmax(1) == y).nonzero().squeeze(1)[:64]
    return model, x[keep], y[keep], train.select(torch.arange(5000))


def held(model: Classifier, x_adv: Tensor, y: Tensor) -> int:
    return int((model(x_adv).argmax(1) == y).sum())


@pytest.mark.slow
def test_loap_on_resnet20() -> None:
    model, x, y, _ = resnet20()
    left: dict[tuple[int, str, int], int] = {}
    all_four = ("random", "random_search", "full_search", "greedy")
    for side, location, attempts in [
        *((8, at, 1) for at in ("fixed", *all_four)),
        *((4, at, 1) for at in all_four),
        *((3, at, 1) for at in all_four),
        (4, "random", 6),
        (4, "greedy", 6),
    ]:
        attack = LOAP(location=location, steps=40, attempts=attempts)
        x_adv, oracle = kit.attack_with(attack, model, x, y, l0(side**2 / 1024))
        left[side, location, attempts] = held(model, x_adv, y)
        passes = float((oracle.ledger.forwards + oracle.ledger.backwards).double().mean())
        print(f"{side}x{side} {location} x{attempts}: {left[side, location, attempts]} of 64 hold, {passes:.1f} passes")
    assert max(n for (side, _, _), n in left.items() if side == 8) <= 4
    for side, better in itertools.product((3, 4), ("greedy", "full_search", "random_search")):
        assert left[side, better, 1] < left[side, "random", 1]
    assert left[4, "greedy", 6] < left[4, "greedy", 1]


@pytest.mark.slow
def test_area_on_resnet20() -> None:
    model, x, y, train = resnet20()
    course: dict[bool, list[float]] = {True: [], False: []}
    draws = Draws(0, train.ids)
    for eps in (1 / 100, 1 / 20, 1 / 10, 1 / 5, 2 / 5, 1.0):
        for optimise in (True, False):
            attack = AreaPatch(optimise=optimise, steps=64, images=256)
            texture = attack.learn(Oracle(model, l0(eps), draws), train, l0(eps), draws)
            poses = [
                held(model, kit.attack_with(attack, model, x, y, l0(eps), seed, texture)[0], y) for seed in range(3)
            ]
            course[optimise].append(sum(poses) / 3)
            print(f"area {eps:.2f} {'learnt' if optimise else 'random'}: {poses} of 64 hold")
    for optimise in (True, False):
        assert course[optimise] == sorted(course[optimise], reverse=True)
    for mine, control in list(zip(course[True], course[False], strict=True))[1:4]:
        assert mine < control
    patch = AdversarialPatch(steps=64, images=256)
    picture = patch.learn(Oracle(model, l0(0.1), draws), train, l0(0.1), draws)
    poses = [held(model, kit.attack_with(patch, model, x, y, l0(0.1), seed, picture)[0], y) for seed in range(3)]
    print(f"one picture, area 0.10: {poses} of 64 hold")


@pytest.mark.slow
def test_rolling_shutter_on_resnet20() -> None:
    model, x, y, _ = resnet20()
    x, y = x[:32], y[:32]
    left: dict[str, list[int]] = {"colour": [], "mono": [], "random": []}
    for light in (0.3, 0.5, 0.7, 1.0):
        for name in left:
            attack = RollingShutter(light=light, colour=name != "mono", steps=12, step=0.15, phases=4)
            if name == "random":  # as random as the signal begins
                attack = replace(attack, steps=1, step=1e-9)
            x_adv, _ = kit.attack_with(attack, model, x, y, l0(1.0))
            left[name].append(held(model, x_adv, y))
            print(f"light {light} {name}: {left[name][-1]} of 32 hold", flush=True)
    for name in ("colour", "mono"):
        assert left[name] == sorted(left[name], reverse=True)
    assert all(mine < control for mine, control in zip(left["colour"], left["random"], strict=True))


# -------------------------------------------------------------------------------------------------------------- suite


def test_the_suite_names_a_control_and_every_method() -> None:
    suite = load_suite("patch_gtsrb")
    assert {board.track for board in suite.boards} == {"patch"}
    used = {registry.describe("attack", spec)["name"] for board in suite.boards for spec in board.attacks}
    assert {"loap", "adversarial_patch", "area_patch", "rolling_shutter"} <= used
    sweep = next(b for b in suite.boards if len(b.threats) > 1)
    assert {registry.describe("attack", spec)["optimise"] for spec in sweep.attacks} == {True, False}
