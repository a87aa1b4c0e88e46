"""Fixtures of the tests of the page."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .browser import CHROMIUM, FLAGS, Browse, Built, built


@pytest.fixture(scope="module")
def everything() -> Built:
    return built()


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    def run(text: str, *flags: str, hash: str = "") -> tuple[str, str]:
        """(the page after its script ran, what the browser's console said)."""
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        command = [
            str(CHROMIUM),
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            *flags,
            "--dump-dom",
            f"file://{file}{hash}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.stdout, "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)

    return run
