"""Compares each attack with other PyPI implementations of it: same network, images and budget, in one run.

    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py                  all contests; an hour or more on one core
    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py --only pgd cw    some of them; the others keep their rows
    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py --ours --only rays   ours again; others keep their rows
    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py --network marabou --most 1    a quick look; no rows
    python benchmarks/conformance.py --page                                  docs/conformance.md from the stored rows

Needs the extra `dev`. adversarial-library (`pip install adv-lib`) takes part if it is installed. All implementations
attack the images that the network classifies correctly. Ours runs on the network as the suite prepares it (batch norms
folded), the others on the network as it is loaded (with `--prepared`, on ours). A fresh pass of the network as it is
loaded classifies the returned images; success counts only within eps. Seconds are CPU seconds of one thread. Rows are
kept in benchmarks/conformance.json, but only those of the network of the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench import Counted, Scene, run_ours, timed
from contests import Contest, contests
from networks import NETWORKS
from peers import load

HERE = Path(__file__).resolve().parent
ROWS = HERE / "conformance.json"
PAGE = HERE.parent / "docs" / "conformance.md"
NETWORK = "resnet20"  # of the page


@dataclass
class Row:
    """The result of one implementation; `error` if it cannot run."""

    who: str
    robust: float = 100.0
    median: float | None = None  # None: no adversarial example for more than half of the images
    found: float = 0.0
    forwards: float = 0.0
    backwards: float = 0.0
    cpu: float = 0.0
    differ: int | None = 0  # images whose outcome within eps differs from ours; None: not compared
    error: str = ""


@dataclass
class Table:
    """One contest's rows, ours first."""

    name: str
    budget: str
    by: str
    images: int
    ours: str
    note: str
    transfer: bool
    rows: list[Row] = field(default_factory=list)

    def verdict(self) -> tuple[bool, str]:
        """(whether ours is as strong as the strongest: within a point or an image, or 1 % of the median; a sentence)"""
        mine, others = self.rows[0], [row for row in self.rows[1:] if not row.error]
        if not others:
            return True, "No other implementation runs."

        def value(row: Row) -> float:
            return row.robust if self.by == "robust" else math.inf if row.median is None else row.median

        best = min(others, key=value)
        slack = max(1.0, 100 / self.images) + 1e-6
        fair = value(mine) <= value(best) + slack if self.by == "robust" else value(mine) <= 1.01 * value(best)
        word = "as strong as the strongest other implementation" if fair else "weaker than the strongest other"
        return fair, f"Ours is {word} ({best.who})."


def hold(
    contest: Contest,
    scene: Scene,
    victim: Any = None,
    prepared: bool = False,
    others: list[dict[str, Any]] | None = None,
) -> Table:
    """Run one contest; `victim` classifies the images of transfer contests.

    Args:
        others: stored rows of the other implementations, which then do not run.
    """
    scene, threat = scene.first(contest.images), contest.threat
    judge = victim if contest.transfer else None
    spec = contest.ours if isinstance(contest.ours, str) else contest.ours["name"]
    table = Table(
        contest.name, threat.label, contest.by, len(scene.x), spec, contest.note, contest.transfer
    )  # fmt: skip
    x_adv, cost = run_ours(contest.ours, scene, threat)
    score, hit = scene.score(x_adv, threat, judge)
    table.rows.append(
        Row(f"siegebench {spec}", **score, forwards=cost.forwards, backwards=cost.backwards, cpu=cost.cpu)
    )
    show(table.rows[-1])
    if others is not None:
        table.rows += [Row(**{**row, "differ": None}) for row in others]
    for who, peer in contest.peers.items() if others is None else ():
        # a copy for each: some put the network into training mode, which changes its batch norms
        counted = Counted(copy.deepcopy(scene.ready if prepared else scene.plain)).eval()
        try:
            x_adv, cost = timed(lambda p=peer, m=counted: p(m, scene.x.clone(), scene.y.clone(), threat))
        except Exception as error:  # a peer that cannot run is a result too
            table.rows.append(Row(who, error=f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"))
        else:
            passes = {"forwards": counted.forwards / len(scene.x), "backwards": counted.backwards / len(scene.x)}
            score, there = scene.score(x_adv.detach(), threat, judge)
            table.rows.append(Row(who, **score, **passes, cpu=cost.cpu, differ=int((there != hit).sum())))
        show(table.rows[-1])
    print(f"  {table.verdict()[1]}", flush=True)
    return table


def show(row: Row) -> None:
    """One line on the terminal."""
    tail = row.error or (
        f"robust {row.robust:6.2f} %  median {row.median or math.inf:8.5f}  found {row.found:5.3f}  "
        f"forwards {row.forwards:7.1f}  backwards {row.backwards:7.1f}  CPU {row.cpu:7.2f} s"
    )
    print(f"  {row.who:34} {tail}", flush=True)


def wanted(names: list[str], most: int | None) -> Iterator[Contest]:
    """Contests whose name begins with one of these; of each of them the first `most`."""
    taken = dict.fromkeys(names, 0)
    for contest in contests():
        name = next((name for name in names if contest.name.startswith(name)), None)
        if name is not None and (most is None or taken[name] < most):
            taken[name] += 1
            yield contest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="contests whose name begins with one of these")
    parser.add_argument("--most", type=int, metavar="N", help="only the first N contests of each name of --only")
    parser.add_argument("--images", type=int, default=200, help="number of test images; several contests use fewer")
    parser.add_argument("--network", default=NETWORK, choices=list(NETWORKS), help="the network that is attacked")
    parser.add_argument("--prepared", action="store_true", help="the others attack our prepared network too")
    parser.add_argument("--ours", action="store_true", help="only ours; the others keep their stored rows")
    parser.add_argument("--page", action="store_true", help="only write docs/conformance.md from the stored rows")
    args = parser.parse_args()
    stored = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    if not args.page:
        torch.set_num_threads(1)
        missing = load()
        scene = NETWORKS[args.network](args.images)
        victim = Scene.load("cifar_resnet56", "cifar10_jpeg", 8).plain
        print(f"{args.network} is right on {len(scene.x)} of {scene.total} images of cifar10_jpeg", flush=True)
        print(f"not installed: {', '.join(missing) or 'nothing'}", flush=True)
        for contest in wanted(args.only or [""], args.most):
            print(f"{contest.name}: {contest.threat.label}", flush=True)
            others = stored.get(contest.name, {"rows": [{}]})["rows"][1:] if args.ours else None
            stored[contest.name] = asdict(hold(contest, scene, victim, args.prepared, others))
            if args.network == NETWORK:
                ROWS.write_text(json.dumps(stored, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if args.network != NETWORK:
            return
    tables = [Table(**{**stored[c.name], "rows": [Row(**r) for r in stored[c.name]["rows"]]})
              for c in contests() if c.name in stored]  # fmt: skip
    PAGE.write_text(page(tables))


def page(tables: list[Table]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Conformance",
        "",
        "Each attack compared with other PyPI implementations of it. `python benchmarks/conformance.py` writes this",
        "page from its stored rows; the script describes the measurement. The network is the published CIFAR",
        "ResNet-20 on `cifar10_jpeg`. The images are the correctly classified ones among the first 200 test images.",
        "One thread.",
        "",
        "Robust accuracy: an image counts as misclassified only within eps. Median distance: an image without an",
        "adversarial example has infinite distance. In both columns, smaller means a stronger attack. `differ`: images",
        "whose outcome differs from ours; `-` if ours was measured later. Forwards and backwards are passes per image.",
        "Ours counts as equally strong if it is within one image or one point of the strongest other implementation,",
        "or within 1 % of its median distance.",
        "",
    ]
    for table in tables:
        _, verdict = table.verdict()
        lines += [
            f"## {table.name}",
            "",
            f"{table.budget}, {table.images} images. {table.note} {verdict}".replace("  ", " "),
            "",
            "| | robust accuracy | differ | median distance | forwards | backwards | CPU seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in table.rows:
            if row.error:
                lines.append(f"| {row.who} | cannot run: {row.error.replace('|', '/')} | | | | |")
                continue
            median = f"{row.median:.5f}" if row.median is not None else "none for more than half"
            passes = f"{row.forwards:.1f} | {row.backwards:.1f}"
            differ = "-" if row.differ is None else row.differ
            lines.append(f"| {row.who} | {row.robust:.1f} % | {differ} | {median} | {passes} | {row.cpu:.1f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
