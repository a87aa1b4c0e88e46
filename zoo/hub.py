"""Image data sets on the Hugging Face hub that are stored as parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from siegebench.data import ImageSet
from siegebench.errors import DataError
from siegebench.types import Count, DataSource

from ._files import online
from ._images import Channels, Fit
from .parquet import Layout, complete, scan


@dataclass(frozen=True, kw_only=True)
class Hub(DataSource):
    """Files `[CONFIG/]SPLIT-*.parquet` of a data set on the hub, from its cache if they are there. Nothing is random.

    Attributes:
        dataset: `owner/name`.
        num_classes: of the data set.
        config: folder of the configuration, for a data set with several.
        revision: branch, tag or commit; use a commit for reproducible numbers.
        download: fetch the files when they are not in the hub's cache.
        image, label, size, fit, group_by_path, channels, cut: see Layout.
    """

    local: ClassVar[tuple[str, ...]] = ("download",)
    added: ClassVar[tuple[str, ...]] = ("channels", "cut")

    dataset: str
    num_classes: Count
    config: str = ""
    revision: str = "main"
    download: bool = True
    image: str = "image"
    label: str = "label"
    size: Count | None = None
    fit: Fit = "crop"
    group_by_path: bool = False
    channels: Channels = 3
    cut: Annotated[int, Field(ge=0, strict=True)] = 0

    def load(self, split: str) -> ImageSet:
        return self.scan(split).in_memory()

    def scan(self, split: str) -> ImageSet:
        name = f"{self.dataset} {split}"
        layout = Layout(
            num_classes=self.num_classes, image=self.image, label=self.label, size=self.size, fit=self.fit,
            group_by_path=self.group_by_path, channels=self.channels, cut=self.cut,
        )  # fmt: skip
        return scan(self._files(split, name), layout, name)

    def _files(self, split: str, name: str) -> list[Path]:
        pattern = f"{self.config}/{split}-*.parquet" if self.config else f"{split}-*.parquet"
        files = self._snapshot(pattern, local_only=True)
        if not complete(files) and self.download and online():
            files = self._snapshot(pattern, local_only=False)
        folders = sorted({file.parent.name for file in files})
        if len(folders) > 1:
            raise DataError(f"{name}: several configurations; set `config` to one of {', '.join(folders)}")
        if not complete(files):
            raise DataError(
                f"{name}: {pattern} is not in the hub's cache and could not be fetched. Connect this machine to the "
                "network once, or use parquet files of your own: {name: parquet, folder: FOLDER, num_classes: N}"
            )
        return files

    def _snapshot(self, pattern: str, *, local_only: bool) -> list[Path]:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            folder = snapshot_download(
                self.dataset, repo_type="dataset", revision=self.revision, allow_patterns=[pattern, f"*/{pattern}"],
                local_files_only=local_only,
            )  # fmt: skip
        except HFValidationError as error:
            raise DataError(f"{self.dataset!r} is not the name of a data set on the hub: {error}") from None
        except (HfHubHTTPError, OSError) as error:
            if local_only:
                return []
            raise DataError(f"{self.dataset}: the hub refused ({str(error).splitlines()[0][:160]})") from None
        return sorted({*Path(folder).glob(pattern), *Path(folder).glob(f"*/{pattern}")})
