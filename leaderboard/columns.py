"""What every figure of a board is called, how it is printed, and what it means.

Figures that rows hold take all this from `siegebench.metrics`; those that a board computes say it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from siegebench.metrics import ALARM_MARKS, QUERY_MARKS, SEVERITIES, find

from .board import Column, Line, Unit

Way = Literal["high", "low", ""]


def read(name: str, help: str = "", main: bool = True, title: str = "", better: Way | None = None) -> Column:
    """The column of a figure that rows hold.

    Args:
        help, title, better: in place of what the vocabulary says.
    """
    metric = find(name)
    if metric is None:
        raise ValueError(f"no row holds a figure {name!r}")
    unit: Unit = "rate" if metric.unit == "rate" else "count" if metric.unit in ("count", "seconds") else "score"
    way = metric.better if better is None else better
    return Column(name, title or metric.title, unit, help or metric.help, way, main)


def _more(id: str, title: str, unit: Unit, help: str, better: Way = "high") -> Column:
    """A column that the board computes, for the page and the exports; too much for a terminal."""
    return Column(id, title, unit, help, better, main=False)


EVASION = (
    read("robust_acc", "Worst case of each image over all attacks and seeds; Wilson 95 % interval."),
    read("clean_acc"),
    *(read(f"robust_acc@{k}", f"Robust accuracy after {k} queries per image, strongest attack.") for k in QUERY_MARKS),
    Column("worst_attack", "Worst attack", "text", "The attack that leaves the lowest accuracy on its own.", ""),
    read("median_queries", "Median queries of a successful attack; the fewest over the attacks."),
)
TARGETED = (
    read("target_rate", "Attacked images that some attack and seed made the target class; Wilson 95 % interval."),
    read("target_rate_clean", "Clean images of other classes that get the target class: what nobody had to attack."),
    read("target_rate_noise"),
    read("robust_acc", "Images that stay correctly classified under all attacks; any wrong answer counts."),
    read("clean_acc"),
    Column("worst_attack", "Worst attack", "text", "The attack that reaches the target most often on its own.", ""),
    read("median_queries", "Median queries of an image that became the target; the fewest over the attacks."),
)
EVASION_MORE = (
    read("expected_acc", "Mean accuracy over the draws of a randomised defense, lowest of all attacks.", main=False),
    read("any_hit_acc", "Images that every draw of a randomised defense got right, worst attack.", main=False),
    read("median_distance", main=False),
    _more("seeds", "Seeds", "count", "Seeds of the attacks.", ""),
)
PASSES = Column(
    "passes", "Passes", "count", "Forward and backward passes per attacked image, all attacks together.", ""
)
BACKDOOR = (
    read("fidelity", "Mean over the attacks; interval by bootstrap over them."),
    read("ca", "Clean accuracy after the defense, mean over attacks."),
    read("asr", "Attack success rate after the defense, mean over attacks.", title="ASR"),
    Column("worst_asr", "Worst ASR", help="Success rate of the attack that survives the defense best.", better="low"),
    Column("ca_drop", "Clean loss", help="Clean accuracy lost to the defense, mean over attacks.", better="low"),
)
BACKDOOR_MORE = (
    read("ra", main=False),
    read("rir", main=False),
    read("der", main=False),
    _more("attacks", "Attacks", "count", "Backdoor attacks that the mean runs over.", ""),
    _more("seeds", "Seeds", "count", "Training seeds.", ""),
)
DETECTION = (
    read("auroc", "Mean over the attacks; interval by bootstrap over them."),
    Column("auroc_min", "Lowest", "score", "AUROC under the attack that hides best."),
    *(read(f"tpr@{k}") for k in ALARM_MARKS),
)
DETECTION_MORE = (
    read("auroc_all", "AUROC with every triggered input as a positive, successful or not.", main=False),
    _more("attacks", "Attacks", "count", "Attacks that the mean runs over.", ""),
)
MODELS = (
    Column(
        "balanced_accuracy", "Balanced", help="Mean of the shares of clean and of backdoored models judged correctly."
    ),
    read("auroc", "Of the scores over the population; interval by bootstrap over models."),
    Column("false_alarms", "False alarms", help="Clean models called backdoored; Wilson 95 % interval.", better="low"),
    Column("found", "Found", help="Backdoored models called backdoored; Wilson 95 % interval."),
    Column("target_hit", "Target named", help="Of the backdoored models found: the target class was named."),
    _more("clean_models", "Clean models", "count", "In the population.", ""),
    _more("backdoored_models", "Backdoored models", "count", "In the population.", ""),
)
CORRUPTION = (
    Column("mean_acc", "Corrupted", help="Mean accuracy over corruptions and severities; interval by bootstrap."),
    read("clean_acc"),
    Column("relative_drop", "Lost", help="Share of the clean accuracy that the corruptions take.", better="low"),
    Column("worst_corruption", "Worst", "text", "The corruption with the lowest accuracy.", ""),
    Column("worst_corruption_acc", "There", help="Accuracy under that corruption, mean over its severities."),
    *(read(f"acc@{s}", f"Accuracy at severity {s}, mean over the corruptions.", main=False) for s in SEVERITIES),
    _more("seeds", "Seeds", "count", "Seeds of the corruptions.", ""),
)


def under(
    group: str, names: Iterable[str], unit: Unit, help: str, better: Way = "high", *, heading: str
) -> list[Column]:
    """One column for each attack; all of a group are comparable."""
    return [Column(f"{group}:{n}", n, unit, help, better, False, group, heading) for n in names]


def filled(columns: Iterable[Column], lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns in which some line has something to show."""
    present = {c for line in lines for c in (*line.numbers, *line.texts)}
    return tuple(c for c in columns if c.id in present)
