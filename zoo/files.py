"""Where data, weights and caches lie on this machine, and whether the hub can be reached."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

DATA_VARIABLE = "SIEGEBENCH_DATA"


def data_folder() -> Path | None:
    """The folder that the environment names for data sets and weights."""
    named = os.environ.get(DATA_VARIABLE)
    return Path(named).expanduser() if named else None


def cache_folder() -> Path:
    """Where decoded images and downloads are kept; can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "siegebench"


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def online(timeout: float = 3.0) -> bool:
    """Whether the Hugging Face hub answers; the hub's own client would try again for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False
    return True
