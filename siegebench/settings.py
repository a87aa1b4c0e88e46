"""Settings: how results are computed, and where they are kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from siegebench.cells import digest

TOGETHER = 4  # an attack on a CPU gets this many times the images of a pass, so that those left at the end fill one


@dataclass(frozen=True)
class Settings:
    """Settings of the computation. They do not change the meaning of a result and are not part of a key.

    Attributes:
        root: folder of the store.
        device: `auto` uses CUDA if available.
        batch: largest number of images per pass; halved when memory runs out. On a CPU, an attack works on `TOGETHER`
            times as many images, and the model gets them in parts.
        dtype: `float32`, or `float64` for checks of exactness.
        threads: threads of torch per worker; None is torch's default.
        again: compute rows again that were started at this time (UTC) or before; empty: use them.
        save_images: how many adversarial images of each attack to keep beside its row; 0 keeps all, None none.
        keep_stale: use rows that were made by other source of their entries.
        specs: specs of entries with a folder or file on this machine, by the digest of their description.
        suite: where the cells come from, `{name, set}`; rows repeat it.
    """

    root: str = "results"
    device: str = "auto"
    batch: int = 256
    dtype: str = "float32"
    threads: int | None = None
    again: str = ""
    save_images: int | None = None
    keep_stale: bool = False
    specs: dict[str, Any] = field(default_factory=dict, hash=False)
    suite: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """Digest of all settings; equal keys share a workspace."""
        return digest(asdict(self))
