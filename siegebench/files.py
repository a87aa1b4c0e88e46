"""Files: atomic writing, and where those of the user are."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from siegebench.errors import DataError

DATA_VARIABLE = "SIEGEBENCH_DATA"


def given_file(file: str, what: str) -> Path:
    """A file of the user: a path, or one below `weights/` in the folder named by the environment variable.

    Args:
        what: what it is, for the message.

    Raises:
        DataError: when there is none.
    """
    places = [Path(file).expanduser()]
    if folder := os.environ.get(DATA_VARIABLE):
        places.append(Path(folder).expanduser() / "weights" / file)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{file}: there is no such file, here or below weights/ in the folder named by {DATA_VARIABLE}; expected "
            f"{what}"
        )
    return found


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
