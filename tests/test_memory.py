"""Freed memory stays with the process while cells are computed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.shown import ROOT

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
PAGES = 16_384  # of a tensor of 64 MiB
FAULTS = """
import resource, torch
from siegebench.memory import keep, kept

def faults(times=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) >> 8  # MiB
"""


def run(code: str, **env: str) -> list[str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))} | env
    done = subprocess.run(
        [sys.executable, "-c", FAULTS + code], cwd=ROOT, env=ours, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@glibc
def test_a_tensor_gets_the_memory_of_the_last_one() -> None:
    kept, _, faults = run("print(keep(), faults(), faults())")
    assert kept == "True"
    assert int(faults) < PAGES, "not one of 20 tensors gets new pages"


@glibc
def test_memory_is_given_back_at_the_end() -> None:
    inside, after = run("""
with kept():
    x = [torch.ones(2**24) for _ in range(8)]
    y = torch.ones(8)  # behind them on the heap
    del x
    inside = resident()
print(inside, resident())""")
    assert int(inside) - int(after) > 400, "MiB of the 512"


@glibc
def test_a_user_who_tunes_the_c_library_is_obeyed() -> None:
    assert run("print(keep())", MALLOC_TRIM_THRESHOLD_="1000000") == ["False"]
