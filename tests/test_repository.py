"""What leaks, what lies: no file names a machine, the README names every command, the version is said once."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from siegebench.cli import app
from tests.test_structure import none

ROOT = Path(__file__).resolve().parent.parent


def text_files() -> list[Path]:
    """What a clone would hold: everything that git knows or would add."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    out = []
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            out.append(path)
    return out


def test_no_file_names_a_place_of_this_machine() -> None:
    places = {str(p) for p in (ROOT, Path.home(), Path(sys.prefix)) if len(p.parts) > 2}
    folders = re.compile(r"(?<![\w.$}~])/(?:home|root|Users|work|mnt|scratch)/\w")
    bad = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if folders.search(line) or any(place in line for place in places)
    ]
    none(bad)


def test_no_file_names_a_package_registry() -> None:
    settings = [v for k, v in os.environ.items() if k.endswith(("INDEX_URL", "PROXY", "HF_ENDPOINT", "_proxy"))]
    hosts = {host for value in settings for word in value.split() if (host := urlsplit(word).hostname)}
    hosts -= {"pypi.org", "huggingface.co", "localhost"}
    scheme, index = "https?:" + "//", "index" + "-url"
    address = re.compile(rf"{scheme}\S+/simple\b|--(?:extra-)?{index}[ =]+\S*{scheme}")
    bad = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if address.search(line) or any(host in line for host in hosts)
    ]
    none(bad)


def commands() -> list[str]:
    single = [c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback]
    return single + [group.typer_instance.info.name for group in app.registered_groups]


def test_readme_shows_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"run", "list", "report", "check"} <= set(commands())
    missing = [f"siegebench {name}" for name in commands() if f"siegebench {name}" not in readme]
    none(missing)


def test_readme_shows_no_command_that_does_not_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(
        [*re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL), *re.findall(r"`([^`\n]+)`", readme)]
    )
    shown = set(re.findall(r"^(?:\$ )?siegebench ([a-z]+)", code, re.MULTILINE))
    assert "run" in shown
    assert shown <= set(commands())


def test_the_version_is_said_once() -> None:
    from siegebench import __version__

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in text or "dynamic" in text
    try:
        installed = importlib.metadata.version("siegebench")
    except importlib.metadata.PackageNotFoundError:
        return
    assert installed == __version__
