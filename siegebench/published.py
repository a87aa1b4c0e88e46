"""Figures that others published: their number, its source, and what it was measured on. No rows, and never ranked.

`siegebench import` writes them into `STORE/published/`, one file for each file that was read. Boards show them beside
the numbers that were measured here. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from siegebench import strictjson
from siegebench.cells import SCHEMA, digest
from siegebench.errors import ConfigError, shortened
from siegebench.files import write_atomic
from siegebench.schema import Number, Part
from siegebench.strictjson import Refused, first_fault
from siegebench.threat import Norm

FOLDER = "published"
Format = Literal["robustbench", "backdoorbench", "attackbench", "lm_eval"]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected printable text on one line, found {shortened(text)}")
    return text


Line = Annotated[str, Field(max_length=300), AfterValidator(_printable)]


class Published(Part):
    """One published figure.

    Attributes:
        format: of the file that it was read from.
        source: who published it, and in which file.
        entry: its name there.
        metric: a metric of `siegebench.metrics` if it is one of those, else its name there.
        value: a rate is a fraction, not per cent.
        stderr: standard error, if there is one.
        data, norm, eps, track: what it was measured on, as far as the file or the user says so.
        attack: what the entry was attacked with, by its name there.
        paper: title, authors, venue or address.
        note: what the source says against it, such as "unreliable".
        model, defense, backdoor: the names of the same things here; a line of a board has to have all that are given.
        status: always `claimed`: nobody has measured it here.
    """

    format: Format
    source: Annotated[Line, Field(min_length=1)]
    entry: Annotated[Line, Field(min_length=1)]
    metric: Annotated[Line, Field(min_length=1)]
    value: Number
    stderr: Number | None = None
    data: Line = ""
    norm: Norm | None = None
    eps: Number | None = None
    track: Line = ""
    attack: Line = ""
    paper: Line = ""
    note: Line = ""
    model: Line = ""
    defense: Line = ""
    backdoor: Line = ""
    status: Literal["claimed"] = "claimed"

    @property
    def here(self) -> dict[str, str]:
        """The names of the line that it stands beside."""
        named = {slot: getattr(self, slot) for slot in ("model", "defense")}
        return {slot: name for slot, name in named.items() if name}


class _File(Part):
    file_schema: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)]
    figures: Annotated[list[Published], Field(min_length=1)]


def checked(values: Iterable[dict[str, Any]]) -> list[Published]:
    """Figures from plain data.

    Raises:
        ConfigError: `figures.3.value: what is wrong`.
    """
    try:
        return _File.model_validate({"schema": SCHEMA, "figures": list(values)}).figures
    except ValidationError as error:
        loc, message = first_fault(error)
        raise ConfigError(f"{'.'.join(map(str, loc))}: {message}") from None


def write(store: Path, figures: Sequence[Published]) -> Path:
    """Keep figures in a store. The same figures have the same file."""
    plain = [figure.model_dump(exclude_none=True) for figure in figures]
    text = json.dumps({"schema": SCHEMA, "figures": plain}, indent=1, ensure_ascii=False) + "\n"
    path = store / FOLDER / f"{figures[0].format}-{digest(plain)[:16]}.json"
    write_atomic(path, text.encode())
    return path


def read(store: Path) -> list[Published]:
    """All figures of a store, by file.

    Raises:
        ConfigError: with the file, when one is not valid.
    """
    found: list[Published] = []
    for path in sorted((store / FOLDER).glob("*.json")):
        try:
            value = strictjson.loads(path.read_bytes())
            found += _File.model_validate(value).figures
        except (Refused, ValidationError) as error:
            loc, message = first_fault(error) if isinstance(error, ValidationError) else (error.loc, str(error))
            where = "".join(f"{step}: " for step in (".".join(map(str, loc)),) if step)
            raise ConfigError(f"{path}: {where}{message}; remove it and import again") from None
    return found
