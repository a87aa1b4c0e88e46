"""What a texture hides at best: textures that are made on the very scenes on which they are scored.

    python benchmarks/textures.py                                            some minutes of one core a network
    python benchmarks/textures.py --models timm/test_resnet --train-seeds 1 2 --groups 100

`active` is made on training scenes and scored on others. Each further line is no attack, as its textures know the
scored scenes: one texture for each 1, 4 or 16 of them, or for all. Only the loss of the attack is minimised, without
changes of the picture and of the projection. What the texture for all scenes leaves is not left for want of training
scenes, or because of an augmentation or another loss. A descent may miss the best texture: other numbers of texels, of
steps and of scenes show how far.

The networks, the scenes and `active` are those of the suite `camouflage`. Textures are made at two samples a pixel and
scored at four. Printed: share of the vehicles that are seen, and mean confidence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from siegebench import registry
from siegebench.cells import Cell
from siegebench.classifier import Classifier
from siegebench.config import load_suite
from siegebench.draws import Draws, derive_seed
from siegebench.oracle import Oracle
from siegebench.plan import plan
from siegebench.render.maps import Maps
from siegebench.sighting import seen
from siegebench.threat import ThreatModel
from siegebench.tracks.camouflage import unpainted
from siegebench.tracks.staging import FINE, scenes_of, stage_of
from siegebench.types import Camouflage
from siegebench.types.camouflages import Stage, Texture
from siegebench.workspace import Settings, Workspace

NETWORKS = ("byobnet_tiny", "timm/test_resnet", "tiny_detector")
ONE = Draws(derive_seed(0, "camouflage"), torch.zeros(1, dtype=torch.long))
SHARED = 48  # scored scenes of the lines in which a texture has some of them
AT_ONCE = 20  # scenes
BARE = {
    "name": "active", "alpha": 1.0, "beta": 0.0, "gamma": 0.0, "shift": 0.0, "scale": 0.0, "smallest": 1.0,
    "brightness": 0.0, "contrast": [1.0, 1.0], "lr": 0.3, "scenes": AT_ONCE,
}  # fmt: skip


def shown(victim: Classifier, vehicles: tuple[int, ...], pairs: Sequence[tuple[Texture, Maps]]) -> str:
    """The share of the scenes that are seen under their textures, in percent, and the mean score."""
    hits: list[Tensor] = []
    scores: list[Tensor] = []
    for texture, maps in pairs:
        for index in torch.arange(len(maps)).split(AT_ONCE):
            some = maps[index]
            hit, score, _ = seen(victim, texture.on(some), vehicles, some.box, [None])
            hits.append(hit[0])
            scores.append(score)
    return f"{100 * float(torch.cat(hits).float().mean()):4.0f} %  {float(torch.cat(scores).mean()):.2f}"


def measured(ws: Workspace, cell: Cell, groups: Sequence[int], texels: Sequence[int], steps: int, scenes: int) -> None:
    """Print the lines of one network."""
    victim, data, source = ws.victim(cell), ws.evaluated(cell.data), scenes_of(ws, cell)
    vehicles = source.vehicles()
    ids = data.ids[torch.isin(data.labels, torch.tensor(vehicles))]
    ids = ids[Draws(0, ids).order("textures")][:scenes].tolist()
    made, scored = source.scenes(str(cell.data["split"]), ids, FINE), source.scenes(str(cell.data["split"]), ids, 4)
    active: Camouflage = ws.entry(Camouflage, cell.camouflage)
    stage = stage_of(cell, ws, victim, active)

    def line(name: str, pairs: Sequence[tuple[Texture, Maps]]) -> None:
        print(f"  {name:<58} {shown(victim, vehicles, pairs)}", flush=True)

    few = scored[: min(SHARED, len(scored))]
    line(f"grey, {len(scored)} scenes", [(unpainted(), scored)])
    line(f"grey, {len(few)} of them", [(unpainted(), few)])
    texture = active(stage, ONE)
    line(f"active, made on {len(stage)} training scenes: {len(scored)} scenes", [(texture, scored)])
    line(f"active, made on {len(stage)} training scenes: {len(few)} of them", [(texture, few)])

    oracle = Oracle(victim, ThreatModel(), Draws(0, made.ids)).as_attacked(4)
    whole = Stage(made, oracle, vehicles, stage.colours)
    for each in groups:
        parts = torch.arange(len(made) if each >= len(made) else len(few)).split(each)
        for side in texels if each >= len(made) else texels[:1]:
            camouflage = registry.build(Camouflage, {**BARE, "texels": side, "steps": steps})
            pairs = [(camouflage(whole[index], ONE), scored[index]) for index in parts]
            line(f"one for each {min(each, len(made))} of {sum(map(len, parts))} scored scenes, {side} texels", pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--train-seeds", nargs="+", type=int, default=[0], help="each trains networks of its own")
    parser.add_argument("--groups", nargs="+", type=int, default=[1, 4, 16, 100], help="scenes of a texture")
    parser.add_argument("--texels", nargs="+", type=int, default=[16, 64], help="all but the first for all scenes only")
    parser.add_argument("--steps", type=int, default=100, help="of each descent")
    parser.add_argument("--scenes", type=int, default=100, help="scored scenes with vehicles")
    parser.add_argument("--store", default="results", help="folder of trained networks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    suite = plan(load_suite("camouflage"))
    ws = Workspace(Settings(root=given.store, threads=1, specs=suite.specs))
    for name in given.models:
        cell = next(cell for cell in suite.cells if _wanted(cell, name))
        for seed in given.train_seeds:
            print(f"{name}, trained with seed {seed}", flush=True)
            measured(
                ws, replace(cell, model={**cell.model, "train_seed": seed}), given.groups, given.texels, given.steps,
                given.scenes,
            )  # fmt: skip


def _wanted(cell: Cell, model: str) -> bool:
    """Whether a cell is `active` against an undefended network.

    The first cell of a network may be defended. A bare `Oracle` of JPEG, say, has no gradient, and textures stay grey.
    """
    return (
        cell.track == "camouflage" and cell.model["name"] == model and (cell.defense or {})["name"] == "none"
        and not cell.surrogates and cell.seed == 0
        and (cell.camouflage or {}).get("name") == "active" and (cell.camouflage or {}).get("beta") != 0
    )  # fmt: skip


if __name__ == "__main__":
    main()
