"""Networks that take their weights from a file of the user, or are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from siegebench.checkpoints import load_into, source_of
from siegebench.types import ModelSource
from siegebench.weights import weights_hash

from ._files import CLASSES, check_part, checkpoint_identity, find_weights

Channels = tuple[float, ...]  # one number for each channel


@dataclass(frozen=True, kw_only=True)
class Checkpointed(ModelSource):
    """A network with the weights of a checkpoint if there is one.

    Attributes:
        checkpoint: weights to load: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA. Eight
            hex digits after a dash at the end of the name (`resnet20-12fca82f.th`) must be the first of the file's
            sha256. With `checkpoint: null` the network is trained with the recipe. A normalisation that lies beside
            the weights is used.
        ema: take the exponential moving average of the weights from the checkpoint.
        part: take the weights at this path in the checkpoint, such as `model_ema` or `state_dict.student`.
    """

    local: ClassVar[tuple[str, ...]] = ("checkpoint", "ema", "part")

    checkpoint: str | None = None
    ema: bool = False
    part: str | None = None

    def __post_init__(self) -> None:
        check_part(self.checkpoint, self.ema, self.part)

    def pretrained(self) -> bool:
        return self.checkpoint is not None

    def identity(self) -> dict[str, Any]:
        return {} if self.checkpoint is None else checkpoint_identity(self.checkpoint, self.ema, self.part)

    def loaded(
        self, net: nn.Module, mean: Channels, std: Channels, *, given: bool = False
    ) -> tuple[Channels, Channels, str, str]:
        """Load the checkpoint into the network: (mean, std, where the weights come from, their hash).

        Args:
            mean, std: normalisation if none lies in the checkpoint.
            given: whether the user gave them; one in the checkpoint must then agree.

        Raises:
            ModelError: when there is no such file, or its weights do not fit.
        """
        if self.checkpoint is None:
            return mean, std, "", ""
        path = find_weights(self.checkpoint)
        stated = (mean, std) if given else None
        fitted = load_into(net, path, ema=self.ema, part=self.part, normalised=stated, classes=CLASSES)
        return fitted.mean or mean, fitted.std or std, source_of(path, fitted), weights_hash(net.state_dict())
