"""LayerCriticality: how much the answers of a network depend on the trained weights of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench import ops
from siegebench.classifier import Classifier, copied
from siegebench.draws import Draws, derive_seed
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.prepare import prepare
from siegebench.threat import Norm, ThreatModel
from siegebench.types import Attack, Count, Measure

UNUSED = 0.01  # a layer of smaller criticality is not used
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LayerCriticality(Measure):
    """One layer at a time is reset to the weights of an untrained network; criticality is the change of the softmax.

    Gavrikov, Agnihotri, Keuper, Keuper, "How Do Training Methods Influence the Utilization of Vision Models?", 2024,
    arXiv 2410.14470.
        criticality           1 - mean over the images of cos(p before, p after), mean over `resets` untrained networks
        early, middle, late   its mean over each third of the layers, in the order in which they are called
        centre                mean depth, in [0, 1], weighted by criticality
        unused                share of the layers below 0.01
        kept                  mean accuracy after a reset, as a share of the accuracy before
    A layer is a module with weights or statistics of its own. With `attack` the same on attacked images too, in names
    that end in `_attacked`.

    Random: the untrained networks; what the attack draws.

    Cost: one forward pass for each image, layer and reset.

    Differs from the paper: batch norms that are folded into the convolution before them, as they are in a suite, are
    reset together with it. The untrained weights are those of the network's own initialiser.

    Attributes:
        images: number of images, at most.
        resets: untrained networks.
        attack: also measure on images of this attack, within the ball of the threat model.
    """

    every: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")

    images: Count = 500
    resets: Count = 3
    attack: Attack | None = None

    def __post_init__(self) -> None:
        if self.attack is not None and (self.attack.learning() or self.attack.exploring()):
            raise ConfigError("layer_criticality: an attack that learns or explores first cannot run inside a measure")

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> dict[str, Any]:
        few = torch.arange(min(self.images, len(x)), device=x.device)
        oracle, x, y, draws = oracle[few], x[few], y[few], draws[few]
        metrics = self.of(oracle, x, y, draws.seed)
        if self.attack is not None:
            found = self.attack(oracle, x, y, threat, draws.child("attacked"))
            inside = threat.size(found, x) <= threat.limit
            moved = torch.where(ops.over(inside, found), found, x)
            metrics |= {f"{k}_attacked": v for k, v in self.of(oracle, moved, y, draws.seed).items()}
        return {"metrics": metrics, "flags": []}

    def of(self, oracle: Oracle, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        """The metrics on some images."""
        model = copied(oracle.model)
        asked = oracle.of(model).frozen()
        layers = called(model, x[:2])
        before = asked.logits(x).softmax(dim=1)
        use = torch.zeros(len(layers), dtype=torch.float64)
        right = torch.zeros_like(use)
        for i in range(self.resets):
            new = untrained(oracle.model, layers, x[:32], derive_seed(seed, "reset", i))
            for j, layer in enumerate(layers):
                own = {k: v.clone() for k, v in _state(layer).items()}
                _put(layer, new[j])
                after = asked.logits(x).softmax(dim=1)
                _put(layer, own)
                use[j] += float(1 - F.cosine_similarity(before, after).mean()) / self.resets
                right[j] += float((after.argmax(dim=1) == y).double().mean()) / self.resets
        return figures(use.clamp(min=0), right, float((before.argmax(dim=1) == y).double().mean()))


def figures(use: Tensor, right: Tensor, accuracy: float) -> dict[str, float]:
    """The metrics of criticalities [layers] and accuracies after a reset [layers], in order of depth."""
    depth = torch.linspace(0, 1, len(use), dtype=torch.float64) if len(use) > 1 else torch.zeros(1).double()
    third = 3 * torch.arange(len(use)) // len(use)
    out = {"layers": float(len(use)), "unused": float((use < UNUSED).double().mean())}
    for i, name in enumerate(("early", "middle", "late")):
        if bool((third == i).any()):  # a network of one or two layers has no such third
            out[name] = float(use[third == i].mean())
    if float(use.sum()) > 0:
        out["centre"] = float((use * depth).sum() / use.sum())
    if accuracy > 0:
        out["kept"] = float(right.mean()) / accuracy
    return out


def called(model: Classifier, x: Tensor) -> list[nn.Module]:
    """The modules with weights or statistics of their own, in the order in which a pass calls them."""
    order: list[nn.Module] = []
    handles = [
        m.register_forward_hook(lambda m, _args, _out: order.append(m) if m not in order else None)
        for name, m in model.named_modules()
        if _state(m) and not isinstance(m, Classifier)
    ]
    try:
        with torch.no_grad():
            model(x, Draws(0, torch.arange(len(x), device=x.device)) if model.randomized else None)
    finally:
        for handle in handles:
            handle.remove()
    return order


def untrained(victim: Classifier, layers: list[nn.Module], x: Tensor, seed: int) -> list[State]:
    """The states that the layers have in a fresh network.

    Raises:
        NotApplicable: when its layers are others.
    """
    fresh = victim.fresh(seed).to(x.device, x.dtype).eval()
    shapes = [_shapes(layer) for layer in layers]
    for network in (fresh, prepare(fresh, x)):  # the victim's batch norms may be folded
        found = called(network, x[:2])
        if [_shapes(layer) for layer in found] == shapes:
            return [_state(layer) for layer in found]
    raise NotApplicable(
        f"{victim.card.name}: an untrained copy has other layers than the network, so that none can be reset"
    )


def _state(module: nn.Module) -> State:
    own = {**module._parameters, **module._buffers}
    return {k: v for k, v in own.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(k, tuple(v.shape)) for k, v in _state(module).items()]


@torch.no_grad()
def _put(module: nn.Module, state: State) -> None:
    for name, value in _state(module).items():
        value.copy_(state[name])
