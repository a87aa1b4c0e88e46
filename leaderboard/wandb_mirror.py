"""Copies stored rows to Weights & Biases, one run per cell. Nothing depends on it.

Offline by default: the runs are written to a folder, and `wandb sync FOLDER/wandb/offline-run-*` uploads them later. A
repeated cell updates its run, because the run's id is the cell's key. The runs can be rebuilt from the store.
"""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from siegebench.cells import PROTOCOL, Result, label
from siegebench.errors import ConfigError, MissingExtra

from .board import SHORT, metric, unique

Mode = Literal["offline", "online", "disabled"]
PUBLIC_ENV = ("siegebench", "torch", "python", "device", "commit")  # other fields may identify a person or a machine
# nothing about this machine is sent except what is in the row
QUIET = {"WANDB_DISABLE_CODE": "true", "WANDB_DISABLE_GIT": "true", "WANDB_ERROR_REPORTING": "false"}


def mirror(
    results: Iterable[Result],
    project: str,
    mode: Mode = "offline",
    directory: Path | str = ".",
    group: str | None = None,
    entity: str | None = None,
    tags: Iterable[str] = (),
) -> list[Path]:
    """Write one W&B run per row and return the folders of the runs.

    If W&B fails (no server, no disk space, a bug), nothing is raised: one warning goes to stderr and no further rows
    are written. The stored rows are never changed.

    Args:
        project: W&B project, normally the name of the suite.
        mode: `offline` writes to `directory`; `online` also sends, and falls back to offline without an API key;
            `disabled` does nothing.
        directory: parent folder of `wandb/`.
        group: W&B group of the runs, normally one sweep.

    Raises:
        MissingExtra: when wandb is not installed.
        ConfigError: when the mode is unknown.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"wandb: unknown mode {mode!r}; one of {', '.join(get_args(Mode))}")
    if mode == "disabled":
        return []
    try:
        import wandb
    except ImportError:
        raise MissingExtra("wandb", "wandb", "the W&B mirror") from None
    if mode == "online" and not _has_key():
        _warn("no API key in WANDB_API_KEY or .netrc, writing offline; `wandb login`, then `wandb sync` sends the runs")
        mode = "offline"
    made: list[Path] = []
    with _environment(QUIET):
        for row in unique(results):
            try:
                made.append(_write(wandb, row, project, mode, Path(directory), group, entity, tuple(tags)))
            except Exception as error:
                _warn(f"stopped after {len(made)} rows ({type(error).__name__}: {error}); the store is not affected")
                break
    return made


def _write(
    wandb: Any,
    row: Result,
    project: str,
    mode: str,
    directory: Path,
    group: str | None,
    entity: str | None,
    tags: tuple[str, ...],
) -> Path:
    cell = row.cell
    directory.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=project,
        entity=entity,
        id=cell.key[:SHORT],
        name=name(row),
        group=group or cell.track,
        job_type=cell.track,
        tags=[tag[:64] for tag in dict.fromkeys((*_tags(row), *tags)) if tag],
        config=config(row),
        mode=mode,
        dir=str(directory),
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=20,
            disable_code=True,
            disable_git=True,
            host="",
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )
    try:
        run.summary.update(summary(row))
    finally:
        run.finish(exit_code=0 if row.status != "error" else 1)
    return Path(run.dir).parent


def name(row: Result) -> str:
    """`resnet18/none/autoattack`: model, defense if there is one, and what was measured."""
    cell = row.cell
    parts = [cell.model, cell.defense, cell.backdoor, cell.attack or cell.measure or cell.detector]
    return "/".join(label(part) for part in parts if part is not None)


def _tags(row: Result) -> list[str]:
    labels = row.cell.labels
    return [labels["data"], row.cell.track, *([labels["threat"]] if "threat" in labels else []), row.status]


def config(row: Result) -> dict[str, Any]:
    """The resolved cell and its environment, without paths, user names or hosts."""
    cell = {k: v for k, v in row.cell.as_dict().items() if v is not None}
    env = {k: row.env[k] for k in PUBLIC_ENV if k in row.env}
    return {**cell, "key": row.cell.key, "protocol": PROTOCOL, "weights": row.weights, "env": env}


def summary(row: Result) -> dict[str, Any]:
    """All numbers of the row under flat names: `robust_acc`, `robust_acc/low`, `forwards_per_sample`, `seconds`."""
    out: dict[str, Any] = {"status": row.status, "flags": ", ".join(sorted({f["id"] for f in row.flags}))}
    for key, found in row.metrics.items():
        value = metric(row, key)
        if value is not None:
            out[key] = value
            out.update({f"{key}/{part}": found[part] for part in ("low", "high", "n") if found.get(part) is not None})
    out.update(row.counts)
    out.update({k: v for k, v in row.timing.items() if v is not None})
    return out


def _has_key() -> bool:
    """Whether an API key is configured; does not contact the server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        found = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    hosts = ("api.wandb.ai", os.environ.get("WANDB_BASE_URL", "").partition("://")[2].partition("/")[0])
    return any(host in found.hosts for host in hosts if host)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily; variables set by the user are not changed."""
    added = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def _warn(text: str) -> None:
    print(f"wandb mirror: {text}", file=sys.stderr)
