"""The worst class and the worst group, of the outcomes under all attacks together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from siegebench.leaderboard.subgroups import LEAST

from siegebench.cells import Result, bits
from tests.rows import N, attacked, checked

from .boards import only

CLASS = np.arange(N) % 5  # 40 images each


def labelled(row: Result, labels: Any = CLASS, part: str = "label", **given: Any) -> Result:
    row.samples |= bits(part, labels)
    row.given = given
    return checked(row)


def two_attacks(labels: Any = CLASS, **more: Any) -> list[Result]:
    """Class 3 survives each of two attacks in half of its images, and both together never."""
    rows = []
    for k, attack in enumerate(("autoattack", "pgd")):
        kept = np.ones(N, dtype=bool)
        of_class = np.flatnonzero(CLASS == 3)
        kept[of_class[k::2]] = False
        rows.append(labelled(attacked(attack, kept, clean=N), labels, **more))
    return rows


def test_numbers_survive_being_packed_bit_by_bit() -> None:
    for values in (np.arange(N) % 43, np.zeros(N, dtype=int), torch.arange(N) * 7):
        row = labelled(attacked("pgd", 10), values)
        assert np.array_equal(row.whole("label"), np.asarray(values))  # type: ignore[arg-type]
    assert attacked("pgd", 10).whole("label") is None
    assert len([s for s in labelled(attacked("pgd", 10)).samples if s.startswith("label@")]) == 3


def test_the_worst_class_is_that_of_the_joint_outcomes() -> None:
    names = {"data": {"name": "shapes", "classes": ["a", "b", "c", "d", "e"]}}
    for given, told in (({}, "3"), (names, "d"), ({"data": {"classes": "odd"}}, "3")):
        board = only(two_attacks(**given))
        entry = board.lines[0]
        assert entry.texts["worst_class"] == told
        found = entry.number("worst_class_acc")
        assert (found.value, found.n, len(found.keys)) == (0.0, 40, 2)
        assert entry.value("robust_acc") == 0.8
        assert entry.value("worst_class_clean") == 1.0
        assert 0.6 < (entry.value("worst_class_equal") or 0) < 0.8
        uneven = [f for f in entry.flags if f.id == "uneven_classes"]
        assert [f.severity for f in uneven] == ["info"]
        assert f"class {told}" in uneven[0].evidence
        assert entry.rank == (1, 1), "it never ranks"
        assert {"worst_class", "worst_class_acc"} <= {c.id for c in board.columns}


def test_alike_classes_raise_no_flag_although_one_is_the_lowest() -> None:
    kept = np.random.default_rng(3).random(N) < 0.6
    entry = only([labelled(attacked("autoattack", kept, clean=N))]).lines[0]
    assert (entry.value("worst_class_acc") or 1) < (entry.value("robust_acc") or 0)
    assert not entry.flags


def test_rows_of_earlier_versions_leave_the_columns_empty() -> None:
    board = only([attacked("autoattack", 100)])
    assert not [c for c in board.columns if c.id.startswith("worst_") and c.id != "worst_attack"]
    old, new = attacked("autoattack", 100, clean=N), labelled(attacked("pgd", 90, clean=N))
    assert only([old, new]).lines[0].texts["worst_class"] in "01234"


def test_small_classes_are_left_out() -> None:
    few = np.where(np.arange(N) < LEAST - 1, 1, 0)
    assert "worst_class" not in only([labelled(attacked("autoattack", 100), few)]).lines[0].texts
    few[LEAST - 1] = 1
    entry = only([labelled(attacked("autoattack", np.arange(N) >= LEAST, clean=N), few)]).lines[0]
    assert (entry.texts["worst_class"], entry.value("worst_class_acc")) == ("1", 0.0)


def test_the_worst_group_where_the_data_has_groups() -> None:
    group = np.arange(N) // 100
    entry = only([labelled(attacked("autoattack", np.arange(N) >= 60, clean=N), group, "group")]).lines[0]
    assert (entry.texts["worst_group"], entry.value("worst_group_acc")) == ("0", 0.4)
    assert "worst_class" not in entry.texts
    assert {f.id for f in entry.flags} == {"uneven_groups"}


def test_a_label_of_a_stranger_is_not_believed_to_be_small() -> None:
    row = attacked("autoattack", 100)
    row.samples |= {"label@31": row.samples["robust"], "label@999999": row.samples["robust"]}
    entry = only([checked(row)]).lines[0]
    assert entry.texts["worst_class"] == f"{1 << 31}" or entry.texts["worst_class"] == "0"


def test_balanced_accuracies_of_unequal_classes() -> None:
    unequal = (np.arange(N) < 40).astype(int)  # class 1 has 40 images, class 0 all others
    kept = np.arange(N) >= 20  # half of class 1 is lost
    board = only([labelled(attacked("autoattack", kept, clean=N), unequal)])
    entry = board.lines[0]
    assert entry.value("balanced_robust") == 0.75
    assert entry.value("balanced_clean") == 1.0
    assert {"balanced_robust", "balanced_clean"} <= {c.id for c in board.columns}
    assert "balanced_robust" not in {c.id for c in only(two_attacks()).columns}, "equal classes: it is the accuracy"
    rare = (np.arange(N) < LEAST - 1).astype(int)
    assert "balanced_robust" not in {c.id for c in only([labelled(attacked("autoattack", kept), rare)]).columns}


def test_entries_alike_on_clean_images_are_compared_under_attack() -> None:
    unequal = (np.arange(N) < 40).astype(int)
    rows = []
    for model, lost, clean in (("small", 20, N), ("large", 40, N), ("weak", 0, np.arange(N) >= 10)):
        robust = (np.arange(N) >= lost) & (np.ones(N, dtype=bool) if isinstance(clean, int) else clean)
        rows.append(labelled(attacked("autoattack", robust, clean=clean, model=model), unequal))
    found = [note for note in only(rows).notes if "balanced" in note]
    assert len(found) == 1
    assert "small" in found[0]
    assert "large" in found[0]
    assert "weak" not in found[0], "its clean accuracy is lower by 12.5 points"
    assert "by 25.0 points" in found[0]
