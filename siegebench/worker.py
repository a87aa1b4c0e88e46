"""Start-up of a worker process. Imports nothing heavy, so that the parent is watched before torch is loaded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def start(threads: int) -> None:
    """Set up a new process: ignore Ctrl-C, exit when the parent exits, and limit the threads of torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()  # returns when the parent's end of a pipe closes, however the parent ended
            os._exit(1)  # rows are written atomically, so no clean-up is needed

        threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
