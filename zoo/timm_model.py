"""Any network of timm: with published weights, with your own checkpoint, or trained with a recipe."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from siegebench.checkpoints import load_into, source_of
from siegebench.classifier import ModelCard, Network
from siegebench.data import Size
from siegebench.errors import ModelError, did_you_mean
from siegebench.train import Recipe
from siegebench.types import Count, ModelSource
from siegebench.weights import check_finite, weights_hash

from ._files import CLASSES, check_part, checkpoint_identity, find_weights, hub_file, sha256

RECIPE = Recipe()
HALF = (0.5, 0.5, 0.5)
OURS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes", "in_chans"}
Channels = tuple[float, ...]  # one number for each channel


@dataclass(frozen=True, kw_only=True)
class TimmModel(ModelSource):
    """A network of PyTorch Image Models (Wightman 2019), including its preprocessing.

    Random: the initial weights of a network that is trained; the harness seeds them.

    Attributes:
        target: `architecture` for a network to train with the recipe, `architecture.tag` for published weights.
        checkpoint: load these weights instead: a `.safetensors` or `.pth` file in any common layout, a path or a file
            below `weights/` in the folder named by SIEGEBENCH_DATA. A normalisation that lies beside the weights is
            used, unless `mean` and `std` are given and agree with it.
        ema: take the exponential moving average of the weights from the checkpoint.
        part: take the weights at this path in the checkpoint, such as `model_ema` or `state_dict.student`.
        finetune: start from the tag's weights with a new last layer for this data, and train with the recipe.
        input_size: the model resizes images to this size. Default: the size that the tag's weights were trained for;
            without a tag, images are not resized.
        mean, std: normalisation in the model. Default: those of the tag; 0.5 without a tag. For grey images, one number
            each; the mean over the channels of a tag's. timm adds up the channels of a tag's first layer.
        model_args: passed to timm, such as `depths` or `patch_size`.
        download: fetch weights from the hub when they are not in its cache.
        recipe: for training.
    """

    local: ClassVar[tuple[str, ...]] = ("checkpoint", "ema", "part", "download")

    target: str
    checkpoint: str | None = None
    ema: bool = False
    part: str | None = None
    finetune: bool = False
    input_size: Count | None = None
    mean: Channels | None = None
    std: Channels | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    download: bool = True
    recipe: Recipe = RECIPE

    def __post_init__(self) -> None:
        check_name(self.target)
        for key in self.model_args.keys() & OURS:
            raise ValueError(f"model_args.{key} is set by siegebench; see its own parameters")
        if self.finetune and (self.checkpoint is not None or not self.tag):
            raise ValueError("finetune needs `architecture.tag` and no checkpoint")
        check_part(self.checkpoint, self.ema, self.part)

    @staticmethod
    def targets() -> frozenset[str]:
        """The names that can follow `timm/`, for suggestions."""
        return frozenset().union(*_in_source())

    @property
    def architecture(self) -> str:
        return self.target.partition(".")[0]

    @property
    def tag(self) -> str:
        return self.target.partition(".")[2]

    def pretrained(self) -> bool:
        return self.checkpoint is not None or (bool(self.tag) and not self.finetune)

    def identity(self) -> dict[str, Any]:
        if self.checkpoint is not None:
            return checkpoint_identity(self.checkpoint, self.ema, self.part)
        return {"sha256": sha256(self._published()[0])} if self.tag else {}

    def build(self, *, num_classes: int, size: Size, channels: int = 3) -> Network:
        cfg = self._cfg()
        inside = self.input_size or (cfg["input_size"][-1] if self.tag else None)
        args = dict(self.model_args) if channels == 3 else {**self.model_args, "in_chans": channels}
        mean = _per_channel("mean", self.mean, cfg["mean"] if self.tag else HALF, channels)
        std = _per_channel("std", self.std, cfg["std"] if self.tag else HALF, channels)
        if cfg.get("fixed_input_size"):
            args.setdefault("img_size", inside or size)
        make = partial(_create, self.architecture, num_classes, args)
        if self.checkpoint is not None:
            path = find_weights(self.checkpoint)
            net = make()
            given = (mean, std) if self.mean or self.std else None
            fitted = load_into(net, path, ema=self.ema, part=self.part, normalised=given, classes=CLASSES)
            mean, std, source = fitted.mean or mean, fitted.std or std, source_of(path, fitted)
        elif self.tag:
            path, repo = self._published()
            if cfg["num_classes"] != num_classes and not self.finetune:
                raise ModelError(
                    f"timm/{self.target}: weights for {cfg['num_classes']} classes, the data has {num_classes}; "
                    f"use timm/{self.architecture} to train on this data, `finetune: true` to start from these "
                    "weights, or give `checkpoint: FILE`"
                )
            published = partial(_create, self.target, num_classes, args, path)
            net = published()
            make = published if self.finetune else make
            source = repo
        else:
            net, source = make(), "timm"
        card = ModelCard(
            name=f"timm/{self.target}",
            architecture=self.architecture,
            source=source,
            weights=weights_hash(net.state_dict()) if self.pretrained() else "",
            preprocessing={"mean": mean, "std": std, "input_size": inside or size},
            licence=cfg.get("license") or "",
        )
        return Network(
            net, num_classes=num_classes, mean=mean, std=std, size=(inside, inside) if inside else None, card=card,
            rebuild=make,
        ).eval()  # fmt: skip

    def _cfg(self) -> dict[str, Any]:
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(self.target)  # None for a network that a user registered
        return found.to_dict() if found is not None else {}

    def _published(self) -> tuple[Path, str]:
        """The file with the tag's weights and the repository it belongs to.

        Raises:
            ModelError: at once when the file is not in the hub's cache and the hub cannot be reached.
        """
        cfg = self._cfg()
        repo, _, revision = (cfg.get("hf_hub_id") or "").partition("@")
        if repo:
            stated = cfg.get("hf_hub_filename")
            names = [stated] if stated else ["model.safetensors", "pytorch_model.bin"]
            path = hub_file(repo, names, revision=revision or None, download=self.download)
            if path is not None:
                return path, repo
        raise ModelError(
            f"timm/{self.target}: its weights are not in the hub's cache and could not be fetched. Connect this "
            f"machine to the network once, or give `checkpoint: FILE`, or train on your data with "
            f"timm/{self.architecture} (no tag)"
        )


def _per_channel(name: str, given: Channels | None, default: Channels, channels: int) -> Channels:
    """The given numbers, or the default for RGB; its mean for another number of channels."""
    if given is None:
        return default if channels == len(default) else (sum(default) / len(default),) * channels
    if len(given) != channels:
        raise ModelError(f"{name}: {len(given)} numbers for images with {channels} channels")
    return given


def _create(name: str, num_classes: int, args: Mapping[str, Any], weights: Path | None = None) -> nn.Module:
    """The network, with the published weights of a file in any layout that timm supports for this model.

    Raises:
        ModelError: when timm refuses the arguments or the file.
    """
    import timm

    published: dict[str, Any] = (
        {} if weights is None else {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    )
    try:
        net: nn.Module = timm.create_model(name, num_classes=num_classes, **published, **args)
    except Exception as error:  # timm raises many types; the cause is in the arguments or the file
        raise ModelError(
            f"timm cannot build {name} with {dict(args)} for {num_classes} classes"
            f"{f' from {weights}' if weights else ''}: {type(error).__name__}: {error}"
        ) from error
    if weights is not None:
        check_finite(net.state_dict(), weights)
    return net


# ----------------------------------------------------------------------------------------------------------- names


def check_name(target: str) -> None:
    """Refuse a name that timm does not have.

    Raises:
        ValueError: with the nearest name.
    """
    architecture, _, tag = target.partition(".")
    architectures, tags = _in_source()
    if (target in tags) if tag else (architecture in architectures):
        return
    import timm

    if not timm.is_model(architecture):
        raise ValueError(f"timm has no architecture {architecture!r}. {did_you_mean(architecture, timm.list_models())}")
    known = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise ValueError(f"timm/{architecture} has no weights {tag!r}. {did_you_mean(tag, known)}")


@cache
def _in_source() -> tuple[frozenset[str], frozenset[str]]:
    """Architectures and weight tags in timm's source. A name found here exists. Importing timm takes 5 s, reading its
    source 0.2 s, and every `siegebench run` checks its names.
    """
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return frozenset(), frozenset()
    text = "".join(p.read_text(encoding="utf-8") for p in (Path(found.origin).parent / "models").glob("*.py"))
    tags = re.findall(r"['\"](\w+\.[\w.]+)['\"]\s*:\s*_\w*cfg", text)
    return frozenset(re.findall(r"@register_model\s+def (\w+)", text)), frozenset(tags)
