"""The one training loop: clean, distilled, poisoned and repaired models differ only in data, recipe and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.data import IMAGE, ImageSet, Kind
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, ModelError, NotApplicable
from siegebench.progress import Training
from siegebench.types import Count, Positive, Share

Augment = Literal["none", "crop", "crop_flip"]
BatchLoss = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # (logits, labels, images, indices in the set) to a scalar
BatchImages = Callable[
    [Tensor, Tensor, Tensor, int], Tensor
]  # (augmented images, labels, indices in the set, epoch) to the images that the network is trained on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs, batch: passes over the data, images per step.
        optimiser: `sgd` (Nesterov) or `adamw`.
        lr, momentum, weight_decay: of the optimiser; lr follows one cosine to zero after a linear warm-up.
        warmup: fraction of all steps.
        augment: `crop` pads by an eighth and crops; `crop_flip` also mirrors (not for digits and signs).
        smoothing: label smoothing.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: Count = 15
    batch: Count = 128
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = 2e-3
    momentum: Share = 0.9
    weight_decay: float = 5e-4
    warmup: Share = 0.1
    augment: Augment = "crop"
    smoothing: Share = 0.0


def check_augment(entry: Any, kind: Kind) -> None:
    """Refuse an entry that augments other data than images, in a recipe or a nested entry too.

    Raises:
        ConfigError: with the path of `augment` inside the entry as its attribute `loc`.
    """
    for loc, how in _augmentations(entry) if kind.name != IMAGE.name else ():
        told = f"{entry._name!r}: {'.'.join(loc)}: {how} is for images, the data is {kind.name}; set `augment: none`"
        error = ConfigError(f"{told} (a recipe that is given takes nothing from the recipe of the card)")
        error.loc = loc  # type: ignore[attr-defined]
        raise error


def _augmentations(part: Any, loc: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for field in fields(part):
        value, here = getattr(part, field.name), (*loc, field.name)
        if field.name == "augment" and value in get_args(Augment)[1:]:
            yield here, value
        elif hasattr(value, "_name") or isinstance(value, Recipe):
            yield from _augmentations(value, here)


def augmented(x: Tensor, how: Augment, draws: Draws, epoch: int, kind: Kind = IMAGE) -> Tensor:
    """Random crop after padding by an eighth (replicated edges), and mirroring; one draw per image and epoch.

    Raises:
        ModelError: for other kinds than images, whose rows and columns have another meaning.
    """
    if how == "none":
        return x
    if kind.name != IMAGE.name:
        raise ModelError(f"augment: {how} is for images, the data is {kind.name}; set `augment: none` in the recipe")
    n, _, height, width = x.shape
    pad = max(1, height // 8)
    padded = F.pad(x, (pad, pad, pad, pad), mode="replicate")
    shift = draws.integers(2 * pad + 1, (2,), epoch, "crop").to(x.device)
    rows = (shift[:, :1] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = shift[:, 1:] + torch.arange(width, device=x.device)
    if how == "crop_flip":
        mirrored = draws.uniform((), epoch, "flip").to(x.device) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    batch = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[batch, channel, rows, columns[:, None, None, :]]


def train(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    *,
    loss: BatchLoss | None = None,
    images: BatchImages | None = None,
    gradients: Callable[[], None] | None = None,
    after: Callable[[int], bool | None] | None = None,
    replays: int = 1,
) -> None:
    """Train in place; the model is in eval mode afterwards.

    Order and augmentation are counter-based. Dropout and stochastic depth inside the network draw from the global
    generator, which is seeded during training and restored afterwards.

    Args:
        loss: `(logits, labels, images, index)` to a scalar; cross-entropy by default. `index` are indices into `data`.
        images: `(images, labels, index, epoch)` to the images that the network is trained on instead; it must leave
            the model in train mode.
        gradients: called between the backward pass and the step of the optimiser; it may change gradients and weights.
        after: called with the number of each finished epoch; it may change the model's mode. Training ends early if it
            returns True.
        replays: number of steps in a row on each batch.

    Raises:
        ModelError: when the loss is no longer finite.
        NotApplicable: when the network has batch norms and a batch is a single image.
    """
    try:
        _train(model, data, recipe, seed, loss, images, gradients, after, replays)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise NotApplicable(
            f"training {model.card.name} on {len(data)} images of {data.name} in batches of {recipe.batch}: batch "
            "normalisation needs at least 2 images per batch; give more images"
        ) from None


def _train(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    seed: int,
    loss: BatchLoss | None,
    images: BatchImages | None,
    gradients: Callable[[], None] | None,
    after: Callable[[int], bool | None] | None,
    replays: int,
) -> None:
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(
            parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0
        )
    else:
        optimiser = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    per_epoch = max(1, len(data) // recipe.batch) if len(data) >= recipe.batch else 1
    total = per_epoch * replays * recipe.epochs
    warm = max(1, round(recipe.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, total - warm)))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    draws, told = Draws(seed, data.ids), Training(model.card.name, len(data), recipe.epochs)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "network noise"))
        for epoch in range(recipe.epochs):
            model.train()
            order = draws.order(f"epoch {epoch}")
            batches = order[: per_epoch * recipe.batch].split(recipe.batch)
            for index in (batch for batch in batches for _ in range(replays)):
                x = augmented(data.pixels(index, dtype), recipe.augment, draws[index], epoch, data.kind).to(device)
                y = data.labels[index].to(device)
                if images is not None:
                    x = images(x, y, index, epoch)
                z = model(x, draws[index].to(device).at(epoch) if model.randomized else None)
                value = (
                    F.cross_entropy(z, y, label_smoothing=recipe.smoothing) if loss is None else loss(z, y, x, index)
                )
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                if gradients is not None:
                    gradients()
                optimiser.step()
                schedule.step()
            if not bool(torch.isfinite(value.detach())):
                raise ModelError(
                    f"training {model.card.name}: the loss is not finite in epoch {epoch + 1}; lower lr ({recipe.lr:g})"
                )
            stop = after is not None and after(epoch)
            told.epoch(epoch + 1)
            if stop:
                break
    model.eval()


def renew(model: Classifier, seed: int) -> None:
    """Give a model new weights in place, those that `fresh` makes of the seed."""
    model.load_state_dict(model.fresh(derive_seed(seed, "weights")).state_dict())


@torch.no_grad()
def predict(model: Classifier, data: ImageSet, batch: int = 128, draws: Draws | None = None) -> Tensor:
    """Logits [N, classes] on the CPU, in the order of the set."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    out = []
    for index in torch.arange(len(data)).split(batch):
        part = None if draws is None else draws[index].to(device)
        out.append(model(data.pixels(index, dtype).to(device), part).cpu())
    return torch.cat(out)


def accuracy(model: Classifier, data: ImageSet, batch: int = 128) -> float:
    """Fraction of the images that the model classifies correctly."""
    return float((predict(model, data, batch).argmax(1) == data.labels).double().mean())
