"""Networks of RobustBench by name, with checkpoints that the user has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.contents import contents_of
from siegebench.data import Size
from siegebench.errors import ModelError, did_you_mean
from siegebench.weights import read_weights

from . import _cifar_nets
from ._checkpoint import Checkpointed
from ._files import DATA_VARIABLE, data_folder
from ._robustbench_ids import IDS, Known
from ._whole import as_square, shown

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
DEFAULT = "models"  # where RobustBench puts its files


@dataclass(frozen=True, kw_only=True)
class RobustBenchModel(Checkpointed):
    """A network of RobustBench (Croce et al., NeurIPS 2021 Datasets and Benchmarks), with a checkpoint of yours.

    Its architecture and normalisation follow from its id; a file that does not fit them is refused. Architectures are
    written here or those of torchvision, no code of RobustBench is used, and nothing is downloaded. Each checkpoint has
    the licence of its authors. Nothing is random, unless a defense trains the architecture anew.

    The file is `checkpoint`, or ID.pt in `folder`: folder/DATASET/NORM/ID.pt as RobustBench stores it, or folder/ID.pt.

    Attributes:
        id: as in RobustBench, such as Carmon2019Unlabeled; those with an architecture that is known here.
        dataset: cifar10, cifar100 or imagenet.
        norm: Linf, L2 or corruptions: the threat whose list has the id.
        folder: the `model_dir` of RobustBench; by default `models`, or `weights` in the folder named by
            SIEGEBENCH_DATA.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", *Checkpointed.local)

    id: str
    dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10"
    norm: Literal["Linf", "L2", "corruptions"] = "Linf"
    folder: str | None = None

    def __post_init__(self) -> None:
        ids = IDS.get((self.dataset, self.norm), {})
        if self.id not in ids:
            elsewhere = [f"{{dataset: {d}, norm: {n}}}" for (d, n), known in IDS.items() if self.id in known]
            hint = f"It is in the list of {' and '.join(elsewhere)}. " if elsewhere else ""
            raise ValueError(
                f"{self.dataset} {self.norm} has no network {self.id!r} with an architecture that is known here. {hint}"
                f"{did_you_mean(self.id, ids)}"
            )

    def pretrained(self) -> bool:
        return True

    @property
    def known(self) -> Known:
        """Its architecture and normalisation."""
        return IDS[self.dataset, self.norm][self.id]

    def identity(self) -> dict[str, Any]:
        found = self._filled()
        return super(RobustBenchModel, found).identity()

    def build(self, *, num_classes: int, size: Size) -> Network:
        if num_classes != CLASSES[self.dataset]:
            raise ModelError(
                f"robustbench {self.id}: a network for {self.dataset}, {CLASSES[self.dataset]} classes; the data has "
                f"{num_classes}"
            )
        filled, known = self._filled(), self.known
        mean, std = known.norm
        make = self._maker(Path(str(filled.checkpoint)), num_classes)
        net = make()
        mean, std, source, digest = filled.loaded(net, mean, std, given=True)
        card = ModelCard(
            name=self.id, architecture=known.architecture, source=source, weights=digest, dataset=self.dataset,
            preprocessing={"mean": mean, "std": std, "input_size": shown(known.size)},
        )  # fmt: skip
        return Network(
            net, num_classes=num_classes, mean=mean, std=std, size=as_square(known.size), card=card, rebuild=make
        ).eval()

    def _maker(self, path: Path, classes: int) -> partial[nn.Module]:
        if self.dataset == "imagenet":
            from torchvision.models import get_model

            return partial(get_model, self.known.architecture, weights=None, num_classes=classes)
        # the code of TRADES, which many used, has blocks that it never uses; their weights are in the files
        spare = any("sub_block1." in name for name in contents_of(read_weights(path), 3).tensors)
        return partial(_cifar_nets.make, self.known.architecture, classes, spare)

    def _filled(self) -> RobustBenchModel:
        """With its file as the checkpoint.

        Raises:
            ModelError: when there is none, with the places where it was looked for.
        """
        if self.checkpoint is not None:
            return self
        home = data_folder()
        given = [Path(self.folder).expanduser()] if self.folder is not None else [Path(DEFAULT)]
        folders = given if self.folder is not None or home is None else [*given, home / "weights"]
        names = (Path(self.dataset) / self.norm / f"{self.id}.pt", Path(f"{self.id}.pt"))
        candidates = [folder / name for folder in folders for name in names]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            raise ModelError(
                f"robustbench {self.id}: no file; looked for {', '.join(map(str, candidates))}. Give `folder: FOLDER`, "
                f"`checkpoint: FILE` or {DATA_VARIABLE}=FOLDER; RobustBench's load_model('{self.id}', "
                f"dataset='{self.dataset}', threat_model='{self.norm}') downloads it to {DEFAULT}"
            )
        return replace(self, checkpoint=str(path))
