"""Image classifiers of Hugging Face: of transformers and of timm, from a folder or from the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from siegebench.checkpoints import load_into
from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import MissingExtra, ModelError, shortened
from siegebench.types import Count, ModelSource
from siegebench.weights import check_finite, weights_hash

from ._files import OF_MORE, hub_file, sha256
from ._processor import Preprocessing, preprocessing
from ._whole import Channels, as_square, shown

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # of weights in several files


@dataclass(frozen=True, kw_only=True)
class HuggingFace(ModelSource):
    """An image classifier of transformers or timm, as `save_pretrained` and the hub store it, with its preprocessing.

    `config.json` says which library it is of: transformers names a `model_type`, timm an `architecture`. Size and
    normalisation are read from `preprocessor_config.json`, or from timm's `pretrained_cfg`. No code of the repository
    is run: one with `auto_map`, which names code, is refused. All weights must be in the files, the classifier too.
    Nothing is random, unless a defense trains the architecture anew.

    Attributes:
        target: `OWNER/NAME` on the hub, or `OWNER/NAME@REVISION`; use a commit for reproducible numbers. Written as
            `huggingface/OWNER/NAME`.
        folder: in its place, a folder with these files.
        mean, std, input_size: in place of the preprocessing that is described there.
        download: fetch the files when they are not in the hub's cache.
    """

    local: ClassVar[tuple[str, ...]] = ("folder", "download")

    target: str = ""
    folder: str | None = None
    mean: Channels | None = None
    std: Channels | None = None
    input_size: Count | None = None
    download: bool = True

    def __post_init__(self) -> None:
        if bool(self.target) == (self.folder is not None):
            raise ValueError("expected huggingface/OWNER/NAME, or {name: huggingface, folder: FOLDER}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")

    def pretrained(self) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        config = self._file(CONFIG)
        files = [config, *self._weights(), *([p] if (p := self._found(PROCESSOR)) else [])]
        return {"sha256": hashlib.sha256("".join(sha256(f) for f in files).encode()).hexdigest()}

    def build(self, *, num_classes: int, size: Size) -> Network:
        path = self._file(CONFIG)
        config = _read(path)
        of_timm = "architecture" in config
        net, make, wanted, classes = (self._timm if of_timm else self._transformers)(config, path)
        if classes != num_classes:
            raise ModelError(f"{self._called}: a network for {classes} classes, the data has {num_classes}; {OF_MORE}")
        mean, std = self.mean or wanted.mean, self.std or wanted.std
        inside = as_square(self.input_size) or wanted.size
        name = str(config.get("architecture") or (config.get("architectures") or [config.get("model_type")])[0])
        card = ModelCard(
            name=self._called, architecture=name, source=self.target or path.parent.name,
            weights=weights_hash(net.state_dict()),
            preprocessing={"mean": mean, "std": std, "input_size": shown(inside)},
        )  # fmt: skip
        return Network(
            net, num_classes=num_classes, mean=mean, std=std, size=inside, card=card, rebuild=make
        ).eval()  # fmt: skip

    # ------------------------------------------------------------------------------------------------- two libraries

    def _transformers(
        self, config: dict[str, Any], path: Path
    ) -> tuple[nn.Module, Callable[[], nn.Module], Preprocessing, int]:
        """(network, a function that makes an untrained one, its preprocessing, its number of classes)"""
        if importlib.util.find_spec("transformers") is None:
            raise MissingExtra("transformers", "huggingface", self._called)
        processor = self._found(PROCESSOR)
        described = {} if processor is None else _read(processor)
        for file, content in ((path, config), (processor, described)):
            if "auto_map" in content:
                raise ModelError(
                    f"{file}: has `auto_map`, which names code of the repository; such code is never run. Expected a "
                    "classifier that transformers itself has"
                )
        odd = "quantization_config" if "quantization_config" in config else ""
        odd = "adapter_config.json" if (path.parent / "adapter_config.json").exists() else odd
        if odd:
            raise ModelError(f"{path}: {odd} found; expected the plain weights of a whole network")
        if self.mean is not None:
            wanted = Preprocessing(as_square(self.input_size), self.mean, self.std or ())
        elif processor is None:
            raise ModelError(
                f"{path.parent}: has no {PROCESSOR}, so the normalisation is not known; give `mean`, `std` and "
                "`input_size`, such as {name: huggingface, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2], "
                "input_size: 224}"
            )
        else:
            wanted = preprocessing(described, processor)
        self._weights()  # all in place, before transformers looks for them
        from transformers import AutoConfig, AutoModelForImageClassification

        with _quiet():
            try:
                parsed = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
                net, said = AutoModelForImageClassification.from_pretrained(
                    path.parent, config=parsed, local_files_only=True, trust_remote_code=False,
                    output_loading_info=True, dtype="float32",
                )  # fmt: skip
            except Exception as error:  # transformers raises many types; the cause is in the files
                text = shortened(" ".join(str(error).split())[:200])
                raise ModelError(f"{path.parent}: transformers refuses it ({type(error).__name__}: {text})") from None
        absent = sorted({*said["missing_keys"], *(str(k) for k in said["mismatched_keys"])})
        if absent:
            raise ModelError(
                f"{path.parent}: {len(absent)} tensors of the network are not in the weights (such as {absent[0]}), "
                "and would be random; expected a trained classifier"
            )
        check_finite(net.state_dict(), path.parent)

        def untrained() -> nn.Module:
            return Logits(AutoModelForImageClassification.from_config(parsed))

        return Logits(net), untrained, wanted, int(parsed.num_labels)

    def _timm(
        self, config: dict[str, Any], path: Path
    ) -> tuple[nn.Module, Callable[[], nn.Module], Preprocessing, int]:
        """The same for timm."""
        import timm

        cfg = config.get("pretrained_cfg") or config
        classes = int(config.get("num_classes") or cfg.get("num_classes") or 0)
        args = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
        make = partial(timm.create_model, config["architecture"], pretrained=False, num_classes=classes, **args)
        try:
            net: nn.Module = make()
        except Exception as error:  # timm raises many types; the cause is in the file
            raise ModelError(f"{path}: timm cannot build it ({type(error).__name__}: {error})") from None
        files = self._weights()
        if len(files) > 1:
            raise ModelError(f"{path.parent}: weights in {len(files)} files; expected one of {', '.join(WEIGHTS)}")
        load_into(net, files[0], classes=f"{CONFIG} says {{}}")
        size = cfg.get("input_size") or [3, None, None]
        inside = (int(size[1]), int(size[2])) if size[1] else None
        mean, std = (tuple(float(v) for v in cfg.get(key) or (0.5,) * 3) for key in ("mean", "std"))
        return net, make, Preprocessing(inside, mean, std), classes

    # --------------------------------------------------------------------------------------------------------- files

    @property
    def _called(self) -> str:
        return f"huggingface/{self.target}" if self.target else f"huggingface {Path(self.folder or '').name}"

    def _found(self, name: str) -> Path | None:
        """A file of the folder or the repository, if there is one."""
        if self.folder is not None:
            path = Path(self.folder).expanduser() / name
            return path if path.is_file() else None
        repo, _, revision = self.target.partition("@")
        return hub_file(repo, [name], revision=revision or None, download=self.download)

    def _file(self, name: str) -> Path:
        path = self._found(name)
        if path is None:
            where = self.folder if self.folder is not None else f"{self.target} in the hub's cache"
            get = (
                "a folder that save_pretrained has written" if self.folder is not None else "a network connection once"
            )
            raise ModelError(
                f"{where}: has no {name}; expected an image classifier of transformers or timm; give {get}"
            )
        return path

    def _weights(self) -> list[Path]:
        """The files with the weights.

        Raises:
            ModelError: when one is missing, or an index names a file outside of the folder.
        """
        for name in WEIGHTS:
            if (path := self._found(name)) is not None:
                return [path]
        for name in INDICES:
            if (index := self._found(name)) is not None:
                parts = sorted({str(part) for part in (_read(index).get("weight_map") or {}).values()})
                if not parts or any(Path(part).name != part for part in parts):
                    raise ModelError(f"{index}: expected names of files in this folder, found {shortened(parts)}")
                return [self._file(part) for part in parts]
        return [self._file(WEIGHTS[0])]


class Logits(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=x).logits
        return logits


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({shortened(str(error))})") from None
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: expected a mapping, found a {type(content).__name__}")
    return dict(content)


class _quiet:
    """Without the progress bars and remarks of transformers."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.level, self.bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.bar:
            logging.enable_progress_bar()
