"""Skeletons and films: windows of recordings, brought lengths, moved pictures; and the networks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from siegebench import registry
from siegebench.data import EVENTS, PLANAR, SEQUENCE
from siegebench.errors import DataError
from siegebench.types import DataSource, ModelSource
from tests import kit


def recordings(folder: Path) -> Path:
    """Three recordings of 40, 12 and 700 frames; frame k of the file has all joints at k / 1000 units."""
    lengths = [40, 12, 700]
    frames = np.arange(sum(lengths), dtype=np.int16)
    path = folder / "motions.npz"
    np.savez(
        path, positions=np.broadcast_to(frames[:, None, None], (len(frames), 28, 3)).copy(),
        starts=np.cumsum([0, *lengths]), labels=np.array([0, 1, 1]), test=np.array([False, True, False]),
        classes=np.array(["run", "walk"]),
    )  # fmt: skip
    return path


def test_windows_stay_inside_their_recording(tmp_path: Path) -> None:
    source = registry.build(DataSource, {"name": "cmu_mocap", "file": str(recordings(tmp_path)), "frames": 12})
    train, test = source.load("train"), source.load("test")
    assert train.kind == test.kind == SEQUENCE
    assert train.shape == (3, 12, 28)
    assert test.ids.tolist() == [40]
    # every 8th frame of the short recording, every 16th of the long one
    assert train.ids.tolist() == [*range(0, 29, 8), *range(52, 52 + 700 - 11, 16)]
    assert train.groups is not None
    assert train.groups.tolist() == [0 if i < 40 else 2 for i in train.ids.tolist()]
    assert train.labels.tolist() == [0 if i < 40 else 1 for i in train.ids.tolist()]
    first = train.pixels(slice(1, 2))[0, 0, :, 0]
    torch.testing.assert_close(first, ((8 + torch.arange(12)) / 1000 / 20 + 1) / 2)


def test_sequences_are_brought_to_one_length(tmp_path: Path) -> None:
    path, t = tmp_path / "films.npz", np.concatenate([np.linspace(0, 1, n) for n in (5, 9)]).astype(np.float32)
    xy = np.broadcast_to(t[:, None, None], (14, 15, 2)).copy()
    parts = {f"{s}_{k}": v for s in ("train", "test") for k, v in (
        ("xy", xy), ("frames", np.array([5, 9])), ("label", np.array([0, 1])))}  # fmt: skip
    np.savez(path, names=np.array(["sit", "run"]), **parts)
    data = registry.build(DataSource, {"name": "jhmdb", "file": str(path), "frames": 17}).load("train")
    assert data.kind == PLANAR
    expected = torch.linspace(0, 1, 17) / 6 + 0.5
    torch.testing.assert_close(data.pixels(), expected.view(1, 1, 17, 1).expand(2, 2, 17, 15))


def test_a_missing_file_is_named_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIEGEBENCH_DATA", raising=False)
    with pytest.raises(DataError, match=r"no file extra/cmu_mocap_actions\.npz; write `file: PATH`, or set SIEGE"):
        registry.build(DataSource, "cmu_mocap").load("train")
    (tmp_path / "other.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="expected the arrays train_xy, train_frames"):
        registry.build(DataSource, {"name": "jhmdb", "file": str(tmp_path / "other.npz")}).load("train")


@pytest.mark.parametrize(("name", "counts"), [("cmu_mocap", (1409, 371)), ("jhmdb", (433, 176))])
def test_published_files_have_the_stated_counts(name: str, counts: tuple[int, int]) -> None:
    source = registry.build(DataSource, name)
    try:
        train, test = source.load("train"), source.load("test")
    except DataError as reason:
        pytest.skip(str(reason))
    assert (len(train), len(test)) == counts
    if train.groups is not None and test.groups is not None:
        assert not set(train.groups.tolist()) & set(test.groups.tolist())


def test_a_moved_bar_makes_events_at_its_edges(tmp_path: Path) -> None:
    pictures = np.zeros((4, 8, 8), dtype=np.uint8)
    pictures[:, :, 4:] = 255  # bright on the right: it moves to the left and back
    np.savez(tmp_path / "bars.npz", x=pictures, y=np.array([0, 1, 0, 1]))
    spec = {"name": "saccades", "set": {"name": "arrays", "file": str(tmp_path / "bars.npz")}, "size": None}
    data = registry.build(DataSource, {**spec, "frames": 3, "reach": 2}).load("test")
    assert data.kind == EVENTS
    assert data.shape == (1, 2 * 3 * 8, 8)
    film = data.images.view(4, 3, 2, 8, 8)[0].bool()
    # out by 2 columns, by 2 more, and back by 4
    moves = [(0, [2, 3]), (0, [0, 1]), (1, [0, 1, 2, 3])]
    for frame, (polarity, columns) in zip(film, moves, strict=True):
        assert frame[polarity].any(dim=0).nonzero().flatten().tolist() == columns
        assert frame[polarity].all(dim=0).nonzero().flatten().tolist() == columns
        assert not frame[1 - polarity].any()


@pytest.mark.parametrize("name", ["temporal_cnn", "graph_cnn", "dd_net"])
def test_networks_take_two_and_three_dimensions(name: str) -> None:
    source = registry.build(ModelSource, name)
    for channels in (2, 3):
        model = source.built(5, (16, 6), channels)
        x = joints(channels)
        assert model(x).shape == (2, 5)


def joints(channels: int) -> torch.Tensor:
    return kit.grey_images(2, 16)[:, :1, :, :6].expand(-1, channels, -1, -1) * torch.linspace(0.5, 1, 6)
