"""Control: a copy trained on images with the victim's answers to other images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws

from .knockoff import Knockoff


@dataclass(frozen=True, kw_only=True)
class ShuffledAnswers(Knockoff):
    """As knockoff, with the answers permuted over the images.

    The copy is trained on the same images and the same answers, but without the relation between them. It agrees with
    the victim as often as its most frequent answer does. Only the agreement of a theft beyond that of this control
    comes from the answers.

    Random: the permutation, and what is random in knockoff.
    """

    def taught(self, answers: Tensor, draws: Draws) -> Tensor:
        return answers[draws[: len(answers)].order("shuffle").to(answers.device)]
