"""Defenses turn a classifier into a defended classifier."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import nn

from siegebench.classifier import Classifier
from siegebench.data import Granted
from siegebench.draws import Draws
from siegebench.errors import ContractError
from siegebench.types.base import Entry


class Defense(Entry):
    """Turns a classifier into a defended classifier.

    Class attributes:
        trains: `fit` changes weights; the result is stored as an artifact.
        randomized: two passes on the same image may differ; success is then the majority of fresh passes.
        differentiable: `forward` has useful gradients; otherwise the wrapped classifier has a `backward_model`.
        adaptive: attacks (specs as in a suite) that are designed against the defense; a row without them is not ranked.
            The wrappers eot and bpda compose with any attack.
        poisons: backdoor attacks (specs as in a suite) that are designed against the defense; boards of backdoors run
            them too and show them in a column of their own.
        tracks: where it may be ranked.
    """

    trains: ClassVar[bool] = False
    randomized: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ()
    poisons: ClassVar[tuple[dict[str, Any], ...]] = ()
    tracks: ClassVar[tuple[str, ...]] = (
        "white_box", "query", "transfer", "patch", "corruption", "camouflage", "certified", "extraction",
    )  # fmt: skip

    def ranked_in(self, track: str) -> bool:
        """Whether it may be ranked on the boards of a track; any defense may be used against poisoned training data."""
        return track in self.tracks or track == "poisoning"

    @abstractmethod
    def wrap(self, model: Classifier) -> Classifier:
        """The defended classifier around (or instead of) the model. It may contain the model but must not change it."""

    def fit(self, defended: Classifier, data: Granted, draws: Draws) -> None:
        """Train the defended classifier in place; only for `trains = True`. It is a copy that nothing else uses."""
        raise ContractError(f"{self!r} declares trains = True and does not define fit")

    def shared(self, defended: Classifier) -> nn.Module | None:
        """The part of a defended classifier that `fit` trains, if the training does not use the model.

        Its weights are then one artifact for all models. None if the training depends on the model.
        """
        return None

    @final
    def structure(self, model: Classifier) -> Classifier:
        """The defended classifier before training, around a copy of the model if it trains; it can load weights.

        What the defense adds to be trained is moved to the device of the model.
        """
        defended = self.wrap(copy.deepcopy(model) if self.trains else model)
        defended.randomized = defended.randomized or self.randomized
        of_model = next(model.parameters(), None)
        if self.trains and of_model is not None:
            defended.to(of_model.device)
        return defended.eval()

    @final
    def apply(self, model: Classifier, data: Granted, draws: Draws) -> Classifier:
        """Wrap the model, and train if the defense trains. The given model is never changed.

        Raises:
            ContractError: when the entry changed the model it was given.
        """
        before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
        defended = self.structure(model)
        if self.trains:
            self.fit(defended, data, draws)
        after = model.state_dict()
        changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
        if changed:
            raise ContractError(f"{self!r} changed the model it was given ({changed[0]})")
        return defended.eval()
