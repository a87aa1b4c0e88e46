"""Checkpoints of training scripts, loaded into a network of the user's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from siegebench.classifier import Classifier, ModelCard, Network
from siegebench.contents import Channels
from siegebench.errors import ModelError
from siegebench.fitting import Fitted, fit
from siegebench.weights import read_weights, weights_hash


def load_checkpoint(
    net: nn.Module,
    path: str | Path,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    size: int | tuple[int, int] | None = None,
    ema: bool = False,
    part: str | None = None,
    name: str | None = None,
) -> Network:
    """A classifier from your own network and a file with its weights, however a training script stored them.

    Reads `.safetensors`, `.pth` (also `.pt`, `.th`, `.ckpt`, `.bin`, ...), and `.npz`, without running code of the
    file. The weights may lie anywhere in it and have prefixes, such as those of DataParallel, torch.compile, Lightning
    or Sequential. A normalisation that lies beside them (`mean` and `std`, `mu` and `sigma`) becomes part of the
    classifier. What was found where stands in `card.source`.

    Args:
        net: maps normalised images to logits. Its weights are replaced.
        path: the file.
        num_classes: number of logits; by default, the outputs of the last linear or convolutional layer.
        mean, std: normalisation per channel, for pixels in [0, 1]; one number stands for all channels. By default, the
            one in the file, else none.
        size: images of another size are resized to this.
        ema: take the exponential moving average of the weights, which the file must contain.
        part: take the weights at this path in the file, such as `model_ema` or `state_dict.student`.
        name: of the classifier in tables; by default, the class of `net`.

    Raises:
        ModelError: when the file is missing, damaged, not finite, or made to run code; when no weights in it fit the
            network (with the names that were found and expected), or several do; when the file's normalisation differs
            from `mean` and `std`.
    """
    if isinstance(net, Classifier):
        raise ModelError(f"load_checkpoint takes the bare network, found a {type(net).__name__}; pass its `net`")
    outputs = num_classes or _outputs(net)
    given = _normalisation(mean, std, _channels(net))
    fitted = load_into(net, path, ema=ema, part=part, normalised=given)
    shape = (0.0,) * _channels(net), (1.0,) * _channels(net)
    used = given or (fitted.mean, fitted.std)
    final_mean, final_std = used[0] or shape[0], used[1] or shape[1]
    card = ModelCard(
        name=name or type(net).__name__,
        architecture=type(net).__name__,
        source=source_of(path, fitted),
        weights=weights_hash(net.state_dict()),
        preprocessing={"mean": final_mean, "std": final_std, **({"input_size": size} if size else {})},
    )
    inside = (size, size) if isinstance(size, int) else size
    return Network(net, num_classes=outputs, mean=final_mean, std=final_std, size=inside, card=card).eval()


def load_into(
    net: nn.Module,
    path: str | Path,
    *,
    ema: bool = False,
    part: str | None = None,
    normalised: tuple[Channels, Channels] | None = None,
    classes: str = "the network has {}",
) -> Fitted:
    """Load a checkpoint into a network; returns what was found, with the normalisation that lies beside the weights.

    Args:
        normalised: the mean and std that the caller will use; None if those of the file are to be used.
        classes: how a message about another number of classes ends; `{}` is the network's number.

    Raises:
        ModelError: as `load_checkpoint`.
    """
    path = Path(path).expanduser()
    expected = net.state_dict()
    if any(is_lazy(tensor) for tensor in expected.values()):
        raise ModelError(f"{type(net).__name__} has lazy layers without shapes; run it once on an image, then load")
    if not expected:
        raise ModelError(f"{type(net).__name__} has no weights to load {path} into")
    fitted = fit(read_weights(path), expected, path, ema=ema, part=part, classes=classes)
    _check_normalisation(fitted, path, normalised)
    net.load_state_dict(fitted.state, strict=False)  # not strict: counters of training steps may be missing
    return fitted


def source_of(path: str | Path, fitted: Fitted) -> str:
    """For a card: the file, and what is unusual about where in it the weights lie."""
    said = fitted.described()
    return f"{Path(path).name} ({said})" if said else Path(path).name


def _check_normalisation(fitted: Fitted, path: Path, given: tuple[Channels, Channels] | None) -> None:
    if fitted.mean is not None and given is not None:
        held = torch.tensor([fitted.mean, fitted.std])
        if held.shape != torch.tensor(given).shape or not torch.allclose(held, torch.tensor(given), atol=1e-3):
            raise ModelError(
                f"{path}: contains the normalisation mean {fitted.mean}, std {fitted.std} ({fitted.normalised_at}), "
                f"you gave mean {given[0]}, std {given[1]}; leave out mean and std to use that of the file"
            )
    if fitted.mean is None and given is None and fitted.doubtful:
        raise ModelError(
            f"{path}: beside the weights lies {fitted.doubtful[0]}, which the network does not have. It may be a "
            "normalisation; give mean and std (0 and 1 if there is none)"
        )
    if fitted.mean is None and given is None and fitted.headless:
        warnings.warn(
            f"{path}: the weights are at `{fitted.prefix.rstrip('.')}`, an index of a Sequential, and a module before "
            "them has no weights. If it normalises, give mean and std",
            stacklevel=3,
        )


def _normalisation(
    mean: Sequence[float] | float | None, std: Sequence[float] | float | None, channels: int
) -> tuple[Channels, Channels] | None:
    """Mean and std for each channel; None if neither is given."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ModelError(f"mean is {mean}, std is {std}; give both or neither")
    both = []
    for word, value in (("mean", mean), ("std", std)):
        numbers = (float(value),) if isinstance(value, (int, float)) else tuple(float(v) for v in value)
        if len(numbers) not in (1, channels):
            raise ModelError(f"{word} has {len(numbers)} numbers, the images have {channels} channels")
        both.append(numbers * channels if len(numbers) == 1 else numbers)
    if min(both[1]) <= 0:
        raise ModelError(f"std is {both[1]}, expected numbers above 0")
    return both[0], both[1]


def _channels(net: nn.Module) -> int:
    """Channels of the images that the network takes, from its first convolution; 3 if it has none."""
    first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _outputs(net: nn.Module) -> int:
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise ModelError(f"{type(net).__name__} has no linear layer to read the number of classes from: num_classes=N")
    return layers[-1].out_features if isinstance(layers[-1], nn.Linear) else layers[-1].out_channels
