"""Prepares a classifier for evaluation: the same function, with fewer and faster operations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws
from siegebench.rows import Rows

T = TypeVar("T")
CPU_NUMBERS = 3 * 2**18  # pixel values per forward pass on a CPU
CLOSE = 1e-4  # largest change of a logit that folding may cause, relative to the largest logit


def prepare(model: Classifier, sample: Tensor) -> Classifier:
    """A copy in eval mode with frozen weights, batch norms folded into their convolutions, channels-last weights.

    The folded copy is used only if its logits for the sample equal those of the original. Modules keep their positions,
    so hooks on them keep working; a module with a hook of its own is not folded.

    Args:
        model: any classifier, wrapped or not; it does not change.
        sample: some images [n, 3, H, W], on the model's device.
    """
    ready = _frozen(model)
    with torch.no_grad():
        expected = _logits(ready, sample)
        folded = _frozen(model)
        # if something else uses the output of a folded convolution, the logits differ
        if fold(folded, sample) and _close(_logits(folded, sample), expected):
            ready = folded.eval()  # the modules that replace the norms are new
    for tensor in (*ready.parameters(), *ready.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return ready


@torch.no_grad()
def fold(model: Classifier, sample: Tensor) -> int:
    """Fold batch norms into the convolutions before them, in place; returns how many.

    Pairs are found in a forward pass of the sample: a batch norm whose input is the very tensor that a convolution
    returned, where both are called once.
    """
    pairs = _pairs(model, sample)
    for conv, norm in pairs:
        _merge(conv, norm)
        after = getattr(norm, "act", None)  # timm's batch norms include their activation
        _replace(model, norm, after if isinstance(after, nn.Module) else nn.Identity())
    return len(pairs)


def at_once(x: Tensor | Rows, device: torch.device) -> int:
    """How many images of the shape of x [n, ...] to pass at once: on a CPU, as many as fit its caches.

    2,000 images of 32 pixels take a ResNet-20 twice as long at once as 256 at a time.
    """
    return max(1, CPU_NUMBERS // max(1, x.shape[1:].numel())) if device.type == "cpu" else sys.maxsize


def slices(n: int, size: int, step: int = 1) -> list[slice]:
    """Parts of n images of about `size`, a multiple of `step`; the last one has from a quarter of it to a quarter more.

    Networks round passes of one to three images in another way than large ones, and take longer for an image.
    """
    start, size, parts = 0, max(step, size // step * step), []
    while 4 * (n - start) > 5 * size:
        parts.append(slice(start, start + size))
        start += size
    return [*parts, slice(start, n)]


def in_batches(part: Callable[[slice], T], n: int, batch: int) -> list[T]:
    """`part` over slices of n samples. When memory runs out, the slice is halved, for the remaining samples too.

    Raises:
        torch.OutOfMemoryError: when a single sample does not fit.
    """
    out: list[T] = []
    start, batch = 0, max(1, batch)
    while start < n:
        try:
            out.append(part(slice(start, min(start + batch, n))))
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
            if batch == 1 or not _out_of_memory(error):
                raise
        else:
            start += batch
            continue
        # outside the handler, so that the tensors of the failed pass are released
        batch = (min(batch, n - start) + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return out


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def _frozen(model: Classifier) -> Classifier:
    own = copied(model).eval()
    for parameter in own.parameters():
        parameter.requires_grad_(False)
    return own


def _logits(model: Classifier, sample: Tensor) -> Tensor:
    draws = Draws(0, torch.arange(len(sample), device=sample.device)) if model.randomized else None
    logits: Tensor = model(sample, draws)
    return logits


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max().clamp(min=1))


def _pairs(model: Classifier, sample: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps the tensors alive, so that no id is reused
    calls: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: Any, args: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = (output, module)

    def before_norm(module: Any, args: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if args and id(args[0]) in made:
            found.append((made[id(args[0])][1], module))

    handles = []
    for module in model.modules():
        if _hooked(module):
            continue
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(after_conv))
        elif _foldable(module):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        _logits(model, sample[:2])
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _foldable(module: nn.Module) -> bool:
    plain = type(module) is nn.BatchNorm2d
    with_act = isinstance(module, nn.BatchNorm2d) and isinstance(getattr(module, "act", None), nn.Module)
    return (plain or with_act) and module.running_mean is not None


def _merge(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """norm(conv(x)) = g (W x + b - m) / s + beta = (g / s) W x + (b - m) g / s + beta."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    kind = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(kind), requires_grad=False)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
