"""Maps from mitsuba, against mitsuba's own pictures; skipped where the extra is not installed."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest
import torch

from siegebench.errors import MissingExtra
from siegebench.render import mitsuba_maps
from siegebench.render.compose import compose, encoded
from siegebench.render.scenes import draw, procedural, render

SCENE = draw("train", [10])[0]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    mitsuba_maps.variant.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'siegebench\[render\]'"):
        mitsuba_maps.render(SCENE.mesh, SCENE.pose, SCENE.sun, procedural(0, 16, 16))


def test_a_variant_that_ends_its_process_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        """As Dr.Jit aborts."""
        return subprocess.CompletedProcess(command, -6)

    monkeypatch.setattr(mitsuba_maps, "version", lambda: "3.9.1")
    monkeypatch.setattr(mitsuba_maps.subprocess, "run", run)
    mitsuba_maps.variant.cache_clear()
    assert mitsuba_maps.variant() == "scalar_rgb"
    mitsuba_maps.variant.cache_clear()


@pytest.fixture
def scalar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variant that works everywhere, without trying others."""
    pytest.importorskip("mitsuba")
    monkeypatch.setattr(mitsuba_maps, "variant", lambda: "scalar_rgb")


@pytest.mark.usefixtures("scalar")
def test_composing_agrees_with_the_picture_that_mitsuba_renders() -> None:
    mesh, pose, sun, size = SCENE.mesh, SCENE.pose, SCENE.sun, (40, 40)
    maps = mitsuba_maps.render(mesh, pose, sun, None, size=size, ss=4, spp=24)
    texture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = encoded(mitsuba_maps.textured(mesh, pose, sun, texture, 2.0, size, spp=1024))
    error = (compose(maps, texture, 2.0)[0] - expected).square()
    car = maps.vehicle[0] > 0
    assert -10 * error.mean().log10() > 40
    assert -10 * error[:, car].mean().log10() > 37


@pytest.mark.usefixtures("scalar")
def test_the_rasteriser_is_near_to_mitsuba() -> None:
    photo = procedural(3, 32, 32)
    own = render(SCENE.mesh, SCENE.pose, SCENE.sun, photo)
    traced = mitsuba_maps.render(SCENE.mesh, SCENE.pose, SCENE.sun, photo, spp=8)
    assert torch.equal(own.paint, traced.paint)
    assert torch.equal(own.vehicle, traced.vehicle)
    white = torch.ones(3, 1, 1)
    inside = own.paint[0] > 0.99
    one, two = (compose(maps, white, 2.0)[0].mean(0)[inside].double().numpy() for maps in (own, traced))
    assert np.corrcoef(one, two)[0, 1] > 0.8
    assert abs(one.mean() - two.mean()) < 0.12  # a coat absorbs some light in mitsuba
    far = own.vehicle[0] == 0
    assert (compose(own, white, 2.0) - compose(traced, white, 2.0))[0, :, far].abs().mean() < 0.03


def test_faces_are_written_with_their_coordinates(tmp_path: Any) -> None:
    mesh = SCENE.mesh
    part = mesh.names.index("paint")
    mitsuba_maps._write_ply(tmp_path / "a.ply", mesh, part, 2.0)
    content = (tmp_path / "a.ply").read_bytes()
    count = int((mesh.part == part).sum())
    assert f"element face {count}".encode() in content
    body = content.split(b"end_header\n", 1)[1]
    assert len(body) == 3 * count * 5 * 4 + count * 13
