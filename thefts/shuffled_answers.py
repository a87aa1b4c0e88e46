"""Control: a copy trained on the victim's answers to other images than it sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws

from .knockoff import Knockoff


@dataclass(frozen=True, kw_only=True)
class ShuffledAnswers(Knockoff):
    """As knockoff, with the answers permuted over the images.

    The copy sees the same images and the same answers, and no relation between them. It agrees with the victim as often
    as its most frequent answer does. What a theft agrees more than this control comes from the answers.

    Random: the permutation, and what is random in knockoff.
    """

    def taught(self, answers: Tensor, draws: Draws) -> Tensor:
        return answers[draws[: len(answers)].order("shuffle").to(answers.device)]
