"""The numerics that everything rests on, by property: projections, losses, random numbers, intervals, keys, splits."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from siegebench import ops
from siegebench.cells import Cell, canonical, eps_text, pack, rate, unpack
from siegebench.data import ImageSet, split_clean, stratified
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, DataError
from siegebench.threat import BALLS, TOLERANCE, ThreatModel, parse_number
from siegebench.train import augmented

quick = settings(max_examples=25, deadline=None)
norms = st.sampled_from(BALLS)
seeds = st.integers(0, 2**31)
SHAPE = (3, 4, 4)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------- projections


def in_ball(seed: int, n: int, norm: str, eps: float) -> Tensor:
    """Points of the ball, many of them on its boundary."""
    points = normal(seed, n, *SHAPE)
    scale = torch.rand(n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).mul(1.5).clamp(max=1)
    return points * ops.over(eps * scale / ops.size(points, norm), points)


@quick
@given(seed=seeds, norm=norms, eps=st.floats(1e-3, 30), stretch=st.floats(0.01, 100))
def test_projection_is_the_nearest_point_of_the_ball(seed: int, norm: str, eps: float, stretch: float) -> None:
    delta = normal(seed, 5, *SHAPE) * stretch
    out = ops.project_ball(delta, norm, eps)
    before, after = ops.size(delta, norm), ops.size(out, norm)
    inside = before <= eps
    assert torch.equal(out[inside], delta[inside])  # the identity inside
    torch.testing.assert_close(after[~inside], torch.full_like(after[~inside], eps))  # on the boundary outside
    torch.testing.assert_close(ops.project_ball(out, norm, eps), out)  # idempotent
    # the ball is convex: out is the nearest point if and only if no feasible point makes an acute angle
    for other in (in_ball(seed + k, 5, norm, eps) for k in range(4)):
        angle = ops.flat((delta - out) * (other - out)).sum(dim=1)
        assert (angle <= 1e-9 * (1 + before * eps)).all()


@quick
@given(seed=seeds, norm=norms)
def test_projection_takes_a_radius_for_each_sample(seed: int, norm: str) -> None:
    delta = normal(seed, 4, *SHAPE)
    eps = torch.tensor([0.0, 0.1, 1.0, 1000.0], dtype=torch.float64)
    out = ops.project_ball(delta, norm, eps)
    for i in range(4):
        torch.testing.assert_close(out[i : i + 1], ops.project_ball(delta[i : i + 1], norm, float(eps[i])))
    assert out[0].abs().max() == 0
    assert torch.equal(out[3], delta[3])


def test_l1_projection_against_hand_computed_points() -> None:
    delta = torch.tensor([[3.0, 1.0], [-3.0, 2.0], [0.2, -0.3], [5.0, 5.0]]).view(4, 1, 1, 2)
    expected = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.2, -0.3], [0.5, 0.5]]).view(4, 1, 1, 2)
    torch.testing.assert_close(ops.project_ball(delta, "l1", 1.0), expected)


@quick
@given(seed=seeds, count=st.integers(0, 16))
def test_l0_keeps_the_pixels_that_change_most(seed: int, count: int) -> None:
    delta = normal(seed, 3, *SHAPE)
    delta[0, 1:] = 0  # a pixel counts once, in however many channels it changes
    out = ops.project_ball(delta, "l0", count / 16)
    assert ops.size(out, "l0").tolist() == [count / 16] * 3
    assert torch.equal(ops.project_ball(out, "l0", count / 16), out)
    kept = (out != 0).any(dim=1)
    length = delta.square().sum(dim=1)
    assert torch.equal(out, delta * kept[:, None])
    for i in range(3 if 0 < count < 16 else 0):
        assert length[i][kept[i]].min() >= length[i][~kept[i]].max()


@quick
@given(seed=seeds, norm=norms, eps=st.floats(1e-3, 5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_projected_images_are_feasible(seed: int, norm: str, eps: float, dtype: torch.dtype) -> None:
    x = normal(seed, 4, *SHAPE).sigmoid().to(dtype)
    x[0], x[1] = x[0].round(), 0.0  # corners of the box
    threat = ThreatModel(norm=norm, eps=min(eps, 1.0) if norm == "linf" else eps)
    out = threat.project(x + 3 * normal(seed + 1, 4, *SHAPE).to(dtype), x)
    assert out.dtype == dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert (threat.size(out, x) <= threat.eps + TOLERANCE * max(1.0, threat.eps)).all()
    assert torch.equal(threat.project(x, x), x)


@quick
@given(seed=seeds, norm=norms)
def test_size_is_a_norm(seed: int, norm: str) -> None:
    a, b = normal(seed, 3, *SHAPE), normal(seed + 1, 3, *SHAPE)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    expected = torch.stack([torch.linalg.vector_norm(row, order) for row in a])
    torch.testing.assert_close(ops.size(a, norm), expected)
    torch.testing.assert_close(ops.size(-2 * a, norm), 2 * ops.size(a, norm))
    assert (ops.size(a + b, norm) <= ops.size(a, norm) + ops.size(b, norm) + 1e-12).all()


@quick
@given(seed=seeds, norm=norms)
def test_normalise_is_the_steepest_ascent_in_the_unit_ball(seed: int, norm: str) -> None:
    g = normal(seed, 3, *SHAPE)
    d = ops.normalise(g, norm)
    torch.testing.assert_close(ops.size(d, norm), torch.ones(3, dtype=torch.float64))
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    torch.testing.assert_close(ops.flat(g * d).sum(dim=1), ops.size(g, dual))
    torch.testing.assert_close(ops.normalise(7 * g, norm), d)


@pytest.mark.parametrize("norm", BALLS)
def test_normalise_leaves_a_zero_gradient_zero(norm: str) -> None:
    assert torch.equal(ops.normalise(torch.zeros(2, *SHAPE), norm), torch.zeros(2, *SHAPE))


# --------------------------------------------------------------------------------------------------------------- losses


def logits(seed: int, n: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return 3 * normal(seed, n, classes), torch.arange(n) % classes


@pytest.mark.parametrize("loss", [*ops.LOSSES.values(), lambda z, y: ops.targeted_dlr(z, y, (y + 1) % 5)])
@pytest.mark.parametrize("seed", range(3))
def test_losses_have_the_gradient_of_their_values(loss: Any, seed: int) -> None:
    z, y = logits(seed)
    assert torch.autograd.gradcheck(lambda z: loss(z, y), z.requires_grad_(True))


@quick
@given(seed=seeds, scale=st.floats(0.01, 1000), shift=st.floats(-1000, 1000))
def test_dlr_is_blind_to_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    z, y = logits(seed)
    target = (y + 2) % 5
    torch.testing.assert_close(ops.dlr(scale * z + shift, y), ops.dlr(z, y), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        ops.targeted_dlr(scale * z + shift, y, target), ops.targeted_dlr(z, y, target), rtol=1e-6, atol=1e-8
    )


@quick
@given(seed=seeds, shift=st.sampled_from([-1000.0, -5.0, 0.0, 5.0, 1000.0]))
def test_signs_say_misclassified(seed: int, shift: float) -> None:
    z, y = logits(seed)
    z = z + shift  # all negative, or all positive
    wrong = z.argmax(dim=1) != y
    assert torch.equal(ops.margin(z, y) > 0, wrong)
    assert torch.equal(ops.dlr(z, y) > 0, wrong)
    target = torch.where(wrong, z.argmax(dim=1), (y + 1) % 5)
    assert torch.equal(ops.targeted_dlr(z, y, target) > 0, wrong)


def test_dlr_against_hand_computed_values() -> None:
    z = torch.tensor([[4.0, 3.0, 1.0, -2.0], [3.0, 4.0, 1.0, -2.0]])
    y = torch.tensor([0, 0])
    torch.testing.assert_close(ops.dlr(z, y), torch.tensor([-1 / 3, 1 / 3]))
    # (z_t - z_y) / (z_1 - (z_3 + z_4) / 2) with t = 2
    torch.testing.assert_close(ops.targeted_dlr(z, y, torch.tensor([2, 2])), torch.tensor([-3 / 4.5, -2 / 4.5]))


@quick
@given(seed=seeds)
def test_cross_entropy_is_the_negative_log_softmax(seed: int) -> None:
    z, y = logits(seed)
    torch.testing.assert_close(ops.cross_entropy(z, y), z.logsumexp(dim=1) - z.gather(1, y[:, None])[:, 0])


@quick
@given(seed=seeds, name=st.sampled_from(sorted(ops.LOSSES)))
def test_losses_keep_samples_apart(seed: int, name: str) -> None:
    z, y = logits(seed)
    whole = ops.LOSSES[name](z, y)
    for i in range(len(z)):
        torch.testing.assert_close(ops.LOSSES[name](z[i : i + 1], y[i : i + 1]), whole[i : i + 1])


# ------------------------------------------------------------------------------------------------------- random numbers

KINDS = {
    "bits": lambda d, **k: d.bits((3, 2), **k),
    "uniform": lambda d, **k: d.uniform((3, 2), **k),
    "normal": lambda d, **k: d.normal((3, 3), **k),
    "sign": lambda d, **k: d.sign((3, 2), **k),
    "integers": lambda d, **k: d.integers(10, (3, 2), **k),
}


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**62), ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True),
    kind=st.sampled_from(sorted(KINDS)), step=st.integers(0, 10**6), data=st.data(),
)  # fmt: skip
def test_a_sample_draws_the_same_in_any_batch(seed: int, ids: list[int], kind: str, step: int, data: Any) -> None:
    draw = KINDS[kind]
    whole = Draws(seed, torch.tensor(ids))
    expected = draw(whole, step=step, purpose="p")
    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    assert torch.equal(draw(whole[order], step=step, purpose="p"), expected[order])
    assert torch.equal(draw(Draws(seed, torch.tensor(ids[:1])), step=step, purpose="p"), expected[:1])
    # a step for each sample: of any integer type, the same as one for all
    for dtype in (torch.int64, torch.int32):
        steps = torch.full((len(ids),), step, dtype=dtype)
        assert torch.equal(draw(whole, step=steps, purpose="p"), expected)
    mixed = torch.arange(len(ids)) + step
    alone = [draw(whole[i : i + 1], step=step + i, purpose="p") for i in range(len(ids))]
    assert torch.equal(draw(whole, step=mixed, purpose="p"), torch.cat(alone))
    # views keep the streams in step
    for name, view in VIEWS.items():
        assert torch.equal(draw(view(whole[order]), step=step), draw(view(whole), step=step)[order]), name


VIEWS = {"child": lambda d: d.child("restart", 3), "at": lambda d: d.at(5)}


def test_repeated_streams_stay_with_their_sample() -> None:
    whole = Draws(7, torch.tensor([4, 9, 2]))
    copies = whole.repeat(3)
    assert len(copies) == 9
    u = copies.uniform((5,)).view(3, 3, 5)
    for i in range(3):
        assert torch.equal(whole[i : i + 1].repeat(3).uniform((5,)), u[i])
    assert len({tuple(row) for row in u.view(9, 5).tolist()}) == 9


def test_streams_differ_by_seed_id_step_purpose_and_view() -> None:
    base = Draws(0, torch.arange(50))
    streams = {
        "base": base.uniform((20,)),
        "seed": Draws(1, torch.arange(50)).uniform((20,)),
        "ids": Draws(0, torch.arange(50, 100)).uniform((20,)),
        "step": base.uniform((20,), 1),
        "purpose": base.uniform((20,), purpose="x"),
        "child": base.child("x").uniform((20,)),
        "child of child": base.child("x").child("x").uniform((20,)),
        "child of two words": base.child("x", "x").uniform((20,)),
        "at 0": base.at(0).uniform((20,)),
        "at 1": base.at(1).uniform((20,)),
        "repeat": base.repeat(2).uniform((20,))[::2],
        "repeat, second": base.repeat(2).uniform((20,))[1::2],
    }
    names = list(streams)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            same = (streams[a] == streams[b]).double().mean()
            assert same < 0.01, f"{a} and {b} share numbers"
            # 1000 pairs: 4.5 standard deviations
            r = float(np.corrcoef(streams[a].flatten(), streams[b].flatten())[0, 1])
            assert abs(r) < 4.5 / math.sqrt(1000), f"{a} and {b} are correlated: {r:.3f}"


@pytest.mark.parametrize("listing", ["many ids", "many numbers", "many steps", "many looks"])
def test_numbers_have_their_distribution(listing: str) -> None:
    n = 20_000
    if listing == "many ids":
        d, shape, step = Draws(3, torch.arange(n)), (2,), 0
    elif listing == "many numbers":
        d, shape, step = Draws(3, torch.tensor([5])), (2 * n,), 0
    elif listing == "many steps":
        d, shape, step = Draws(3, torch.zeros(n, dtype=torch.long)), (2,), torch.arange(n)
    else:
        d, shape, step = Draws(3, torch.zeros(n, dtype=torch.long)).at(torch.arange(n)), (2,), 0
    u = d.uniform(shape, step).double().flatten().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    z = d.normal(shape, step).double().flatten().numpy()
    assert np.isfinite(z).all()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(z**2, stats.chi2(1).cdf).pvalue > 1e-3
    k = d.integers(7, shape, step).flatten().numpy()
    assert stats.chisquare(np.bincount(k, minlength=7)).pvalue > 1e-3
    assert stats.binomtest(int((d.sign(shape, step) > 0).sum()), 2 * n).pvalue > 1e-3
    # neighbours: in the batch, and within a sample
    for pairs in (u.reshape(-1, 2), np.stack([u[:-1], u[1:]], 1), np.stack([z[:-1], z[1:]], 1), z.reshape(-1, 2)):
        assert abs(np.corrcoef(pairs.T)[0, 1]) < 4.5 / math.sqrt(len(pairs))


def test_each_bit_is_fair() -> None:
    words = Draws(11, torch.arange(20_000)).bits(()).numpy().view(np.uint64)
    ones = [int(((words >> np.uint64(b)) & np.uint64(1)).sum()) for b in range(64)]
    assert max(abs(k - 10_000) for k in ones) < 4.5 * math.sqrt(20_000) / 2


def test_integers_follow_a_bound_for_each_sample() -> None:
    high = torch.tensor([[1], [2], [1000]])
    k = Draws(0, torch.arange(3)).integers(high, (5000,))
    assert (k >= 0).all()
    assert (k < high).all()
    assert k[0].max() == 0
    assert set(k[1].tolist()) == {0, 1}
    assert k[2].max() > 950


def test_order_is_a_permutation_that_follows_the_ids() -> None:
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    whole = Draws(5, torch.arange(200))
    order = whole.order("epoch 1")
    assert torch.equal(order.sort().values, torch.arange(200))
    assert torch.equal(ids[Draws(5, ids).order("epoch 1")], order)
    assert not torch.equal(order, whole.order("epoch 2"))
    assert abs(stats.spearmanr(order.numpy(), np.arange(200)).statistic) < 0.3


def test_fresh_draws_never_repeat() -> None:
    assert not torch.equal(Draws.fresh(3).uniform((4,)), Draws.fresh(3).uniform((4,)))


def test_draws_are_pinned() -> None:
    """The same numbers on every machine and in every version: rows are only comparable if these stay."""
    d = Draws(0, torch.tensor([0, 1, 2**40]))
    assert d.bits(()).tolist() == PINNED
    assert derive_seed(0, "weights") == PINNED_SEED


PINNED = [8566605904496744681, -3155827209401307569, -2921230109261393513]
PINNED_SEED = 2814583342760156037


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    d = Draws(0, torch.arange(10))
    for draw in KINDS.values():
        draw(d)
    d.order()
    assert torch.equal(before, torch.get_rng_state())


# --------------------------------------------------------------------------------------------------- intervals and keys


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 100_000), share=st.floats(0, 1))
def test_rate_is_the_wilson_interval(n: int, share: float) -> None:
    k = round(share * n)
    found = rate(k, n)
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert found["value"] == pytest.approx(k / n, abs=1e-6)
    assert found["low"] == pytest.approx(interval.low, abs=1e-6)
    assert found["high"] == pytest.approx(interval.high, abs=1e-6)
    assert found["n"] == n
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1


def test_rate_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one"):
        rate(0, 0)


@quick
@given(bits=st.lists(st.booleans(), max_size=70))
def test_packed_outcomes_come_back(bits: list[bool]) -> None:
    text = pack(bits)
    assert unpack(text, len(bits)).tolist() == bits
    assert json.loads(json.dumps(text)) == text
    assert pack(torch.tensor(bits, dtype=torch.bool)) == text
    assert len(text) == 4 * math.ceil(math.ceil(len(bits) / 8) / 3)


CELL: dict[str, Any] = {
    "track": "white_box",
    "data": {"name": "digits", "split": "test", "digest": "d" * 64, "classes": 10},
    "model": {"name": "net", "version": 1, "width": 8},
    "defense": {"name": "none", "version": 1},
    "attack": {"name": "eot", "version": 1, "looks": 20, "attack": {"name": "pgd", "version": 1, "steps": 20}},
    "threat": {"norm": "linf", "eps": 8 / 255, "access": "gradient", "queries": None},
    "seed": 0,
}
CHANGES: dict[str, Any] = {
    "track": "query",
    "data": {**CELL["data"], "digest": "e" * 64},
    "model": {**CELL["model"], "width": 9},
    "defense": None,
    "attack": {**CELL["attack"], "attack": {"name": "pgd", "version": 1, "steps": 21}},
    "measure": {"name": "masking", "version": 1},
    "backdoor": {"name": "badnets", "version": 1},
    "detector": {"name": "strip", "version": 1},
    "threat": {**CELL["threat"], "eps": 8.000001 / 255},
    "surrogates": [CELL["model"]],
    "adaptive": True,
    "seed": 1,
}


def shuffled(value: Any, order: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    items = [(k, shuffled(v, order)) for k, v in value.items()]
    order.shuffle(items)
    return dict(items)


@quick
@given(st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_the_order_of_its_parts(order: random.Random) -> None:
    assert Cell(**shuffled(CELL, order)).key == Cell(**CELL).key
    # a row survives JSON: floats keep every digit
    assert Cell.from_dict(json.loads(json.dumps(Cell(**CELL).as_dict()))).key == Cell(**CELL).key


def test_every_part_of_a_cell_changes_its_key() -> None:
    assert set(CHANGES) == {f.name for f in fields(Cell)}, "a new field of Cell needs a line in CHANGES"
    keys = {name: Cell(**{**CELL, name: value}).key for name, value in CHANGES.items()}
    assert len({Cell(**CELL).key, *keys.values()}) == len(CHANGES) + 1


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    assert canonical({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


@given(st.integers(1, 509).filter(lambda halves: halves != 255))  # 1/2 is written as such: an L2 budget
@quick
def test_eps_reads_as_a_fraction_and_back(halves: int) -> None:
    text = eps_text(halves / 510)
    assert text.endswith("/255")
    grey = float(text.removesuffix("/255"))
    assert grey == halves / 2


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), (" 1 / 2 ", 0.5), ("0.1", 0.1), (3, 3.0), ("1e-3", 1e-3)]
)
def test_numbers_are_read(text: Any, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", [True, None, "eight", "1/0", "", [1], "nan/2"])
def test_what_is_no_number_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        parse_number(text)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -0.1, 1.1])
def test_eps_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        ThreatModel(norm="linf", eps=eps)


# ------------------------------------------------------------------------------------------------------ splits of a set


def image_set(labels: Tensor, ids: Tensor | None = None, groups: Tensor | None = None, classes: int = 10) -> ImageSet:
    n = len(labels)
    images = torch.arange(n * 3 * 4, dtype=torch.int64).remainder(256).to(torch.uint8).view(n, 3, 2, 2)
    return ImageSet(images, labels, torch.arange(n) if ids is None else ids, classes, "set", groups)


def uneven(n: int, seed: int = 0) -> Tensor:
    """Labels 0..9, each with another share, none empty."""
    share = torch.arange(1, 11).double()
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.arange(10), torch.multinomial(share, n - 10, replacement=True, generator=g)])


@quick
@given(n=st.integers(60, 400), share=st.floats(0.05, 1), seed=seeds)
def test_a_stratified_part_keeps_the_proportions(n: int, share: float, seed: int) -> None:
    data = image_set(uneven(n))
    count = max(1, round(share * n))
    index = stratified(data, count, seed)
    assert len(index) == count
    assert torch.equal(index, index.unique())  # sorted, none twice
    got = data.labels[index].bincount(minlength=10).double()
    wanted = data.labels.bincount(minlength=10).double() * count / n
    assert (got - wanted).abs().max() <= 1.0 + 1e-9


@quick
@given(seed=seeds)
def test_a_part_does_not_depend_on_how_the_set_is_listed(seed: int) -> None:
    data = image_set(uneven(120))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    shuffled_set = data.select(order)
    whole = set(data.ids[stratified(data, 30, 1)].tolist())
    assert set(shuffled_set.ids[stratified(shuffled_set, 30, 1)].tolist()) == whole
    for a, b in zip(split_clean(data), split_clean(shuffled_set), strict=True):
        assert sorted(a.ids.tolist()) == sorted(b.ids.tolist())


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match="121 images requested, it has 120"):
        stratified(image_set(uneven(120)), 121, 0)


@quick
@given(n=st.integers(200, 1000), share=st.floats(0.02, 0.3), seed=seeds)
def test_the_clean_budget_is_held_out(n: int, share: float, seed: int) -> None:
    data = image_set(uneven(n))
    train, fit, val = split_clean(data, share, seed)
    ids = torch.cat([train.ids, fit.ids, val.ids])
    assert torch.equal(ids.sort().values, data.ids)  # disjoint, and nothing lost
    budget = max(20, round(share * n))
    assert len(fit) + len(val) == budget
    assert len(val) == round(0.2 * budget)
    for part in (train, fit, val):
        assert torch.equal(part.images, data.images[part.ids])
        assert torch.equal(part.labels, data.labels[part.ids])


@quick
@given(tracks=st.integers(60, 150), frames=st.integers(1, 8), seed=seeds)
def test_no_group_lies_on_both_sides_of_the_clean_budget(tracks: int, frames: int, seed: int) -> None:
    groups = torch.arange(tracks).repeat_interleave(frames)
    labels = uneven(tracks)[groups]
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    data = image_set(labels[order], groups=groups[order] * 7)
    train, fit, val = split_clean(data, seed=seed)
    assert len(train) + len(fit) + len(val) == len(data)
    held = set(torch.cat([fit.groups, val.groups]).tolist())
    assert not held & set(train.groups.tolist())
    assert len(held) == max(20, round(0.05 * tracks))


@quick
@given(seed=seeds)
def test_a_digest_sees_every_part(seed: int) -> None:
    data = image_set(uneven(20))
    i = seed % 20
    other = data.images.clone()
    other[i, 0, 0, 0] ^= 1
    label = data.labels.clone()
    label[i] = (label[i] + 1) % 10
    ids = data.ids.clone()
    ids[i] += 100
    changed = [
        ImageSet(other, data.labels, data.ids, 10, "set"),
        ImageSet(data.images, label, data.ids, 10, "set"),
        ImageSet(data.images, data.labels, ids, 10, "set"),
        ImageSet(data.images, data.labels, data.ids, 11, "set"),
        data.select(torch.arange(19)),
        data.select(torch.arange(19, -1, -1)),
    ]
    assert len({data.digest, *(c.digest for c in changed)}) == 7
    assert ImageSet(data.images, data.labels, data.ids, 10, "another name").digest == data.digest


# --------------------------------------------------------------------------------------------------------- augmentation


def shift_of(pad: int, draws: Draws, epoch: int) -> Tensor:
    return draws.integers(2 * pad + 1, (2,), epoch, "crop")


@quick
@given(seed=seeds, epoch=st.integers(0, 100), mirrored=st.booleans())
def test_augmentation_is_a_shifted_crop_of_the_padded_image(seed: int, epoch: int, mirrored: bool) -> None:
    x = normal(seed, 6, 3, 16, 16)
    draws = Draws(seed, torch.arange(6))
    out = augmented(x, "crop_flip" if mirrored else "crop", draws, epoch)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    flips = draws.uniform((), epoch, "flip") < 0.5
    for i, (top, left) in enumerate(shift_of(2, draws, epoch).tolist()):
        expected = padded[i, :, top : top + 16, left : left + 16]
        expected = expected.flip(2) if mirrored and bool(flips[i]) else expected
        assert torch.equal(out[i], expected)


def test_augmentation_reaches_every_shift_and_both_sides() -> None:
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(400, 3, 16, 16).contiguous()
    draws = Draws(0, torch.arange(400))
    out = augmented(x, "crop_flip", draws, 0)
    assert {tuple(s) for s in shift_of(2, draws, 0).tolist()} == {(i, j) for i in range(5) for j in range(5)}
    flipped = (out[:, 0, 0, 8] < out[:, 0, 0, 4]).double().mean()
    assert 0.4 < flipped < 0.6
    assert not torch.equal(out, augmented(x, "crop_flip", draws, 1))
    assert augmented(x, "none", draws, 0) is x


@quick
@given(seed=seeds)
def test_augmentation_does_not_depend_on_the_batch(seed: int) -> None:
    x, draws = normal(seed, 6, 3, 8, 8), Draws(seed, torch.arange(6))
    whole = augmented(x, "crop_flip", draws, 3)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(augmented(x[order], "crop_flip", draws[order], 3), whole[order])
