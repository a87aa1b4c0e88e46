"""What a weight file contains, as one list: its tensors by their full path, and the normalisations among them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Channels = tuple[float, ...]
# counters and profiles that no result depends on: old files lack the first, tools leave the others
IGNORED = {"num_batches_tracked", "total_ops", "total_params", "n_averaged"}
_AFFIX = r"((?:new|image|img|pixel|input|norm|normali[sz]e|data|dataset)?_?)"
MEAN, STD = re.compile(_AFFIX + "(?:means?|mu)"), re.compile(_AFFIX + "(?:stds?|sds?|sigma|stddev)")
DEEPEST = 20
LARGEST_STD = 10.0  # of pixels in 0..1; more is of pixels in 0..255
# dicts with the names and shapes of the weights that are no weights, and numbers that are no normalisation
TRAINING = {
    "optimizer",
    "optimiser",
    "optim",
    "opt",
    "exp_avg",
    "exp_avg_sq",
    "momentum_buffer",
    "momentum",
    "grad",
    "grads",
}
RESULTS = {"metric", "metrics", "result", "results", "score", "scores", "history", "acc", "accuracy", "loss", "losses"}


class Pair(NamedTuple):
    """A normalisation in a file: the paths of its mean and std, and their values for each channel.

    `bare`: two single numbers, which may be the statistics of anything.
    """

    paths: tuple[str, str]
    mean: Channels
    std: Channels
    bare: bool


@dataclass
class Contents:
    """The tensors of a file by their full path, and the path of the dict or list in which each lies."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)  # numbers that may be a mean or a std
    other: dict[str, str] = field(default_factory=dict)  # types of the rest, for messages
    pairs: list[Pair] = field(default_factory=list)

    def beside(self, taken: frozenset[str]) -> list[str]:
        """Paths of the tensors in the same dict as the taken ones, without counters and normalisations."""
        homes = {self.homes[path] for path in taken}
        known = taken | {path for pair in self.pairs for path in pair.paths}
        # several homes: a dict for each layer, and any other dict may be a layer as well
        near = (p for p in self.tensors if self.homes[p] in homes or len(homes) > 1)
        return [p for p in near if p not in known and p.rpartition(".")[2] not in IGNORED]


def contents_of(loaded: Any, channels: int | None) -> Contents:
    """The contents of a file.

    Args:
        loaded: from `read_weights`.
        channels: of the images that the network takes, if known; a normalisation has one number for each, or one.
    """
    contents = Contents()
    _collect(loaded, "", contents, set())
    contents.pairs = list(_pairs({**contents.tensors, **contents.vectors}, channels or 3))
    return contents


def _collect(value: Any, path: str, contents: Contents, seen: set[int], depth: int = 0) -> None:
    if not isinstance(value, (Mapping, list, tuple)) or id(value) in seen or depth > DEEPEST:
        return
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        name = f"{path}{key}"
        last = name.rpartition(".")[2]
        numbers = _numbers(item) if MEAN.fullmatch(last) or STD.fullmatch(last) else None
        if isinstance(item, Tensor) and not (odd := _odd(item)):
            contents.tensors[name], contents.homes[name] = item.detach(), path
        elif isinstance(item, Tensor):
            contents.other[name] = odd
        elif isinstance(item, Mapping) and key in TRAINING:
            contents.other[name] = "state of the training"
        elif numbers is not None:
            contents.vectors[name] = numbers
        elif isinstance(item, (Mapping, list, tuple)) and item:
            _collect(item, f"{name}.", contents, seen, depth + 1)
        else:
            contents.other[name] = type(item).__name__


def _odd(tensor: Tensor) -> str:
    """What a tensor is, if its numbers cannot be used as weights; else empty."""
    if tensor.is_quantized:
        return "quantised tensor"
    if tensor.is_meta:
        return "meta tensor without numbers"
    return "" if tensor.layout is torch.strided else "sparse tensor"


def _numbers(value: Any) -> Tensor | None:
    """A number or a short list of numbers as a tensor."""
    items = value if isinstance(value, (list, tuple)) else [value]
    if not 1 <= len(items) <= 4 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in items):
        return None
    return torch.tensor(value, dtype=torch.float64)


def _pairs(values: Mapping[str, Tensor], channels: int) -> Iterator[Pair]:
    """A mean and a std of one name at one path, with a number for each channel or one for all."""
    for path, mean in values.items():
        parent, _, last = path.rpartition(".")
        if (match := MEAN.fullmatch(last)) is None or RESULTS.intersection(path.lower().split(".")):
            continue
        for other, std in values.items():
            its_parent, _, its_last = other.rpartition(".")
            its_match = STD.fullmatch(its_last)
            if its_match is None or its_match[1] != match[1] or its_parent != parent:
                continue
            count = mean.numel()
            if count != std.numel() or count not in (1, channels) or count != max((1, *mean.shape)):
                continue
            m, s = mean.double().flatten(), std.double().flatten()
            if bool(torch.isfinite(m).all() and torch.isfinite(s).all() and (s > 0).all()):
                coarse = [bool(values.max() > most) for values, most in ((m, 1), (s, LARGEST_STD))]
                if coarse == [False, True] and bool(m.any()):
                    continue  # the mean is for pixels in 0..1, the std for pixels in 0..255
                scale = 255.0 if any(coarse) else 1.0  # for pixels in 0..255
                spread = channels if count == 1 else 1
                yield Pair((path, other), _rounded(m / scale) * spread, _rounded(s / scale) * spread, mean.dim() == 0)


def _rounded(values: Tensor) -> Channels:
    """As float32 has them, in their shortest form: 0.4914, not 0.49140000343322754."""
    return tuple(float(f"{v:.7g}") for v in values.tolist())
