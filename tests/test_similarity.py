"""Rows of attacks hold the mean similarity of clean and adversarial images, of the successes only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from siegebench.leaderboard import rank

from siegebench import api, ops
from siegebench.config import load_suite
from siegebench.data import subset
from siegebench.registry import build
from siegebench.tracks import attacking
from siegebench.types import DataSource
from siegebench.workspace import Settings
from tests import runs


def test_similarity_is_of_the_successes_among_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacking, "COMPARED", 20)
    data = subset(build(DataSource, "digits").load("test"), 40)
    threats = [{"norm": "linf", "eps": "64/255"}, {"norm": "linf", "eps": 1e-6}]
    with runs.known(tmp_path / "site", monkeypatch):
        path = runs.suite(tmp_path / "s.yaml", runs.board(attacks=["fgsm"], threats=threats))
        outcome = api.run(load_suite(str(path)), Settings(root=str(tmp_path / "store"), threads=1), how="serial")
    assert not outcome.failed
    wide, narrow = sorted((r for r in outcome.results if r.cell.attack), key=lambda r: -r.cell.threat["eps"])
    assert "ssim" not in narrow.metrics  # nothing succeeded
    value = wide.value("ssim")
    assert value is not None
    assert 0 < value < 0.999
    x = data.pixels()
    noise = ops.ssim(x, (x + 64 / 255 * torch.randn(x.shape).sign()).clamp(0, 1)).mean()
    assert value == pytest.approx(float(noise), abs=0.35)
    (board,) = [b for b in rank.boards([wide]) if b.track == "white_box"]
    assert board.lines[0].value("ssim") == pytest.approx(value)
    assert any(c.id == "ssim" and not c.main for c in board.columns)
