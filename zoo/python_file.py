"""A network of your own, from a function or class in a Python file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError, did_you_mean
from siegebench.train import Recipe

from ._checkpoint import Channels, Checkpointed
from ._files import sha256

RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class PythonFile(Checkpointed):
    """A network that a Python file of yours builds. The file is run: give only files that you trust.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        file: a Python file.
        make: name of the class or function in it that returns the network, a torch.nn.Module.
        args: arguments for it.
        mean, std: normalisation of images in [0, 1] before the network; default: none.
        recipe: for training.
    """

    local: ClassVar[tuple[str, ...]] = ("file", *Checkpointed.local)

    file: str
    make: str
    args: dict[str, Any] = field(default_factory=dict)
    mean: Channels | None = None
    std: Channels | None = None
    recipe: Recipe = RECIPE

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        make = self._maker()
        net = make()
        if not isinstance(net, nn.Module):
            raise ModelError(f"{self.file}: {self.make} returned {type(net).__name__}, expected a torch.nn.Module")
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        given = self.mean is not None or self.std is not None
        mean, std, source, digest = self.loaded(net, mean, std, given=given)
        card = ModelCard(
            name=self.make, architecture=self.make, source=source or Path(self.file).name, weights=digest,
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

    def identity(self) -> dict[str, Any]:
        path = Path(self.file).expanduser()
        return {**({"code": sha256(path)} if path.is_file() else {}), **super().identity()}
