"""Randomised features: Gaussian noise inside the network, drawn anew in every forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from siegebench.classifier import Classifier, Wrapped
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import NotApplicable
from siegebench.types import Defense, Positive, Share

from ._calibration import calibrate

Place = tuple[str, bool]  # (name of a module, whether the noise is added to its output instead of its input)
BLOCKS = ("stages", "layers", "blocks")  # attributes in which timm keeps the parts of a network, in order


def places(model: Classifier) -> list[Place]:
    """The positions at which noise can be added: the input of each part of the network's trunk.

    ResNet: after the stem and after each stage but the last. ViT, Mixer: before each block. VGG: before each
    convolution. A ResNet of three stages (CIFAR): after the third.
    """
    for prefix, module in model.named_modules():
        found = _parts(module)
        if found:
            return [(f"{prefix}.{part}" if prefix else part, after) for part, after in found]
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
    """h_l + nu v_l at some layers of a network, v_l ~ N(0, I) drawn anew for every image and pass, in eval mode too."""

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

    def backward_model(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        draws = Draws.fresh(len(x), x.device) if draws is None else draws
        with self._noise(draws):
            return self.inner.backward_model(x, draws)

    @contextmanager
    def _noise(self, draws: Draws) -> Iterator[None]:
        """Hooks for one forward pass, removed afterwards: the network may be used, copied or stored elsewhere."""

        def noisy(h: Any, layer: str) -> Tensor:
            if not isinstance(h, Tensor) or len(h) != len(draws):
                raise NotApplicable(f"{self.card.name}: the input or output of layer {layer} is not a tensor [n, ...]")
            v = draws.normal(tuple(h.shape[1:]), purpose=f"layer {layer}")
            return h + self.nu.to(h.dtype) * v.to(h.dtype)

        def hook(layer: str, module: nn.Module, after: bool) -> Any:
            if after:
                return module.register_forward_hook(lambda _m, _args, out: noisy(out, layer))
            return module.register_forward_pre_hook(
                lambda _m, args: (noisy(args[0] if args else None, layer), *args[1:])
            )

        handles = []
        try:
            for layer, (name, after) in self.places.items():
                handles.append(hook(layer, self.inner.get_submodule(name), after))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True, kw_only=True)
class RandomizedFeatures(Defense):
    """Add nu v to the input of each layer l of a set H, v ~ N(0, I) drawn anew for every image and forward pass.

    Nguyen, Lao, Pham, Wong, Doan, "Understanding the Robustness of Randomized Feature Defense Against Query-Based
    Adversarial Attacks", ICLR 2024.

    Intended against attackers who only query outputs: noise in the features disturbs the differences between outputs
    that these attacks rely on. An attacker with gradient access averages the noise away and attacks the undefended
    network.

    Random: the noise. If nu is not given, it is searched on up to 2,000 held-out images (means of 5 noisy passes) so
    that the clean accuracy falls by `drop`. If the network was also trained on these images, the nu found is too large.

    Attributes:
        nu: standard deviation of the noise, the same at all layers.
        drop: clean accuracy that may be lost, when nu is not given.
        layers: H. Numbers index the positions that the architecture offers, from 0; text names modules of the network,
            and noise is added to their input.

    Differs from the paper: nu is found by bisection of its logarithm between 1e-4 and 1e4, not from a list. The
    authors' code adds noise to every PoolFormer block and to the outputs of a ResNetV2's stages; here noise is added to
    the input of every stage.
    """

    trains: ClassVar[bool] = True  # nu is fitted
    randomized: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "eot", "looks": 20, "attack": {"name": "pgd", "loss": "margin", "steps": 20}},
        {"name": "eot", "looks": 20, "attack": {"name": "apgd", "loss": "dlr", "steps": 25, "early_stop": False}},
    )

    nu: Positive | None = None
    drop: Share = 0.01
    layers: Literal["all"] | tuple[int | str, ...] = "all"

    def wrap(self, model: Classifier) -> Classifier:
        # without nu the outputs are NaN until `fit` sets it: the undefended network is never used by mistake
        return NoisyFeatures(model, self._chosen(model), float("nan") if self.nu is None else self.nu)

    def _chosen(self, model: Classifier) -> dict[str, Place]:
        """The positions of H by the names that key their noise.

        Raises:
            NotApplicable: when the network offers no position, or not the requested one.
        """
        offered = {str(i): position for i, position in enumerate(places(model))}
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
        calibrate(defended, defended.nu, data, draws.seed, self.drop)
