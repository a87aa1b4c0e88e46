"""Leak: recovers the images of clients from the gradients that they released."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from siegebench.classifier import Classifier
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.per_image import Gradients, batched
from siegebench.threat import TOLERANCE
from siegebench.types.base import Entry
from siegebench.types.sharings import Sharing


@dataclass(eq=False)
class Shared:
    """What an attacker sees of m clients with n images each.

    Attributes:
        released: `{parameter: [m, ...]}`.
        model: the public network, in eval mode.
        sharing: the public rule by which the clients released.
        n: images of each client.
        shape: (C, H, W) of an image.
        mean: mean of public images, [C, H, W].
        passes: gradients of candidate batches computed so far.
    """

    released: Gradients
    model: Classifier
    sharing: Sharing
    n: int
    shape: tuple[int, int, int]
    mean: Tensor
    passes: int = field(default=0)

    def __len__(self) -> int:
        return len(next(iter(self.released.values())))

    def gradients(self, x: Tensor, y: Tensor) -> Gradients:
        """Mean gradients of candidate batches, `{parameter: [k, ...]}`; differentiable in x and y.

        Args:
            x: k batches of n images, [k, n, C, H, W].
            y: their probabilities of the classes, [k, n, classes].
        """
        self.passes += len(x)
        return batched(self.model, x, y)


@dataclass(frozen=True)
class Recovered:
    """What an attacker recovered of m clients with n images each, in any order within a client.

    Attributes:
        images: [m, n, C, H, W] in the box; None if it recovers labels alone.
        labels: probabilities of the classes, [m, n, classes]; None if it recovers images alone.
    """

    images: Tensor | None = None
    labels: Tensor | None = None


class Leak(Entry):
    """Recovers the images of clients, their labels, or both, from what they released.

    Class attributes:
        most: the largest number of images of a client that it can separate; None if there is no limit.
    """

    most: ClassVar[int | None] = None

    @abstractmethod
    def run(self, shared: Shared, draws: Draws) -> Recovered:
        """Images and labels of the clients.

        Args:
            shared: what the attacker sees; never an image of a client.
            draws: the only source of randomness, one stream for each client.

        Raises:
            NotApplicable: when the network has no layer that it needs; names the layer.
        """

    @final
    def __call__(self, shared: Shared, draws: Draws) -> Recovered:
        """Run, then check the contract: shapes, finite numbers, images in the box, labels that are probabilities.

        Raises:
            ContractError: naming the leak and what is wrong.
        """
        if self.most is not None and shared.n > self.most:
            raise ContractError(f"{self!r} separates {self.most} images of a client, these have {shared.n}")
        found = self.run(shared, draws)
        m, n, k = len(shared), shared.n, shared.model.num_classes
        if found.images is None and found.labels is None:
            raise ContractError(f"{self!r} recovered neither images nor labels")
        for name, value, shape in (
            ("images", found.images, (m, n, *shared.shape)), ("labels", found.labels, (m, n, k)),
        ):  # fmt: skip
            if value is not None and value.shape != shape:
                raise ContractError(f"{self!r}: {name} are {tuple(value.shape)}; expected {shape}")
            if value is not None and not bool(torch.isfinite(value).all()):
                raise ContractError(f"{self!r}: {name} have NaN or infinite entries")
        if found.images is not None and not bool(shared.model.kind.inside(found.images, TOLERANCE).all()):
            raise ContractError(f"{self!r} recovered pixels outside {shared.model.kind.box}")
        if found.labels is not None:
            sums = found.labels.sum(dim=2)
            if bool((found.labels < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
                raise ContractError(f"{self!r}: labels are no probabilities of the classes")
        images, labels = (None if v is None else v.detach() for v in (found.images, found.labels))
        return Recovered(images, labels)
