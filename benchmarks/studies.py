"""Tables of four studies, from the stored rows of their suites.

    siegebench run medical
    siegebench run robust_models_gtsrb
    siegebench run text
    siegebench run spiking
    python benchmarks/studies.py --store results

`medical`: balanced accuracy (mean over the classes) of each network on clean images, and at each eps under uniform
noise and under all attacks together. `robust_models_gtsrb`: the cues of both networks, only over the images that both
classify correctly, with the number of these images. `text`: each training of the attention by train seed, and its mean
difference from the same training without the term, paired by seed, with a 95 % interval of Student's t. `spiking`: in
how many films an attack needs fewer flips than another with the same reduction; the flips of each film are in the store
that measured them, not in `leaderboard/rows`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from siegebench.leaderboard.board import display

from siegebench.cells import Result, canonical, label
from siegebench.store import Store

Vector = np.ndarray[Any, Any]


def balanced(right: Vector, labels: Vector) -> float:
    """Mean over the classes of the share of right answers."""
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table; numbers with three digits."""
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    for line in lines:
        print("|", " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in line), "|")


def medical(rows: Sequence[Result]) -> None:
    """Balanced accuracy by network and eps: under noise, and under all attacks together."""

    models = display(row.cell.model for row in rows)

    def key(row: Result) -> tuple[str, str, str]:
        return row.cell.data["name"], models[canonical(row.cell.model)], label(row.cell.defense)

    lines = []
    for (data, model, defense), of_model in groupby(sorted(rows, key=key), key):
        mine = list(of_model)
        labels = mine[0].whole("label")
        if defense != "none" or labels is None:
            continue
        line: list[object] = [data, model, len(labels), balanced(mine[0].outcome("clean"), labels)]
        for eps in sorted({r.cell.threat["eps"] for r in mine if r.cell.threat}):
            here = [r for r in mine if r.cell.threat and r.cell.threat["eps"] == eps]
            noise = [r.outcome("robust") for r in here if r.cell.attack and r.cell.attack["name"] == "uniform_noise"]
            line.append(f"{255 * eps:.0f}/255: {balanced(noise[0], labels):.3f}" if noise else "-")
            line.append(balanced(np.logical_and.reduce([r.outcome("robust") for r in here]), labels))
        lines.append(line)
    most = max((len(line) for line in lines), default=4)
    table(["data", "network", "images", "clean", *["noise", "attacked"] * ((most - 4) // 2)], lines)


def cues(store: Store, rows: Sequence[Result]) -> None:
    """Share of correct answers on each cue, over the images that all victims of a network classify correctly."""
    for _, group in groupby(sorted(rows, key=lambda r: canonical(r.cell.model)), lambda r: canonical(r.cell.model)):
        found = {label(row.cell.defense): store.arrays(row.cell) for row in group}
        if len(found) < 2:
            continue
        both = np.logical_and.reduce([arrays["clean"] for arrays in found.values()])
        names = [name for name in next(iter(found.values())) if name not in ("ids", "clean")]
        print(f"over {both.sum()} of {len(both)} images, which all of them classify correctly")
        table(["cue", *found], [[n, *(float(arrays[n][both].mean()) for arrays in found.values())] for n in names])


def attention(rows: Sequence[Result]) -> None:
    """Accuracy, agreement and accuracy under `viper` of each training, by train seed."""
    from scipy.stats import t  # takes a second to import

    names = display(row.cell.defense for row in rows)
    for metric in ("clean_acc", "correlation", "robust_acc"):
        found: dict[str, dict[int, float]] = {}
        without: dict[int, float] = {}
        for row in rows:
            if metric in row.metrics:
                by_seed = without if row.cell.defense.get("eps") == 0 else {}
                by_seed = found.setdefault(names[canonical(row.cell.defense)], by_seed)
                by_seed[row.cell.model["train_seed"]] = row.metrics[metric]["value"]
        lines: list[list[object]] = []
        for name, by_seed in found.items():
            values = [by_seed[seed] for seed in sorted(by_seed)]
            told, both = "-", sorted(by_seed.keys() & without.keys())
            if name != "none" and by_seed is not without and len(both) > 1:
                gap = np.array([by_seed[seed] - without[seed] for seed in both])
                half = float(t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / len(gap) ** 0.5)
                told = f"{gap.mean():+.3f} [{gap.mean() - half:+.3f}, {gap.mean() + half:+.3f}]"
            lines.append([name, *values, float(np.mean(values)), told])
        seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
        table([metric, *(f"seed {seed}" for seed in seeds), "mean", "against eps 0"], lines)


def flips(store: Store, rows: Sequence[Result]) -> None:
    """In how many films sda needs fewer flips than plain top-k gradients, for each reduction."""
    found: dict[tuple[str, int], dict[bool, Vector]] = {}
    for row in rows:
        inner, distance = (row.cell.attack or {}).get("attack") or {}, store.arrays(row.cell).get("distance")
        if inner.get("name") == "sda" and "reduction" in inner and distance is not None:
            source = row.cell.data["source"]
            sites = 2 * source["frames"] * source["size"] ** 2
            kind = inner["reduction"], row.cell.data["count"]
            found.setdefault(kind, {})[inner["tested"]] = np.round(sites * distance)
    lines: list[list[object]] = []
    for (reduction, _), by_trial in found.items():
        if len(by_trial) == 2:
            both = (by_trial[True] > 0) & (by_trial[False] > 0)  # neither was wrong already
            one, other = by_trial[True][both], by_trial[False][both]
            counts = [int(each.sum()) for each in (both, one < other, one == other, one > other)]
            lines.append([reduction, *counts, float(one.mean()), float(other.mean())])
    table(["reduction", "films", "fewer with sda", "as many", "more", "mean of sda", "mean of top-k"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("results"))
    store = Store(parser.parse_args().store)
    rows = [row for row in store.rows() if row.status == "ok"]
    attacked = [row for row in rows if row.cell.attack is not None and row.cell.data["name"].endswith("_balanced")]
    whole = {
        row.cell.data["count"] for row in attacked if row.cell.attack and row.cell.attack["name"] == "uniform_noise"
    }
    medical([row for row in attacked if row.cell.data["count"] in whole])
    cues(store, [row for row in rows if row.cell.measure is not None and row.cell.measure["name"] == "cues"])
    sentences = [row for row in rows if row.cell.data["name"] == "sentiment_sentences"]
    attention([row for row in sentences if row.cell.track == "white_box"])
    films = [row for row in rows if row.cell.data["name"] == "saccades" and row.cell.threat is not None]
    flips(store, [row for row in films if row.cell.threat and row.cell.threat["eps"] == 1])


if __name__ == "__main__":
    main()
