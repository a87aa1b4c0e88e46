"""A network of your own, from a function or class in a Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from siegebench.checkpoints import load_into, source_of
from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError, did_you_mean
from siegebench.train import Recipe
from siegebench.types import ModelSource
from siegebench.weights import weights_hash

from ._files import CLASSES, check_part, checkpoint_identity, find_weights, sha256

RECIPE = Recipe()
Channels = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PythonFile(ModelSource):
    """A network that a Python file of yours builds. The file is run: give only files that you trust.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        file: a Python file.
        make: name of the class or function in it that returns the network, a torch.nn.Module.
        args: arguments for it.
        checkpoint: weights to load: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA. Without
            one, the network is trained with the recipe.
        ema: take the exponential moving average of the weights from the checkpoint.
        part: take the weights at this path in the checkpoint, such as `model_ema` or `state_dict.student`.
        mean, std: normalisation of images in [0, 1] before the network; default: none.
        recipe: for training.
    """

    local: ClassVar[tuple[str, ...]] = ("file", "checkpoint", "ema", "part")

    file: str
    make: str
    args: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    ema: bool = False
    part: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        check_part(self.checkpoint, self.ema, self.part)

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        make = self._maker()
        net = make()
        if not isinstance(net, nn.Module):
            raise ModelError(f"{self.file}: {self.make} returned {type(net).__name__}, expected a torch.nn.Module")
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        source, digest = Path(self.file).name, ""
        if self.checkpoint is not None:
            path = find_weights(self.checkpoint)
            given = (mean, std) if self.mean or self.std else None
            fitted = load_into(net, path, ema=self.ema, part=self.part, normalised=given, classes=CLASSES)
            mean, std = fitted.mean or mean, fitted.std or std
            source, digest = source_of(path, fitted), weights_hash(net.state_dict())
        card = ModelCard(
            name=self.make, architecture=self.make, source=source, weights=digest,
            preprocessing={"mean": mean, "std": std},
        )  # fmt: skip
        return Network(net, num_classes=num_classes, mean=mean, std=std, card=card, rebuild=make).eval()

    def _maker(self) -> Callable[[], Any]:
        """The function of the file, with the arguments.

        Raises:
            ModelError: when the file cannot be run, or has no such name.
        """
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise ModelError(f"{self.file}: there is no such file; expected a Python file that defines {self.make}")
        spec = importlib.util.spec_from_file_location(f"_siegebench_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ModelError(f"{self.file}: not a Python file; expected a name that ends with .py")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ModelError(f"{self.file}: {type(error).__name__}: {error}") from error
        found = getattr(module, self.make, None)
        if not callable(found):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise ModelError(f"{self.file}: defines no {self.make}. {did_you_mean(self.make, names)}")
        return partial(found, **self.args)

    def pretrained(self) -> bool:
        return self.checkpoint is not None

    def identity(self) -> dict[str, Any]:
        path = Path(self.file).expanduser()
        code = {"code": sha256(path)} if path.is_file() else {}
        return (
            code if self.checkpoint is None else {**code, **checkpoint_identity(self.checkpoint, self.ema, self.part)}
        )
