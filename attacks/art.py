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
# Left out: GeoDA (calls np.mat, removed in NumPy 2), AutoAttack and ThresholdAttack (need packages that ART does not
# install), SaliencyMapMethod (uses the labels as targets), and attacks that are not per image within a norm.
OWN_GENERATOR = ("BoundaryAttack", "HopSkipJump")  # they make a NumPy generator without a seed
WANTS_PROBABILITIES = ("SimBA", "NewtonFool")
NORM_NUMBERS = {"linf": np.inf, "l2": 2, "l1": 1}


class _Probabilities(nn.Module):
    """Softmax of the oracle's logits."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, x: Tensor) -> Tensor:
        return self.oracle(x).softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class ART(Foreign):
    """`art/HopSkipJump` and the like: Nicolae et al., "Adversarial Robustness Toolbox v1.0.0", 2018, arXiv 1807.01069.

    Keys of the spec that are not listed below are passed to the class (`{name: art/HopSkipJump, max_iter: 20}`). All
    other parameters keep the defaults of the installed version and are written into the cell's key. Some defaults
    differ much from the papers (a step of 0.1, 10 iterations of C&W), so set them. eps, norm, number of classes and
    seed come from the threat model, the victim and the cell. Attacks without eps search for the smallest perturbation.
    Attacks that count changed pixels (PixelAttack, CarliniL0Method) run under l1.

    Random: the generators of the library, all seeded for each sample and restored afterwards. Cost: that of the attack,
    plus one forward pass on the returned point if an earlier point could replace it.

    Differs from the library: run sample by sample, so that neither the result nor the query count depends on the batch.
    Always untargeted. If the returned point is not misclassified, the nearest misclassified point that was queried
    within the budget is returned. An overshoot below 1e-5 (or 1e-5 eps, if eps is above 1) is projected back; a larger
    one is an error.

    Attributes:
        target: name of the class in `art.attacks.evasion`.
        options: parameters of the class.
        batched: attack the whole batch in one call; only for attacks that pass whole batches to the model.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS
    library: ClassVar[str] = "art"
    module: ClassVar[str] = "art.attacks.evasion"
    known: ClassVar[dict[str, Known]] = KNOWN

    target: str
    options: dict[str, Any] = field(default_factory=dict, metadata={"rest": True})
    batched: bool = False

    def identity(self) -> dict[str, Any]:
        # rows from before that generator was seeded cannot be repeated
        return {"generators": "seeded"} if self.target in OWN_GENERATOR else {}

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
