"""Writes the folder of a submission from the rows of a store. Needs no torch."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from siegebench.bundled import bundled_suites
from siegebench.cells import PROTOCOL, SCHEMA, SLOTS, Result
from siegebench.errors import ConfigError, did_you_mean, shortened
from siegebench.files import write_atomic
from siegebench.leaderboard import rank
from siegebench.store import Store
from siegebench.submissions import validate
from siegebench.submissions.form import FORM, ROWS, SUITES, Form, read, sha256

NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


def chosen(
    rows: Sequence[Result], entry: str, *, track: str | None = None, suite: str | None = None, board: str | None = None
) -> list[Result]:
    """The rows of an entry, on one track.

    Args:
        entry: name of an attack, defense, ... in any slot of the rows.
        suite: only rows that this suite made; a bundled name or a file name.
        board: only rows on this board, by the id that exports have.

    Raises:
        ConfigError: when there is none, or they are of several tracks.
    """
    known = {str(d["name"]) for row in rows for slot in SLOTS if (d := getattr(row.cell, slot)) is not None}
    if entry not in known:
        raise ConfigError(f"no row of {shortened(entry)} in the store. {did_you_mean(entry, known)}")
    found = [r for r in rows if any((getattr(r.cell, slot) or {}).get("name") == entry for slot in SLOTS)]
    if suite is not None:
        made = {str(r.given.get("suite", {}).get("name", "")) for r in found}
        wanted = Path(suite).name
        found = [r for r in found if r.given.get("suite", {}).get("name") == wanted]
        if not found:
            raise ConfigError(f"--suite {suite}: made no row of {entry!r}. {did_you_mean(wanted, filter(None, made))}")
    if board is not None:
        on = {b.id: {key for line in b.lines for key in line.keys} for b in rank.boards(rows)}
        if board not in on:
            raise ConfigError(
                f"--board {board}: no such board; `siegebench report --json` has the ids. {did_you_mean(board, on)}"
            )
        found = [r for r in found if r.cell.key in on[board]]
    tracks = sorted({r.cell.track for r in found})
    if track is not None:
        found = [r for r in found if r.cell.track == track]
    if not found:
        there = f"; there are rows on {', '.join(tracks)}" if tracks else ""
        raise ConfigError(f"no row of {entry!r} fits{f' --track {track}' if track else ''}{there}")
    if len({r.cell.track for r in found}) > 1:
        raise ConfigError(f"{entry!r} has rows on {', '.join(tracks)}; a submission has one track: --track {tracks[0]}")
    failed = [r for r in found if r.status == "error"]
    if failed:
        raise ConfigError(
            f"{failed[0].cell.title}: this cell failed; run the suite again, or leave it out with --board or --suite"
        )
    return found


def collect(
    root: Path,
    name: str,
    rows: Sequence[Result],
    store: Path,
    *,
    who: str,
    licence: str,
    method: str,
    paper: str = "",
    suites: Iterable[Path] = (),
    replace: bool = False,
) -> Path:
    """Write `ROOT/TRACK/NAME` with rows of a store as they are stored; the folder is checked before it is kept.

    Args:
        rows: from `chosen`.
        suites: the files of suites that are not bundled.
        replace: overwrite the folder if it exists; its review is lost, because it was of other content.

    Raises:
        ConfigError: one line, and nothing was written.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{shortened(name)}: expected a name in snake_case of at most 60 letters, for the folder")
    content = {f"{ROWS}/{Path(row.cell.file).name}": (store / "rows" / row.cell.file).read_bytes() for row in rows}
    content |= _suites(rows, list(suites))
    commits = {str(row.env.get("commit") or "") for row in rows}
    form = {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "name": name,
        "track": rows[0].cell.track,
        "who": who,
        "licence": licence,
        "method": method,
        "paper": paper,
        "commit": commits.pop() if len(commits) == 1 else "",
        "files": {file: sha256(content[file]) for file in sorted(content)},
    }
    text = (json.dumps(form, indent=1, ensure_ascii=False) + "\n").encode()
    read(Form, text)
    folder = root / rows[0].cell.track / name
    if folder.exists() and not replace:
        raise ConfigError(f"{folder}: exists already; choose another name, or --replace")
    draft = folder.parent / f".{name}.draft" / folder.parent.name / name
    try:
        for file, data in {**content, FORM: text}.items():
            write_atomic(draft / file, data)
        validate.check(validate.opened(draft))
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), str(folder))) from None
    finally:
        shutil.rmtree(draft.parents[1], ignore_errors=True)
    return folder


def _suites(rows: Sequence[Result], given: Sequence[Path]) -> dict[str, bytes]:
    """The files of the suites that made the rows and are not bundled."""
    bundled = {path.stem for path in bundled_suites()}
    wanted = {str(row.given.get("suite", {}).get("name", "")) for row in rows} - bundled - {""}
    files = {path.name: path for path in given}
    for name in sorted(wanted):
        if name not in files:
            raise ConfigError(f"{name}: this suite made some of the rows and is not bundled: add --file PATH/{name}")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,60}\.yaml", name):
            raise ConfigError(
                f"{shortened(name)}: expected a file name in snake_case with .yaml; rename it and run it again"
            )
    return {f"{SUITES}/{name}": files[name].read_bytes() for name in sorted(wanted)}


def from_store(store: Path) -> list[Result]:
    """All rows of a store.

    Raises:
        ConfigError: when there is none.
    """
    rows = list(Store(store).rows())
    if not rows:
        raise ConfigError(f"{store}: no rows here; run a suite first: siegebench run SUITE --store {store}")
    return rows
