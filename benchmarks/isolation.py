"""Where NAB loses: which images it isolates, which labels they get, and what is left of the trigger.

    python benchmarks/isolation.py --attacks wanet blended --train

The networks, poisoned sets and settings are those of the suite backdoors_seeds_digits. Isolations: `flooding`, the
authors'; the detector `scan`, which isolates as many images; `given`, all poisoned images and no others; and `told`,
the same with their true labels instead of those of the verifier. Columns: the fraction of the isolated images that
are poisoned (precision), the fraction of the poisoned images that are isolated (recall), isolated covers, and the
fraction of the isolated poisoned images that get their true label back (labels), or keep the label that the attacker
gave (kept). `--train` also trains the last network: success of the trigger without and with the stamp, images with
the trigger that are correct, and clean accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from siegebench import registry
from siegebench.cells import Cell
from siegebench.classifier import Classifier
from siegebench.config import load_suite
from siegebench.data import Granted
from siegebench.draws import Draws, derive_seed
from siegebench.plan import plan
from siegebench.settings import Settings
from siegebench.tracks.backdoor import backdoor_metrics
from siegebench.types import BackdoorAttack, DatasetDetector, Defense, Poisoned
from siegebench.workspace import Workspace

WAYS = ("flooding", "scan", "given", "told")


def cells(attacks: list[str], seeds: list[int]) -> tuple[list[Cell], dict[str, Any]]:
    """Those of NAB with the authors' isolation, in the order of the attacks, and the specs of the suite."""
    planned = plan(load_suite("backdoors_seeds_digits", [f"seeds={seeds}"]))
    found = [
        cell
        for cell in planned.cells
        if cell.track == "backdoor" and not cell.adaptive and cell.defense and cell.backdoor
        and cell.defense["name"] == "nab" and not cell.defense.get("detector")
        and (not attacks or cell.backdoor["name"] in attacks)
    ]  # fmt: skip
    return sorted(
        found, key=lambda cell: (attacks.index(cell.backdoor["name"]) if attacks else 0, cell.seed)
    ), planned.specs


def isolated(nab: Any, way: str, base: Classifier, data: Granted, poisoned: Poisoned, draws: Draws) -> Tensor:
    """Indices of the images that are isolated."""
    if way in ("given", "told"):
        return poisoned.index
    if way == "flooding":
        found: Tensor = nab.isolate(base, data.train, derive_seed(draws.seed, "nab isolation"))
        return found
    scores = registry.build(DatasetDetector, {"name": way}).score(base, data, draws)
    return scores.argsort(descending=True, stable=True)[: nab.count(data.train)]


def results(cell: Cell, ws: Workspace, ways: list[str], train: bool) -> Iterator[str]:
    base, poisoned = ws.backdoored(cell)
    assert poisoned is not None
    granted, true = ws.granted("defense", cell, poisoned), ws.splits(cell.data)[0].labels
    draws = Draws(derive_seed(cell.seed, "defense"), torch.zeros(1, dtype=torch.long))
    nab: Any = ws.entry(Defense, cell.defense)
    for way in ways:
        index = isolated(nab, way, base, granted, poisoned, draws)
        labels = true[index] if way == "told" else nab.pseudo_labels(base, granted, index, draws)
        bad = torch.isin(index, poisoned.index)
        right, kept = labels == true[index], labels == poisoned.data.labels[index]
        line = [
            f"{float(bad.double().mean()):.2f}", f"{int(bad.sum()) / len(poisoned.index):.2f}",
            str(int(torch.isin(index, poisoned.cover).sum())),
            *(f"{float(which[bad].double().mean()) if bad.any() else float('nan'):.2f}" for which in (right, kept)),
        ]  # fmt: skip
        if train:
            line += trained(nab, cell, ws, base, poisoned, index, labels, granted, draws)
        yield " | ".join([cell.backdoor["name"], str(cell.seed), way, *line])  # type: ignore[index]


def trained(
    nab: Any, cell: Cell, ws: Workspace, base: Classifier, poisoned: Poisoned, index: Tensor, labels: Tensor,
    granted: Granted, draws: Draws,
) -> list[str]:  # fmt: skip
    """Success without and with the stamp, recovered and clean accuracy, after the last training."""
    told = replace(nab)
    object.__setattr__(told, "isolate", lambda *_: index)
    object.__setattr__(told, "pseudo_labels", lambda *_: labels)
    defended: Any = told.apply(base, granted, draws)
    attack, data = ws.entry(BackdoorAttack, cell.backdoor), ws.evaluated(cell.data)
    inside, outside = (
        backdoor_metrics(ws, model, attack, data, cell.seed, poisoned.material) for model in (defended.inner, defended)
    )
    figures = (inside["asr"], outside["asr"], outside["ra"], outside["ca"])
    return [f"{100 * figure['value']:.1f} %" for figure in figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", default=[], help="names of backdoors; default: all of the suite")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--store", default="results", help="folder with the networks that the suite has trained")
    args = parser.parse_args()
    chosen, specs = cells(args.attacks, args.seeds)
    ws = Workspace(Settings(root=args.store, specs=specs))
    columns = ["attack", "seed", "isolation", "precision", "recall", "covers", "labels", "kept"]
    print(" | ".join([*columns, *(["ASR without stamp", "ASR", "correct", "clean"] if args.train else [])]))
    for cell in chosen:
        for line in results(cell, ws, args.ways, args.train):
            print(line, flush=True)


if __name__ == "__main__":
    main()
