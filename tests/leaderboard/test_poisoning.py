"""Boards of poisoned training sets: means over seeds, then poisons; incomplete entries are not ranked."""

from __future__ import annotations

import pytest

from siegebench.cells import Cell, Result, pack, rate
from siegebench.tracks.poisoning import recovery
from tests.rows import DATA, N, broken, checked, named, outcome

from .boards import line, only


def row(defense: str, poison: str, right: int, *, seed: int = 0, share: float = 0.4) -> Result:
    """A finished row: `right` of N test images are correct."""
    clean = outcome(right)
    return checked(Result(
        cell=Cell(
            track="poisoning", data=DATA, model={**named("resnet"), "train_seed": seed}, defense=named(defense),
            backdoor=named(poison, rate=share), seed=seed,
        ),
        metrics={
            "ca": rate(right, N), "ca_undefended": rate(100, N), "ca_clean_model": rate(190, N),
            "ca_defense_clean": rate(180, N), "recovery": {"value": recovery(right / N, 100 / N, 180 / N)},
            "damage": {"value": (190 - right) / N},
        },
        samples={"n": N, "clean": pack(clean)},
    ))  # fmt: skip


def test_defenses_are_ranked_by_clean_accuracy_over_poisons() -> None:
    board = only([
        *(row("none", p, 100, seed=s) for p in ("unlearnable", "label_flipping") for s in (0, 1)),
        row("pgd_at", "unlearnable", 170), row("pgd_at", "unlearnable", 160, seed=1),
        *(row("pgd_at", "label_flipping", 100, seed=s) for s in (0, 1)),
    ])  # fmt: skip
    assert [x.names["defense"] for x in board.ranked] == ["pgd_at", "none"]
    best = line(board, "pgd_at")
    assert best.value("ca") == pytest.approx((165 + 100) / 2 / N)
    assert best.value("worst_ca") == pytest.approx(0.5)
    assert best.value("ca:unlearnable") == pytest.approx(165 / N)
    assert best.value("recovery") == pytest.approx((65 / 80 + 0) / 2)
    assert line(board, "none").value("recovery") == 0
    assert best.value("seeds") == 2
    assert board.primary == "ca"


def test_a_defense_must_face_every_poisoned_set() -> None:
    both = [row("none", p, 100) for p in ("unlearnable", "label_flipping")]
    half = row("jpeg", "unlearnable", 150)
    assert line(only([*both, half]), "jpeg").reasons == (
        "not measured on every poisoned set of the board: label_flipping",
    )
    failed = broken(row("jpeg", "label_flipping", 100))
    assert any("CUDA went away" in reason for reason in line(only([*both, half, failed]), "jpeg").reasons)


def test_recovery_compares_with_the_same_defense_on_clean_data() -> None:
    assert recovery(0.9, 0.5, 0.9) == 1
    assert recovery(0.5, 0.5, 0.9) == 0
    assert recovery(0.3, 0.5, 0.9) == pytest.approx(-0.5)
    assert recovery(0.6, 0.6, 0.4) == 0  # nothing was lost: nothing to win back
