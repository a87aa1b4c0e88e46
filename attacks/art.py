"""Attacks of the Adversarial Robustness Toolbox (ART), run through the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from siegebench.oracle import Oracle
from siegebench.threat import BALLS, Norm, ThreatModel

from ._foreign import Foreign, Known

ANY_NORM = (
    "FastGradientMethod MomentumIterativeMethod ProjectedGradientDescent ProjectedGradientDescentNumpy "
    "ProjectedGradientDescentPyTorch AutoProjectedGradientDescent AutoConjugateGradient RescalingAutoConjugateGradient"
)
KNOWN = {
    **{name: Known("gradient", BALLS) for name in ANY_NORM.split()},
    **{name: Known("gradient", ("linf",)) for name in ("BasicIterativeMethod", "CarliniLInfMethod")},
    **{name: Known("gradient", ("l2",)) for name in ("CarliniL2Method", "DeepFool", "NewtonFool")},
    **{name: Known("gradient", ("l1",)) for name in ("ElasticNet", "CarliniL0Method")},
    **{name: Known("score", ("l2",)) for name in ("ZooAttack", "SimBA")},
    **{name: Known("label", ("l2",)) for name in ("BoundaryAttack", "SignOPTAttack")},
    "SquareAttack": Known("score", ("linf", "l2")),
    "PixelAttack": Known("score", ("l1",)),
    "HopSkipJump": Known("label", ("linf", "l2")),
}
# Left out: GeoDA (calls np.mat, gone in NumPy 2), AutoAttack and ThresholdAttack (need packages that ART does not
# bring), SaliencyMapMethod (takes the labels as targets), and what is not an attack on one image within a norm.
WANTS_PROBABILITIES = ("SimBA", "NewtonFool")
NORM_NUMBERS = {"linf": np.inf, "l2": 2, "l1": 1}


class _Probabilities(nn.Module):
    """Softmax over what the oracle grants."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, x: Tensor) -> Tensor:
        return self.oracle(x).softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class ART(Foreign):
    """`art/HopSkipJump` and the like: Nicolae et al., "Adversarial Robustness Toolbox v1.0.0", 2018, arXiv 1807.01069.

    Keys of the spec that are not listed below are passed on (`{name: art/HopSkipJump, max_iter: 20}`). All other
    parameters keep the defaults of the installed version and are written into the cell's key; some of those are far
    from the papers' (a step of 0.1, 10 iterations of C&W), so give them. eps, norm, classes and seed come from the
    threat model, the victim and the cell. Attacks without eps look for the smallest perturbation; those that count
    changed pixels (PixelAttack, CarliniL0Method) run under l1.

    Random: the global generators, seeded for each sample and put back. Cost: that of the attack, and one look at the
    returned point where an earlier point could replace it.

    Differs from the library: run sample by sample, so that neither the result nor the count depends on the batch;
    untargeted throughout; where the returned point is not misclassified, the nearest misclassified one seen within the
    budget is returned; an overshoot of the budget below 1e-5 is projected back, a larger one is an error.

    Attributes:
        target: the class in `art.attacks.evasion`.
        options: its parameters.
        batched: the whole batch in one call; only for attacks that send whole batches to the model.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS
    library: ClassVar[str] = "art"
    module: ClassVar[str] = "art.attacks.evasion"
    known: ClassVar[dict[str, Known]] = KNOWN

    target: str
    options: dict[str, Any] = field(default_factory=dict, metadata={"rest": True})
    batched: bool = False

    def once(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        from art.estimators.classification import PyTorchClassifier

        classes = oracle.num_classes
        victim = PyTorchClassifier(
            model=_Probabilities(oracle) if self.target in WANTS_PROBABILITIES else oracle,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        attack = self.make(victim, threat, NORM_NUMBERS[threat.norm], classes, seed)
        labels = nn.functional.one_hot(y, classes).float().cpu().numpy()
        return torch.from_numpy(attack.generate(x=x.float().cpu().numpy(), y=labels))
