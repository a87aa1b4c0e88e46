"""Any attack of torchattacks, run through the oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from siegebench.oracle import Oracle
from siegebench.threat import BALLS, Norm, ThreatModel

from ._foreign import Foreign, Known

LINF = (
    "FGSM BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM VMIFGSM VNIFGSM "
    "PIFGSM PIFGSMPP"
)
KNOWN = {
    **{name: Known("gradient", ("linf",)) for name in LINF.split()},
    **{name: Known("gradient", ("linf", "l2")) for name in ("APGD", "APGDT", "AutoAttack")},
    **{name: Known("gradient", ("l2",)) for name in ("PGDL2", "PGDRSL2", "CW", "DeepFool")},
    **{name: Known("gradient", ("l1",)) for name in ("EADL1", "EADEN", "SparseFool", "JSMA")},
    **{name: Known("score", ("l1",)) for name in ("OnePixel", "Pixle")},
    "FAB": Known("gradient", ("linf", "l2")),  # its L1 version raises an error in version 3.5.1
    "Square": Known("score", ("linf", "l2")),
    "SPSA": Known("score", ("linf",)),
    "GN": Known("label", BALLS),
    "VANILA": Known("label", BALLS),
}
NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True, kw_only=True)
class Torchattacks(Foreign):
    """`torchattacks/PGD` and the like: Kim, "Torchattacks: a PyTorch repository for adversarial attacks", 2020,
    arXiv 2010.01950.

    Keys of the spec that are not listed below are passed to the class (`{name: torchattacks/PGD, steps: 40, alpha:
    2/255}`). All other parameters keep the defaults of the installed version and are written into the cell's key. eps,
    norm, number of classes and seed come from the threat model, the victim and the cell. Attacks without eps search for
    the smallest perturbation. Attacks that count changed pixels (OnePixel, Pixle, JSMA, SparseFool) run under l1.

    Random: the generators of the library, all seeded for each sample and restored afterwards. Cost: that of the attack,
    plus one forward pass on the returned point if an earlier point could replace it.

    Differs from the library: run sample by sample, so that neither the result nor the query count depends on the batch.
    If the returned point is not misclassified, the nearest misclassified point that was queried within the budget is
    returned. An overshoot below 1e-5 (or 1e-5 eps, if eps is above 1) is projected back; a larger one is an error.

    Attributes:
        target: name of the class.
        options: parameters of the class.
        batched: attack the whole batch in one call: faster, but samples may affect each other (CW stops them together).
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS
    library: ClassVar[str] = "torchattacks"
    module: ClassVar[str] = "torchattacks"
    known: ClassVar[dict[str, Known]] = KNOWN

    target: str
    options: dict[str, Any] = field(default_factory=dict, metadata={"rest": True})
    batched: bool = False

    def once(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
        attack = self.make(oracle, threat, NORM_NAMES[threat.norm], oracle.num_classes, seed)
        attack.set_device(x.device)  # the library reads it from the parameters, which the oracle hides
        found: Tensor = attack(x, y)
        return found
