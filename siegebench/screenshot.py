"""A picture of a page, taken by a headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from siegebench.errors import ConfigError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-quic",
)  # fmt: skip
SECONDS, COLOURS = 120, 256


def take(html: str, target: Path, width: int = 1280, height: int = 1640) -> None:
    """Write the top of a page as PNG.

    Raises:
        ConfigError: there is no Chromium, or it made no picture.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise ConfigError(f"--format png needs one of {', '.join(PROGRAMS)}; none is installed. --format html does not")
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html, encoding="utf-8")
        command = [
            program, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
            f"--screenshot={shot}", page.as_uri(),
        ]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{program} took longer than {SECONDS} s to draw the page") from None
        if not shot.is_file():
            raise ConfigError(f"{program} made no picture of the page; --format html needs no browser")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(shot) as drawn:  # a page has few colours: a palette makes a third of the bytes
            drawn.convert("RGB").quantize(COLOURS).save(target, format="PNG", optimize=True)
