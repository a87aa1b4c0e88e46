"""The steps of a page, each done as a reader would do it, in a new process that has nothing of siegebench loaded.

The process is forked from one that has only imported the libraries that take seconds to import. Nothing here imports
siegebench: the new process first puts the checkout in front of its path.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import runpy
import sys
import traceback
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

Step = tuple[str, Any]  # kind, and what to do
Done = tuple[str, Any, int, str, str]  # a step, its exit code, stdout and stderr
LIBRARIES = [
    "numpy",
    "pydantic",
    "rich.console",
    "scipy.stats",
    "torch._dynamo",
    "torchvision",
    "timm",
    "typer",
    "yaml",
]
SECONDS = 500


def walk(checkout: Path, wanted: list[Step], folder: Path | None = None) -> list[Done]:
    """Do the steps, and return what each one printed; in the checkout, or in another folder."""
    assert "siegebench" not in LIBRARIES
    at, told = folder or checkout, (folder or checkout) / ".walked.json"
    process = _server().Process(target=_go, args=(str(checkout), str(at), wanted, str(told)))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0, f"the process ended with {process.exitcode}"
    done = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    return [tuple(step) for step in done]


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _go(checkout: str, folder: str, wanted: list[Step], told: str) -> None:
    assert not [name for name in sys.modules if name.partition(".")[0] == "siegebench"], "siegebench is loaded"
    os.chdir(folder)
    os.environ.update(PYTHONPATH=checkout, OMP_NUM_THREADS="1", COLUMNS="120")
    sys.path[:0] = ["", checkout]
    import torch

    torch.set_num_threads(1)
    Path(told).write_text(json.dumps([_do(*step) for step in wanted]), encoding="utf-8")


def _do(kind: str, text: Any) -> Done:
    _forget()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if kind == "file":
            path, content = text
            Path(path).write_text(content)
        elif kind == "python":
            exec(compile(text, "<page>", "exec"), {"__name__": "__main__"})
        elif kind == "script":
            try:
                runpy.run_path(text, run_name="__main__")
            except Exception:
                code = 1
                traceback.print_exc()
        elif text == ["make", "docs"]:
            from siegebench import catalogue

            catalogue.main()
        else:
            from siegebench import cli

            sys.argv = text
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
    return kind, text, code, out.getvalue(), err.getvalue()


def _forget() -> None:
    """Each step starts without any card or entry of the others in memory, as a process of its own would."""
    from siegebench import registry, signatures

    for cached in (registry.cards, registry.entry_class, signatures._source):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.endswith(".my_defense")]:
        del sys.modules[name]
    importlib.invalidate_caches()
