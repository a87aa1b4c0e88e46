"""What a worker process does first. Importing this needs nothing heavy: a worker is watched before it loads torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def start(threads: int) -> None:
    """In a fresh process: leave Ctrl-C to the parent, go when the parent is gone, share the cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()  # its end of a pipe closes when it dies, however early and however hard
            os._exit(1)  # the store needs no farewell

        threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
