"""Backdoors whose trigger is a phrase that is inserted into a text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from siegebench.draws import Draws
from siegebench.text import inserted
from siegebench.types import BackdoorAttack


@dataclass(frozen=True, kw_only=True)
class WordInsertion(BackdoorAttack):
    """A backdoor that puts a phrase before a random word of a text, or behind the last one.

    Attributes:
        phrase: one word or several, put in together. What no longer fits into the text is cut at its end.
    """

    phrase: str = "cf"

    def trigger(self, x: Tensor, draws: Draws) -> Tensor:
        return inserted(x, self.phrase, draws)
