"""Memory of tensors on a CPU: keep what is freed for the next pass, instead of getting it from the system again."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
TUNED = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_PAD_")  # variables with which users set these limits
LARGEST = 2**31 - 1  # bytes that stay free at the end of the heap
LARGE, OLDER = 2**27, 2**25  # bytes; larger tensors are still given back at once; OLDER where that is refused


@cache
def keep() -> bool:
    """From now on, keep freed memory for the next tensors; returns whether the C library can.

    glibc gives the memory of a large tensor back to the system, which clears every page of the next one again: a pass
    of 256 images through a ResNet-20 takes a tenth longer for it, at times a quarter. With other C libraries, and where
    the user has set these limits of glibc (`MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`, ...), nothing changes.
    """
    libc = _glibc()
    if libc is None:
        return False
    sizes = libc.mallopt(MMAP_THRESHOLD, LARGE) or libc.mallopt(MMAP_THRESHOLD, OLDER)
    return bool(sizes and libc.mallopt(TRIM_THRESHOLD, LARGEST))


@contextmanager
def kept() -> Iterator[None]:
    """Keep freed memory (`keep`), and give back at the end what is free then."""
    keeps = keep()
    try:
        yield
    finally:
        if keeps:
            _glibc().malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library; None if it is another one, or if the user has set its limits."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in tunables or any(name.startswith(TUNED) for name in os.environ):
        return None
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018
    except (AttributeError, OSError, TypeError):  # on Windows None is refused
        return None
    return libc
