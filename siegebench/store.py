"""Store: one JSON file per cell, written atomically, and trained weights as artifacts.

    ROOT/rows/DATA/TRACK/.../ATTACK-KEY16.json      the rows (and .npz files with per-sample numbers; if asked for,
                                                    .images.safetensors and a folder .images of PNG files)
    ROOT/history/...                                rows that a newer row of the same cell has replaced
    ROOT/artifacts/KEY.safetensors, KEY.json        weights under the hash of their description, and the description
    ROOT/suites/NAME.json                           which cells a suite has (see `records`)
    ROOT/shards/KEY-WHOSE/START-STOP.safetensors    finished images of a cell that is not finished (see `shards`)
    ROOT/.locks/                                    held while a cell or an artifact is computed

Importing this needs no torch.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from siegebench import pictures, schema
from siegebench.cells import Cell, Result
from siegebench.errors import ConfigError, shortened
from siegebench.files import write_atomic

IMAGES, PICTURES = ".images.safetensors", ".images"  # endings of what lies beside a row


def _tidy(value: Any) -> Any:
    """Round floats to six digits and convert numpy scalars to Python numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _tidy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tidy(v) for v in value]
    return value


def _read(path: Path) -> Result:
    """The row in a file.

    Raises:
        ConfigError: with file and field, when it is not a valid row.
    """
    try:
        return Result.from_dict(schema.parse(path.read_bytes()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; remove it and run again") from None


class Store:
    """The rows and artifacts below one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # ---------------------------------------------------------------------------------------------------------- rows

    def path(self, cell: Cell) -> Path:
        return self.root / "rows" / cell.file

    def get(self, cell: Cell) -> Result | None:
        """The stored row of a cell, or None. A file that is not a valid row is renamed to `.corrupt` and ignored."""
        path = self.path(cell)
        try:
            result = _read(path)
        except FileNotFoundError:
            return None
        except ConfigError:
            os.replace(path, path.with_suffix(".corrupt"))
            return None
        return result if result.cell.key == cell.key else None

    def finished(self, cell: Cell) -> bool:
        """Whether a row without an error is stored."""
        found = self.get(cell)
        return found is not None and found.status != "error"

    def put(self, result: Result) -> Path:
        """Write a row, its per-sample numbers first. The caller must hold the cell's lock.

        A row that it replaces moves to the history, unless that is an error.

        Raises:
            TypeError, ValueError: when it cannot be written as JSON.
            ConfigError: with the field, when it does not conform to the schema.
        """
        path = self.path(result.cell)
        self.sweep(path)
        row = result.as_dict()
        cell = row.pop("cell")
        tail = {k: row.pop(k) for k in ("attempts", "env", "timing", "given", "sources", "errors") if k in row}
        # settings are stored exactly; measured numbers are rounded
        exact = {"cell": cell, **({"given": tail["given"]} if "given" in tail else {})}
        whole = {**_tidy(row), "cell": cell, **_tidy(tail), **exact}
        text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False)
        content = (text + "\n").encode()
        schema.parse(content)
        if self.finished(result.cell) and path.read_bytes() != content:
            self._retire(path)
        if result.arrays:
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in result.arrays.items()}
            np.savez_compressed(buffer, **arrays)
            write_atomic(path.with_suffix(".npz"), buffer.getvalue())
        if result.images:
            self._put_images(path, result)
        write_atomic(path, content)
        return path

    def _put_images(self, path: Path, result: Result) -> None:
        """Write adversarial images as float32 with their ids and labels, and as 8-bit PNG files named by id."""
        from safetensors.numpy import save

        tensors = {name: np.ascontiguousarray(value) for name, value in result.images.items()}
        about = {"original_digest": str(result.cell.data["digest"]), "cell": result.cell.key}
        write_atomic(path.with_suffix(IMAGES), save(tensors, about))
        folder = path.with_suffix(PICTURES)
        shutil.rmtree(folder, ignore_errors=True)
        # other kinds of data have no colours
        if tensors["images"].shape[1] in (1, 3) and result.cell.data.get("kind", "image") == "image":
            pictures.write(folder, tensors["images"], tensors["ids"])

    def images(self, cell: Cell) -> int | None:
        """The number of adversarial images that are stored beside a row; None without their file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(cell).with_suffix(IMAGES), framework="numpy") as file:
                return int(file.get_slice("ids").get_shape()[0])
        except (OSError, SafetensorError):
            return None

    def pictures(self, cell: Cell, most: int) -> list[tuple[str, bytes]]:
        """(name, PNG) of the first pictures that are stored beside a row, at most `most` of them."""
        files = self.path(cell).with_suffix(PICTURES).glob("*.png")
        ordered = sorted(files, key=lambda file: (len(file.stem), file.stem))  # 2 before 10
        return [(file.stem, file.read_bytes()) for file in ordered[:most]]

    def files(self, cell: Cell) -> dict[str, bytes]:
        """The files of a row by the ending of their names, to be received by another store."""
        path = self.path(cell)
        beside = [path, *(path.with_suffix(end) for end in (".npz", IMAGES)), *path.with_suffix(PICTURES).glob("*.png")]
        start = len(str(path.with_suffix("")))
        return {str(file)[start:]: file.read_bytes() for file in beside if file.is_file()}

    def receive(self, cell: Cell, files: Mapping[str, bytes]) -> None:
        """Write the files of a row that another store has sent, the row last. The caller must hold the cell's lock.

        Raises:
            ConfigError: when the row is not valid or of another cell, or a file is not one of those beside a row.
        """
        path = self.path(cell)
        row = files.get(".json", b"")
        if Result.from_dict(schema.parse(row)).cell.key != cell.key:
            raise ConfigError(f"{path}: a worker sent the row of another cell")
        known = {".json", ".npz", IMAGES}
        for end in files:
            if end not in known and not re.fullmatch(rf"{re.escape(PICTURES)}/[\w-]+\.png", end):
                raise ConfigError(f"{path}: a worker sent a file *{shortened(end)}, which rows do not have")
        self.sweep(path)
        if self.finished(cell) and path.read_bytes() != row:
            self._retire(path)
        for end, content in sorted(files.items(), key=lambda item: item[0] == ".json"):
            write_atomic(Path(f"{path.with_suffix('')}{end}"), content)

    def _retire(self, path: Path) -> None:
        """Move a row and the files beside it to the history, under the time when it was made."""
        when = "".join(c for c in str(_read(path).timing.get("ended", "")) if c.isdigit())[:14] or "undated"
        folder = self.root / "history" / path.parent.relative_to(self.root / "rows")
        folder.mkdir(parents=True, exist_ok=True)
        same = len(list(folder.glob(f"{glob.escape(path.stem)}.{when}*.json")))
        name = f"{path.stem}.{when}" + (f"-{same}" if same else "")
        for suffix in (".npz", IMAGES, PICTURES, ".json"):
            if path.with_suffix(suffix).exists():
                os.replace(path.with_suffix(suffix), folder / f"{name}{suffix}")

    def rows(self) -> Iterator[Result]:
        """All rows, sorted by path.

        Raises:
            ConfigError: with the file, when one is not a valid row.
        """
        for path in sorted((self.root / "rows").rglob("*.json")):
            if path.name.startswith("."):
                continue
            yield _read(path)

    def arrays(self, cell: Cell) -> dict[str, np.ndarray[Any, Any]]:
        """The per-sample numbers of a row."""
        path = self.path(cell).with_suffix(".npz")
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    # --------------------------------------------------------------------------------------------- locks and artifacts

    @contextmanager
    def lock(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Lock a key, so that only one process computes it. The system releases the lock when a process ends.

        Yields whether the lock was acquired: always with `wait`, otherwise only if no other process holds it.
        """
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key[:32]}.lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @staticmethod
    def sweep(path: Path) -> None:
        """Remove temporary files of killed processes that tried to write this file. The caller must hold its lock."""
        for torn in path.parent.glob(f".{glob.escape(path.stem)}.*.tmp"):
            shutil.rmtree(torn) if torn.is_dir() else torn.unlink(missing_ok=True)

    def artifact(self, key: str) -> Path:
        return self.root / "artifacts" / f"{key}.safetensors"
