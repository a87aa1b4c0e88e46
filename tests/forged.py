"""Submissions that must be refused: how a good one is changed, and words of the one line that says so."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from siegebench import registry, sources
from siegebench.cells import Cell, pack, rate, unpack
from siegebench.submissions.form import sha256
from tests.strangers import EVIL

RAN = "ran.txt"  # what any executed code of a submission would write


def form(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "submission.json").read_text()))


def fill(folder: Path, **changes: Any) -> None:
    """Change the form."""
    (folder / "submission.json").write_text(json.dumps({**form(folder), **changes}))


def seal(folder: Path) -> None:
    """Hashes that fit the files, as a forger would write them."""
    names = [f"{p.parent.name}/{p.name}" for p in sorted(folder.glob("*/*")) if p.is_file()]
    fill(folder, files={name: sha256((folder / name).read_bytes()) for name in names})


def first(folder: Path, eps: str = "") -> Path:
    """A row; the first, or one with this budget."""
    paths = sorted((folder / "rows").glob("*.json"))
    return next(p for p in paths if not eps or json.loads(p.read_text())["labels"]["threat"].endswith(f" {eps}"))


def edit(path: Path, change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> None:
    """Change a row; with the hashes, unless the forger forgets them."""
    row = json.loads(path.read_text())
    change(row)
    path.write_text(json.dumps(row))
    if sealed:
        seal(path.parents[1])


def renamed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the cell of a row, and give it the key, labels and file name that belong to it."""
    row = json.loads(path.read_text())
    change(row)
    cell = Cell.from_dict(row["cell"])
    row["key"], row["labels"] = cell.key, cell.labels
    path.unlink()
    new = path.with_name(Path(cell.file).name)
    new.write_text(json.dumps(row))
    return new


def consistent(row: dict[str, Any], robust: np.ndarray[Any, Any]) -> None:
    """Other outcomes under attack, with every number that follows from them."""
    n = row["samples"]["n"]
    clean = unpack(row["samples"]["clean"], n)
    row["samples"]["robust"] = pack(robust)
    row["metrics"]["robust_acc"] = rate(int(robust.sum()), n)
    row["metrics"]["robust_acc_8bit"] = rate(int(robust.sum()), n)
    row["metrics"]["asr"] = rate(int((clean & ~robust).sum()), int(clean.sum()))


def outcome(row: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    return unpack(row["samples"][name], row["samples"]["n"])


class Runs:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {RAN}",)


def _value(row: dict[str, Any]) -> None:
    row["metrics"]["robust_acc"] = rate(row["samples"]["n"] - 1, row["samples"]["n"])


def _interval(row: dict[str, Any]) -> None:
    row["metrics"]["robust_acc"]["high"] = row["metrics"]["robust_acc"]["value"]


def _eps(row: dict[str, Any]) -> None:
    row["cell"]["threat"]["eps"] = 1 / 255


def _more_than_clean(row: dict[str, Any]) -> None:
    consistent(row, outcome(row, "clean") | ~outcome(row, "clean"))


def _swapped(folder: Path) -> None:
    """The row of the smaller budget is shown as that of the larger one, and the other way round."""
    small, large = first(folder, "4/255"), first(folder, "64/255")

    def budget(eps: float) -> Callable[[dict[str, Any]], None]:
        def change(row: dict[str, Any]) -> None:
            row["cell"]["threat"]["eps"] = eps

        return change

    parked = small.rename(small.with_name("parked"))
    renamed(large, budget(4 / 255))
    renamed(parked, budget(64 / 255))
    seal(folder)


def _other_entry(folder: Path, name: str = "mifgsm") -> None:
    """Every row becomes one of another attack, with the version and source that this attack has here."""
    for path in sorted((folder / "rows").glob("*.json")):

        def change(row: dict[str, Any]) -> None:
            row["cell"]["attack"] = registry.describe("attack", name)
            row["sources"] = sources.of(Cell.from_dict(row["cell"]))

        renamed(path, change)
    seal(folder)


def copycat(folder: Path) -> Path:
    """A second submission beside the first one: its rows under the name of another entry."""
    other = folder.with_name("copycat")
    for path in folder.rglob("*.*"):
        target = other / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    fill(other, name="copycat")
    _other_entry(other)
    return other


def _write(name: str, content: bytes | str, *, sealed: bool = False) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        if sealed:
            seal(folder)

    return change


def _row(change: Callable[[dict[str, Any]], None], *, sealed: bool = True) -> Callable[[Path], None]:
    return lambda folder: edit(first(folder), change, sealed=sealed)


def _set(*way: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for step in way[:-1]:
            row = row[step]
        row[way[-1]] = to

    return change


def _form(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: fill(folder, **changes)


def _link(name: str, to: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).symlink_to(to)

    return change


def _rows_elsewhere(folder: Path) -> None:
    (folder / "rows").rename(folder.parents[2] / "elsewhere")
    (folder / "rows").symlink_to(folder.parents[2] / "elsewhere")


def _sparse(folder: Path) -> None:
    with open(folder / "rows" / "pgd-0000000000000000.json", "wb") as file:
        file.truncate(2**40)


def _bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("row.json", b"0" * 10_000_000)
    return out.getvalue()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CODE = f"open({RAN!r}, 'w').write('ran')\n"
PICKLE = pickle.dumps(Runs())
MINE = "/" + "home/ann/data"

# by name: (the change, words of the line)
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "wrong numbers": (_row(_value), "metrics.robust_acc.value: found 0.975, expected"),
    "wrong interval": (_row(_interval), "metrics.robust_acc.high: found"),
    "wrong count": (_row(_set("metrics", "asr", "n", to=3)), "metrics.asr.low: found"),
    "wrong share": (_row(_set("metrics", "asr", "value", to=0.123)), "metrics.asr"),
    "fewer images attacked": (_row(_set("counts", "attacked", to=1)), "counts."),
    "other size than the data set": (_row(_set("samples", "n", to=8)), "samples.n: expected cell.data.count, 40"),
    "more robust than clean": (_row(_more_than_clean), "images that are right under attack and wrong without it"),
    "wrong eps": (_row(_eps), "key: does not belong to the cell, expected"),
    "eps of grey levels": (_row(_set("cell", "threat", "eps", to=8)), "cell.threat.eps: expected at most 1 for linf"),
    "budgets swapped": (_swapped, "metrics.robust_acc.value: found"),
    "edited row": (_row(_set("seed_of_nothing", to=1), sealed=False), "it was edited after it was collected"),
    "row left out": (lambda folder: first(folder).unlink(), "no such file in the folder"),
    "row that is not listed": (
        lambda folder: fill(folder, files=dict([*form(folder)["files"].items()][1:])), "not listed under files"
    ),
    "a cell twice": (lambda folder: _twice(folder), "expected each cell once"),
    "unknown key in a row": (_row(_set("reviewed", to=True)), "reviewed: unknown key"),
    "rows of another protocol": (_row(_set("protocol", to=2)), "protocol: found 2, expected 1, the protocol of this"),
    "form of another protocol": (_form(protocol=0), "protocol: expected 1, the protocol of this version, found 0"),
    "failed cell": (_row(_set("status", to="error")), "status: found 'error', expected 'ok'"),
    "row of another track": (_form(track="query"), "track: found 'query', expected 'white_box'"),
    "other labels": (_row(_set("labels", "attack", to="fgsm")), "labels.attack: found 'fgsm', expected 'pgd'"),
    "rows of an unknown entry": (lambda folder: _renamed_entry(folder, "my_attack"), "unknown attack 'my_attack'"),
    "rows of another version": (lambda folder: _version(folder, 99), "cell.attack.version: found 99, expected"),
    "rows of other code": (_row(_set("sources", "attack", to="0" * 16)), "sources.attack: found 0000000000000000"),
    "rows that do not say their code": (_row(_set("sources", to={})), "sources."),
    "rows that do not say their suite": (_row(_set("given", to={})), "given.suite: missing"),
    "rows of an unknown suite": (
        _row(_set("given", "suite", "name", to="other.yaml")), "expected a bundled suite or a file in suites/"
    ),
    "name of a machine": (_row(_set("env", "host", to="ann-laptop")), "env.host: expected only versions and hardware"),
    "folder of a machine": (_row(_set("given", "data", "folder", to=MINE)), "given.data.folder: expected no folder"),
    "pickle": (_write("rows/evil.pkl", PICKLE), "evil.pkl: found a pickle, expected only"),
    "pickle as weights": (_write("weights.pt", PICKLE), "weights.pt: found a pickle, expected only"),
    "pickle as a row": (_write("rows/pgd-0123456789abcdef.json", PICKLE, sealed=True), "is not UTF-8 text"),
    "pickle as the form": (_write("submission.json", PICKLE), "is not UTF-8 text"),
    "HTML in the form": (_form(method=EVIL), "method: expected plain text without HTML"),
    "HTML in a row": (
        _row(_set("flags", to=[{"id": "x", "severity": "info", "evidence": EVIL}])), "flags.0.evidence: expected plain"
    ),
    "HTML as a name": (lambda folder: _renamed_entry(folder, EVIL), "expected plain text without HTML"),
    "script as the paper": (_form(paper="javascript:alert(1)"), "paper: expected plain text without HTML"),
    "other scheme": (_form(paper="http://example.org/paper"), "paper: expected a citation or an https address"),
    "control characters": (_form(who="Ann\x1b[31m"), "who: expected printable text"),
    "invisible name": (_form(who="\u3164"), "who: expected text without invisible letters"),
    "blank at the end": (_form(who="Ann Example "), "who: expected text without blanks at its ends"),
    "towers of marks": (_form(who="Z" + "\u0351" * 40), "who: expected at most 3 marks on a letter"),
    "text turned around": (_form(who="Ann \u202eelpmaxE"), "who: expected printable text"),
    "no author": (_form(who=""), "who: expected at least 1 character, found ''"),
    "name of another form": (_form(name="My Attack"), "name: expected '^[a-z]"),
    "path traversal": (_form(files={"rows/../../../secret.json": "0" * 64}), "files."),
    "path traversal by name": (_form(name="../mine"), "name: "),
    "link out of the folder": (_link("rows/pgd-0123456789abcdef.json", "/etc/passwd"), "found a link, expected a file"),
    "link instead of the rows": (_rows_elsewhere, "found a link, expected a file"),
    "unknown licence": (_form(licence="CC-BY-NC-4.0"), "expected the SPDX identifier of a permissive licence"),
    "no licence": (_form(licence=""), "expected the SPDX identifier of a permissive licence"),
    "code that runs on import": (_write("__init__.py", CODE), "__init__.py: found Python code, expected only"),
    "code for pytest": (_write("rows/conftest.py", CODE), "conftest.py: found Python code, expected only"),
    "overlong field of the form": (_form(method="x" * 5000), "method: expected"),
    "overlong field of a row": (
        _row(_set("flags", to=[{"id": "x", "severity": "info", "evidence": "x" * 5000}])),
        "flags.0.evidence: found 5,000 characters, expected at most 4,000",
    ),
    "decompression bomb": (_write("rows/row.zip", _bomb()), "row.zip: found an archive, expected only"),
    "compressed row": (
        _write("rows/pgd-0123456789abcdef.json", gzip.compress(b"0" * 10**6), sealed=True), "is not UTF-8 text"
    ),
    "a terabyte": (_sparse, "found 1,099,511,627,776 bytes, expected at most 1,048,576"),
    "nested lists": (_write("rows/pgd-0123456789abcdef.json", "[" * 10**5, sealed=True), "nested too deeply"),
    "aliases of aliases": (_write("suites/small.yaml", LAUGHS, sealed=True), "values once its aliases are written out"),
    "status of its own": (_form(status="reproduced"), "status: unknown key"),
    "review of its own": (
        lambda folder: review(folder, status="reproduced"), "expected smoke_checked for 1 of 2 cells"
    ),
    "review of other content": (
        lambda folder: (review(folder), fill(folder, method="Something else."))[0], "it has changed since"
    ),
    "empty form": (_write("submission.json", "{}"), "missing"),
    "no form": (lambda folder: (folder / "submission.json").unlink(), "submission.json is missing"),
}  # fmt: skip


def review(folder: Path, **changes: Any) -> None:
    """A review that somebody made up."""
    from siegebench.submissions.form import Form, read

    content = read(Form, (folder / "submission.json").read_bytes()).content
    key = json.loads(first(folder).read_text())["key"]
    made = {
        "schema": 1, "protocol": 1, "content": content, "status": "smoke_checked", "by": "Bob",
        "when": "2026-01-31T12:00:00+00:00", "salt": "", "commit": "", "cells": [{"key": key, "agreed": "equal"}],
        **changes,
    }  # fmt: skip
    (folder / "review.json").write_text(json.dumps(made))


def _twice(folder: Path) -> None:
    path = first(folder)
    path.with_name(f"another-{path.name.rpartition('-')[2]}").write_bytes(path.read_bytes())
    seal(folder)


def _renamed_entry(folder: Path, name: str) -> None:
    renamed(first(folder), _set("cell", "attack", "name", to=name))
    seal(folder)


def _version(folder: Path, version: int) -> None:
    renamed(first(folder), _set("cell", "attack", "version", to=version))
    seal(folder)
