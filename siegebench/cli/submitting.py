"""`siegebench submit`: rows that were measured elsewhere, as a folder that a pull request adds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siegebench.cells import PROTOCOL, SCHEMA
from siegebench.cli import complete
from siegebench.cli.options import DEFAULT_STORE, Json, StorePath
from siegebench.errors import ConfigError, SiegeError
from siegebench.files import write_atomic

if TYPE_CHECKING:
    from siegebench.cells import Result
    from siegebench.submissions.rerun import Rerun
    from siegebench.submissions.validate import Submission

SUBMISSIONS = Path("submissions")
Root = Annotated[Path, typer.Option("--root", help="Folder of all submissions.")]
app = typer.Typer(name="submit", help="Collect rows for a pull request, check those of others, run cells again.")


@app.command()
def new(
    entry: Annotated[str, typer.Argument(help="The entry whose rows are submitted.", autocompletion=complete.entries)],
    who: Annotated[str, typer.Option(help="Authors of the submission.")],
    licence: Annotated[str, typer.Option(help="Of the rows and the code: an SPDX identifier such as MIT.")],
    method: Annotated[str, typer.Option(help="What the entry does, in a sentence or two.")],
    paper: Annotated[str, typer.Option(help="A citation or an https address.")] = "",
    name: Annotated[str | None, typer.Option(help="Of the submission; default: that of the entry.")] = None,
    track: Annotated[str | None, typer.Option(help="Only rows of this track; needed if there are several.")] = None,
    suite: Annotated[str | None, typer.Option(help="Only rows that this suite made.")] = None,
    board: Annotated[str | None, typer.Option(help="Only rows on this board; `report --json` has the ids.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A suite that made some of the rows and is not bundled; repeatable.")
    ] = None,
    root: Root = SUBMISSIONS,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the folder and drop its review.")] = False,
    store: StorePath = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Write ROOT/TRACK/NAME with the stored rows of an entry."""
    from siegebench.submissions.collect import chosen, collect, from_store

    rows = chosen(from_store(store), entry, track=track, suite=suite, board=board)
    folder = collect(
        root, name or entry.replace("/", "_").replace(".", "_"), rows, store, who=who, licence=licence, method=method,
        paper=paper, suites=file or (), replace=replace,
    )  # fmt: skip
    if as_json:
        print(json.dumps({"folder": str(folder), "rows": len(rows)}))
        return
    print(folder)
    print(f"{_rows(len(rows))}; next: siegebench submit check {folder}", file=sys.stderr)


@app.command()
def check(
    folder: Annotated[
        list[Path] | None, typer.Argument(help="Folders ROOT/TRACK/NAME; default: all below ROOT.")
    ] = None,
    root: Root = SUBMISSIONS,
    since: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Only what changed since this commit, as in a pull request.")
    ] = None,
    rerun: Annotated[int, typer.Option(min=0, help="Compute so many cells of each submission again.")] = 0,
    salt: Annotated[str, typer.Option(help="Seeds the draw of these cells, beside the content.")] = "",
    record: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write the review under your name, if all of them agree.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Rows of your own, to rank beside and to find copies.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON report to a file.")] = None,
    as_json: Json = False,
) -> None:
    """Refuse what is wrong in submissions, before anything is executed; then run cells again, if asked for.

    Exit code 2: refused. 1: a cell that was run again disagrees.
    """
    from siegebench.store import Store
    from siegebench.submissions import validate

    if record is not None and rerun == 0:
        raise ConfigError("--record: needs --rerun N, at least 1")
    try:
        asked = folder or (validate.folders(root) if since is None else _changed(root, since))
    except SiegeError as error:
        _write(out, [], False, {"type": type(error).__name__, "message": str(error)})
        raise
    own = [] if store is None else list(Store(store).rows())
    checked, refused, differing = [], 0, 0
    for path in asked:
        found: dict[str, Any] = {"folder": str(path)}
        try:
            found |= _check(path, root, own, since, rerun, salt, record, threads, device)
            differing += sum(cell["agreed"] == "differs" for cell in found["rerun"])
        except SiegeError as error:
            found["problem"] = str(error)
            refused += 1
        checked.append(found)
        _tell(found)
    ok = not refused and not differing
    text = _write(out, checked, ok)
    if as_json:
        print(text, end="")
    else:
        for found in checked:
            for line in _said(found):
                print(line)
        if not asked:
            print("no submission to check")
    if not ok:
        raise typer.Exit(2 if refused else 1)


def _write(out: Path | None, checked: list[dict[str, Any]], ok: bool, error: dict[str, str] | None = None) -> str:
    """The report as JSON, also in a file if one is given."""
    report = {"schema": SCHEMA, "protocol": PROTOCOL, "ok": ok, "submissions": checked}
    text = json.dumps(report if error is None else {**report, "error": error}, indent=1) + "\n"
    if out is not None:
        write_atomic(out, text.encode())
    return text


def _check(
    path: Path, root: Path, own: Sequence[Result], since: str | None, count: int, salt: str, by: str | None,
    threads: int | None, device: str,
) -> dict[str, Any]:  # fmt: skip
    """The part of the report for one folder.

    Raises:
        SiegeError: when it is refused.
    """
    from siegebench.submissions import validate
    from siegebench.submissions.board import beside, positions

    submission = validate.opened(path)
    if since is not None and submission.review is not None and _touched(path / "review.json", since):
        raise ConfigError(
            f"{path / 'review.json'}: is written by those who run cells again; remove it from this change"
        )
    neighbours = _others(submission, root)
    rows = [*own, *(row for other in neighbours for row in other.rows.values())]
    validate.check(submission, rows)
    again = _run_again(submission, count, salt, by, threads, device) if count else []
    if by is not None and all(cell.agreed != "differs" for cell in again):
        submission = validate.opened(path)  # with its review
    form = submission.form
    return {
        "title": submission.title,
        **{name: getattr(form, name) for name in ("who", "licence", "method", "paper", "content")},
        "rows": len(submission.rows),
        "status": submission.status,
        "salt": salt,
        "rerun": [vars(cell) for cell in again],
        "lines": [position.as_dict() for position in positions(submission, beside(own, neighbours))],
    }


def _others(submission: Submission, root: Path) -> list[Submission]:
    """The other submissions that can be read; one that cannot is refused when it is its turn."""
    from siegebench.submissions import validate

    found = []
    for path in validate.folders(root) if root.is_dir() else ():
        if path.absolute() != submission.folder.absolute():
            try:
                found.append(validate.opened(path))
            except ConfigError:
                continue
    return found


def _run_again(
    submission: Submission, count: int, salt: str, by: str | None, threads: int | None, device: str
) -> list[Rerun]:
    from siegebench.submissions.rerun import record, rerun

    print(f"{submission.title}: running {min(count, len(submission.rows))} cells again", file=sys.stderr)
    cells = rerun(submission, count, salt=salt, threads=threads, device=device)
    if by is not None and all(cell.agreed != "differs" for cell in cells):
        record(submission, cells, by=by, salt=salt)
    return cells


def _tell(found: dict[str, Any]) -> None:
    """What is wrong, one line each, on stderr."""
    if found.get("problem"):
        print(found["problem"], file=sys.stderr)
    for cell in found.get("rerun", ()):
        if cell["agreed"] == "differs":
            told = f"{found['folder']}/{cell['file']}: {cell['why']}; ask the author how this row was made"
            print(told, file=sys.stderr)


def _said(found: dict[str, Any]) -> list[str]:
    if found.get("problem"):
        return [f"{found['folder']}: refused"]
    agreed = sum(cell["agreed"] != "differs" for cell in found["rerun"])
    told = f", {agreed} of {len(found['rerun'])} cells run again agree" if found["rerun"] else ""
    lines = [f"{found['folder']}: {_rows(found['rows'])}, {found['status'].replace('_', '-')}{told}"]
    for line in found["lines"]:
        would = (
            f"rank {line['would']} of {line['of']}" if line["would"] else "not ranked: " + "; ".join(line["reasons"])
        )
        lines.append(f"  {line['title']}: {line['entry']}: {line['metric']} {line['value']}; once reproduced: {would}")
    return lines


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"


def _git(*words: str) -> list[str]:
    """The output of git, by NUL characters."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"--since: git cannot be run: {error}") from None
    if done.returncode:
        told = " ".join(done.stderr.decode(errors="replace").split())[:200]
        raise ConfigError(f"--since: git {words[0]}: {told}; expected a commit of this repository such as origin/main")
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def _diff(since: str, path: Path) -> list[str]:
    if since.startswith("-"):
        raise ConfigError(f"--since {since}: expected a commit such as origin/main")
    return _git("diff", "--name-only", "--no-renames", "-z", "--relative", f"{since}...HEAD", "--", str(path))


def _touched(path: Path, since: str) -> bool:
    return bool(_diff(since, path))


def _changed(root: Path, since: str) -> list[Path]:
    """The folders of submissions that a change adds or edits."""
    found: dict[Path, None] = {}
    inside = Path(os.path.relpath(root))
    for name in _diff(since, inside):
        parts = Path(name).relative_to(inside).parts
        if len(parts) < 3 and parts != ("README.md",):
            raise ConfigError(f"{name!r}: expected submissions in {root}/TRACK/NAME/; move or remove this file")
        if len(parts) > 2 and (root / parts[0] / parts[1]).exists():  # a submission may be taken back as a whole
            found[root / parts[0] / parts[1]] = None
    return list(found)


@app.command()
def comment(
    report: Annotated[Path, typer.Argument(help="What `submit check --out` wrote. It is not trusted.")],
    as_json: Json = False,
) -> None:
    """Print the text for a pull request: what is new, where it ranks, its status and flags, as Markdown."""
    from siegebench.submissions.comment import comment as written

    text = written(report)
    print(json.dumps({"markdown": text}) if as_json else text, end="" if not as_json else "\n")
