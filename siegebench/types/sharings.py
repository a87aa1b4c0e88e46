"""Sharing: what a client releases in place of the gradients of its images."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

import torch

from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.per_image import Gradients
from siegebench.types.base import Entry


class Sharing(Entry):
    """The rule by which clients turn the gradients of their images into what they release. The rule is public.

    Class attributes:
        randomized: two releases of the same gradients may differ.
        rescales: a release may have another length than the mean gradient, so that an attacker compares directions.
    """

    randomized: ClassVar[bool] = False
    rescales: ClassVar[bool] = False

    @abstractmethod
    def release(self, per_image: Gradients, draws: Draws) -> Gradients:
        """What m clients release.

        Args:
            per_image: gradients of the n images of each client, `{parameter: [m, n, ...]}`. They must not be changed.
            draws: the only source of randomness, one stream for each client.

        Returns:
            `{parameter: [m, ...]}`, in the place of the mean over the n images.
        """

    def shown(self, released: Gradients) -> Gradients:
        """Which entries of a release contain information about the gradient, bool; by default all. Attackers compare
        these."""
        return {name: torch.ones_like(g, dtype=torch.bool) for name, g in released.items()}

    def noise(self, n: int) -> float:
        """Standard deviation of the noise in each entry of what a client with n images releases; 0 without noise."""
        return 0.0

    def epsilon(self, rate: float, steps: int, delta: float) -> float | None:
        """The epsilon of differential privacy of a training with this rule; None without this guarantee.

        Args:
            rate: probability with which an image is in a batch.
            steps: number of releases.
            delta: of (epsilon, delta)-differential privacy.
        """
        return None

    @final
    def __call__(self, per_image: Gradients, draws: Draws) -> Gradients:
        """Release, then check the contract: a finite tensor for each parameter, the gradients unchanged.

        Raises:
            ContractError: naming the rule, the parameter and what is wrong.
        """
        before = {name: g.clone() for name, g in per_image.items()}
        with torch.no_grad():
            out = self.release(per_image, draws)
        if any(not torch.equal(g, per_image[name]) for name, g in before.items()):
            raise ContractError(f"{self!r} changed the gradients that it was given")
        if list(out) != list(per_image):
            raise ContractError(f"{self!r} released {', '.join(out) or 'nothing'}; expected {', '.join(per_image)}")
        for name, g in per_image.items():
            expected = (g.shape[0], *g.shape[2:])
            if out[name].shape != expected or out[name].dtype != g.dtype:
                found = f"{out[name].dtype} {tuple(out[name].shape)}"
                raise ContractError(f"{self!r}: {name} is {found}; expected {g.dtype} {expected}")
            if not bool(torch.isfinite(out[name]).all()):
                raise ContractError(f"{self!r}: {name} has NaN or infinite entries")
        return out
