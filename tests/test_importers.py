"""Published figures: read from files of other benchmarks, shown beside measured numbers, and ranked by nobody."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from siegebench.leaderboard import export, rank

import siegebench as sb
from siegebench import published
from siegebench.errors import ConfigError, MissingExtra
from siegebench.importers import Known, figures
from siegebench.reporting import report
from siegebench.store import Store
from tests import rows, runs
from tests.strangers import EVIL

FILES = Path(__file__).parent / "published_files"  # written by hand, see its README
ROBUSTBENCH = FILES / "cifar10" / "Linf" / "Nobody2026Written.json"
CIFAR = {**rows.DATA, "name": "cifar10"}


def read(format_: str, path: Path, **known: str) -> list[tuple[str, str, float]]:
    return [(f.entry, f.metric, f.value) for f in figures(format_, path, Known(**known))]


def test_robustbench() -> None:
    assert read("robustbench", ROBUSTBENCH) == [
        ("Nobody2026Written", "clean_acc", 0.841),
        ("Nobody2026Written", "robust_acc", 0.552),
        ("Nobody2026Written", "robust_acc", 0.6),
    ]
    figure = figures("robustbench", ROBUSTBENCH)[1]
    assert (figure.norm, figure.eps, figure.data, figure.track) == ("linf", 8 / 255, "cifar10", "white_box")
    assert (figure.attack, figure.status) == ("AutoAttack", "claimed")
    assert figure.source == "RobustBench, Nobody2026Written.json"
    assert figure.paper.startswith("A Hand-Written File for the Tests; Nobody; ")


def test_backdoorbench_takes_the_last_epoch() -> None:
    known = {"data": "gtsrb", "backdoor": "badnets", "defense": "fine_tuning"}
    assert read("backdoorbench", FILES / "attack_df.csv", **known) == [
        ("fine_tuning", "ca", 0.92), ("fine_tuning", "asr", 0.03), ("fine_tuning", "ra", 0.88)
    ]  # fmt: skip


def test_attackbench() -> None:
    found = figures("attackbench", FILES / "standard_linf.json")
    assert [(f.entry, f.metric, f.value, f.norm) for f in found] == [
        ("Tests HandWritten", "asr", 0.97, "linf"), ("Tests HandWritten", "optimality", 0.91, "linf")
    ]  # fmt: skip
    assert "on standard, perturbations of any size" in found[0].note


def test_lm_eval_and_what_is_exported_in_its_form(tmp_path: Path) -> None:
    (figure,) = figures("lm_eval", FILES / "results.json")
    assert (figure.entry, figure.data, figure.metric, figure.value, figure.stderr) == (
        "a task", "hand_written_task", "acc", 0.55, 0.01
    )  # fmt: skip
    boards = rank.boards([rows.attacked("autoattack", 90), rows.attacked("pgd", 100)])
    path = tmp_path / "export.json"
    path.write_text(export.as_lm_eval(boards))
    value = json.loads(path.read_text())
    (task,) = value["results"]
    assert task == f"{boards[0].id}/resnet / none"
    assert value["results"][task]["robust_acc,none"] == 0.45
    assert value["results"][task]["robust_acc_stderr,none"] == pytest.approx((0.45 * 0.55 / 199) ** 0.5, abs=1e-6)
    assert value["n-samples"][task] == {"original": 200, "effective": 200}
    assert value["higher_is_better"][task]["robust_acc"] is True
    again = {f.metric: f.value for f in figures("lm_eval", path)}
    assert (again["robust_acc"], again["clean_acc"]) == (0.45, 0.9)


def test_a_published_figure_stands_beside_the_measured_one_and_ranks_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for defense, robust in (("trades", 110), ("none", 0)):
        for adaptive in (False, True):
            store.put(
                rows.attacked("autoattack", robust, defense=defense, data=CIFAR, adaptive=adaptive, seed=int(adaptive))
            )
    before = rank.boards(store.rows())[0]
    published.write(tmp_path, figures("robustbench", ROBUSTBENCH, Known(defense="trades")))
    (board,) = rank.boards(store.rows(), published.read(tmp_path))
    assert [(line.names, line.rank) for line in board.lines] == [(line.names, line.rank) for line in before.lines]
    beside = {line.names["defense"]: (line.value("robust_acc"), line.value("published")) for line in board.lines}
    assert beside == {"trades": (0.55, 0.552), "none": (0.0, None)}
    assert board.lines[0].texts["published_by"] == "Nobody2026Written: RobustBench, Nobody2026Written.json"
    assert any(
        n.startswith("published, not measured here: Nobody2026Written: Robust 55.2 under AutoAttack")
        for n in board.notes
    )
    assert not board.lines[0].number("published").keys
    texts = {format_: report(tmp_path, format_) for format_ in ("html", "md", "csv", "json")}
    assert all("55.2" in texts[k] for k in ("html", "md"))
    assert all("0.552" in texts[k] for k in ("csv", "json"))
    assert "published" not in report(store.rows(), "json")


def test_figures_of_other_images_and_budgets_stay_away(tmp_path: Path) -> None:
    row = rows.attacked("autoattack", 100, data=CIFAR)
    for known in (Known(data="cifar100"), Known(eps="4/255"), Known(norm="l2")):
        (board,) = rank.boards([row], figures("robustbench", ROBUSTBENCH, known))
        assert not any("published" in note for note in board.notes)
    (board,) = rank.boards([row], figures("robustbench", ROBUSTBENCH))
    assert "published" not in {c.id for c in board.columns}, "nobody said which line it belongs to"
    assert sum("Nobody2026Written" in note for note in board.notes) == 3


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(ROBUSTBENCH.read_text()), **changes})


@pytest.mark.parametrize(
    ("format_", "content", "told"),
    [
        ("robustbench", "[]", "expected a mapping, found []"),
        ("robustbench", "{", "not JSON"),
        ("robustbench", "{}", "found no figure"),
        (
            "robustbench",
            changed(autoattack_acc="high"),
            "autoattack_acc: found 'high', expected a number from 0 to 100",
        ),
        ("robustbench", changed(autoattack_acc=155), "autoattack_acc: found 155, expected a number from 0 to 100"),
        ("robustbench", changed(clean_acc="nan"), "clean_acc: found nan"),
        ("robustbench", changed(eps="8/0"), "eps: expected a number or a fraction"),
        ("backdoorbench", "a,b\n1,2\n", "no line with a value in the column test_acc"),
        ("backdoorbench", "test_acc\n1.5\n", "test_acc: found 1.5, expected a number from 0 to 1"),
        ("attackbench", "[1]", "0: expected a mapping with attack"),
        ("attackbench", '[{"attack": "x", "threat_model": "l7"}]', "0.threat_model: found 'l7'"),
        ("lm_eval", "{}", "results: missing or not a mapping"),
        ("lm_eval", '{"results": {"t": {"acc,none": "N/A"}}}', "found no figure"),
        ("lm_eval", '{"results": {"t": {"acc,none": NaN}}}', "expected a finite number"),
        ("huggingface", "{}", "unknown format 'huggingface'. Known: attackbench, backdoorbench"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(format_: str, content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        figures(format_, path, Known(data="d", backdoor="b"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_the_file_leaves_out_has_to_be_said() -> None:
    with pytest.raises(ConfigError, match="the file does not say the backdoor: add --backdoor NAME"):
        figures("backdoorbench", FILES / "attack_df.csv", Known(data="gtsrb"))


def test_the_command_keeps_figures_once_and_says_where(call: runs.Call) -> None:
    code, out, err = call("import", "robustbench", ROBUSTBENCH, "--defense", "trades")
    assert (code, err) == (0, "3 published figures; shown by siegebench report --store results\n")
    assert call("import", "robustbench", ROBUSTBENCH, "--defense", "trades")[1] == out
    assert len(published.read(Path("results"))) == 3
    code, out, err = call("import", "robustbench", ROBUSTBENCH, FILES / "results.json", "--json")
    assert code == 2
    assert len(published.read(Path("results"))) == 3, "nothing is kept of a command that fails"
    code, out, _ = call("import", "attackbench", FILES / "standard_linf.json", "--json")
    assert json.loads(out)[0]["status"] == "claimed"
    Store(Path("results")).put(rows.attacked("pgd", 100))
    next(Path("results/published").glob("a*.json")).write_text("{}")
    code, _, err = call("report")
    assert (code, "remove it and import again" in err) == (2, True)


def test_the_commands_of_the_page_run(call: runs.Call) -> None:
    page = (FILES.parent.parent / "docs" / "importing.md").read_text(encoding="utf-8")
    shown = re.findall(r"^siegebench (import .*)$", page, re.MULTILINE)
    assert len(shown) == 2
    given = {
        "model_info/cifar10/Linf/NAME.json": str(ROBUSTBENCH), "attack_df.csv": str(FILES / "attack_df.csv"),
        "MODEL": "resnet18", "DEFENSE": "trades",
    }  # fmt: skip
    for line in shown:
        code, out, err = call(*(given.get(word, word) for word in line.split()))
        assert (code, bool(out)) == (0, True), err


def test_text_of_a_file_is_escaped(tmp_path: Path) -> None:
    Store(tmp_path).put(rows.attacked("autoattack", 100, data=CIFAR))
    path = tmp_path / "cifar10" / "Linf" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_text(changed(name=EVIL, authors=EVIL))
    published.write(tmp_path, figures("robustbench", path, Known(defense="none", source=EVIL)))
    for format_ in ("html", "md"):
        assert "<img" not in report(tmp_path, format_)


def test_to_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = sb.to_pandas(rows.everything())
    assert len(frame) == len(rows.everything())
    one = frame[(frame.attack == "pgd") & (frame.defense == "none") & (frame.model == "resnet18")].iloc[0]
    assert (one.track, one.threat, one.images, one.status) == ("white_box", "linf 8/255", 200, "ok")
    assert one["robust_acc.low"] < one.robust_acc < one["robust_acc.high"]
    assert pandas.isna(frame[frame.track == "backdoor"].robust_acc).all()
    Store(tmp_path).put(rows.attacked("pgd", 100))
    assert sb.to_pandas(tmp_path).robust_acc.tolist() == [0.5]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"siegebench\[pandas\]"):
        sb.to_pandas(tmp_path)
