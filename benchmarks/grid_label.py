"""Label attacks by budget: no setting of a small grid may be stronger than the default.

    SIEGEBENCH_DATA=FOLDER python benchmarks/grid_label.py                  what is not stored yet; hours on one core
    SIEGEBENCH_DATA=FOLDER python benchmarks/grid_label.py --only geoda --queries 100 1000 --networks cnn_a marabou
    SIEGEBENCH_DATA=FOLDER python benchmarks/grid_label.py --only geoda --again   measures its stored rows again
    python benchmarks/grid_label.py --page                                  docs/label_budgets.md from the stored rows

Label attacks minimise the distance, so that one run gives the result for every eps. Each attack runs with its default
parameters and with each setting of its grid. The images are the first of `cifar10_jpeg` that the network classifies
correctly. A fresh pass of the network decides success. Rows are kept in benchmarks/grid_label.jsonl, one line each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench import Scene, number, run_ours
from grid_settings import EPS, Grid
from networks import NETWORKS

from siegebench.threat import Norm, ThreatModel

HERE = Path(__file__).resolve().parent
ROWS = HERE / "grid_label.jsonl"
PAGE = HERE.parent / "docs" / "label_budgets.md"
IMAGES = {100: 40, 1000: 24, 10_000: 12}  # by queries
FARTHEST = 60.0  # distance of an image without an adversarial example in ratios: that of the opposite corner, in L2
SETTINGS: dict[str, Grid] = {
    "rays": Grid([{"tolerance": 0.01}, {"tolerance": 0.1}], norms=("linf",)),
    "signflip": Grid(
        [
            {"directions": 1}, {"directions": 20}, {"p": 0.999}, {"p": 0.99}, {"alpha": 0.016}, {"resize": 4},
        ],
        norms=("linf",),
    ),
    "hopskipjump": Grid(
        [{"directions": 1}, {"directions": 20}, {"probes": 25}, {"probes": 50}, {"probes": 200}, {"radius": 0.03}]
    ),
    "boundary": Grid(
        [
            {"directions": 1}, {"directions": 20},
            {"spherical_step": 0.3, "source_step": 0.05}, {"spherical_step": 0.05, "source_step": 0.005},
            {"every": 5, "sphere_window": 5, "source_window": 8},
        ],
        norms=("l2",),
    ),
    "sign_opt": Grid(
        [{"directions": 1}, {"directions": 20}, {"probes": 50}, {"probes": 100}, {"beta": 0.01}], norms=("l2",)
    ),
    "geoda": Grid([{"directions": 1}, {"directions": 50}, {"waves": 5}, {"waves": 10}, {"waves": 20}, {"probes": 30}]),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one setting of one attack reaches with one number of queries.

    Attributes:
        attack: its parameters as JSON; only the name stands for the default.
        distances: of the adversarial examples, one for each image; None where there is none.
    """

    attack: str
    network: str
    norm: Norm
    queries: int
    seed: int
    images: int
    distances: tuple[float | None, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.attack, self.network, self.norm, self.queries, self.seed, self.images)

    def left(self, eps: str) -> float:
        """Percent of the images that are still classified correctly within eps."""
        return 100 * sum(d is None or d > number(eps) for d in self.distances) / len(self.distances)


def stored() -> dict[tuple[Any, ...], Row]:
    """The stored rows; the last line of a key counts."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    rows = (Row(**{**(line := json.loads(text)), "distances": tuple(line["distances"])}) for text in lines)
    return {row.key: row for row in rows}


def measure(spec: dict[str, Any], network: str, norm: Norm, queries: int, scene: Scene, seed: int) -> Row:
    """Run one attack, without stopping at an eps."""
    threat = ThreatModel(norm=norm, eps=1e-6, access="label", queries=queries)
    x_adv, _ = run_ours({**spec, "queries": queries, "stop_at_eps": False}, scene, threat, seed)
    wrong, far = scene.broken(x_adv), threat.size(x_adv, scene.x)
    distances = tuple(round(d, 6) if hit else None for d, hit in zip(far.tolist(), wrong.tolist(), strict=True))
    return Row(json.dumps(spec), network, norm, queries, seed, len(scene.x), distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="these attacks")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--queries", nargs="+", type=int, default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--norms", nargs="+", default=["linf", "l2"], choices=("linf", "l2"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default", action="store_true", help="only the default of each attack")
    parser.add_argument("--again", action="store_true", help="measure stored rows again")
    parser.add_argument("--page", action="store_true", help="only write docs/label_budgets.md from the stored rows")
    args = parser.parse_args()
    rows = stored()
    if args.page:
        PAGE.write_text(page(list(rows.values())))
        return
    torch.set_num_threads(1)
    scenes = {name: NETWORKS[name](100) for name in args.networks}
    todo = [
        (spec, network, norm, queries)
        for queries in args.queries
        for name in args.only
        for norm in SETTINGS[name].norms
        if norm in args.norms
        for network in args.networks
        for spec in SETTINGS[name].specs(name)[: 1 if args.default else None]
    ]
    for spec, network, norm, queries in todo:
        scene = scenes[network].first(IMAGES[queries])
        key = (json.dumps(spec), network, norm, queries, args.seed, len(scene.x))
        if key not in rows or args.again:
            rows[key] = measure(spec, network, norm, queries, scene, args.seed)
            with ROWS.open("a") as file:
                file.write(json.dumps(asdict(rows[key])) + "\n")
        left = " / ".join(f"{rows[key].left(eps):5.1f}" for eps in EPS[network][norm][queries])
        print(f"{network:9} {norm:4} {queries:6} seed {args.seed}  left {left} %  {json.dumps(spec)}", flush=True)


def ratio(row: Row, default: Row) -> float:
    """Mean over the images of the logarithm of this distance over that of the default."""
    pairs = zip(row.distances, default.distances, strict=True)
    logs = [
        torch.tensor([FARTHEST if d is None else max(d, 1e-6) for d in pair], dtype=torch.float64).log()
        for pair in pairs
    ]
    return float(torch.stack([log[0] - log[1] for log in logs]).mean())


def page(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Label attacks by budget",
        "",
        "Is any setting of a small grid stronger than the default? `python benchmarks/grid_label.py` measures it and",
        "writes this page with `--page`; the script lists the settings. `resnet20` is the published CIFAR ResNet-20,",
        "`cnn_a` and `marabou` are small networks of the verifier alpha-beta-CROWN (benchmarks/networks.py); none was",
        "trained here. The images are the first of `cifar10_jpeg` that the network classifies correctly: 40 at 100",
        "queries, 24 at 1,000, 12 at 10,000.",
        "",
        "Percent of these images that are still classified correctly, at two values of eps; smaller means a stronger",
        "attack. `distance`: geometric mean, over all images, of the distance divided by that of the default; above 1,",
        "the setting is weaker than the default. `-`: not measured.",
        "",
    ]
    for name, grid in SETTINGS.items():
        lines += [f"## {name}", ""]
        for norm in grid.norms:
            lines += _table(rows, name, grid.specs(name), norm)
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[Row], name: str, specs: list[dict[str, Any]], norm: Norm) -> list[str]:
    """One attack in one norm: a row for each setting, a column for each network and number of queries."""
    by: dict[tuple[str, int, str], dict[int, Row]] = {}  # (attack, queries, network) to the rows of the seeds
    for row in rows:
        if row.norm == norm and json.loads(row.attack)["name"] == name:
            by.setdefault((row.attack, row.queries, row.network), {})[row.seed] = row
    columns = sorted({at[1:] for at in by})
    heads = [
        f"{network}, {queries:,}, {norm} {' / '.join(EPS[network][norm][queries])}" for queries, network in columns
    ]
    table = []
    for spec in specs:
        cells, logs = [], []
        for queries, network in columns:
            here = by.get((json.dumps(spec), queries, network), {})
            default = by.get((json.dumps(specs[0]), queries, network), {})
            logs += [ratio(row, default[seed]) for seed, row in here.items() if seed in default]
            left = [sum(row.left(eps) for row in here.values()) for eps in EPS[network][norm][queries]]
            cells.append(" / ".join(f"{total / len(here):.0f}" for total in left) if here else "-")
        if logs:
            setting = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "name") or "default"
            mean = float(torch.tensor(logs, dtype=torch.float64).mean().exp())
            table.append(f"| {setting} | {' | '.join(cells)} | {mean:.2f} |")
    if not table:
        return []
    return [f"| {name} | {' | '.join(heads)} | distance |", "|---" * (len(columns) + 2) + "|", *table, ""]


if __name__ == "__main__":
    main()
