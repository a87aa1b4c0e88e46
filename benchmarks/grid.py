"""Query attacks by budget: no setting of a small grid may be stronger than the default.

    SIEGEBENCH_DATA=FOLDER python benchmarks/grid.py                          what is not stored yet; hours on one core
    SIEGEBENCH_DATA=FOLDER python benchmarks/grid.py --only nes --queries 100 1000 --networks cnn_a
    SIEGEBENCH_DATA=FOLDER python benchmarks/grid.py --only nes --again       measures the stored rows of nes again
    SIEGEBENCH_DATA=FOLDER python benchmarks/grid.py --try '{name: nes, pairs: 40}' --store trial.jsonl
    python benchmarks/grid.py --page                                          docs/query_budgets.md from the stored rows

Each attack runs with its default parameters and with each setting of its grid, on each network, at 100, 1,000 and
10,000 queries and two values of eps. The images are the first of `cifar10_jpeg` that the network classifies correctly.
A fresh pass of the network decides success, and only within eps. Rows are kept in benchmarks/grid.jsonl, one line each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from bench import Scene, number, run_ours
from grid_settings import SCENES, SETTINGS, Spot
from networks import NETWORKS

from siegebench.threat import ThreatModel

HERE = Path(__file__).resolve().parent
ROWS = HERE / "grid.jsonl"
PAGE = HERE.parent / "docs" / "query_budgets.md"
IMAGES = {100: 40, 1000: 24, 10_000: 12}  # by queries


@dataclass(frozen=True)
class Row:
    """What one setting of one attack leaves at one budget.

    Attributes:
        attack: its parameters as JSON; only the name stands for the default.
        left: images still classified correctly, of `images` that were.
        spent: queries per image.
    """

    attack: str
    network: str
    norm: str
    eps: str
    queries: int
    seed: int
    images: int
    left: int = 0
    spent: float = 0.0
    median: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.attack, self.network, self.norm, self.eps, self.queries, self.seed, self.images)


class Store:
    """Rows in a file of JSON lines; the last line of a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {row.key: row for row in (Row(**json.loads(line)) for line in lines)}

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def tidy(self) -> None:
        """Write each key once, in order."""
        ordered = sorted(
            self.rows.values(), key=lambda r: (r.attack.split('"')[3], r.network, r.queries, r.norm, r.key)
        )
        self.path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in ordered))


def measure(spec: dict[str, Any], spot: Spot, scene: Scene, seed: int) -> Row:
    """Run one attack."""
    access = "label" if spec["name"] in SETTINGS and SETTINGS[spec["name"]].access == "label" else "score"
    threat = ThreatModel(norm=spot.norm, eps=number(spot.eps), text=spot.eps, access=access, queries=spot.queries)
    x_adv, cost = run_ours(spec, scene, threat, seed)
    score, hit = scene.score(x_adv, threat)
    left = len(scene.x) - int(hit.sum())
    return Row(
        json.dumps(spec), spot.network, spot.norm, spot.eps, spot.queries, seed, len(scene.x), left,
        round(cost.forwards, 1), score["median"],
    )  # fmt: skip


def wanted(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Spot]]:
    """Settings and where they are measured."""
    named = args.only
    for name, grid in SETTINGS.items():
        if named and name not in named and not args.trial:
            continue
        specs = [yaml.safe_load(text) for text in args.trial] if args.trial else grid.specs(name)
        specs = [spec for spec in specs if spec["name"] == name]
        for spot in SCENES:
            if spot.queries not in args.queries or spot.network not in args.networks or spot.norm not in grid.norms:
                continue
            if args.norms and spot.norm not in args.norms:
                continue
            for spec in specs:
                yield spec, spot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="these attacks")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS)[:2], choices=list(NETWORKS))
    parser.add_argument("--queries", nargs="+", type=int, default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"))
    parser.add_argument("--images", type=int, help="number of images; the default depends on the queries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--try", dest="trial", nargs="+", metavar="YAML", help="these attacks instead of the grid")
    parser.add_argument("--again", action="store_true", help="measure stored rows again")
    parser.add_argument("--store", type=Path, default=ROWS, help="file of the rows")
    parser.add_argument("--page", action="store_true", help="only write docs/query_budgets.md from the stored rows")
    args = parser.parse_args()
    store = Store(args.store)
    if args.page:
        PAGE.write_text(page(store))
        return
    torch.set_num_threads(1)
    scenes: dict[str, Scene] = {}
    for spec, spot in wanted(args):
        if spot.network not in scenes:
            scenes[spot.network] = NETWORKS[spot.network](150)
        scene = scenes[spot.network].first(args.images or IMAGES[spot.queries])
        key = (json.dumps(spec), spot.network, spot.norm, spot.eps, spot.queries, args.seed, len(scene.x))
        if key not in store.rows or args.again:
            store.add(measure(spec, spot, scene, args.seed))
        row = store.rows[key]
        print(
            f"{row.network:9} {row.norm:4} {row.eps:8} {row.queries:6} seed {row.seed}  left {row.left:3} of "
            f"{row.images} ({100 * row.left / row.images:5.1f} %)  spent {row.spent:7.1f}  {row.attack}",
            flush=True,
        )


def page(store: Store) -> str:
    """The rows as Markdown."""
    lines = [
        "# Query attacks by budget",
        "",
        "Is any setting of a small grid stronger than the default? `python benchmarks/grid.py` measures it and writes",
        "this page with `--page`; benchmarks/grid_settings.py lists the settings. `resnet20` is the published CIFAR",
        "ResNet-20, `cnn_a` (trained adversarially) and `marabou` are small networks of the verifier alpha-beta-CROWN;",
        "none was trained here. The images are the first of `cifar10_jpeg` that the network classifies correctly: 40",
        "at 100 queries, 24 at 1,000, 12 at 10,000.",
        "",
        "Percent of these images that are still classified correctly, at two values of eps; smaller means a stronger",
        "attack. `mean`: over all columns, and in brackets the difference from the default in points; a negative",
        "number is a setting that is stronger than the default. `-`, or no column: not measured yet.",
        "",
    ]
    for name, grid in SETTINGS.items():
        lines += [f"## {name}", ""]
        for norm in grid.norms:
            lines += _table(store, name, grid.specs(name), norm)
    return "\n".join(lines).rstrip() + "\n"


def _table(store: Store, name: str, specs: list[dict[str, Any]], norm: str) -> list[str]:
    """One attack in one norm: a row for each setting, a column for each network and number of queries."""
    measured = {row.key[1:5] for row in store.rows.values() if json.loads(row.attack)["name"] == name}
    spots = [s for s in SCENES if s.norm == norm and (s.network, s.norm, s.eps, s.queries) in measured]
    columns = list(dict.fromkeys((spot.network, spot.queries) for spot in spots))

    def left(spec: dict[str, Any], spot: Spot) -> float | None:
        """Percent, over the seeds."""
        at = (json.dumps(spec), spot.network, spot.norm, spot.eps, spot.queries)
        rows = [row for row in store.rows.values() if row.key[:5] == at]
        return 100 * sum(row.left for row in rows) / sum(row.images for row in rows) if rows else None

    heads, table = [], []
    for network, queries in columns:
        eps = " / ".join(spot.eps for spot in spots if (spot.network, spot.queries) == (network, queries))
        heads.append(f"{network}, {queries:,} queries, {norm} {eps}")
    for spec in specs:
        values = {spot: left(spec, spot) for spot in spots}
        both = [s for s in spots if values[s] is not None and left(specs[0], s) is not None]
        if not both:
            continue
        mean = sum(values[s] or 0.0 for s in both) / len(both)
        apart = mean - sum(left(specs[0], s) or 0.0 for s in both) / len(both)
        cells = [
            " / ".join(
                "-" if (v := values[s]) is None else f"{v:.0f}" for s in spots if (s.network, s.queries) == column
            )
            for column in columns
        ]
        setting = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "name") or "default"
        table.append(f"| {setting} | {' | '.join(cells)} | {mean:.1f} ({apart:+.1f}) |")
    if not table:
        return []
    return [f"| {name} | {' | '.join(heads)} | mean |", "|---" * (len(columns) + 2) + "|", *table, ""]


if __name__ == "__main__":
    main()
