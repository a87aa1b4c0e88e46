"""Certifier: proves that no image within a radius changes the prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.threat import Norm
from siegebench.types.base import Entry

ABSTAINED = -1


@dataclass(frozen=True)
class Certificate:
    """What a certifier proved about n images.

    Attributes:
        prediction: class of each image, int64 [n]; ABSTAINED where the certifier abstains.
        holds: bool [R, n]: for each radius, whether no image of the box within it gets another class.
    """

    prediction: Tensor
    holds: Tensor


def other_class(z: Tensor, y: Tensor) -> Tensor:
    """Where logits z [n, classes] do not give class y, bool [n]; ties and NaN count as another class."""
    others = z.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return ~(z.gather(1, y[:, None])[:, 0] > others)


class Certifier(Entry):
    """Proves for single images that no image within a radius gets another class.

    A network that cannot be bounded raises NotApplicable, which names the layer. If the bounds of a network are too
    loose, nothing is certified; this is a result, not an error.

    Class attributes:
        norms: norms of the radii.
        statistical: a certificate holds with a stated probability only.
        deploys: `predictor` is another classifier than the model. Otherwise attacks on the model serve all certifiers.
        randomized: two passes of `predictor` on the same image may differ.
        adaptive: attacks (specs as in a suite) that are designed against the predictor. Each board runs them too.
    """

    norms: ClassVar[frozenset[Norm]]
    statistical: ClassVar[bool] = False
    deploys: ClassVar[bool] = False
    randomized: ClassVar[bool] = False
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ()

    def predictor(self, model: Classifier) -> Classifier:
        """What is deployed, and attacked: by default the model itself. It must not change the model."""
        return model

    @abstractmethod
    def certify(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        """The certificate of images.

        Args:
            model: the defended network without the predictor around it, in eval mode. Its weights have no gradient.
            x: [n, C, H, W] in the box of the model's kind.
            norm: one of `norms`.
            radii: in ascending order, in the units of x.
            draws: one stream for each image.

        Raises:
            NotApplicable: when the model has a part that cannot be bounded; names it.
        """

    def refutes(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Where the predictor does not give class y to an image, bool [n]; this breaks certificates of y around it.

        Ties, and answers that are not finite, count as another class. Override it if the predictor estimates an answer
        from samples: only what is certain breaks a certificate.
        """
        return other_class(self.predictor(model)(x, draws), y)

    @final
    def __call__(self, model: Classifier, x: Tensor, norm: Norm, radii: Sequence[float], draws: Draws) -> Certificate:
        """Certify, then check the contract.

        Classes must exist, what holds at a radius must hold at smaller ones, and nothing holds where the certifier
        abstains.

        Raises:
            ContractError: naming the certifier and what is wrong.
        """
        if norm not in self.norms:
            raise ContractError(f"{self!r} certifies {', '.join(sorted(self.norms))}, not {norm}")
        if list(radii) != sorted(radii):
            raise ContractError(f"{self!r} was given radii {list(radii)}; expected them in ascending order")
        before = x.clone()
        with torch.no_grad():
            found = self.certify(model, x, norm, radii, draws)
        if not torch.equal(before, x):
            raise ContractError(f"{self!r} changed its input in place")
        self._check(found, len(x), len(radii), model.num_classes)
        return found

    def _check(self, found: Certificate, n: int, radii: int, classes: int) -> None:
        for name, value, shape, dtype in (
            ("prediction", found.prediction, (n,), torch.int64), ("holds", found.holds, (radii, n), torch.bool),
        ):  # fmt: skip
            if value.shape != shape or value.dtype != dtype:
                told = f"{name} is {value.dtype} {tuple(value.shape)}; expected {dtype} {shape}"
                raise ContractError(f"{self!r}: {told}")
        if bool(((found.prediction < ABSTAINED) | (found.prediction >= classes)).any()):
            raise ContractError(f"{self!r}: a prediction is none of the classes 0..{classes - 1}, and not {ABSTAINED}")
        if bool((found.holds & (found.prediction == ABSTAINED)).any()):
            raise ContractError(f"{self!r} certifies images on which it abstains")
        if bool((found.holds[1:] & ~found.holds[:-1]).any()):
            raise ContractError(f"{self!r} certifies a radius and not a smaller one")
