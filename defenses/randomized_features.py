"""Randomised features: fresh Gaussian noise inside the network at every look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import Granted, ImageSet, stratified
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.train import predict
from siegebench.types import Defense, Positive, Share

Place = tuple[str, bool]  # (name of a module, noise behind it; else in front of it)
BLOCKS = ("stages", "layers", "blocks")  # where timm keeps the parts of a network, in order
PASSES, ROUNDS = 5, 12  # noisy looks behind one accuracy, and halvings of the interval, when nu is calibrated
HELD_OUT = 1000  # images of each held-out part, at most, that the accuracies are measured on
LEAST, MOST, CLOSE = 1e-4, 1e4, 1e-3  # the interval of nu, and the accuracy at which the search may end


def places(model: Classifier) -> list[Place]:
    """Where the noise can go: in front of each part of the network's trunk.

    ResNet: after the stem and after each stage but the last. ViT, Mixer: before each block. VGG: before each
    convolution. A ResNet of three stages (CIFAR): after the third.
    """
    for prefix, module in model.named_modules():
        found = _parts(module)
        if found:
            return [(f"{prefix}.{part}" if prefix else part, behind) for part, behind in found]
    return []


def _parts(module: nn.Module) -> list[Place]:
    stages = [name for name, _ in module.named_children() if re.fullmatch(r"(layer|stage|s)\d+", name)]
    if len(stages) == 3:
        return [(stages[-1], True)]
    if len(stages) > 3:
        return [(name, False) for name in stages]
    for name in BLOCKS:
        parts = getattr(module, name, None)
        if isinstance(parts, (nn.Sequential, nn.ModuleList)) and len(parts) > 1:
            return [(f"{name}.{i}", False) for i in range(len(parts))]
    if isinstance(module, nn.Sequential):
        convolutions = [name for name, part in module.named_children() if isinstance(part, nn.Conv2d)]
        if len(convolutions) > 1:
            return [(name, False) for name in convolutions]
    return []


class NoisyFeatures(Wrapped):
    """h_l + nu v_l at some places of a network, v_l ~ N(0, I) anew for every image and look, in eval mode too."""

    nu: Tensor

    def __init__(self, inner: Classifier, places: dict[str, Place], nu: float) -> None:
        super().__init__(inner)
        self.places, self.randomized = places, True
        self.register_buffer("nu", torch.tensor(nu))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        with self._noise(draws):
            logits: Tensor = self.inner(x, draws)
        return logits

    def surrogate(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        with self._noise(draws):
            return self.inner.surrogate(x, draws)

    @contextmanager
    def _noise(self, draws: Draws) -> Iterator[None]:
        """Hooks for one look: none is left on a network that others may use, copy or store."""

        def noisy(h: Any, layer: str) -> Tensor:
            if not isinstance(h, Tensor) or len(h) != len(draws):
                raise NotApplicable(f"{self.card.name}: layer {layer} does not work on one tensor with a row an image")
            v = draws.normal(tuple(h.shape[1:]), purpose=f"layer {layer}")
            return h + self.nu.to(h.dtype) * v.to(h.dtype)

        def hook(layer: str, module: nn.Module, behind: bool) -> Any:
            if behind:
                return module.register_forward_hook(lambda _m, _args, out: noisy(out, layer))
            return module.register_forward_pre_hook(
                lambda _m, args: (noisy(args[0] if args else None, layer), *args[1:])
            )

        handles = []
        try:
            for layer, (name, behind) in self.places.items():
                handles.append(hook(layer, self.inner.get_submodule(name), behind))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True, kw_only=True)
class RandomizedFeatures(Defense):
    """Add nu v to the features in front of each layer l of a set H, v ~ N(0, I) fresh for every image and look.

    Nguyen, Lao, Pham, Wong, Doan, "Understanding the Robustness of Randomized Feature Defense Against Query-Based
    Adversarial Attacks", ICLR 2024.

    Meant against attackers who see answers only: noise in the features disturbs the differences between answers that
    they live on. An attacker with gradients averages the noise away and meets the bare network.

    The noise is random. With nu left out, nu is searched on up to 2,000 held-out images (means of 5 noisy looks) so
    that the clean accuracy falls by `drop`; a network that was trained on these images too is given too large a nu.

    Attributes:
        nu: standard deviation of the noise, the same at all layers.
        drop: clean accuracy that may be lost, when nu is left out.
        layers: H. Numbers count the places that the architecture offers, from 0; text names modules of the network and
            puts noise in front of them.

    Differs from the paper: nu is found by bisection of its logarithm between 1e-4 and 1e4, not from a list. Where its
    code noises every PoolFormer block and the outputs of a ResNetV2's stages, here every stage's input is noised.
    """

    trains: ClassVar[bool] = True  # nu is what is learnt
    randomized: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 20}},
        {"name": "eot", "looks": 20, "attack": {"name": "apgd", "loss": "dlr", "steps": 25, "early_stop": False}},
    )

    nu: Positive | None = None
    drop: Share = 0.01
    layers: Literal["all"] | tuple[int | str, ...] = "all"

    def wrap(self, model: Classifier) -> Classifier:
        # without nu the answers are NaN until fit sets it: nobody shall take the bare network for the defended one
        return NoisyFeatures(model, self._chosen(model), float("nan") if self.nu is None else self.nu)

    def _chosen(self, model: Classifier) -> dict[str, Place]:
        """The places of H by the names that key their noise.

        Raises:
            NotApplicable: when the network offers no place, or not this one.
        """
        offered = {str(i): place for i, place in enumerate(places(model))}
        if self.layers == "all":
            if not offered:
                raise NotApplicable(f"{model.card.name}: no stages or blocks found; name modules in `layers`")
            return offered
        modules = dict(model.named_modules())
        chosen: dict[str, Place] = {}
        for layer in self.layers:
            found = offered.get(str(layer)) if isinstance(layer, int) else None
            full = next((n for n in modules if n and (n == layer or n.endswith(f".{layer}"))), None)
            if found is None and full is not None:
                found = (full, False)
            if found is None:
                raise NotApplicable(f"{model.card.name}: no layer {layer!r}; it offers 0..{len(offered) - 1}")
            chosen[str(layer)] = found
        return chosen

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        assert isinstance(defended, NoisyFeatures)
        if self.nu is not None:
            return
        held_out = [part.select(stratified(part, min(len(part), HELD_OUT), 0)) for part in (data.clean, data.val)]

        def accuracy(nu: float, passes: int) -> float:
            defended.nu.fill_(nu)
            right = [_right(defended, part, draws.seed, look) for part in held_out for look in range(passes)]
            return sum(right) / (passes * sum(len(part) for part in held_out))

        clean = accuracy(0.0, 1)
        low, high = LEAST, MOST
        for _ in range(ROUNDS):
            nu = (low * high) ** 0.5
            lost = clean - accuracy(nu, PASSES)
            if abs(lost - self.drop) <= CLOSE:
                break
            low, high = (nu, high) if lost < self.drop else (low, nu)
        else:
            nu = low  # the largest that was seen to cost less than `drop`
        defended.nu.fill_(nu)


def _right(model: Classifier, data: ImageSet, seed: int, look: int) -> float:
    logits = predict(model, data, draws=Draws(seed, data.ids).at(look))
    return float((logits.argmax(dim=1) == data.labels).sum())
