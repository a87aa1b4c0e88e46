"""The class, and the group of images, that an entry protects least. For information: it never ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from siegebench.cells import Result

from .board import Line, Mark, Number, share
from .stats import Vector

LEAST = 20  # images of a class or a group; smaller ones are left out
DRAWN = 500  # outcomes drawn to see how low the worst of equally robust classes is
UNEQUAL = 1.5  # the largest class has so many times the images of the smallest: accuracy hides the small one
ALIKE = 0.03  # entries that differ less on clean images are compared; a network that is bad on those looks robust
RARE = 0.05  # a flag if equal rates would give a worst class as low as this with this probability, or less


def worst(rows: Sequence[Result], kept: Vector) -> tuple[dict[str, Number], dict[str, str], list[Mark]]:
    """(numbers, texts, flags) of the worst class and the worst group.

    Args:
        rows: of one entry, on the same images. Rows of earlier versions do not say the class of an image.
        kept: images that survived the attacks of all rows, bool [N].
    """
    numbers: dict[str, Number] = {}
    texts: dict[str, str] = {}
    found: list[Mark] = []
    keys = tuple(r.cell.key for r in rows)
    for kind, part in (("class", "label"), ("group", "group")):
        of = next((numbered for r in rows if (numbered := r.whole(part)) is not None), None)
        if of is None:
            continue
        known, place, sizes = np.unique(of, return_inverse=True, return_counts=True)
        large = np.flatnonzero(sizes >= LEAST)
        if len(large) < 2:
            continue
        robust, right = (np.bincount(place, v)[large] for v in (kept, _clean(rows)))
        n = sizes[large]
        at = int(np.argmin(robust / n))
        low, name = float(robust[at] / n[at]), _named(rows, kind, int(known[large[at]]))
        numbers[f"worst_{kind}_acc"] = share(float(robust[at]), int(n[at]), keys)
        numbers[f"worst_{kind}_clean"] = Number(float((right / n).min()), keys=keys)
        texts[f"worst_{kind}"] = name
        equal = _equal_rates(n, int(robust.sum()))
        numbers[f"worst_{kind}_equal"] = Number(float(equal.mean()), keys=keys)
        if low < float(np.quantile(equal, RARE)):
            told = f"{kind} {name} has robust accuracy {100 * low:.1f} % ({n[at]} images), all {len(n)} together "
            told += f"{100 * float(robust.sum() / n.sum()):.1f} %; the worst of as many equally robust ones would have "
            told += f"{100 * float(equal.mean()):.1f} %"
            found.append(Mark("info", "uneven_classes" if kind == "class" else "uneven_groups", told))
    return numbers, texts, found


def balanced(rows: Sequence[Result], kept: Vector) -> dict[str, Number]:
    """Balanced accuracies: the means over the classes, where the classes are of unequal size and not small.

    Args:
        rows, kept: as for `worst`.
    """
    of = next((numbered for r in rows if (numbered := r.whole("label")) is not None), None)
    if of is None:
        return {}
    _, place, sizes = np.unique(of, return_inverse=True, return_counts=True)
    if len(sizes) < 2 or sizes.min() < LEAST or sizes.max() < UNEQUAL * sizes.min():
        return {}
    keys = tuple(r.cell.key for r in rows)
    robust, right = (float((np.bincount(place, v) / sizes).mean()) for v in (kept, _clean(rows)))
    return {"balanced_robust": Number(robust, keys=keys), "balanced_clean": Number(right, keys=keys)}


def alike(lines: Sequence[Line]) -> tuple[str, ...]:
    """A sentence on the two entries that differ most under attack, of those with about the same clean accuracy."""
    known = [(line.title, line.value("balanced_clean"), line.value("balanced_robust")) for line in lines]
    pairs = [
        (abs(r - s), a, b)
        for (a, c, r), (b, d, s) in combinations(known, 2)
        if c is not None and d is not None and r is not None and s is not None and abs(c - d) < ALIKE
    ]
    if not pairs:
        return ()
    far, a, b = max(pairs)
    told = (
        f"Of entries whose balanced clean accuracies differ by less than {100 * ALIKE:.0f} points, {a} and {b} differ "
    )
    return (f"{told}most under attack: by {100 * far:.1f} points of balanced accuracy.",)


def _clean(rows: Sequence[Result]) -> Vector:
    """How often each clean image is correctly classified, a fraction of the rows that say it, [N]."""
    known = [r.outcome("clean") for r in rows if "clean" in r.samples] or [r.outcome("robust") for r in rows]
    return np.asarray(np.mean(known, axis=0))


def _equal_rates(sizes: Vector, total: int) -> Vector:
    """The lowest rate over the classes, [DRAWN], if the `total` correct images fall on any images alike.

    The lowest of many noisy rates is low even where all true rates are equal. The seed is fixed.
    """
    drawn = np.random.default_rng(0).multivariate_hypergeometric(sizes, total, size=DRAWN, method="marginals")
    lowest: Vector = (drawn / sizes).min(axis=1)
    return lowest


def _named(rows: Sequence[Result], kind: str, number: int) -> str:
    """The name of a class if the rows know it, else its number."""
    names = next((d["classes"] for r in rows if isinstance(d := r.given.get("data"), dict) and "classes" in d), None)
    if kind != "class" or not isinstance(names, list) or number >= len(names) or not isinstance(names[number], str):
        return f"{number}"
    return f"{names[number]}"[:60]
