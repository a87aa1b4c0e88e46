"""Start-up of worker processes. Imports nothing heavy, so that the parent is watched before torch is loaded."""

from __future__ import annotations

import ast
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from siegebench.errors import ConfigError

GUARD = 'put the call under `if __name__ == "__main__":`, or use how="serial"'


def check_guarded() -> None:
    """Refuse a call from a script that its worker processes would run again.

    A new process imports the main script first. If the call is not under `if __name__ == "__main__":`, it is made again
    in every worker, and no worker starts.

    Raises:
        ConfigError: with the file and line of the call.
    """
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    name = getattr(getattr(main, "__spec__", None), "name", "") or ""
    if file is None or name.endswith("__main__"):  # multiprocessing does not import it
        return
    frame = sys._getframe()
    while frame.f_back is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame.f_globals is not vars(main):  # called from a thread
        return
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return
    before = [node for node in body if node.lineno <= frame.f_lineno and isinstance(node, ast.If)]
    if not any("__name__" in ast.dump(node.test) for node in before):
        raise ConfigError(f'{file}:{frame.f_lineno}: how="local" starts processes that run this script again; {GUARD}')


def start(threads: int, started: Any) -> None:
    """Set up a new process: ignore Ctrl-C, exit when the parent exits, and limit the threads of torch.

    Args:
        started: an event of multiprocessing, set when the process is ready.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()  # returns when the parent's end of a pipe closes, however the parent ended
            os._exit(1)  # rows are written atomically, so no clean-up is needed

        threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    started.set()
