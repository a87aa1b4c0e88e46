"""Theft: trains a copy of a network from its answers to a budget of queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siegebench.classifier import Classifier
from siegebench.data import Granted, ImageSet
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.oracle import Oracle
from siegebench.threat import Access
from siegebench.types.base import Entry

AT_ONCE = 1024  # queries in one pass
PROBED = 4  # images on which the answers of a copy are checked


@dataclass(frozen=True)
class Attacker:
    """What a thief has besides the answers of the victim.

    Attributes:
        shape: (C, H, W) of the victim's images.
        pool: images to use as queries, in the form of the victim's images; None without a pool. Its labels are 0,
            except for a theft with `labelled = True`.
        own: labelled images of the victim's data, as far as the card declares them under `sees`.
        blank: an untrained network of the copy's architecture, from a seed.
        fit: trains such a network: (images [n, C, H, W], answers [n, classes], seed, whether images are augmented) to
            the trained network. Answers are distributions over the classes.
    """

    shape: tuple[int, int, int]
    pool: ImageSet | None
    own: Granted
    blank: Callable[[int], Classifier]
    fit: Callable[[Tensor, Tensor, int, bool], Classifier]


class Theft(Entry):
    """Trains a copy of a victim that it can only query.

    A slot of the oracle is one query. `oracle[a:b]` uses slots a to b, each once; a slot that is used twice raises
    BudgetExhausted. A smaller budget is a prefix of the same slots: a theft queries the same images in the same
    order, and stops earlier.

    Class attributes:
        needs: the least access that the theft works with; `none` if it makes no queries. pooled: it takes images of the
        pool. labelled: it gets the true labels of the pool; only for controls. trains: it returns a network of
        `Attacker.blank`, stored as an artifact; otherwise it is run again for each row.
    """

    needs: ClassVar[Access] = "score"
    pooled: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    trains: ClassVar[bool] = True

    def access(self) -> Access:
        """The least access that this instance works with."""
        return self.needs

    def images(self, queries: int) -> int:
        """Number of images of the pool that it needs for a budget; 0 without a pool."""
        return queries if self.pooled else 0

    @abstractmethod
    def run(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        """The copy, in eval mode.

        Args:
            oracle: the victim; its samples are the slots of the budget, one query each.
            attacker: what the thief has.
            draws: the only source of randomness, one stream per slot.

        Raises:
            NotApplicable: when it cannot be run on this data or network; says why.
        """

    @final
    def ask(self, oracle: Oracle, x: Tensor) -> Tensor:
        """The answers to images, one slot each, [n, classes]: posteriors, or one-hot rows with label access.

        Images are rounded to what can be stored, 8 bits a channel.
        """
        answers = []
        for at in torch.arange(len(x)).split(AT_ONCE):
            part = oracle.kind.load(oracle.kind.store(x[at]), oracle.dtype).to(oracle.rows.device)
            view = oracle[at.to(part.device)]
            labels = self.access() == "label"
            answers.append(F.one_hot(view.labels(part), oracle.num_classes) if labels else view.logits(part).softmax(1))
        return torch.cat(answers).to(oracle.dtype)

    @final
    def __call__(self, oracle: Oracle, attacker: Attacker, draws: Draws) -> Classifier:
        """Run, then check the contract: budget, classes, eval mode, finite logits, nothing shared with the victim.

        Raises:
            ContractError: naming the theft and what is wrong.
        """
        copy = self.run(oracle, attacker, draws)
        most, limit = int(oracle.ledger.queries.max()), oracle.threat.queries
        if limit is not None and most > limit:
            raise ContractError(f"{self!r} asked a slot {most} times; expected at most {limit}")
        if not isinstance(copy, Classifier) or copy.num_classes != oracle.num_classes:
            classes = getattr(copy, "num_classes", None)
            told = f"a {type(copy).__name__} of {classes} classes"
            raise ContractError(f"{self!r} returned {told}; expected a Classifier of {oracle.num_classes} classes")
        if any(module.training for module in copy.modules()):
            raise ContractError(f"{self!r} returned a copy in training mode; call eval()")
        if shared := _storages(copy) & _storages(oracle.model):
            raise ContractError(f"{self!r} returned a copy that shares {len(shared)} tensors with the victim")
        x = draws[:PROBED].uniform(attacker.shape, purpose="probe").to(oracle.rows.device, oracle.dtype)
        with torch.no_grad():
            z = copy(x, draws[:PROBED].to(x.device) if copy.randomized else None)
        if z.shape != (len(x), oracle.num_classes) or not bool(torch.isfinite(z).all()):
            raise ContractError(f"{self!r} returned a copy whose logits {tuple(z.shape)} are not all finite numbers")
        return copy


def _storages(model: nn.Module) -> set[int]:
    """The memory of the weights and buffers of a model."""
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
