"""Models of several tasks with one backbone: their task vectors, and what a merged backbone needs to work."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws
from siegebench.errors import NotApplicable

Weights = dict[str, Tensor]


def head_name(model: nn.Module) -> str:
    """The name of the last linear layer, the head of the task.

    Raises:
        NotApplicable: when there is none.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise NotApplicable(f"{type(model).__name__} has no linear layer that could be the head of its task")
    return names[-1]


def with_head(model: Classifier, classes: int, seed: int) -> Classifier:
    """A copy with a new head for this number of classes."""
    own = copy.deepcopy(model)
    parent, _, name = head_name(own).rpartition(".")
    old = own.get_submodule(head_name(own))
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    setattr(own.get_submodule(parent), name, new.to(old.weight))
    own.num_classes = classes
    return own


def backbone(model: Classifier) -> Weights:
    """Copies of the parameters without those of the head, by name."""
    head = head_name(model) + "."
    return {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith(head)}


def take_over(model: Classifier, state: Mapping[str, Tensor]) -> None:
    """Load the backbone of a state, with its statistics, and keep the head."""
    head = head_name(model) + "."
    own = model.state_dict()
    model.load_state_dict({name: own[name] if name.startswith(head) else state[name] for name in own})


def merged(start: Weights, vectors: Sequence[Weights], scales: Tensor, mask: Mapping[str, Tensor] | None) -> Weights:
    """theta_0 + sum_t lambda_t tau_t m / mean(m), with m = 1 for no mask.

    Args:
        start: theta_0.
        vectors: the task vectors tau_t.
        scales: lambda, [T].
        mask: m in (0, 1), one number for each weight.
    """
    mean = 1.0 if mask is None else torch.cat([m.flatten() for m in mask.values()]).mean()
    out = {}
    for name, weights in start.items():
        total = torch.stack([s * v[name] for s, v in zip(scales, vectors, strict=True)]).sum(dim=0)
        out[name] = weights + (total if mask is None else total * mask[name] / mean)
    return out


@contextmanager
def statistics_of_the_batch(model: Classifier) -> Iterator[None]:
    """Batch norms normalise with the batch: their stored statistics do not fit merged weights."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        model.eval()


@torch.no_grad()
def measure_statistics(model: Classifier, data: ImageSet, batch: int) -> None:
    """Replace the statistics of the batch norms by those of the images, a mean over the batches."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    like = next(model.parameters())
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    with statistics_of_the_batch(model):
        for index in torch.arange(len(data)).split(batch):
            model(data.pixels(index, like.dtype).to(like.device))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum


def class_groups(data: ImageSet, groups: int) -> list[ImageSet]:
    """The data set in parts of about as many classes each, with labels that are numbered anew.

    Raises:
        NotApplicable: when a part would have a single class.
    """
    if data.num_classes < 2 * groups:
        raise NotApplicable(
            f"{data.name} has {data.num_classes} classes, too few for {groups} tasks of two; set `tasks: "
            f"{data.num_classes // 2}`, or give another data set"
        )
    parts = []
    for classes in torch.arange(data.num_classes).tensor_split(groups):
        chosen = torch.isin(data.labels, classes).nonzero().squeeze(1)
        part = data.select(chosen, f"{data.name}, classes {int(classes[0])} to {int(classes[-1])}")
        parts.append(replace(part, labels=part.labels - classes[0], num_classes=len(classes), classes=None))
    return parts


def like(data: ImageSet, other: ImageSet, count: int, seed: int) -> ImageSet:
    """At most `count` images of another set, in the size and with the channels of `data`."""
    chosen = Draws(seed, other.ids).order("other")[:count].sort().values
    x = other.pixels(chosen)
    channels, height, width = data.shape
    if x.shape[1] != channels:
        x = x.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    stored = data.kind.store(x.clamp(data.kind.low, data.kind.high))
    return replace(other.select(chosen), source=stored, kind=data.kind, groups=None)
