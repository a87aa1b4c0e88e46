"""LOAP: the square finds its planted place, counts are exact, content moves along."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from siegebench.attacks.loap import LOAP, _most_promising, cut, largest_square, paste

from siegebench import ops
from siegebench.errors import NotApplicable
from tests import kit

from .patches import SIZE, box, changed, grey, held, hill, l0, resnet20, scores
from .planted import Recording

square = partial(LOAP, loss="margin")  # cross-entropy is flat where the planted models are sure


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
    model = Recording(scores(hill(10, 10), 1e3))
    x, y = grey(1)
    x_adv, _ = kit.attack_with(square(steps=30, step=0.02, stride=1), model, x, y, l0(16 / SIZE**2))
    whole, looks = model.seen[0::2], model.seen[1::2]
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
