"""Runs of W&B from which no error escapes: what W&B fails at is one warning, and results are not touched."""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from siegebench.errors import ConfigError, MissingExtra
from siegebench.store import Store

Mode = Literal["offline", "online"]
START, END = 20.0, 120.0  # seconds to wait for the server at the start, and for uploads at the end
# nothing about this machine is sent except what is in the rows
QUIET = {
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


@dataclass(frozen=True)
class Target:
    """Where runs go.

    Attributes:
        project, entity: of W&B; the entity is that of the login if it is not given.
        mode: `offline` writes below `store/wandb`, and `wandb sync` sends it; `online` also sends.
    """

    store: Path
    project: str = "siegebench"
    entity: str | None = None
    mode: Mode = "offline"

    def checked(self) -> Target:
        """The target, offline if no API key is configured. Does not contact the server.

        Raises:
            MissingExtra: when wandb is not installed.
            ConfigError: when the mode is unknown.
        """
        if self.mode not in get_args(Mode):
            raise ConfigError(f"the mode of W&B: expected offline or online, found {self.mode!r}")
        if importlib.util.find_spec("wandb") is None:
            raise MissingExtra("wandb", "wandb", "W&B")
        if self.mode == "online" and not has_key():
            warn(
                "no API key in WANDB_API_KEY or .netrc, writing offline; `wandb login`, then `wandb sync` sends the run"
            )
            return Target(self.store, self.project, self.entity, "offline")
        return self


class Session:
    """One run of W&B, from its start to its end.

    A run with an id that exists is continued. A run that another process is writing is left to it.

    Attributes:
        failed: what W&B failed at; empty if it did not. Nothing is written after that.
        place: the page of the run, or its folder if it is offline.
    """

    def __init__(self, target: Target, id: str, **about: Any) -> None:
        """Start the run.

        Args:
            about: further arguments of `wandb.init`: name, group, config, ...
        """
        self.target, self.id, self.failed, self.place = target, id, "", ""
        self._run: Any = None
        self._began = time.time()
        self._open = ExitStack()
        self._start(about)

    def _start(self, about: dict[str, Any]) -> None:
        try:
            if not self._open.enter_context(Store(self.target.store).lock(f"wandb-{self.id}", wait=False)):
                self._fail("another process is writing this run")
                return
            import wandb

            settings = wandb.Settings(
                console="off", silent=True, init_timeout=START, finish_timeout=END, finish_timeout_raises=True,
                disable_code=True, disable_git=True, host="", x_disable_stats=True, x_disable_meta=True,
                x_save_requirements=False,
            )  # fmt: skip
            with environment(self._settings):
                self._run = wandb.init(
                    project=self.target.project, entity=self.target.entity, id=self.id, mode=self.target.mode,
                    dir=str(self.target.store.absolute()),  # W&B's process may have been started in another folder
                    resume="allow", reinit="create_new", settings=settings, **about,
                )  # fmt: skip
            url = self._run.url if self.target.mode == "online" else None
            self.place = str(url or self.target.store / "wandb" / Path(self._run.dir).parent.name)
        except Exception as error:
            self._fail(error)

    @property
    def _settings(self) -> dict[str, str]:
        return {**QUIET, "WANDB_DATA_DIR": str(self._staged)}

    @property
    def _staged(self) -> Path:
        """Copies of the artifact's files, which `wandb sync` needs."""
        return self.target.store.absolute() / "wandb" / "staged" / self.id

    def _fail(self, error: Exception | str) -> None:
        if not self.failed:
            self.failed = error if isinstance(error, str) else told(error)
            warn(
                f"stopped ({self.failed}); the stored rows are not affected, `siegebench wandb push` writes them again"
            )

    def do(self, write: Callable[[Any, Any], None]) -> None:
        """Call `write(wandb, run)`, unless something failed before."""
        if self.failed or self._run is None:
            return
        try:
            import wandb

            with environment(self._settings):
                write(wandb, self._run)
        except Exception as error:
            self._fail(error)

    def close(self, code: int = 0) -> None:
        """End the run; an offline run then takes the place of its earlier ones that were not sent."""
        run, self._run = self._run, None
        if run is not None:
            try:
                with environment(self._settings):
                    run.finish(exit_code=code)
                if not self.failed:
                    self._tidy(Path(run.dir).parent)
            except Exception as error:
                self._fail(error)
        self._open.close()

    def _tidy(self, written: Path) -> None:
        """Remove what was sent, and what a later `wandb sync` would send twice."""
        if self.target.mode == "online":
            shutil.rmtree(self._staged, ignore_errors=True)
            return
        for folder in written.parent.glob(f"offline-run-*-{self.id}*"):  # a second folder of one second ends with `-1`
            if folder != written and not any(folder.glob("*.synced")):
                shutil.rmtree(folder, ignore_errors=True)
        for file in self._staged.rglob("*"):
            if file.is_file() and file.stat().st_mtime < self._began - 1:
                file.unlink(missing_ok=True)


def leave() -> None:
    """Stop the process of W&B, so that its own exit code does not become that of the command."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        try:
            wandb.teardown()
        except (Exception, SystemExit) as error:
            warn(f"its process has not ended well ({told(error)})")


def default_entity() -> str:
    """The user or team of the login.

    Raises:
        ConfigError: when nobody is logged in, or the server does not answer.
    """
    import wandb

    try:
        with environment(QUIET):
            found = wandb.Api(timeout=int(START)).default_entity if has_key() else None
    except Exception as error:
        raise ConfigError(f"W&B does not answer ({told(error)})") from None
    if not found:
        raise ConfigError("no W&B login: `wandb login`, or set WANDB_API_KEY; --dry-run needs none")
    return str(found)


def has_key() -> bool:
    """Whether an API key for the server is configured; does not contact it."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        found = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    server = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    return any(host in found.hosts for host in (urlsplit(server).hostname, urlsplit(server).netloc) if host)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily; variables set by the user are not changed."""
    added = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def told(error: BaseException) -> str:
    """An error of W&B on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def warn(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr)
