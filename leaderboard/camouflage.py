"""Boards of the camouflage track: defended models, ranked by the views of vehicles seen under the strongest texture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siegebench import registry
from siegebench.cells import Result, canonical, label, pack

from . import columns, flags, sentences
from .board import (
    Board,
    Column,
    Line,
    Mark,
    Number,
    display,
    group,
    high_first,
    in_order,
    is_control,
    marks,
    place,
    problems,
    share,
    slice_facts,
    slice_of,
    slug,
    stored,
)
from .figures import Curves, Dots, Figure, Polar
from .stats import Vector, mcnemar

ABOUT = (
    "The attacker paints vehicles with one texture, made on other vehicles, views and backgrounds than those scored. "
    "Ranked by the views of vehicles that are still classified as a vehicle under the strongest texture, controls "
    "included; intervals are over scenes. Entries that do not differ significantly in the exact McNemar test on the "
    "same views share a rank group."
)
NOTE = (
    "Rendered scenes, not photographs of painted vehicles. Random patterns and plain colours alone hide vehicles in "
    "some views: read each texture beside the controls. Under `transfer`, textures were made on another network."
)
AREAS = (0, 12, 25, 50, 100)  # per cent of the paint, of the curve over the covered area
AREA = "area_camouflage"
AROUND, GREY = "vehicle_conf_azimuth@", "grey_"  # names of figures: from one side, and of a grey vehicle
BINNED = ("vehicle_acc_", "vehicle_conf_")  # figures of views of one azimuth, pitch or distance
LEAST = 0.5  # grey vehicles that a ranked victim sees, and other things that it answers as such
SIDES = ("front", "left", "rear", "right")


@dataclass(frozen=True)
class _Texture:
    """The rows of one texture on one victim."""

    name: str
    rows: tuple[Result, ...]

    @property
    def seen(self) -> Vector:
        """Views of vehicles seen under every seed, [vehicles]."""
        return np.logical_and.reduce([r.outcome("seen")[r.outcome("vehicle")] for r in self.rows])

    @property
    def number(self) -> Number:
        """The share of them; one row keeps its own interval."""
        if len(self.rows) == 1:
            return stored(self.rows[0], "vehicle_acc")
        return share(float(self.seen.sum()), len(self.seen), tuple(r.cell.key for r in self.rows))


def boards(rows: Sequence[Result]) -> list[Board]:
    """One board per data slice and stage."""
    mine = [r for r in rows if r.cell.track == "camouflage" and r.cell.camouflage is not None]
    grouped = group(mine, lambda r: (slice_of(r), canonical(r.cell.stage)))
    twins = flags.undefended(mine)
    return [_board(members, twins) for members in grouped.values()]


def is_reference(row: Result) -> bool:
    """Whether the texture is made without a network."""
    return "reference" in registry.traits("camouflage", str((row.cell.camouflage or {}).get("name")))


def _finished(row: Result) -> bool:
    return row.status == "ok" and all(name in row.samples for name in ("seen", "vehicle", "seen_grey"))


def _board(members: list[Result], twins: flags.Twins) -> Board:
    cell = members[0].cell
    models, defenses = display(r.cell.model for r in members), display(r.cell.defense for r in members)
    textures = display(r.cell.camouflage for r in members)
    worst: dict[tuple[str, ...], Vector] = {}
    lines = []
    for (model, defense), rows in group(
        members, lambda r: (canonical(r.cell.model), canonical(r.cell.defense))
    ).items():
        line, seen = _line({"model": models[model], "defense": defenses[defense]}, rows, textures, twins)
        lines.append(line)
        if seen is not None:
            worst[line.key] = seen
            lines[-1] = replace(line, kept=pack(seen), kept_of=len(seen))

    def compare(a: Line, b: Line) -> tuple[float, float]:
        one, two = worst[a.key], worst[b.key]
        return float(one.mean() - two.mean()), mcnemar(one, two)

    placed = place(
        lines, lambda line: high_first(line.value("vehicle_acc")), compare,
        lambda line: high_first(line.value("clean_acc")),
    )  # fmt: skip
    placed = sentences.gained(placed, "vehicle_acc")
    data = str(cell.data["name"])
    return Board(
        id=slug("camouflage", data, key=[slice_of(members[0]), cell.stage]),
        track="camouflage",
        title=f"Camouflage: {data}",
        about=ABOUT,
        facts={
            **slice_facts(members[0]),
            "training scenes": str((cell.stage or {}).get("scenes", "")),
            "samples of a pixel": f"{(cell.stage or {}).get('ss', 0)} x {(cell.stage or {}).get('ss', 0)}",
        },
        columns=columns.filled([*columns.CAMOUFLAGE, *_each(members, textures)], placed),
        primary="vehicle_acc",
        row_metric="vehicle_acc",
        figure=_figure(placed),
        lines=placed,
        notes=(NOTE,),
        result=sentences.survival(placed, "vehicle_acc", of=" of the views"),
    )


def _each(members: Sequence[Result], textures: Mapping[str, str]) -> list[Column]:
    """One column per texture, per control, and per texture made on another network."""
    text = "Views of vehicles seen under this texture"
    usual = [r for r in members if r.cell.surrogates is None]
    attacks = {textures[canonical(r.cell.camouflage)] for r in usual if not is_reference(r)}
    controls = {textures[canonical(r.cell.camouflage)] for r in usual if is_reference(r)}
    moved = {_moved(r, textures) for r in members if r.cell.surrogates is not None}
    bins = {name for r in usual for name in r.metrics if name.startswith(BINNED) and "@" in name}
    return [
        *(columns.read(name, main=False) for name in sorted(bins, key=_bin)),
        *columns.under("texture", sorted(attacks), "rate", f"{text}.", heading="Under each texture"),
        *columns.under("control", sorted(controls), "rate", f"{text}, made without a network.", heading="Controls"),
        *columns.under("transfer", sorted(moved), "rate", f"{text}, made on another network.", heading="Transfer"),
    ]


def _bin(name: str) -> tuple[str, int]:
    """`vehicle_acc_azimuth@30` in the order of its lower edge."""
    family, _, edge = name.partition("@")
    return family, int(edge)


def _moved(row: Result, textures: Mapping[str, str]) -> str:
    return f"{textures[canonical(row.cell.camouflage)]} from {'+'.join(map(label, row.cell.surrogates or ()))}"


def _figure(lines: Sequence[Line]) -> Figure:
    """The curve over the covered area where it was measured, else the confidence from all sides.

    A dot for each texture, where vehicles were not seen from three sides.
    """
    known = [a for a in AREAS if any(line.value(f"area@{a}") is not None for line in lines)]
    if len(known) > 2:
        return Curves(
            tuple((f"area@{a}", a) for a in known if a), start=("vehicle_acc_grey", "grey"),
            title="per cent of the paint covered", log=False,
        )  # fmt: skip
    edges = sorted({int(name.partition("@")[2]) for line in lines for name in line.numbers if name.startswith(AROUND)})
    if len(edges) > 2:
        width = min(b - a for a, b in itertools.pairwise(edges))
        return Polar(
            tuple((f"{AROUND}{k}", k + width / 2) for k in edges), before=GREY,
            title="Mean confidence for vehicle over the side from which it is seen, under the strongest texture",
            other="grey paint", sides=SIDES,
        )  # fmt: skip
    return Dots("texture", "vehicle_acc", "views of vehicles seen")


def _line(
    names: dict[str, str], rows: list[Result], textures: Mapping[str, str], twins: flags.Twins
) -> tuple[Line, Vector | None]:
    """The line of one defended model, and which views are seen under the strongest texture."""
    good = [r for r in rows if _finished(r)]
    control = is_control("defense", rows[0].cell.defense) or is_control("model", rows[0].cell.model)
    reasons = ["control: planted by the suite, listed but never ranked"] if control else []
    reasons += problems(rows)
    usual = [r for r in good if r.cell.surrogates is None]
    found = {
        kind: [_Texture(name, tuple(seeds)) for name, seeds in group(some, named).items()]
        for kind, some, named in (
            ("texture", [r for r in usual if not is_reference(r)], lambda r: textures[canonical(r.cell.camouflage)]),
            ("control", [r for r in usual if is_reference(r)], lambda r: textures[canonical(r.cell.camouflage)]),
            ("transfer", [r for r in good if r.cell.surrogates is not None], lambda r: _moved(r, textures)),
        )
    }
    every = [*found["texture"], *found["control"]]
    if not found["texture"]:
        reasons.append("no texture was completed")
    numbers: dict[str, Number] = {}
    texts: dict[str, str] = {}
    marked = [*marks(rows), *flags.clean_loss(rows, twins)]
    seen: Vector | None = None
    if every:
        strongest = min(every, key=lambda t: (t.number.value or 0.0, t.name))
        seen = strongest.seen
        numbers, texts = _numbers(found, strongest), {"worst_texture": strongest.name}
        texts |= _worst_view(strongest)
        reasons += _blind(numbers)
        marked += _beaten(found["texture"], found["control"])
    line = Line(
        names=names, numbers=numbers, texts=texts, reasons=tuple(reasons), flags=in_order(marked), control=control,
        keys=tuple(r.cell.key for r in rows),
    )  # fmt: skip
    return line, seen


def _blind(numbers: Mapping[str, Number]) -> list[str]:
    """Why a victim says nothing about textures: it sees few vehicles without one, or vehicles everywhere."""
    out = []
    for name, told in (
        ("vehicle_acc_grey", "sees fewer than half of the grey vehicles"),
        ("other_acc", "classifies most other things as vehicles"),
    ):
        value = numbers[name].value if name in numbers else None
        if value is not None and value < LEAST:
            out.append(told)
    return out


def _numbers(found: Mapping[str, Sequence[_Texture]], strongest: _Texture) -> dict[str, Number]:
    first = strongest.rows[0]
    numbers = {"vehicle_acc": strongest.number}
    for name in ("vehicle_acc_grey", "missed", "vehicle_conf", "ap50", "other_acc", "clean_acc", "worst_view_acc"):
        if name in first.metrics:
            numbers[name] = stored(first, name)
    for kind, each in found.items():
        numbers |= {f"{kind}:{t.name}": t.number for t in each}
    controls = [t for t in found["control"] if label(t.rows[0].cell.camouflage).startswith("random_")]
    for name, some in (("random_acc", controls), ("transfer_acc", found["transfer"])):
        if some:
            numbers[name] = min((t.number for t in some), key=lambda number: (number.value, number.keys))
    for name, number in first.metrics.items():
        if name.startswith(BINNED) and "@" in name and number:
            numbers[name] = stored(first, name)
    unpainted = [t.rows[0] for t in found["control"] if t.rows[0].value("covered") == 0.0]
    for name in unpainted[0].metrics if unpainted else ():
        if name.startswith(AROUND):
            numbers[GREY + name] = stored(unpainted[0], name)
    for texture in found["texture"]:
        row = texture.rows[0]
        if label(row.cell.camouflage) == AREA and "covered" in row.metrics:
            numbers.setdefault(f"area@{int(100 * (row.value('covered') or 0.0))}", texture.number)
    return numbers


def _worst_view(texture: _Texture) -> dict[str, str]:
    """The side, height and distance from which the fewest vehicles are seen; views of few scenes are left out."""
    row = texture.rows[0]
    places = [row.whole(axis) for axis in ("azimuth", "pitch", "distance")]
    vehicle, seen = row.outcome("vehicle"), row.outcome("seen")
    if any(p is None for p in places):
        return {}
    azimuth, pitch, distance = (np.asarray(p) for p in places)
    views: dict[tuple[str, ...], list[bool]] = {}
    for i in np.flatnonzero(vehicle):
        side = SIDES[(int(azimuth[i]) * 45 + 45) % 360 // 90]
        height, far = f"pitch {int(pitch[i]) // 2 * 20}+", f"{int(distance[i]) // 2 * 4}+ m"
        views.setdefault((side, height, far), []).append(bool(seen[i]))
    usable = {view: float(np.mean(hits)) for view, hits in views.items() if len(hits) >= 5}
    if not usable:
        return {}
    return {"worst_view": ", ".join(min(usable.items(), key=lambda item: (item[1], item[0]))[0])}


def _beaten(attacks: Sequence[_Texture], controls: Sequence[_Texture]) -> list[Mark]:
    """Textures that hide no more than a control does."""
    if not controls:
        return []
    best = min(controls, key=lambda t: (t.number.value or 0.0, t.name))
    out = []
    for texture in attacks:
        value, bar = texture.number.value, best.number.value
        if value is not None and bar is not None and value >= bar:
            told = (
                f"{100 * value:.1f} % of the views are seen under {texture.name}, {100 * bar:.1f} % under {best.name}"
            )
            out.append(Mark("flag", "control_beats_texture", f"{told}, which is made without a network"))
    return out
