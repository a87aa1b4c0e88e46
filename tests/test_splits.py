"""Parts of a set: proportions, the clean budget, groups, digests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from siegebench.data import ImageSet, split_clean, stratified
from siegebench.errors import DataError

from .properties import quick, seeds


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
    share_of = data.labels.bincount(minlength=10).double() / n
    # each class is rounded to a whole number, and what all ten round together is spread in proportion
    assert bool(((got - share_of * count).abs() <= 0.5 + 10 * 0.5 * share_of + 1e-9).all())


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
