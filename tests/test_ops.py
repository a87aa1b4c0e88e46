"""Projections and losses by property: nearest points, steepest ascent, gradients of their values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from siegebench import ops
from siegebench.threat import BALLS

from .properties import SHAPE, normal, norms, quick, seeds


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


def by_bisection(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest point of the L1 ball around x and the box: its threshold by bisection."""
    delta = (point - x).flatten(1)
    room = torch.where(point > x, 1 - x, x).flatten(1)

    def shrunk(t: Tensor) -> Tensor:
        return torch.minimum((delta.abs() - t[:, None]).clamp(min=0), room)

    low, high = torch.zeros(len(x), dtype=x.dtype), delta.abs().amax(dim=1)
    for _ in range(200):
        middle = (low + high) / 2
        far = shrunk(middle).sum(dim=1) > eps
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    short = shrunk(torch.zeros_like(low)).sum(dim=1) <= eps
    return x + (delta.sign() * shrunk(torch.where(short, 0.0, high))).view_as(x)


@quick
@given(seed=seeds, eps=st.floats(0, 60), stretch=st.floats(0.01, 10))
def test_l1_projection_in_the_box_is_the_nearest_point_of_both(seed: int, eps: float, stretch: float) -> None:
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:2] = x[:2].round()  # at the border of the box
    point = x + normal(seed, 6, *SHAPE) * stretch
    out = ops.project_l1(point, x, eps)
    torch.testing.assert_close(out, by_bisection(point, x, eps), rtol=0, atol=1e-9)
    assert bool(((out >= 0) & (out <= 1)).all())
    assert bool((ops.size(out - x, "l1") <= eps * (1 + 1e-12)).all())
    torch.testing.assert_close(ops.project_l1(out, x, eps), out)  # idempotent
    # both sets are convex: out is the nearest point if and only if no feasible point makes an acute angle
    for k in range(4):
        other = (x + in_ball(seed + k, 6, "l1", eps)).clamp(0, 1)
        assert bool((ops.flat((point - out) * (other - out)).sum(dim=1) <= 1e-9 * (1 + stretch * eps)).all())
    some = torch.tensor([0.0, 0.5, 2.0, 8.0, 30.0, 1e6], dtype=torch.float64)
    each = torch.cat([ops.project_l1(point[i : i + 1], x[i : i + 1], float(some[i])) for i in range(6)])
    torch.testing.assert_close(ops.project_l1(point, x, some), each)


@pytest.mark.parametrize("eps", [0.5, 1.0, 12.0, 255.0])
def test_l1_projection_of_large_float32_images_keeps_the_budget(eps: float) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 96, 96, generator=g)
    x[:1] = x[:1].round()
    for stretch in (0.01, 1.0):
        point = x + stretch * torch.randn(x.shape, generator=g)
        for out in (ops.project_l1(point, x, eps), ops.project(point, x, "l1", eps)):
            assert float((out - x).double().abs().flatten(1).sum(dim=1).max()) <= eps * (1 + 2e-7)
        used, most = ops.size(ops.project_l1(point, x, eps) - x, "l1"), ops.size(point.clamp(0, 1) - x, "l1")
        assert bool((used >= most.clamp(max=eps) - 1e-3 * min(eps, 1.0)).all())  # rounding towards x wastes little


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


def ssim_by_hand(x: Tensor, z: Tensor, side: int) -> float:
    """The definition, one window after the other, in float64."""
    at = torch.arange(side, dtype=torch.float64) - side // 2
    w = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    w = w / w.sum()
    found = []
    for channel in range(x.shape[0]):
        for i in range(x.shape[1] - side + 1):
            for j in range(x.shape[2] - side + 1):
                a, b = (v[channel, i : i + side, j : j + side].double() for v in (x, z))
                ma, mb = (w * a).sum(), (w * b).sum()
                va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
                top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                found.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return float(torch.stack(found).mean())


@pytest.mark.parametrize(("shape", "side"), [((3, 14, 12), 11), ((1, 13, 13), 11), ((3, 8, 9), 7), ((3, 1, 5), 1)])
def test_ssim_is_its_definition(shape: tuple[int, ...], side: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, *shape, generator=g)
    z = (x + 0.2 * torch.randn(x.shape, generator=g)).clamp(0, 1)
    z[2] = 1 - x[2]
    expected = [ssim_by_hand(*pair, side) for pair in zip(x, z, strict=True)]
    assert ops.ssim(x, z).tolist() == pytest.approx(expected, abs=1e-4)
    assert ops.ssim(x, x).tolist() == [1.0] * 3
    torch.testing.assert_close(ops.ssim(x, z), ops.ssim(z, x))
    assert float(ops.ssim(x[:0], z[:0]).numel()) == 0


def test_ssim_of_constant_images_is_their_luminance() -> None:
    x, z = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ops.ssim(x, z)) == pytest.approx(expected, abs=1e-5)
