"""The stage of a camouflage: only scenes of the training split, no evaluated pose, vehicle or background."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from siegebench import artifacts, sources
from siegebench.cells import Cell, Flag
from siegebench.classifier import Classifier
from siegebench.data import SUBSET_SEED, ImageSet
from siegebench.draws import Draws, derive_seed
from siegebench.errors import DataError
from siegebench.oracle import Oracle
from siegebench.render.compose import encoded
from siegebench.render.maps import Maps
from siegebench.threat import ThreatModel
from siegebench.tracks.judging import gradient_flags
from siegebench.types import Camouflage, SceneSource
from siegebench.types.camouflages import Stage, Texture, described, restored
from siegebench.workspace import Workspace

COLOURS = 16  # dominant colours of the backgrounds, as many swatches as a figure of ACTIVE has
PIXELS = 20_000  # of the backgrounds, for the clustering
PASSES = 4  # of a randomised defense, averaged in each step
TRAINING = "train"  # the split on which textures are made
FINE = 2  # samples along each side of a pixel, while a texture is made
SPENT = ("forwards", "backwards", "blind", "undefined")


def scenes_of(ws: Workspace, cell: Cell) -> SceneSource:
    """The source of the scenes of a cell.

    Raises:
        DataError: when its images are not rendered.
    """
    source = ws.dataset(cell.data)
    if not isinstance(source, SceneSource):
        raise DataError(f"{cell.data['name']}: its images are no rendered scenes, and no texture can be put on them")
    return source


def training_ids(train: ImageSet, vehicles: tuple[int, ...], count: int) -> list[int]:
    """The ids of the training scenes with vehicles on which textures are made, chosen by their ids.

    Raises:
        DataError: when there is none.
    """
    ids = train.ids[torch.isin(train.labels, torch.tensor(vehicles))]
    if not len(ids):
        raise DataError(f"{train.name}: no training scene shows a vehicle")
    chosen = ids[Draws(derive_seed(SUBSET_SEED, "stage"), ids).order()][:count]
    return sorted(chosen.tolist())


def stage_of(cell: Cell, ws: Workspace, seen: Classifier, camouflage: Camouflage) -> Stage:
    """The training scenes of a cell, and a victim with the access that the camouflage declares."""
    source, train = scenes_of(ws, cell), ws.splits(cell.data)[0]
    ids = training_ids(train, source.vehicles(), (cell.stage or {})["scenes"])
    maps = source.scenes(TRAINING, ids, FINE).to(ws.device)
    draws = Draws(derive_seed(cell.seed, "stage"), maps.ids)
    oracle = Oracle(seen, ThreatModel(access=camouflage.needs), draws)
    if camouflage.needs == "gradient":
        oracle = oracle.as_attacked(PASSES)
    found: Tensor = ws.remember(("colours", cell.data.get("train_digest"), tuple(ids)), lambda: dominant(maps))
    return Stage(maps, oracle, source.vehicles(), found.to(ws.device))


def dominant(maps: Maps) -> Tensor:
    """The dominant colours of what is behind the vehicles, sRGB [K, 3], the most frequent first (K-means)."""
    from sklearn.cluster import KMeans  # takes a second to import

    behind = encoded(maps.a).permute(0, 2, 3, 1)[maps.vehicle == 0].cpu().double()
    pixels = behind[:: max(1, len(behind) // PIXELS)].numpy()
    count = min(COLOURS, len(np.unique(pixels.round(3), axis=0)))
    fitted = KMeans(count, n_init=1, random_state=0).fit(pixels)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=count), kind="stable")
    return torch.from_numpy(fitted.cluster_centers_[order]).float().clamp(0, 1)


def texture_of(cell: Cell, ws: Workspace, seen: Classifier) -> tuple[Texture, dict[str, int], list[Flag]]:
    """(the texture of a cell, passes while it was made, what was wrong with its gradients); stored as an artifact.

    Args:
        seen: the victim, or the surrogate.
    """
    camouflage = ws.entry(Camouflage, cell.camouflage)
    blind_to = camouflage.needs == "none"
    what: dict[str, Any] = {
        "kind": "texture", "camouflage": cell.camouflage, "stage": (cell.stage or {})["scenes"], "seed": cell.seed,
        "data": cell.data.get("train_digest"), "source": cell.data["source"],
        "victim": None if blind_to else [artifacts.fingerprint(seen), *_named(cell)],
    }  # fmt: skip

    def make() -> dict[str, Tensor]:
        stage = stage_of(cell, ws, seen, camouflage)
        texture = camouflage(stage, Draws(derive_seed(cell.seed, "camouflage"), torch.zeros(1, dtype=torch.long)))
        ledger = stage.oracle.ledger
        return {**described(texture), **{name: getattr(ledger, name).sum().cpu() for name in SPENT}}

    made_by = sources.of_slots({"camouflage": cell.camouflage, "defense": cell.defense, "model": cell.model})
    tensors = artifacts.made(ws.store, what, make, made_by)
    spent = {name: int(tensors[name]) for name in SPENT}
    name = str(cell.model["name"]) if cell.surrogates is None else "the surrogate"
    flags = gradient_flags(name, spent["backwards"], spent["blind"], spent["undefined"])
    return restored(tensors), spent, flags


def _named(cell: Cell) -> tuple[Any, ...]:
    return (cell.model, cell.defense) if cell.surrogates is None else tuple(cell.surrogates)
