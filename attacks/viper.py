"""VIPER: replace characters by others that look alike, without any access to the model."""

from __future__ import annotations

import contextlib
import hashlib
import math
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from siegebench.draws import Draws
from siegebench.oracle import Oracle
from siegebench.threat import Access, Norm, ThreatModel
from siegebench.types import Attack

from . import _glyphs

Space = Literal["dces", "eces", "ices", "lookalikes"]
Half = Literal["all", "even", "odd"]
NEAREST = 20  # neighbours of a letter
LAST = 30_000  # largest code point of a neighbour, as published
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARKS = (
    "CIRCUMFLEX", "CARON", "ACUTE", "DOT ABOVE", "DOT BELOW", "DIAERESIS", "TILDE", "MACRON", "CEDILLA", "LINE BELOW",
)  # fmt: skip
OTHERS = frozenset({"COMBINING", "TAG", "PARENTHESIZED", "CIRCLED", "SQUARED", "HALFWIDTH"})  # no plain letters
# letters of other alphabets that look like ours and whose names say another letter
LOOKALIKES = {
    "a": "\u0251", "b": "\u044c", "c": "\u0441", "d": "\u0501", "e": "\u0435", "f": "\u017f", "g": "\u0261",
    "h": "\u04bb", "i": "\u0131", "j": "\u03f3", "k": "\u03ba", "l": "\u04cf", "n": "\u03b7", "o": "\u03bf",
    "p": "\u0440", "q": "\u051b", "r": "\u0433", "s": "\u0455", "t": "\u0442", "u": "\u03c5", "v": "\u03bd",
    "w": "\u051d", "x": "\u0445", "y": "\u0443", "B": "\u0412", "C": "\u0421", "H": "\u041d", "K": "\u039a",
    "M": "\u039c", "N": "\u039d", "O": "\u039f", "P": "\u03a1", "S": "\u0405", "T": "\u03a4", "X": "\u03a7",
    "Y": "\u03a5", "Z": "\u0396", "E": "\u0395", "I": "\u0399", "A": "\u0391",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Viper(Attack):
    """Each letter becomes, with probability p = eps, one of its neighbours; neither model nor label is asked.

    Eger et al., "Text Processing Like Humans Do: Visually Attacking and Shielding NLP Systems", NAACL 2019,
    arXiv 1903.11508. The neighbours of a letter are in one of these spaces:

    `dces`: the 20 letters below code point 30,000 whose Unicode names share its single-letter word and its case, by the
    Euclidean distance d of the names as bags of words; one is drawn with probability proportional to exp(-d / 2).
    `eces`: one fixed neighbour, the letter with a diacritic.
    `ices`: the 20 characters below code point 30,000 whose pictures, drawn in DejaVu Sans, look most like the letter,
    by the cosine of 24x24 pixels; one is drawn with probability proportional to it.
    `lookalikes`: one fixed neighbour that looks like the letter and has another name, for defenses that read names.

    At most eps of the characters of a text change: letters beyond that, by their draws, stay. Random: which letters
    change, and into what. Cost: no passes.

    Differs from the paper: p is the budget, so that texts with few other characters change a little less often than
    with probability p. Only the letters of English are replaced, and by characters beyond ASCII. Which scripts the
    authors leave out is not known; here it is marks, tags and enclosed letters, and for `ices` what is written from
    right to left. The space `lookalikes` is ours.

    Attributes:
        space: where the neighbours are.
        half: `even` or `odd` takes every second neighbour of `dces` or `ices`, so that a defense that is trained on one
            half is attacked with characters that it has not seen.
    """

    needs: ClassVar[Access] = "none"
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)
    restricted: ClassVar[bool] = True

    space: Space = "dces"
    half: Half = "all"

    def identity(self) -> dict[str, Any]:
        if self.space != "ices":
            return {}
        font = _glyphs.font_file()
        return {"font": font and hashlib.sha256(font.read_bytes()).hexdigest()}

    def run(self, oracle: Oracle, x: Tensor, y: Tensor, threat: ThreatModel, draws: Draws) -> Tensor:
        points = x.flatten(1)
        near, chance = (t.to(x.device) for t in neighbours(self.space, self.half))
        u, v = draws.uniform((2, points.shape[1]), purpose="letters").unbind(dim=1)
        u, letter = u.to(x.device), points.clamp(max=127)
        can = (points < 128) & (chance[letter].sum(dim=2) > 0)
        rank = torch.where(can, u, 2.0).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        most = (threat.eps * (points != 0).sum(dim=1, keepdim=True) + 1e-6).floor()
        which = (v.to(x.device)[:, :, None] > chance[letter].cumsum(dim=2)).sum(dim=2).clamp(max=NEAREST - 1)
        other = near[letter].gather(2, which[:, :, None]).squeeze(2)
        return torch.where(can & (u < threat.eps) & (rank < most), other, points).view_as(x)


@cache
def neighbours(space: Space, half: Half) -> tuple[Tensor, Tensor]:
    """(code points int64 [128, 20], their probabilities [128, 20]) of each ASCII character; all 0 for one without."""
    near, chance = torch.zeros(128, NEAREST, dtype=torch.int64), torch.zeros(128, NEAREST)
    for letter in LETTERS:
        found = {"dces": _named, "eces": _marked, "ices": _drawn, "lookalikes": _alike}[space](letter)
        if space in ("dces", "ices") and half != "all":
            found = found[half == "odd" :: 2]
        for k, (point, weight) in enumerate(found):
            near[ord(letter), k], chance[ord(letter), k] = point, weight
    return near, chance / chance.sum(dim=1, keepdim=True).clamp(min=1e-12)


@cache
def _words() -> dict[tuple[str, str], list[tuple[int, frozenset[str]]]]:
    """Letters by (single-letter word of the name, case): code points and the words of their names."""
    out: dict[tuple[str, str], list[tuple[int, frozenset[str]]]] = {}
    for point in range(128, LAST):
        words = frozenset(unicodedata.name(chr(point), "").split())
        single = [w for w in words if len(w) == 1 and w.isalpha()]
        case = words & {"SMALL", "CAPITAL"}
        if len(single) == 1 and len(case) == 1 and "LETTER" in words and not words & OTHERS:
            out.setdefault((single[0], *case), []).append((point, words))  # type: ignore[arg-type]
    return out


def _named(letter: str) -> list[tuple[int, float]]:
    own = frozenset(unicodedata.name(letter).split())
    case = "CAPITAL" if letter.isupper() else "SMALL"
    found = [(len(own ^ words) ** 0.5, point) for point, words in _words().get((letter.upper(), case), [])]
    return [(point, math.exp(-d / 2)) for d, point in sorted(found)[:NEAREST]]


def _marked(letter: str) -> list[tuple[int, float]]:
    for mark in MARKS:
        with contextlib.suppress(KeyError):  # no such character; q has none at all
            return [(ord(unicodedata.lookup(f"{unicodedata.name(letter)} WITH {mark}")), 1.0)]
    return []


def _drawn(letter: str) -> list[tuple[int, float]]:
    return _glyphs.alike(letter, LAST, NEAREST)


def _alike(letter: str) -> list[tuple[int, float]]:
    return [(ord(LOOKALIKES[letter]), 1.0)] if letter in LOOKALIKES else []
