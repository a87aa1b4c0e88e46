"""Procedural meshes: sedans, vans and pickups with random proportions, and things that are no vehicles.

Only the body is paint. Windows, tyres, rims, bumpers, lamps and plates lie slightly in front of it. What is no vehicle
carries paint too, so that a texture alone does not tell the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from siegebench.draws import Draws
from siegebench.errors import ConfigError, did_you_mean
from siegebench.render.meshes import PAINT, Builder, Floats, Mesh

VEHICLES = ("sedan", "van", "pickup")
OTHERS = ("crate", "hut", "column", "pyramid")
PROUD = 0.012  # metres by which glass and lamps lie in front of the body
SIDES = 20  # of a wheel


@lru_cache(maxsize=256)
def make(kind: str, seed: int) -> Mesh:
    """A mesh of a kind of VEHICLES or OTHERS; its proportions are drawn from the seed.

    Raises:
        ConfigError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"vehicle kind {kind!r} is unknown. {did_you_mean(kind, KINDS)}")
    return KINDS[kind](Dice(seed, kind))


class Dice:
    """Numbers of one mesh, by name."""

    def __init__(self, seed: int, kind: str) -> None:
        self._draws, self._kind = Draws(seed, torch.zeros(1, dtype=torch.long)), kind

    def __call__(self, name: str, low: float, high: float) -> float:
        """A number between low and high."""
        return low + (high - low) * float(self._draws.uniform((), purpose=f"{self._kind} {name}"))


@dataclass(frozen=True)
class Body:
    """Measures that all vehicles share, metres.

    Attributes:
        length, width: of the lower body.
        sill: height of its lower edge.
        wheel: radius.
        axles: x of the front and the rear axle.
    """

    length: float
    width: float
    sill: float
    wheel: float
    axles: tuple[float, float]


def sedan(dice: Dice) -> Mesh:
    """Bonnet, cabin and boot."""
    body = _body(dice, (4.3, 4.95), (1.74, 1.9), (0.31, 0.35))
    bonnet, belt, boot = dice("bonnet", 0.72, 0.82), dice("belt", 0.9, 0.97), dice("boot", 0.92, 1.0)
    roof, half = dice("roof", 1.38, 1.52), body.length / 2
    cowl, deck = half - dice("nose", 1.15, 1.4), -half + dice("tail", 0.55, 0.95)
    out = Builder()
    profile = [(half, bonnet - 0.14), (half - 0.18, bonnet), (cowl, belt), (deck, boot), (-half + 0.08, boot - 0.05)]
    _lower(out, body, [*profile, (-half, boot - 0.16)])
    top = (deck + dice("rear slant", 0.45, 0.75), cowl - dice("slant", 0.65, 0.85))
    _cabin(out, body, (deck - 0.1, cowl + 0.12), top, min(belt, boot) - 0.04, roof, panes=(0.52,))
    _ends(out, body, bonnet - 0.14, boot - 0.16)
    _wheels(out, body)
    return out.mesh()


def van(dice: Dice) -> Mesh:
    """A short bonnet, and a tall box behind it."""
    body = _body(dice, (4.6, 5.6), (1.86, 2.05), (0.33, 0.37))
    bonnet, belt, roof = dice("bonnet", 0.95, 1.08), dice("belt", 1.12, 1.25), dice("roof", 1.95, 2.4)
    half = body.length / 2
    cowl = half - dice("nose", 0.5, 0.85)
    out = Builder()
    _lower(out, body, [(half, bonnet - 0.18), (half - 0.14, bonnet), (cowl, belt), (-half, belt)])
    cargo = dice("cargo", 0.0, 1.0) < 0.5  # without rear side windows
    _cabin(out, body, (-half, cowl + 0.05), (-half + 0.06, cowl - dice("slant", 0.5, 0.8)), belt - 0.02, roof,
           panes=(0.68, 0.34), blind=2 if cargo else 0, taper=0.09)  # fmt: skip
    _ends(out, body, bonnet - 0.18, belt)
    _wheels(out, body)
    return out.mesh()


def pickup(dice: Dice) -> Mesh:
    """A cabin in the middle, and an open bed behind it."""
    body = _body(dice, (5.0, 5.7), (1.86, 2.02), (0.38, 0.43))
    bonnet, belt, roof = dice("bonnet", 1.0, 1.12), dice("belt", 1.1, 1.18), dice("roof", 1.72, 1.88)
    half = body.length / 2
    cowl, bed = half - dice("nose", 1.2, 1.45), -half + dice("bed", 1.6, 2.0)
    floor = dice("floor", 0.72, 0.8)
    out = Builder()
    _lower(out, body, [(half, bonnet - 0.16), (half - 0.14, bonnet), (cowl, belt), (bed, belt), (bed - 0.001, floor),
                       (-half, floor)])  # fmt: skip
    w, thick = body.width / 2 - 0.02, 0.07
    for side in (-1.0, 1.0):
        out.box(PAINT, (-half, min(side * w, side * (w - thick)), floor - 0.05),
                (bed, max(side * w, side * (w - thick)), belt - 0.02))  # fmt: skip
    out.box(PAINT, (-half, -w, floor - 0.05), (-half + thick, w, belt - 0.03))
    inside = [(thick - half, thick - w), (bed, thick - w), (bed, w - thick), (thick - half, w - thick)]
    out.polygon("trim", *((x, y, floor + PROUD) for x, y in inside))
    _cabin(out, body, (bed, cowl + 0.08), (bed + 0.12, cowl - dice("slant", 0.5, 0.7)), belt - 0.03, roof,
           panes=(0.5,) if dice("doors", 0.0, 1.0) < 0.6 else ())  # fmt: skip
    _ends(out, body, bonnet - 0.16, belt - 0.03)
    _wheels(out, body)
    return out.mesh()


# ---------------------------------------------------------------------------------------------------- parts of vehicles


def _body(dice: Dice, length: tuple[float, float], width: tuple[float, float], wheel: tuple[float, float]) -> Body:
    long, radius = dice("length", *length), dice("wheel", *wheel)
    front, rear = dice("front", 0.80, 0.92), dice("rear", 0.85, 1.0)
    return Body(
        long, dice("width", *width), radius * dice("sill", 0.7, 0.85), radius, (long / 2 - front, rear - long / 2)
    )


def _lower(out: Builder, body: Body, profile: Sequence[tuple[float, float]]) -> None:
    """The lower body: bevelled cross-sections along a profile of (x, height)."""
    half, rings = body.length / 2, []
    for x, top in profile:
        nose = 1 - 0.1 * max(0.0, abs(x) / half - 0.9) / 0.1  # narrower at both ends
        w, b = body.width / 2 * nose, 0.07
        y = np.array([w - b, w, w, w - 1.6 * b, -w + 1.6 * b, -w, -w, -w + b])
        z = (
            np.array([0, b, top - body.sill - b, top - body.sill, top - body.sill, top - body.sill - b, b, 0])
            + body.sill
        )
        rings.append(np.stack([np.full(8, x), y, z], axis=1))
    out.loft(PAINT, rings)


def _cabin(
    out: Builder, body: Body, base: tuple[float, float], top: tuple[float, float], belt: float, roof: float,
    *, panes: Sequence[float], blind: int = 0, taper: float = 0.16,
) -> None:  # fmt: skip
    """A tapered cabin with bevelled roof and windows.

    Args:
        base, top: (rear, front) x at the belt and at the roof.
        panes: where pillars divide the side windows, as shares of the length from the rear.
        blind: number of side windows, from the rear, that are paint.
        taper: how much narrower each side is at the roof, metres.
    """
    w0, w1, edge = body.width / 2 - 0.05, body.width / 2 - 0.05 - taper, roof - 0.07

    def corner(front: float, side: float, up: float) -> Floats:
        """A point of the walls: front and side in [0, 1], up from belt (0) to the edge of the roof (1)."""
        x0, x1 = base[0] + up * (top[0] - base[0]), base[1] + up * (top[1] - base[1])
        w = w0 + up * (w1 - w0)
        return np.array([x0 + front * (x1 - x0), (2 * side - 1) * w, belt + up * (edge - belt)])

    def ring(up: float) -> Floats:
        return np.stack([corner(f, s, up) for f, s in ((0, 0), (1, 0), (1, 1), (0, 1))])

    rim = ring(1.0)
    inner = rim.copy()
    inner[:, 0] += np.array([1, -1, -1, 1]) * 0.12
    inner[:, 1] += np.array([1, 1, -1, -1]) * 0.11
    inner[:, 2] = roof
    out.loft(PAINT, [ring(0.0), rim, inner])

    def pane(*places: tuple[float, float, float]) -> None:
        points = np.stack([corner(*place) for place in places])
        normal = np.cross(points[1] - points[0], points[2] - points[0])
        normal /= np.linalg.norm(normal)
        away = points.mean(axis=0) - corner(0.5, 0.5, 0.5)
        out.polygon("glass", *(points + PROUD * np.sign(normal @ away) * normal))

    low, high = 0.14, 0.93
    for front in (1.0, 0.0):
        pane((front, 0.07, low), (front, 0.93, low), (front, 0.93, high), (front, 0.07, high))
    cuts = [0.05, *sorted(panes), 0.95]
    for side in (0.0, 1.0):
        for i, (left, right) in enumerate(pairwise(cuts)):
            if i >= blind:
                a, b = left + (0.015 if i else 0.0), right - (0.015 if i < len(cuts) - 2 else 0.0)
                pane((a, side, low), (b, side, low), (b, side, high), (a, side, high))


def _ends(out: Builder, body: Body, front: float, rear: float) -> None:
    """Bumpers, grille, lamps and plates."""
    half, w = body.length / 2, body.width / 2 * 0.9

    def plate(part: str, x: float, y: tuple[float, float], z: tuple[float, float], proud: float = PROUD) -> None:
        at = x + np.sign(x) * proud
        out.polygon(part, (at, y[0], z[0]), (at, y[1], z[0]), (at, y[1], z[1]), (at, y[0], z[1]))

    for x, height in ((half, front), (-half, rear)):
        low = body.sill + 0.02
        bumper = low + 0.3 * (height - low)
        out.box(
            "trim", (min(x, x + np.sign(x) * 0.05) - 0.02, -w, low), (max(x, x + np.sign(x) * 0.05) + 0.02, w, bumper)
        )
        plate("plate", x, (-0.24, 0.24), (bumper - 0.13, bumper - 0.02), 0.075)
        lamp = (bumper + 0.3 * (height - bumper), height - 0.09)
        for side in (-1, 1):
            inner, outer = side * (w - 0.38), side * (w - 0.05)
            plate("lamp" if x > 0 else "tail", x, (min(inner, outer), max(inner, outer)), lamp)
    plate("trim", half, (-w + 0.45, w - 0.45), (body.sill + 0.36 * (front - body.sill), front - 0.1))


def _wheels(out: Builder, body: Body) -> None:
    """Four wheels with rims, in dark arches."""
    r = body.wheel
    angle = np.arange(SIDES) * (2 * np.pi / SIDES)

    def disc(x: float, y: float, radius: float, at: Floats = angle) -> Floats:
        return np.stack([x + radius * np.cos(at), np.full(len(at), y), r + radius * np.sin(at)], axis=1)

    arch = np.linspace(-0.12, np.pi + 0.12, SIDES)
    for x in body.axles:
        for side in (-1.0, 1.0):
            w = side * body.width / 2
            out.polygon("trim", *disc(x, w + side * PROUD, 1.2 * r, arch))
            out.loft("tyre", [disc(x, w - side * 0.2, r), disc(x, w + side * 0.03, r)])
            out.polygon("rim", *disc(x, w + side * (0.03 + PROUD), 0.66 * r))
            out.polygon("trim", *disc(x, w + side * (0.03 + 2 * PROUD), 0.18 * r))


# --------------------------------------------------------------------------------------------------------- no vehicles


def crate(dice: Dice) -> Mesh:
    """A box with bars at its edges."""
    x, y, z = dice("x", 0.7, 2.2), dice("y", 0.5, 1.1), dice("z", 0.9, 2.4)
    out, bar = Builder(), dice("bar", 0.03, 0.08)
    out.box(PAINT, (-x, -y, 0), (x, y, z))
    for sx in (-1, 1):
        for sy in (-1, 1):
            out.box("wood", (sx * x - bar, sy * y - bar, 0), (sx * x + bar, sy * y + bar, z + bar))
    for sy in (-1, 1):
        for height in (bar, z):
            out.box("wood", (-x, sy * y - bar, height - bar), (x, sy * y + bar, height + bar))
    return out.mesh()


def hut(dice: Dice) -> Mesh:
    """Four walls, a gabled roof, a door and windows."""
    x, y = dice("x", 1.3, 2.4), dice("y", 0.9, 1.6)
    wall, ridge, over = dice("wall", 1.3, 1.9), dice("ridge", 0.5, 1.0), dice("over", 0.05, 0.25)
    out = Builder()
    gable = np.array([(-y, 0), (y, 0), (y, wall), (0, wall + ridge), (-y, wall)])
    out.loft(PAINT, [np.column_stack([np.full(len(gable), s * x), gable]) for s in (-1, 1)])
    slope = ridge / y
    part = PAINT if dice("roof", 0.0, 1.0) < 0.5 else "wood"
    for side in (-1, 1):
        eave = (side * (y + over), wall - slope * over + 0.04)
        out.polygon(part, (-x - over, *eave), (x + over, *eave), (x + over, 0, wall + ridge + 0.05),
                    (-x - over, 0, wall + ridge + 0.05))  # fmt: skip
        at = side * (x + PROUD)
        out.polygon("wood", (at, -0.3, 0), (at, 0.3, 0), (at, 0.3, 1.1), (at, -0.3, 1.1))
        for left in (-0.7, 0.2):
            y0, x0 = side * (y + PROUD), left * x
            out.polygon("glass", (x0, y0, 0.5 * wall), (x0 + 0.5 * x, y0, 0.5 * wall), (x0 + 0.5 * x, y0, 0.85 * wall),
                        (x0, y0, 0.85 * wall))  # fmt: skip
    return out.mesh()


def column(dice: Dice) -> Mesh:
    """A round column with base and capital."""
    r, z, n = dice("radius", 0.45, 1.1), dice("height", 1.6, 3.0), 16
    at = np.arange(n) * (2 * np.pi / n)
    profile = [(1.3, 0.0), (1.3, 0.15), (1.0, 0.3), (dice("waist", 0.75, 1.0), z - 0.3), (1.25, z - 0.12), (1.25, z)]
    rings = [np.stack([s * r * np.cos(at), s * r * np.sin(at), np.full(n, h)], axis=1) for s, h in profile]
    out = Builder()
    out.loft("stone", rings[:2])
    out.loft(PAINT, rings[1:5], closed=False)
    out.loft("stone", rings[4:])
    return out.mesh()


def pyramid(dice: Dice) -> Mesh:
    """Four sloping sides on a base of stone."""
    x, y, z, base = dice("x", 0.9, 2.0), dice("y", 0.8, 1.5), dice("z", 1.1, 2.4), dice("base", 0.1, 0.3)
    out, tip = Builder(), dice("tip", 0.02, 0.35)
    out.box("stone", (-x - 0.1, -y - 0.1, 0), (x + 0.1, y + 0.1, base))
    ring = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    sides = [np.concatenate([ring * (s * x, s * y), np.full((4, 1), h)], axis=1) for s, h in ((1.0, base), (tip, z))]
    out.loft(PAINT, sides)
    return out.mesh()


KINDS: dict[str, Callable[[Dice], Mesh]] = {
    "sedan": sedan, "van": van, "pickup": pickup, "crate": crate, "hut": hut, "column": column, "pyramid": pyramid,
}  # fmt: skip
