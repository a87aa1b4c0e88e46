"""Reads the folder of a submission as data, and refuses what is wrong in it. Executes nothing, unpickles nothing.

Every refusal is one line: the file and the field, what was found, what was expected, and what to do.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siegebench import registry, schema, sources, strictjson
from siegebench.bundled import bundled_suites
from siegebench.cells import PROTOCOL, SLOTS, Flag, Result
from siegebench.errors import ConfigError, shortened
from siegebench.kinds import KINDS
from siegebench.strictjson import Refused
from siegebench.submissions import plausible
from siegebench.submissions.form import FORM, LONGEST, REVIEW, ROWS, SUITES, Form, Review, Status, dotted, plain, read
from siegebench.submissions.form import sha256 as hash_of
from siegebench.yamlmarks import Document

FILES, FILE_BYTES, ALL_BYTES = 2000, 2**20, 2**25  # most files, bytes of one, bytes of all
_ALLOWED = {
    "": re.compile(r"submission\.json|review\.json"),
    ROWS: re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.json"),
    SUITES: re.compile(r"[a-z][a-z0-9_]{0,60}\.yaml"),
}
_NAMED = {  # for a message: what a file that is not allowed would be
    ".py": "Python code", ".so": "compiled code", ".sh": "a script", ".pkl": "a pickle", ".pickle": "a pickle",
    ".pt": "a pickle", ".pth": "a pickle", ".joblib": "a pickle", ".npy": "an array", ".npz": "an archive",
    ".zip": "an archive", ".gz": "an archive", ".xz": "an archive", ".bz2": "an archive", ".tar": "an archive",
}  # fmt: skip
# what `siegebench.environment` says; anything else may name a person or a machine
_ENVIRONMENT = {
    "siegebench", "commit", "python", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "device",
    "cores", "threads", "dtype", "batch",
}  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """A submission that was read.

    Attributes:
        rows: by the name of their file, such as `rows/pgd-0123456789abcdef.json`; without the flag of the status.
        review: None if nobody has run cells again.
    """

    folder: Path
    form: Form
    rows: Mapping[str, Result]
    review: Review | None = None

    @property
    def title(self) -> str:
        return f"{self.form.track}/{self.form.name}"

    @property
    def status(self) -> Status:
        """claimed: nobody but the author ran it; smoke_checked: others ran some of its cells; reproduced: all."""
        return "claimed" if self.review is None else self.review.status

    def flagged(self) -> list[Result]:
        """The rows, with a flag that says their status. Claimed ones are shown and not ranked."""
        return [replace(row, flags=[*row.flags, self._flag().as_dict()]) for row in self.rows.values()]

    def _flag(self) -> Flag:
        if self.review is None:
            return Flag("claimed", "fail", f"submitted by {self.form.who}; nobody else has run it")
        told = f"submitted by {self.form.who}; {{}} of {len(self.rows)} cells run again by {self.review.by}"
        told = told.format(len(self.review.cells))
        if self.review.status == "reproduced":
            return Flag("reproduced", "info", told)
        return Flag("smoke_checked", "info", told)


def folders(root: Path) -> list[Path]:
    """The folders of submissions below `ROOT/TRACK/`, in order.

    Raises:
        ConfigError: when something else lies there.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; expected submissions below {root}/TRACK/NAME")
    found = []
    for track in _inside(root):
        if track.name == "README.md" and track.is_file() and not track.is_symlink():
            continue
        for folder in _inside(_real_folder(track, f"{root}/TRACK")):
            found.append(_real_folder(folder, f"{root}/TRACK/NAME"))
    return found


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".gitkeep")


def _real_folder(path: Path, expected: str) -> Path:
    if path.is_symlink():
        raise ConfigError(f"{_shown(path)}: found a link, expected a folder {expected}; copy what it points to")
    if not path.is_dir():
        raise ConfigError(f"{_shown(path)}: found a file, expected a folder {expected}; move or remove it")
    return path


def opened(folder: Path) -> Submission:
    """The submission in a folder: its files, form, rows and review have the right form. Numbers are not compared.

    Raises:
        ConfigError: one line that begins with the file.
    """
    _real_folder(folder, "submissions/TRACK/NAME")
    found = dict(_files(folder))
    if FORM not in found:
        raise ConfigError(f"{_shown(folder)}: {FORM} is missing; write the folder with `siegebench submit new NAME`")
    form = _parsed(folder, FORM, Form, found)
    for field, path in (("name", folder), ("track", folder.absolute().parent)):
        if getattr(form, field) != path.absolute().name:
            wanted = shortened(path.absolute().name)
            told = f"{field}: found {getattr(form, field)!r}, expected {wanted}, the name of the folder"
            raise ConfigError(f"{_shown(folder / FORM)}: {told}; rename one of them")
    _hashes(folder, form, found)
    rows = {name: _row(folder, name, found[name], form) for name in sorted(found) if name.startswith(f"{ROWS}/")}
    if not rows:
        raise ConfigError(f"{_shown(folder)}: no rows; expected {ROWS}/*.json, see `siegebench submit new --help`")
    keys: dict[str, str] = {}
    for name, row in rows.items():
        if (twin := keys.setdefault(row.cell.key, name)) != name:
            raise _of_row(folder, name, Refused(f"found the cell of {twin}, expected each cell once", "key"))
    for name in found:
        if name.startswith(f"{SUITES}/"):
            _suite(folder / name, found[name])
    review = _parsed(folder, REVIEW, Review, found) if REVIEW in found else None
    if review is not None:
        _check_review(folder, form, rows, review)
    return Submission(folder, form, rows, review)


def check(submission: Submission, others: Sequence[Result] = (), *, current: bool = True) -> None:
    """Refuse a submission whose rows cannot be what their author says.

    Args:
        others: rows of other submissions and of a store, which may have been copied.
        current: whether the entries must be registered here, in the version and with the source that made the rows.

    Raises:
        ConfigError: one line that begins with the file.
    """
    folder = submission.folder
    for name, row in submission.rows.items():
        try:
            if current:
                _entries(row)
            _origin(submission, row)
            plausible.check(row)
        except Refused as error:
            raise _of_row(folder, name, error) from None
    if (found := plausible.not_monotone(submission.rows)) is not None:
        raise _of_row(folder, *found)
    if (copy := plausible.copied(submission.rows, others)) is not None:
        told = Refused(f"found the outcomes, counts and metrics of another row, {copy[1]}; expected its own", "samples")
        raise _of_row(folder, copy[0], told)


# ---------------------------------------------------------------------------------------------------------------- files


def _shown(path: Path) -> str:
    return str(path) if len(str(path)) <= 300 and str(path).isprintable() else shortened(path.name)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a submission. All of them are looked at before the first one is read."""
    wanted: list[tuple[str, Path]] = []
    size = 0
    for path, inside in _walk(folder):
        name = f"{inside}/{path.name}" if inside else path.name
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            what = "a link" if stat.S_ISLNK(found.st_mode) else "something that is no file"
            raise ConfigError(f"{_shown(path)}: found {what}, expected a file; put the file itself into the folder")
        if not _ALLOWED[inside].fullmatch(path.name):
            what = _NAMED.get(path.suffix.lower(), "a file that no submission has")
            raise ConfigError(
                f"{_shown(path)}: found {what}, expected only {FORM}, {ROWS}/*.json and {SUITES}/*.yaml; remove it "
                "(the code of an entry belongs into the folder of its kind, see CONTRIBUTING.md)"
            )
        if found.st_size > FILE_BYTES:
            told = (
                f"found {found.st_size:,} bytes, expected at most {FILE_BYTES:,}; a row holds no images and no weights"
            )
            raise ConfigError(f"{_shown(path)}: {told}")
        size += found.st_size
        wanted.append((name, path))
        if len(wanted) > FILES or size > ALL_BYTES:
            told = f"found more than {FILES:,} files or {ALL_BYTES:,} bytes; split the submission by track or entry"
            raise ConfigError(f"{_shown(folder)}: {told}")
    for name, path in wanted:
        # what a link points to is never read, also if the file was replaced by one since
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            yield name, file.read(FILE_BYTES + 1)


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()):
        if path.name in (ROWS, SUITES) and path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                yield inner, path.name
        else:
            yield path, ""


def _parsed(folder: Path, name: str, kind: Any, found: Mapping[str, bytes]) -> Any:
    try:
        return read(kind, found[name])
    except ConfigError as error:
        then = (
            f"correct it, and check it again: siegebench submit check {_shown(folder)}"
            if name == FORM
            else "remove it, or check again: siegebench submit check FOLDER --rerun 3 --record YOUR_NAME"
        )
        raise ConfigError(f"{_shown(folder / name)}: {error}; {then}") from None


def _hashes(folder: Path, form: Form, found: Mapping[str, bytes]) -> None:
    present = {name for name in found if name not in (FORM, REVIEW)}
    again = f"write the folder again: siegebench submit new {form.name}"
    for name in sorted(present | form.files.keys()):
        if name not in present:
            raise ConfigError(f"{_shown(folder / FORM)}: files.{name}: no such file in the folder; {again}")
        if name not in form.files:
            raise ConfigError(f"{_shown(folder / name)}: not listed under files in {FORM}; {again}")
        if hash_of(found[name]) != form.files[name]:
            told = f"found sha256 {hash_of(found[name])[:16]}..., expected {form.files[name][:16]}... as in {FORM}"
            raise ConfigError(f"{_shown(folder / name)}: {told}: it was edited after it was collected; {again}")


def _suite(path: Path, content: bytes) -> None:
    """A suite is strict YAML with plain text only. What it names is looked up when cells are run again."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_shown(path)}: byte {error.start} is not UTF-8 text; write it again") from None
    document = Document(text, _shown(path))
    try:
        _texts(document.data, ())
    except Refused as error:
        raise ConfigError(f"{_shown(path)}: {dotted(error.loc)}{error}; change the suite and run it again") from None


def _check_review(folder: Path, form: Form, rows: Mapping[str, Result], review: Review) -> None:
    told = ""
    keys = {row.cell.key for row in rows.values()}
    again = {cell.key for cell in review.cells}
    if review.content != form.content:
        told = f"content: found {review.content[:16]}..., expected {form.content[:16]}...: it has changed since"
    elif review.protocol != PROTOCOL:
        told = f"protocol: found {review.protocol}, expected {PROTOCOL}"
    elif not again <= keys:
        told = f"cells: found {min(again - keys)[:16]}, expected keys of the rows"
    elif (review.status == "reproduced") != (again == keys):
        whole = "reproduced" if again == keys else "smoke_checked"
        told = f"status: found {review.status}, expected {whole} for {len(again)} of {len(keys)} cells"
    if told:
        then = "remove it, or check again: siegebench submit check FOLDER --rerun 3 --record YOUR_NAME"
        raise ConfigError(f"{_shown(folder / REVIEW)}: {told}; {then}")


# ----------------------------------------------------------------------------------------------------------------- rows


def _of_row(folder: Path, name: str, error: Refused) -> ConfigError:
    then = "run the suite again, then `siegebench submit new`; numbers are never typed in"
    return ConfigError(f"{_shown(folder / name)}: {dotted(error.loc)}{error}; {then}")


def _row(folder: Path, name: str, content: bytes, form: Form) -> Result:
    """A row of this protocol with plain texts, under the name of its key."""
    try:
        raw = strictjson.loads(content)
        if isinstance(raw, dict) and isinstance(raw.get("protocol"), int) and raw["protocol"] != PROTOCOL:
            raise Refused(f"found {raw['protocol']}, expected {PROTOCOL}, the protocol of this version", "protocol")
        try:
            schema.check(raw)
        except ConfigError as error:
            raise Refused(str(error)) from None
        _texts({k: v for k, v in raw.items() if k != "samples"}, ())
        row = Result.from_dict(raw)
        _describes(name, raw, row, form)
        return row
    except Refused as error:
        raise _of_row(folder, name, error) from None


def _texts(value: Any, loc: tuple[Any, ...]) -> None:
    """Every text and key is plain and not too long."""
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise Refused(f"found {len(value):,} characters, expected at most {LONGEST:,}", *loc)
        try:
            plain(value)
        except ValueError as error:
            raise Refused(str(error), *loc) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _texts(key, loc)
            _texts(inner, (*loc, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _texts(inner, (*loc, i))


def _describes(name: str, raw: Mapping[str, Any], row: Result, form: Form) -> None:
    """What a row says about itself, apart from its numbers."""
    if not name.endswith(f"-{row.cell.key[:16]}.json"):
        raise Refused(f"found the cell {row.cell.key[:16]}, expected that of the file's name", "key")
    if raw["labels"] != row.cell.labels:
        differing = next(
            k for k in {**raw["labels"], **row.cell.labels} if raw["labels"].get(k) != row.cell.labels.get(k)
        )
        told = f"found {shortened(raw['labels'].get(differing))}, expected {shortened(row.cell.labels.get(differing))}"
        raise Refused(told, "labels", differing)
    if row.cell.track != form.track:
        raise Refused(
            f"found {row.cell.track!r}, expected {form.track!r}, the track of the submission", "cell", "track"
        )
    if row.status == "error":
        raise Refused("found 'error', expected 'ok' or 'not_applicable': a failed cell is not submitted", "status")
    if others := row.env.keys() - _ENVIRONMENT:
        raise Refused("expected only versions and hardware, nothing that names a machine", "env", min(others))
    if "answers" in row.cell.model:
        raise Refused(
            "found a model passed from Python, expected one with a card, so that others can run it", "cell", "model"
        )


def _entries(row: Result) -> None:
    """Every entry is registered here, in the version and with the source that the row was made with."""
    for slot in SLOTS:
        description = getattr(row.cell, slot)
        if description is not None:
            _entry(slot, description, ("cell", slot))
    _entry("dataset", row.cell.data["source"], ("cell", "data", "source"))
    now = sources.of(row.cell)
    for slot in now:
        if slot not in row.sources:
            raise Refused("missing: a version from before hashes of the source made this row", "sources", slot)
    if differing := sources.differ(row.sources, now):
        told = f"found {row.sources[differing[0]]}, expected {now[differing[0]]}: other code made this row"
        raise Refused(told, "sources", differing[0])


def _entry(kind: str, description: Mapping[str, Any], loc: tuple[Any, ...]) -> None:
    try:
        found, _ = registry.find(kind, description["name"])
    except ConfigError as error:
        raise Refused(f"{str(error).rstrip('.')}; its card belongs into the same pull request", *loc, "name") from None
    if found.card.version != description["version"]:
        told = f"found {description['version']}, expected {found.card.version}, that of {found.name} here"
        raise Refused(told, *loc, "version")
    for key, value in description.items():
        if isinstance(value, Mapping) and "name" in value and "version" in value:
            inner = next((k for k in ("attack", *KINDS) if (k, str(value["name"])) in registry.cards()), "attack")
            _entry(inner, value, (*loc, key))


def _origin(submission: Submission, row: Result) -> None:
    """The suite that made a row is bundled, or comes along."""
    name = str(row.given.get("suite", {}).get("name", ""))
    if not name:
        raise Refused("missing: others need the suite to run the cell again", "given", "suite")
    if suite_file(submission, name) is None and name not in {path.stem for path in bundled_suites()}:
        told = f"found {shortened(name)}, expected a bundled suite or a file in {SUITES}/"
        raise Refused(told, "given", "suite", "name")
    for assignment in row.given["suite"].get("set", ()):
        if ".../" in assignment:
            told = f"found {shortened(assignment)}, a file of the author's machine, expected what others have"
            raise Refused(told, "given", "suite", "set")


def suite_file(submission: Submission, name: str) -> Path | None:
    """The file of a suite that comes along, by the name that rows keep; None for others."""
    inside = f"{SUITES}/{name}"
    return submission.folder / inside if inside in submission.form.files else None


def every(root: Path, but: Iterable[Path] = ()) -> list[Submission]:
    """All submissions below a folder, except some; those that cannot be read are refused."""
    left_out = {path.absolute() for path in but}
    return [opened(folder) for folder in folders(root) if folder.absolute() not in left_out]
