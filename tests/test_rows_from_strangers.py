"""Whatever a file holds: a row is shown, or one line names the file and the field. The same for cards and for --set."""

from __future__ import annotations

import io
import json
import random
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from siegebench.leaderboard import rank, tables
from siegebench.leaderboard.wandb_content import contents

from siegebench import card, cli, registry, schema, signatures
from siegebench.cells import Result
from siegebench.cli import listing
from siegebench.config import load_suite
from siegebench.errors import ConfigError, SiegeError
from siegebench.metrics import find
from siegebench.records import Record
from siegebench.reporting import FORMATS, report
from siegebench.store import Store
from tests import rows as make
from tests import strangers
from tests.strangers import EVIL

FIELDS = {*schema.Row.model_fields, "schema"} - {"row_schema"}


@pytest.fixture(scope="module")
def real(real_store: Path) -> list[Result]:
    return list(Store(real_store).rows())


def read(path: Path, content: bytes) -> Result | None:
    """The row in a file of a stranger, or None where it is refused in one line that names the file and the field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        return next(Store(path.parent.parent).rows())
    except ConfigError as error:
        told = str(error)
        assert "\n" not in told
        assert told.isprintable()
        assert told.startswith(f"{path}: ")
        assert told.endswith("; remove it and run again")
        assert len(told) < len(str(path)) + 400
        field = re.match(r"the key |[A-Za-z_]+|(?=')", told.removeprefix(f"{path}: "))  # keys of strangers are quoted
        assert field is not None, told
        assert field[0] in {*FIELDS, *strangers.NAMES, "", "the key "}, told
        return None


def everything(rows: list[Result], folder: Path) -> None:
    """All that a reader can be shown of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = {format_: report(rows, format_) for format_ in FORMATS}
        tables.show(rank.boards(rows), tables.Console(file=io.StringIO(), width=100))
        record = Record(suite="strangers", id="0" * 16, cells=[row.cell.key for row in rows])
        for runs in ("per_suite", "per_line", "per_cell"):
            for sent in contents(runs, record, rank.boards(rows), rows, texts["html"]):  # type: ignore[arg-type]
                json.dumps([sent.config, sent.summary, sent.tags, sent.name], allow_nan=False).encode()
                json.dumps([[*sheet.rows] for sheet in sent.tables.values()], allow_nan=False).encode()
    assert EVIL not in texts["html"]
    assert "<img" not in texts["html"] + texts["md"]
    json.loads(texts["json"])
    for text in texts.values():
        text.encode()


def try_rows(real: list[Result], folder: Path, seeds: range) -> Counter[str]:
    by_track: dict[str, list[Result]] = {}
    for row in real:
        by_track.setdefault(row.cell.track, []).append(row)
    seen: Counter[str] = Counter()
    tracks = sorted(by_track)
    for seed in seeds:
        rng = random.Random(seed)
        mates = by_track[tracks[seed % len(tracks)]]
        rng.shuffle(mates)
        content = strangers.written(strangers.mutated(rng, json.loads(json.dumps(mates[0].as_dict(), default=float))))
        try:
            row = read(folder / "rows" / "row.json", content)
            seen["refused" if row is None else "shown"] += 1
            if row is not None:
                everything([row], folder)
                everything([row, *mates[:5]], folder)
        except Exception as error:
            error.add_note(f"mutant {seed}: {content[:3000]!r}")
            raise
    return seen


def test_mutated_rows_are_refused_in_one_line_or_shown(real: list[Result], tmp_path: Path) -> None:
    seen = try_rows(real, tmp_path, range(200))
    assert min(seen["shown"], seen["refused"]) > 40, seen


@pytest.mark.slow
def test_thousands_of_mutated_rows(real: list[Result], tmp_path: Path) -> None:
    seen = try_rows(real, tmp_path, range(200, 2600)) + try_rows(make.everything(), tmp_path, range(600))
    assert min(seen["shown"], seen["refused"]) > 600, seen


def test_the_largest_and_the_smallest_that_a_row_may_say_is_shown(real: list[Result], tmp_path: Path) -> None:
    for number in (1e308, 1e-300, 0, 2**64 - 1):
        rows = []
        for row in (json.loads(json.dumps(r.as_dict(), default=float)) for r in real):
            row["samples"], row["cell"]["data"]["count"] = {"n": 10**9}, 10**9
            row["counts"] = dict.fromkeys(row["counts"], number)
            row["timing"]["seconds"], row["attempts"] = number, 2**63
            row["labels"], row["env"], row["flags"] = (
                {},
                {"device": ""},
                [{"id": EVIL, "severity": "fail", "evidence": ""}],
            )
            for name, figure in row["metrics"].items():
                known = find(name)
                top = known.high if known is not None and known.high is not None else 1e308
                figure.update({k: min(number, top) for k in ("value", "low", "high") if k in figure})
                figure.update({"n": 10**9} if "n" in figure else {})
            content = strangers.written(row)
            found = read(tmp_path / "rows" / "row.json", content)
            assert found is not None
            rows.append(found)
        everything(rows, tmp_path)


def test_rows_of_a_track_that_is_not_known_here_are_shown(real: list[Result], tmp_path: Path) -> None:
    row = json.loads(json.dumps(real[0].as_dict(), default=float))
    row["cell"]["track"] = "of_tomorrow"
    row["cell"]["model"]["name"] = EVIL
    found = read(tmp_path / "rows" / "row.json", strangers.written(row))
    assert found is not None
    everything([found], tmp_path)
    text = report([found], "html")
    assert "Rows on no board" in text
    assert "&lt;img src=x" in text


def test_rows_of_earlier_versions_are_read_ranked_and_kept_as_they_are(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "stored"
    rows = list(Store(folder).rows())
    assert {r.cell.track for r in rows} == {"white_box", "query", "backdoor", "input_detection", "model_detection"}
    assert not any("started" in r.timing or r.given or r.errors for r in rows)
    everything(rows, tmp_path)
    assert len(rank.boards(rows)) == 6
    for row in rows:
        path = Store(tmp_path).put(row)
        assert path.read_bytes() == (folder / "rows" / path.name).read_bytes()


COMMANDS = (
    ["report"], ["report", "--format", "html"], ["report", "--format", "md"], ["report", "--format", "csv"],
    ["report", "--json"], ["show", "0123456789"],
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("field", "value"),
    [("metrics.robust_acc.value", 10**400), ("cell.threat.eps", float("inf")), ("samples.robust", EVIL), ("env", [1])],
    ids=["digits", "infinite", "html", "list"],
)
def test_the_command_says_one_line(
    words: list[str], field: str, value: Any, real: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    row = json.loads(json.dumps(next(r for r in real if "robust" in r.samples).as_dict(), default=float))
    *way, last = field.split(".")
    strangers.at(row, tuple(way))[last] = value
    path = tmp_path / "rows" / "row.json"
    path.parent.mkdir()
    path.write_bytes(strangers.written(row))
    monkeypatch.setattr("sys.argv", ["siegebench", *words, "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert (json.loads(out)["error"]["message"] if "--json" in words else out) == (
        err[:-1] if "--json" in words else ""
    )
    assert err.startswith(f"{path}: {field}: ")
    assert "<img" not in err or "'<img" in err


def test_show_prints_no_control_characters(
    real: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads(json.dumps(real[0].as_dict(), default=float))
    row["env"]["device"] = "\x1b[31m \x9b31m \u202e \U000e0001 Grafik \u2713"
    path = tmp_path / "rows" / "row.json"
    path.parent.mkdir()
    path.write_bytes(strangers.written(row))
    for extra in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["siegebench", "show", row["key"][:16], "--store", str(tmp_path), *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert out.replace("\n", "").isprintable()
    assert json.loads(out)[0]["env"]["device"] == row["env"]["device"]


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        ({"name": ""}, "given.suite.name: "),
        ({"set": []}, "given.suite.name: missing"),
        ({"name": "mine.yaml", "set": "x=1"}, "given.suite.set: "),
        ({"name": "mine.yaml", "more": 1}, "given.suite.more: unknown key"),
    ],
)
def test_where_a_row_comes_from_is_checked(suite: Any, told: str, real: list[Result]) -> None:
    row = json.loads(json.dumps(real[0].as_dict(), default=float))
    schema.check({**row, "given": {"suite": {"name": "mine.yaml", "set": ["data.count=20"]}}})
    with pytest.raises(ConfigError, match=re.escape(told)):
        schema.check({**row, "given": {"suite": suite}})


# ------------------------------------------------------------------------------------------------------ cards, settings


def one_line(error: SiegeError) -> str:
    told = str(error)
    assert told.isprintable(), told[:300]
    assert len(told) < 900, told[:300]
    return told


def try_cards(folder: Path, seeds: range) -> Counter[str]:
    cards = [r for r in registry.cards().values() if r.package.startswith("siegebench.")]
    seen: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        raw = yaml.safe_load(rng.choice(cards).path.read_text(encoding="utf-8"))
        path = folder / f"{raw['name']}.yaml"
        text = yaml.safe_dump(strangers.mutated(rng, raw), allow_unicode=rng.random() < 0.5, sort_keys=False)
        if rng.random() < 0.2:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(("\t", "{", "'", "\0", "&a *a", "!!timestamp x", ": ", "\n- ")) + text[at:]
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            found = card.read(path, "siegebench.attacks", "")
        except ConfigError as error:
            told = one_line(error)
            assert told.startswith(f"{path}:"), told
            seen["refused"] += 1
            continue
        seen["read"] += 1
        known = {**registry.cards(), (found.card.kind, found.name): found}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "cards", lambda known=known: known)
            signatures._source.cache_clear()
            try:
                listing.entry(found.card.kind, found.name)
            except ConfigError as error:
                one_line(error)
        signatures._source.cache_clear()
    return seen


def test_any_value_may_be_changed_again() -> None:
    for value in strangers.VALUES:
        strangers.changed(random.Random(0), value)


def test_mutated_cards_are_refused_in_one_line_or_read(tmp_path: Path) -> None:
    seen = try_cards(tmp_path, range(200))
    assert min(seen.values()) > 10, seen


def try_settings(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        assignment = f"{rng.choice(strangers.PATHS)}={rng.choice(strangers.SETTINGS)}"
        try:
            load_suite("quickstart", [assignment])
            seen["read"] += 1
        except SiegeError as error:
            one_line(error)
            seen["refused"] += 1
        except Exception as error:
            error.add_note(f"--set {assignment[:200]!r}")
            raise
    return seen


def test_settings_are_refused_in_one_line_or_read() -> None:
    assert try_settings(range(120))["refused"] > 60


@pytest.mark.slow
def test_thousands_of_cards_and_settings(tmp_path: Path) -> None:
    assert try_cards(tmp_path, range(200, 2200))["refused"] > 500
    assert try_settings(range(120, 2120))["refused"] > 500
