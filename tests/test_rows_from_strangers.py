"""Whatever a file holds: a row is shown, or one line names the file and the field. The same for cards and for --set."""

from __future__ import annotations

import io
import json
import random
import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
from siegebench.leaderboard import rank, tables, wandb_mirror

from siegebench import schema
from siegebench.cells import Result
from siegebench.errors import ConfigError
from siegebench.reporting import FORMATS, report
from siegebench.store import Store
from tests import strangers

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
        field = re.match(r"'?([A-Za-z_]*)", told.removeprefix(f"{path}: "))
        assert field is not None
        assert field[1] in {*FIELDS, *strangers.NAMES} or told.partition(": ")[2].startswith("the key "), told
        return None


def everything(rows: list[Result], folder: Path) -> None:
    """All that a reader can be shown of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = {format_: report(rows, format_) for format_ in FORMATS}
        tables.show(rank.boards(rows), tables.Console(file=io.StringIO(), width=100))
        for row in rows:
            sent = {**wandb_mirror.config(row), **wandb_mirror.summary(row), "name": wandb_mirror.name(row)}
            json.dumps([sent, wandb_mirror._tags(row)], allow_nan=False).encode()
    assert strangers.EVIL not in texts["html"]
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
