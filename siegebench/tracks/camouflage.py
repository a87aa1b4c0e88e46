"""The camouflage track: one texture for the paint of all vehicles, made on training scenes and scored on others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from siegebench.artifacts import fingerprint
from siegebench.cells import Cell, Result, bits, digest, pack, rate
from siegebench.classifier import Classifier
from siegebench.data import ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.inventory import Inventory, Named
from siegebench.object_detector import Found, average_precision
from siegebench.prepare import in_batches
from siegebench.render.maps import Maps
from siegebench.sighting import seen
from siegebench.tracks.base import BoardSpec, Budget, Spec, Specs
from siegebench.tracks.conduct import conduct_flags
from siegebench.tracks.conventions import convention_flags
from siegebench.tracks.judging import PASSES, clean_outcome, majority
from siegebench.tracks.staging import TRAINING, scenes_of, texture_of
from siegebench.types import Camouflage, Defense, SceneSource
from siegebench.types.camouflages import GREY, Texture
from siegebench.workspace import Workspace

SURROGATE_SEED = 1  # as on the transfer track: surrogates are trained with a seed of their own
CONTROLS: list[Spec] = [
    "flat", "flat.white", "flat.black", "flat.red", "flat.blue", "random_texture", "random_texture.second",
    "random_texture.third", "random_texture.fine", "background_colours",
]  # fmt: skip
BINS = {"azimuth": 45.0, "pitch": 10.0, "distance": 2.0}  # widths: degrees, degrees, metres
SIDE = 90.0  # degrees of azimuth: front, left, rear and right
VIEW = {"azimuth": SIDE, "pitch": 20.0, "distance": 4.0}  # of a view of which the worst is looked for
FEWEST = 5  # scenes of a view
SHOWN = 6  # scenes in the pictures of a row


class CamouflageBoard(BoardSpec):
    """Vehicles seen under textures, and under controls: model x defense x texture.

    Attributes:
        camouflages: textures that are ranked.
        controls: textures that are made without the victim, for comparison with the others.
        transfer: networks on which each texture is made, too, without access to the model.
        scenes: number of training scenes on which a texture is made.
        ss: samples along each side of a pixel, for scores.
    """

    track: Literal["camouflage"]
    camouflages: Specs
    controls: list[Spec] = Field(default=CONTROLS)
    transfer: list[Spec] = Field(default=[])
    defenses: Specs = Field(default=["none"])
    scenes: Budget = 64
    ss: Annotated[int, Field(ge=1, le=8, strict=True)] = 4
    slots: ClassVar[dict[str, str]] = {
        "models": "model", "defenses": "defense", "camouflages": "camouflage", "controls": "camouflage",
        "transfer": "model",
    }  # fmt: skip
    takes_model: ClassVar[bool] = True

    def check(self, inventory: Inventory) -> None:
        super().check(inventory)
        source, where = self.source(inventory), self.where("data", "set")
        if not isinstance(source.entry, SceneSource):
            told = f"{source.name} has no scenes on which a texture can be put; use vehicle_scenes"
            raise inventory.document.error(where, told)
        if self.data is not None and self.data.split == TRAINING:
            told = f"textures are made on the split {TRAINING}; score them on another, such as test"
            raise inventory.document.error(self.where("data", "split"), told)

    def cells(self, inventory: Inventory) -> Iterator[Cell]:
        data = self.images(inventory)
        used = self.used(inventory, data)
        surrogates = self.networks(inventory, data, "transfer") if self.transfer else []
        attacks: list[Named[Camouflage]] = self.named(inventory, "camouflages")
        controls: list[Named[Camouflage]] = self.named(inventory, "controls")
        own = [c.description for c in attacks]
        textures = [*attacks, *(c for c in controls if c.description not in own)]
        described = [(inventory.identified(t), t.entry.needs != "none") for t in textures]
        defenses: list[Named[Defense]] = self.named(inventory, "defenses")
        stage = {"scenes": self.scenes, "ss": self.ss}
        for model in self.networks(inventory, data):
            for defense in defenses:
                protected = inventory.identified(defense)
                for seed in self.seeds or ():
                    for texture, attacks_it in described:
                        for shown in (None, *([s.as_trained(SURROGATE_SEED)] for s in surrogates if attacks_it)):
                            yield Cell(
                                track=self.track, data=used, model=model.as_trained(), defense=protected,
                                camouflage=texture, stage=stage, surrogates=shown, seed=seed,
                            )  # fmt: skip

    @staticmethod
    def measure(cell: Cell, ws: Workspace) -> Result:
        return measure_texture(cell, ws)


def measure_texture(cell: Cell, ws: Workspace) -> Result:
    """Score a texture on the evaluated scenes, and grey paint on the same."""
    data, victim = ws.evaluated(cell.data), ws.victim(cell)
    source, ss = scenes_of(ws, cell), (cell.stage or {})["ss"]
    texture, spent, flags = texture_of(cell, ws, victim if cell.surrogates is None else ws.surrogate(cell))
    ids, split = data.ids.tolist(), str(cell.data["split"])
    maps, vehicles = source.scenes(split, ids, ss), source.vehicles()
    clean = clean_outcome(ws, cell, victim, data)
    mine = torch.isin(data.labels, torch.tensor(vehicles))
    truth = maps.box * mine[:, None]
    hit, score, found = _scored(ws, cell, victim, maps, texture, vehicles, truth)
    grey, _, _ = ws.remember(
        ("grey", digest([cell.model, cell.defense, cell.stage]), cell.data["digest"], cell.seed),
        lambda: _scored(ws, cell, victim, maps, unpainted(), vehicles, truth),
    )
    views = source.views(split, ids)
    flags += [*convention_flags(ws, cell, victim, data, clean), *conduct_flags(ws, cell, victim, data)]
    return Result(
        cell=cell,
        metrics={
            "clean_acc": rate(int(clean.sum()), len(data)), **_metrics(hit, score, grey, mine, views, texture),
            **({} if found is None else {"ap50": {"value": average_precision(found, truth)}}),
        },
        samples={
            "n": len(data), "clean": pack(clean), "vehicle": pack(mine), "seen": pack(hit), "seen_grey": pack(grey),
            **{name: value for axis, k in BINS.items() for name, value in _places(axis, views, k).items()},
        },
        counts={"learning_forwards": spent["forwards"], "learning_backwards": spent["backwards"]},
        arrays={"score": score.numpy(), "views": views.numpy(), "texture": texture.pixels.numpy()},
        images=_pictures(data, maps, texture, mine),
        flags=[f.as_dict() for f in flags],
        weights=fingerprint(victim),
    )  # fmt: skip


def unpainted() -> Texture:
    """Grey paint."""
    return Texture(torch.full((3, 1, 1), GREY), 1.0, covered=0.0)


def _scored(
    ws: Workspace, cell: Cell, victim: Classifier, maps: Maps, texture: Texture, vehicles: tuple[int, ...],
    truth: Tensor,
) -> tuple[Tensor, Tensor, Found | None]:  # fmt: skip
    """(whether a vehicle is seen in each scene, bool [N]; the mean score for it, [N]; detections of a detector)"""
    streams = Draws(derive_seed(cell.seed, "camouflaged"), maps.ids)

    def part(at: slice) -> tuple[Tensor, Tensor, Found | None]:
        x = texture.on(maps[at].to(ws.device)).to(ws.dtype)
        fresh = streams[at].to(ws.device).child("score")
        passes = [fresh.at(i) for i in range(PASSES)] if victim.randomized else [None]
        hits, score, found = seen(victim, x, vehicles, truth[at].to(ws.device), passes)
        return majority(hits).cpu(), score.double().cpu(), found and found.cpu()

    hits, scores, founds = zip(*in_batches(part, len(maps), ws.batch(maps.a)), strict=True)
    detections = [f for f in founds if f is not None]
    return torch.cat(hits), torch.cat(scores), Found.join(detections) if detections else None


def _metrics(
    hit: Tensor, score: Tensor, grey: Tensor, mine: Tensor, views: Tensor, texture: Texture
) -> dict[str, dict[str, float]]:
    before = mine & grey
    out = {
        "vehicle_acc": rate(int((hit & mine).sum()), int(mine.sum())),
        "vehicle_acc_grey": rate(int(before.sum()), int(mine.sum())),
        "vehicle_conf": _mean(score[mine]),
        "covered": {"value": texture.covered},
    }
    if before.any():
        out["missed"] = rate(int((before & ~hit).sum()), int(before.sum()))
    if not mine.all():
        out["other_acc"] = rate(int((~hit & ~mine).sum()), int((~mine).sum()))
    for axis, width in BINS.items():
        where = _bins(axis, views, width)
        for k in where[mine].unique().tolist():
            some = mine & (where == k)
            lowest = int(k * width)
            out[f"vehicle_acc_{axis}@{lowest}"] = rate(int((hit & some).sum()), int(some.sum()))
            if axis == "azimuth":
                out[f"vehicle_conf_azimuth@{lowest}"] = _mean(score[some])
    shares = [rate(int((hit & some).sum()), int(some.sum())) for some in _views(views, mine) if some.sum() >= FEWEST]
    if shares:
        out["worst_view_acc"] = min(shares, key=lambda found: found["value"])
    return out


def _mean(values: Tensor) -> dict[str, float]:
    """A mean with its 95 % interval over the scenes."""
    n, mean = len(values), float(values.mean())
    half = 1.96 * float(values.std()) / n**0.5 if n > 1 else 1.0
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def _bins(axis: str, views: Tensor, width: float) -> Tensor:
    """The bin of each scene on an axis of (azimuth, pitch, distance), int64 [N]."""
    return (views[:, list(BINS).index(axis)] / width).floor().long()


def _views(views: Tensor, mine: Tensor) -> Iterator[Tensor]:
    """Scenes with vehicles that are seen alike: a side of the vehicle, a height and a distance of the camera."""
    turned = torch.stack([(views[:, 0] + SIDE / 2) % 360, views[:, 1], views[:, 2]], dim=1)  # 0 is ahead
    where = torch.stack([_bins(axis, turned, width) for axis, width in VIEW.items()], dim=1)
    for view in where[mine].unique(dim=0):
        yield mine & (where == view).all(dim=1)


def _places(axis: str, views: Tensor, width: float) -> dict[str, str]:
    return bits(axis, _bins(axis, views, width).numpy())


def _pictures(data: ImageSet, maps: Maps, texture: Texture, mine: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The first vehicles under the texture."""
    rows = mine.nonzero().squeeze(1)[:SHOWN]
    x = texture.on(maps[rows])
    return {"images": x.numpy(), "ids": data.ids[rows].numpy(), "labels": data.labels[rows].numpy()}
