"""Compatibility decomposition: accents and typographic forms are dropped before the text is read."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar

from siegebench.classifier import Classifier
from siegebench.types import Defense

from ._characters import Rewritten


def plain(character: str) -> str:
    """A character decomposed (NFKD) without the marks on it."""
    return "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))


@dataclass(frozen=True, kw_only=True)
class UnicodeNFKD(Defense):
    """f(t(x)), where t decomposes each character by compatibility (NFKD) and drops the marks: e with acute becomes e.

    The simplest rule-based recovery in the sense of Eger et al., NAACL 2019, arXiv 1903.11508. It repairs letters
    with accents and typographic forms, but not letters of other alphabets. A character that would become several
    characters, or none, is not changed, so that the length of a text stays the same. Nothing is random.

    Differs from the paper: it recovers with the decomposition of the Unicode standard; the authors' rules take the
    nearest standard character in their visual space.
    """

    adaptive: ClassVar[tuple[dict[str, Any], ...]] = ({"name": "viper", "space": "lookalikes"},)

    def wrap(self, model: Classifier) -> Classifier:
        return Rewritten(model, plain)
