"""What strangers send: copies of real rows, cards and settings with something wrong in them, drawn by a seed."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from siegebench.cells import digest

EVIL = "<img src=x onerror=\"document.title='owned'\">"
INFINITE, HUGE = "\0infinite\0", "\0huge\0"  # literals that Python does not write
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1e-300, 1e308, -1e308, 1e15,
    float("nan"), float("inf"), float("-inf"), INFINITE, HUGE, "", " ", "a", "none", "pgd", "0", "1e308", EVIL, "a\nb",
    "\x1b[31mred", "[/b]", "[bold]",
    "\x00", "\u202eltr", "\ud800", "Grafik \u2713", "x" * 5000, "../../etc/passwd", "=1+1", "AAAA", "?",
    [], {}, [None], [1, 2, 3], [[]], ["a", 5], {"name": "pgd"}, {"name": "pgd", "version": 1},
    {"name": EVIL, "version": 2},
    {"value": 0.5}, {"value": None}, {"": ""}, {"attack": {"attack": {}}}, {"norm": "l0", "eps": 2.0},
)  # fmt: skip
NAMES = ("extra", "n", "attack", "threat", "rate", "target", "loss", "robust_acc")
LEGAL = ("metrics", "counts", "flags", "cell", "timing", "env", "samples", "error")


def walk(value: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return
    for key, inner in items:
        yield (*loc, key)
        yield from walk(inner, (*loc, key))


def at(value: Any, loc: tuple[Any, ...]) -> Any:
    for step in loc:
        value = value[step]
    return value


def changed(rng: random.Random, value: Any) -> Any:
    """Another value: near the old one, or anything."""
    near: list[Any] = []
    if isinstance(value, bool):
        near = [not value]
    elif isinstance(value, (int, float)):
        float_too = not isinstance(value, int) or abs(value) < 10**300
        floats = [value / 3, float(value)] if float_too else []
        near = [-value, value + 1, value * 1000, *floats, str(value), 10**308 * 1.0, 1e-300, 0, 1]
    elif isinstance(value, str):
        near = [value + "x", value[:-1], value[::-1], value.upper(), EVIL, "", value * 50, [value], "other"]
    elif isinstance(value, list):
        near = [value * 2, value[:-1], [*value, None], value[::-1], {str(i): v for i, v in enumerate(value)}]
    elif isinstance(value, dict):
        near = [list(value), list(value.items()), dict.fromkeys(value), {**value, EVIL: 1}, {**value, "extra": []}]
    return copy.deepcopy(rng.choice(near) if near and rng.random() < 0.6 else rng.choice(VALUES))


def mutated(rng: random.Random, value: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three things changed, removed, added or renamed."""
    out = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        first = rng.choice([k for k in LEGAL if k in out] or list(out) or [""])
        paths = [p for p in walk(out) if rng.random() < 0.1 or p[0] == first]
        if not paths:
            continue
        loc = rng.choice(paths)
        holder, last = at(out, loc[:-1]), loc[-1]
        what = rng.random()
        if what < 0.12:
            del holder[last]
        elif what < 0.2 and isinstance(holder, dict):
            holder[rng.choice((EVIL, "", "n", "robust_acc@7", "attack", "extra", "target", "\ud800"))] = holder.pop(
                last
            )
        elif what < 0.28 and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = changed(rng, holder[last])
        else:
            holder[last] = changed(rng, holder[last])
    return out


def written(row: Any) -> bytes:
    """The file of a row, its key computed anew so that nothing but the contents is wrong."""
    with contextlib.suppress(TypeError, KeyError, ValueError):
        row = {**row, "key": digest({"protocol": row["protocol"], **row["cell"]})}
    text = json.dumps(row)
    for marker, literal in ((INFINITE, "1e999"), (HUGE, "9" * 5000)):
        text = text.replace(json.dumps(marker), literal)
    return text.encode()


SETTINGS = (
    "1e999", ".inf", "-.inf", ".nan", "1.0e+999", "1e-999", "9" * 400, "9" * 5000, "-1", "0", "0.5", "1e308",
    "1e400/3", "1/" + "9" * 400, "8/0", "18446744073709551616", "null", "~", "", "   ", "[]", "{}", "[[]]", "[1, 2]",
    "{a: b}", "[", "{", "&a [*a]", "*a", "'\"'", "a: b: c", "- - -", "? [a]", "<<: 1", "{<<: [1]}", "@x", "%x",
    "[" * 500, EVIL, "\x00", "\x1b[31m", "'\ud800'", "!!python/object:os.system x", "!!binary abc", "!!set {a}",
    "!!omap [a]", "!!float x", "!!timestamp x", "!local x", "2020-01-01", "2020-13-45", "1:30:45", "true", "no",
    "0x1F", "1_000", "08", "x" * 5000, "none", "pgd", "pgd.x", "{name: pgd, steps: 1e999}",
    "{name: pgd, steps: .inf}", "{name: pgd, steps: 2020-01-01}", "{name: [pgd]}", "{name: pgd, 1: 2}", "{name: ''}",
    "{name: eot, attack: {name: eot, attack: pgd}}", "{name: jpeg, quality: .nan}", "{set: digits}",
    "{norm: linf, eps: 1e999}", "{norm: l2, eps: .nan}", "[{norm: linf, eps: '1e400'}]", "[0, 0]",
)  # fmt: skip
PATHS = (
    "seeds", "data", "data.set", "data.count", "data.split", "models", "models.0", "suite", "summary", "boards",
    "boards.0", "boards.0.track", "boards.0.seeds", "boards.0.models", "boards.0.attacks", "boards.0.attacks.0",
    "boards.0.attacks.1.steps", "boards.0.defenses.1", "boards.0.defenses.3.recipe", "boards.0.defenses.3.recipe.lr",
    "boards.0.measures.0.samples", "boards.0.threats", "boards.0.threats.0", "boards.0.threats.0.eps",
    "boards.1.queries", "boards.1.access", "boards.4.clean", "boards.2.backdoors.2.delta",
    "boards.4.detectors.0.steps", "", ".", "..", "a.b.c", "boards.-1", "boards.99", "boards..0", "suite.x",
    "x" * 3000, EVIL, "boards.\u0663", "boards.0.threats.0.eps.x",
)  # fmt: skip
