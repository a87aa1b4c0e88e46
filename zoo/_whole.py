"""Files that contain a whole network, not only its weights."""

from __future__ import annotations

from pathlib import Path

from siegebench.data import Size
from siegebench.errors import ModelError

from ._files import DATA_VARIABLE, check_name, data_folder

Channels = tuple[float, ...]  # one number for each channel


def find_network(file: str, kind: str) -> Path:
    """The file: a path, or below `weights/` in the folder named by the environment variable.

    Args:
        kind: what it is expected to be, for messages.

    Raises:
        ModelError: when it is missing, or its sha256 is not the one in its name.
    """
    if not file:
        raise ModelError(f"no file is given; expected {kind}: `file: PATH`")
    near, home = Path(file).expanduser(), data_folder()
    candidates = [near] if home is None else [near, home / "weights" / file, home / file]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        what = "is a folder" if near.is_dir() else "there is no such file"
        raise ModelError(
            f"{file}: {what}; expected {kind}: a path, or a file in FOLDER/weights with {DATA_VARIABLE}=FOLDER"
        )
    check_name(found)
    return found


def normalisation(mean: Channels | None, std: Channels | None, channels: int) -> tuple[Channels, Channels]:
    """Mean and std for each channel; 0 and 1 if they are not given.

    Raises:
        ModelError: when their number is not that of the channels, or a std is not above 0.
    """
    both = mean or (0.0,) * channels, std or (1.0,) * channels
    for name, values in zip(("mean", "std"), both, strict=True):
        if len(values) != channels:
            raise ModelError(f"{name}: {len(values)} numbers for images with {channels} channels")
    if min(both[1]) <= 0:
        raise ModelError(f"std: expected numbers above 0, found {list(both[1])}")
    return both


def as_square(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


def shown(size: Size | None) -> Size | str:
    """A size for a model card."""
    return "that of the images" if size is None else size
