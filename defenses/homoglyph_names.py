"""Recovery by names: each letter becomes the plain letter that its Unicode name says."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar

from siegebench.classifier import Classifier
from siegebench.types import Defense

from ._characters import Rewritten


def named(character: str) -> str:
    """The letter of English that the name of a character says, in its case; the character if it says none."""
    words = unicodedata.name(character, "").split()
    single = {w for w in words if len(w) == 1 and "A" <= w <= "Z"}
    case = {"SMALL", "CAPITAL"} & {*words}
    if character.isascii() or len(single) != 1 or len(case) != 1 or "LETTER" not in words:
        return character
    letter = single.pop()
    return letter if case == {"CAPITAL"} else letter.lower()


@dataclass(frozen=True, kw_only=True)
class HomoglyphNames(Defense):
    """f(t(x)), where t turns each letter back into the plain one that its Unicode name says.

    A rule-based recovery in the sense of Eger et al., NAACL 2019, arXiv 1903.11508: CYRILLIC SMALL LETTER A and LATIN
    SMALL LETTER A WITH RING ABOVE become a. It is the inverse of the rule by which the space `dces` of the attack
    `viper` chooses its characters, so its accuracy there is an upper bound for recovery and no proof of robustness: the
    space `lookalikes` has letters whose names say another letter. Nothing is random.

    Differs from the paper: it recovers by names; the authors' rules take the nearest standard character in their visual
    space.
    """

    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "viper", "space": "lookalikes"},)

    def wrap(self, model: Classifier) -> Classifier:
        return Rewritten(model, named)
