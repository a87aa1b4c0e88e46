"""A network in a TorchScript file."""

from __future__ import annotations

import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, ModelCard, Network, ScoresOnly
from siegebench.data import Size
from siegebench.errors import ModelError, shortened
from siegebench.types import Count, ModelSource

from ._files import sha256
from ._whole import Channels, as_square, find_network, normalisation, shown

KIND = "a TorchScript file, as torch.jit.save writes it"
NAMESPACES = {"aten", "prim", "quantized", "torchvision"}  # of operators that torch and torchvision have
CLASSES = {"quantized"}  # of C++ classes
FILES = {"save", "from_file", "load"}  # operators that read or write files
_OPERATOR = re.compile(r"\bops\.(\w+)\.(\w+)|\btorch\.(save|from_file|load)\s*\(")
_CLASS = re.compile(r"\b__torch__\.torch\.classes\.(\w+)\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class TorchScriptNetwork(ModelSource):
    """A network in a TorchScript file, traced or scripted.

    Attacks get its scores and no gradients, as of a network behind an interface: query and corruption boards rank it,
    white-box boards say that it is not applicable. With `gradients: true`, attacks may use the gradients that torch has
    for most TorchScript.

    A TorchScript file contains code. It is run by torch's own interpreter, not by Python; torch.jit.load reads no
    Python pickles. Before it is loaded, the code in the file is searched: operators and C++ classes of other libraries
    than torch and torchvision are refused, and operators that read or write files. Nothing is random.

    Attributes:
        file: a path, or a file below `weights/` in the folder named by SIEGEBENCH_DATA.
        mean, std: normalisation of pixels in [0, 1] before the network; default: none, as if the file contains it.
        input_size: the model resizes images to this size; default: not resized.
        gradients: attacks may use its gradients.
    """

    local: ClassVar[tuple[str, ...]] = ("file",)

    file: str = ""
    mean: Channels | None = None
    std: Channels | None = None
    input_size: Count | None = None
    gradients: bool = False

    def pretrained(self) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        return {"sha256": sha256(find_network(self.file, KIND))}

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Classifier:
        path = find_network(self.file, KIND)
        check_code(path)
        mean, std = normalisation(self.mean, self.std, channels)
        digest = sha256(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated
                script = torch.jit.load(str(path), map_location="cpu").eval()
        except Exception as error:  # the reader raises many types; the cause is in the file
            text = shortened(" ".join(str(error).split())[:200])
            raise ModelError(f"{path}: not a readable TorchScript file ({text})") from None
        for parameter in script.parameters():  # `requires_grad_` of the module fails for TorchScript
            parameter.requires_grad_(False)
        inside = as_square(self.input_size)
        card = ModelCard(
            name=f"torchscript {path.name}", architecture="TorchScript", source=path.name, weights=digest,
            preprocessing={"mean": mean, "std": std, "input_size": shown(inside)},
        )  # fmt: skip
        kind = Network if self.gradients else ScoresOnly
        net = ScriptModule(script, digest)
        return kind(net, num_classes=num_classes, mean=mean, std=std, size=inside, card=card).eval()


class ScriptModule(nn.Module):
    """A loaded TorchScript module; `digest` tells frozen ones apart, which have no parameters."""

    digest: Tensor

    def __init__(self, script: nn.Module, digest: str) -> None:
        super().__init__()
        self.script = script
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Any:
        return self.script(x)


def check_code(path: Path) -> None:
    """Refuse a file that is no TorchScript, or whose code calls what a network does not need.

    Raises:
        ModelError: naming the operator.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename.lower() for info in archive.infolist()]  # a reader may ignore the case
            files = [info for info in archive.infolist() if info.filename.lower().endswith(".py")]
            code = "\n".join(archive.read(info).decode("utf-8", "replace") for info in files)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{path}: expected {KIND}; found no zip archive ({error})") from None
    if len(set(names)) < len(names):
        raise ModelError(f"{path}: contains two files of one name, so that it is not clear which one torch would run")
    if not files:
        raise ModelError(
            f"{path}: expected {KIND}; it contains no code. For a file of weights, name its architecture: "
            "{name: timm/NAME, checkpoint: FILE}"
        )
    for space, name, plain in _OPERATOR.findall(code):
        if plain or space not in NAMESPACES or name in FILES:
            called = f"torch.{plain}" if plain else f"ops.{space}.{name}"
            raise ModelError(f"{path}: its code calls {called}; expected operators of torch that touch no files")
    for space, name in _CLASS.findall(code):
        if space not in CLASSES:
            raise ModelError(f"{path}: its code uses the C++ class {space}.{name}; expected classes of torch")
