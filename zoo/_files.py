"""Folders for data, weights and caches on this machine, and files from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from siegebench.errors import ModelError

DATA_VARIABLE = "SIEGEBENCH_DATA"
# how messages about a network for another number of classes end
OF_MORE = "if these are some of its classes, list all of them in order in classes.txt of the image folder"
CLASSES = f"the data has {{}}; {OF_MORE}; else give another checkpoint, or `checkpoint: null` to train on this data"


def data_folder() -> Path | None:
    """The folder for data sets and weights, from the environment variable; None when it is not set."""
    named = os.environ.get(DATA_VARIABLE)
    return Path(named).expanduser() if named else None


def cache_folder() -> Path:
    """The folder for decoded images and downloads; it can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "siegebench"


def sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def online(timeout: float = 3.0) -> bool:
    """Whether the Hugging Face hub answers. The hub's own client would retry for most of a minute."""
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


def find_weights(checkpoint: str) -> Path:
    """Find a checkpoint: a path, or a file below `weights/` in the folder named by the environment variable.

    Raises:
        ModelError: when it is missing, or its sha256 is not the one in its name.
    """
    folder = data_folder()
    candidates = [Path(checkpoint).expanduser()]
    if folder is not None:
        candidates += [folder / "weights" / checkpoint, folder / checkpoint]
    for path in candidates:
        if path.is_file():
            check_name(path)
            return path
        if path.is_dir() and checkpoint:
            raise ModelError(f"{path}: a folder; give the file in it that contains the weights")
    searched = ", ".join(dict.fromkeys(map(str, candidates)))
    raise ModelError(
        f"weights {checkpoint} not found; looked for {searched}. Set {DATA_VARIABLE}=FOLDER "
        "with the file in FOLDER/weights, or give `checkpoint: PATH`, or `checkpoint: null` to train"
    )


def check_part(checkpoint: str | None, ema: bool, part: str | None) -> None:
    """Refuse a choice of weights without a checkpoint to choose from.

    Raises:
        ValueError: naming the parameter.
    """
    if checkpoint is None and (ema or part is not None):
        raise ValueError(
            f"{'ema' if ema else 'part'} chooses among the weights of a checkpoint; give `checkpoint: FILE`"
        )


def checkpoint_identity(checkpoint: str, ema: bool, part: str | None) -> dict[str, object]:
    """What a checkpoint adds to a key: the sha256 of the file, and the choice of weights if there is one."""
    chosen = {"ema": True} if ema else {}
    return {"sha256": sha256(find_weights(checkpoint)), **chosen, **({"part": part} if part is not None else {})}


def check_name(path: Path) -> None:
    """Compare the sha256 of a file with the eight hex digits at the end of its name, if there are any.

    Raises:
        ModelError: when the file is another one or damaged.
    """
    stated = re.search(r"-([0-9a-f]{8})$", path.stem)
    if stated and not (found := sha256(path)).startswith(stated[1]):
        raise ModelError(f"{path}: its sha256 begins with {found[:8]}, its name says {stated[1]}: a damaged download?")


def hub_file(repo: str, names: Iterable[str], *, revision: str | None, download: bool) -> Path | None:
    """The first of these files of a model on the hub, from its cache if possible; None if none is available."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    # the cache first, without network access
    for local_only in (True, False):
        if not local_only and not (download and online()):
            return None
        for name in names:
            try:
                return Path(hf_hub_download(repo, name, revision=revision, local_files_only=local_only))
            except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
                continue
    return None
