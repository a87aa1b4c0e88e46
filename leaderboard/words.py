"""Names and numbers as text: the same in terminal tables, exports and on the page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from siegebench.cells import canonical, digest, label
from siegebench.titles import preset, telling

if TYPE_CHECKING:
    from .board import Number

Unit = Literal[
    "rate", "score", "count", "points", "text"
]  # per cent, three decimals below 100, as it is, +1.5 per cent, text
LARGE = 1e12  # numbers above are shown in scientific notation


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: v for key in sorted(value) for k, v in _leaves(value[key], f"{name}.{key}" if name else key).items()}
    return {name: canonical(value) if isinstance(value, (list, tuple)) else str(value)}


def display(descriptions: Iterable[Mapping[str, Any] | None]) -> dict[str, str]:
    """Short unique names of the descriptions: the label, plus the parameters that differ between equal labels.

    Where all of those are presets of their entry, or its defaults, they are named as such: `crown.crown_ibp`.
    """
    by_label: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    whole: dict[str, Mapping[str, Any]] = {}
    for description in descriptions:
        by_label[label(description)][canonical(description)] = _leaves(description or {})
        whole[canonical(description)] = description or {}
    out: dict[str, str] = {}
    for name, same in by_label.items():
        varying = telling(same.values())
        presets = {key: preset(whole[key], varying) for key in same} if len(same) > 1 else {}
        if presets and None not in presets.values() and len(set(presets.values())) == len(presets):
            out |= {key: str(called) for key, called in presets.items()}
            continue
        for key, leaves in same.items():
            shown = [f"{_called(k)}={leaves[k][:20]}" for k in _outer(varying) if k in leaves]
            out[key] = f"{name} ({', '.join(shown)})" if len(same) > 1 else name
    twice = {name for name, count in Counter(out.values()).items() if count > 1}
    return {key: f"{name} #{digest(key)[:6]}" if name in twice else name for key, name in out.items()}


def _outer(varying: Sequence[str]) -> list[str]:
    """Without the parameters of nested entries that differ already in their names."""
    nested = [k.removesuffix("name") for k in varying if k.endswith(".name")]
    return [k for k in varying if k.endswith(".name") or not any(k.startswith(entry) for entry in nested)]


def _called(path: str) -> str:
    """`lr` for `recipe.lr`, `detector` for `detector.name`."""
    return path.removesuffix(".name").rpartition(".")[2]


def slug(*parts: str, key: Any) -> str:
    """`white_box-cifar10-linf-8over255-1a2b3c`: safe in a link, unique by its last part.

    Without the parameters that tell namesakes apart, so that rows of another namesake do not break links.
    """
    text = "-".join(part.partition(" (")[0] for part in parts).replace("/", "over")
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in text)[:60] + "-" + digest(key)[:6]


def shown(value: float | None, unit: Unit) -> str:
    """Format a value for tables; an en dash if there is none."""
    if value is None:
        return "–"
    if unit == "rate":
        return f"{100 * value:.1f}"
    if unit == "points":
        return f"{100 * value:+.1f}"
    if unit == "score":
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}" if abs(value) < LARGE else f"{value:.3g}"
    whole = value == round(value) or abs(value) >= 100
    return f"{value:,.0f}" if whole and abs(value) < LARGE else f"{value:,.3g}"


def interval(number: Number, unit: Unit) -> str:
    """`40.1–46.3`, or nothing."""
    if number.value is None or number.low is None or number.high is None:
        return ""
    return between(shown(number.low, unit), shown(number.high, unit))


def between(low: str, high: str) -> str:
    """`40.1–46.3`; `-0.034 to -0.028`, where a dash would look like a sign."""
    return f"{low} to {high}" if "-" in low + high else f"{low}–{high}"


def change(threat: Mapping[str, Any], kind: str = "image") -> str:
    """What an attacker may change in inputs of a kind, in words; empty for norms and kinds without words."""
    eps = float(threat["eps"])
    share = f"at most {100 * eps:g} % of the"
    words = {
        "image": {
            "linf": f"every pixel by at most {255 * eps:g} of 255 grey levels",
            "l2": f"the whole image by a Euclidean length of at most {eps:g}",
            "l1": f"the sum of all pixels by at most {eps:g}",
            "l0": f"{share} pixels, by any amount",
        },
        "sequence": {
            "linf": f"every coordinate by at most {eps:g}",
            "l2": f"the whole sequence by a Euclidean length of at most {eps:g}",
            "l1": f"the sum of all coordinates by at most {eps:g}",
            "l0": f"{share} joints in frames, by any amount",
        },
        "events": {"l0": f"{share} places at which an event can be"},
        "text": {"l0": f"{share} characters, by any others"},
    }
    return words.get(kind, {}).get(str(threat["norm"]), "")
