"""`$defense` on a board stands for the suite's key; boards that the key does not ask for are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from siegebench import registry, signatures
from siegebench.config import Suite, load_suite
from siegebench.errors import ConfigError
from siegebench.types import Defense
from tests import runs


def written(folder: Path, *boards: dict[str, Any], **keys: Any) -> str:
    return str(runs.suite(folder / "s.yaml", *boards, models=["byobnet_tiny"], **keys))


def board(**changes: Any) -> dict[str, Any]:
    return runs.board(measures=[], **changes)


def tracks(suite: Suite) -> list[str]:
    return [b.track for b in suite.boards]


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("defense", "jpeg", ["white_box", "query"]),
        ("defense", "fine_tuning", ["backdoor"]),
        ("attack", "apgd", ["white_box"]),
        ("attack", "hopskipjump", ["query"]),
        ("attack", "boundary", ["query"]),
        ("attack", "area_patch", ["patch"]),
        ("attack", "no_box", ["transfer"]),
        ("backdoor", "sig", ["backdoor"]),
        ("backdoor", "certifier_availability", ["certified"]),
        ("detector", "strip", ["input_detection"]),
        ("detector", "neural_cleanse", ["model_detection"]),
        ("theft", "jacobian", ["extraction"]),
        ("leak", "analytic", ["privacy"]),
        ("sharing", "clip", ["privacy"]),
    ],
)
def test_try_evaluates_an_entry_where_it_belongs(key: str, name: str, expected: list[str]) -> None:
    assert tracks(load_suite("try", [f"{key}={name}"])) == expected


def test_try_evaluates_every_entry_of_these_kinds() -> None:
    for key in ("attack", "defense", "backdoor", "detector", "theft", "leak", "sharing"):
        for name in registry.names(key):
            if "/" in name or None in [p["default"] for p in signatures.parameters(key, name).values()]:
                continue  # of another package, or with a parameter to choose
            card = registry.find(key, name)[0].card
            if card.family or not {"image", "any"} & {*card.takes}:
                continue
            if key == "theft" and card.control:
                continue  # one needs a pool of the victim's own data
            if key == "defense" and set(registry.build(Defense, name).tracks) == {"extraction"}:
                continue  # it changes answers only
            assert tracks(load_suite("try", [f"{key}={name}"])), name


def test_the_entry_stands_where_its_placeholder_stood(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, board(defenses=["none", "$defense"])), ["defense=jpeg", "defense.quality=30"])
    assert suite.boards[0].defenses == ["none", {"name": "jpeg", "quality": 30}]
    inside = {"kind": "adversarial", "attack": "$attack", "threat": {"norm": "linf", "eps": "8/255"}}
    nested = {"track": "input_detection", "detectors": ["strip"], "inputs": [inside], "threats": None}
    nested.pop("threats")
    other = written(tmp_path, board(attacks=["$attack"]), attack="pgd")
    assert load_suite(other).boards[0].attacks == ["pgd"]


def test_an_entry_that_stands_there_already_is_not_repeated(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, board(defenses=["none", "jpeg", "$defense"])), ["defense=jpeg"])
    assert suite.boards[0].defenses == ["none", "jpeg"]


def test_errors_name_the_line_of_a_board_behind_one_that_is_left_out(tmp_path: Path) -> None:
    boards = [board(attacks=["$attack"]), board(defenses=["$defense"], attacks=["fgsm", "pdg"])]
    name = written(tmp_path, *boards)
    line = 1 + Path(name).read_text().splitlines().index("  - pdg")
    with pytest.raises(ConfigError, match=rf"s\.yaml:{line}:\d+: unknown attack 'pdg'"):
        load_suite(name, ["defense=jpeg"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], r"s\.yaml:1:1: nothing to evaluate yet: give an entry, --set attack=NAME or --set defense=NAME$"),
        (["defense=jpg"], r"^--set defense=jpg: unknown defense 'jpg'\. Did you mean jpeg"),
        (["defense=jpeg", "defense.qualty=3"], r"^--set defense\.qualty=3: .* no parameter 'qualty'\. Did you mean"),
        (["detector=strip"], r"^--set detector=strip: detector is given, and no board of this suite says \$detector"),
        (["attack=square"], r"^--set attack=square: attack 'square' fits none of the boards of this suite"),
        (["defense=fine_tuning"], r"fits none of the boards"),
        (["defens=jpeg"], r"unknown key 'defens'\. Did you mean defense"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        load_suite(written(tmp_path, board(attacks=["$attack"]), board(defenses=["$defense"])), overrides)
