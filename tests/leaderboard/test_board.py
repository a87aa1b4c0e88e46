"""Boards: what splits them, what their entries are called, and that neither the order of rows nor torch is needed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from siegebench.leaderboard import export, rank
from siegebench.leaderboard.board import display, slug

from siegebench.cells import Result
from tests import rows as make
from tests.rows import attacked, named

from .boards import only, ranked_row


def test_boards_split_by_data_and_threat_but_not_by_training_set() -> None:
    other_eps = {**make.LINF, "eps": 4 / 255}
    other_data = {**make.DATA, "digest": "e" * 64}
    trained = {**make.DATA, "train_digest": "f" * 64}
    same = [attacked("autoattack", 90), *ranked_row("autoattack", 80, "trades", data=trained)]
    assert len(only(same).ranked) == 2
    more = [*same, attacked("autoattack", 95, threat=other_eps), attacked("autoattack", 95, data=other_data)]
    assert len(rank.boards(more)) == 3
    titles = [b.title for b in rank.boards(more) if b.facts["data hash"].startswith("d")]
    alike = "White box: linf 8/255 on shapes, data hash dddddddddddd"
    assert titles == ["White box: linf 4/255 on shapes", alike]


def test_names_tell_namesakes_apart() -> None:
    short, long = named("pgd", steps=10, alpha=0.1), named("pgd", steps=100, alpha=0.1)
    wrapped = named("eot", looks=5, attack=short)
    assert set(display([short, long, wrapped, None]).values()) == {
        "pgd (steps=10)",
        "pgd (steps=100)",
        "eot(pgd)",
        "none",
    }
    a, b = named("net", weights="a" * 30 + "1"), named("net", weights="a" * 30 + "2")
    assert len(set(display([a, b]).values())) == 2


def test_a_link_to_a_board_does_not_depend_on_namesakes() -> None:
    assert slug("input", "gtsrb", "net (epochs=3)", key=1) == slug("input", "gtsrb", "net", key=1)


def test_presets_are_called_by_their_names_if_all_of_a_kind_have_one() -> None:
    crown = {"name": "crown", "version": 1}
    assert set(display([{**crown, "widest": 512}, {**crown, "widest": 0}]).values()) == {"crown", "crown.crown_ibp"}
    assert "crown (widest=3)" in display([{**crown, "widest": 512}, {**crown, "widest": 3}]).values()
    nested = [{"name": "nab", "detector": None}, {"name": "nab", "detector": {"name": "scan", "dims": 64}, "side": 3}]
    assert "nab (detector=scan, side=3)" in display(nested).values()
    net = {"name": "verified_net", "version": 1, "recipe": {"epochs": 15}}
    nets = [{**net, "architecture": a, "sha256": a} for a in ("cnn_a", "resnet2b")]
    assert set(display(nets).values()) == {"verified_net.cnn_a", "verified_net.resnet2b"}
    # a preset that agrees in what differs, and departs from the entry in something else, is not its name
    row = {"name": "embedding_poisoning", "version": 1, "lr": 5.0, "keep_norm": True}
    rows = [{**row, "data_free": True}, {**row, "data_free": False}]
    assert set(display(rows).values()) == {"embedding_poisoning", "embedding_poisoning.with_data"}


def test_hashes_of_files_are_named_only_where_nothing_else_differs() -> None:
    net = {"name": "net", "version": 1, "architecture": "a", "sha256": "0" * 64}
    other = {**net, "sha256": "1" * 64}
    assert set(display([net, {**other, "architecture": "b"}]).values()) == {
        "net (architecture=a)",
        "net (architecture=b)",
    }
    assert all("sha256" in name for name in display([net, other]).values())


def shuffled(results: list[Result], seed: int) -> list[Result]:
    out = [Result.from_dict(json.loads(json.dumps(r.as_dict()))) for r in results]
    random.Random(seed).shuffle(out)
    return [*out, *out[:5]]  # a row may come twice


def test_the_order_of_rows_does_not_matter() -> None:
    results = make.everything()
    with make.controls(*make.PLANTED):
        boards, again = rank.boards(results), rank.boards(shuffled(results, 1))
        assert rank.uncaught_controls(results) == []
    assert boards == again
    assert export.as_json(boards) == export.as_json(again)
    assert len({b.id for b in boards}) == len(boards) == 6
    assert {k for b in boards for x in b.lines for k in x.keys} == {r.cell.key for r in results}


def test_nothing_here_imports_torch() -> None:
    code = """
import sys
from siegebench.leaderboard import export, page, rank, stats, tables, wandb_content, wandb_report, wandb_runs
from tests import rows
results = rows.everything()
boards = rank.boards(results)
page.render(boards, results), export.as_csv(boards), rank.uncaught_controls(results)
heavy = {"torch", "timm", "wandb", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
