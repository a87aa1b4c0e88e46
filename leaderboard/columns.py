"""What every figure of a board is called, how it is printed, and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from .board import Column, Kind, Line

Way = Literal["high", "low", ""]
BUDGETS = (100, 1000, 10000)  # at which the query track reads off robust accuracy


def _budget(k: int) -> Column:
    text = f"@{k}" if k < 1000 else f"@{k // 1000}k"
    return Column(
        f"robust_acc@{k}", text, help=f"Robust accuracy after {k} queries an image, under the strongest attack."
    )


def _more(id: str, title: str, kind: Kind, help: str, better: Way = "high") -> Column:
    """A column for the page and the exports; too much for a terminal."""
    return Column(id, title, kind, help, better, main=False)


EVASION = (
    Column("robust_acc", "Robust", help="Worst case of each image over all attacks and seeds; Wilson 95 % interval."),
    Column("clean_acc", "Clean", help="Accuracy on the untouched images."),
    *(_budget(k) for k in BUDGETS),
    Column("worst_attack", "Worst attack", "text", "The attack that leaves the lowest accuracy on its own.", ""),
    Column("median_queries", "Queries", "count", "Median queries of a successful attack; the fewest over the attacks."),
)
EVASION_MORE = (
    _more(
        "expected_acc",
        "Expected",
        "rate",
        "Mean accuracy over the draws of a randomised defense, lowest of all attacks.",
    ),
    _more(
        "any_hit_acc",
        "Any hit",
        "rate",
        "Images that no draw of a randomised defense got wrong, worst attack.",
    ),
    _more("median_distance", "Median distance", "score", "Median size of the smallest perturbation found."),
    _more("seeds", "Seeds", "count", "Seeds of the attacks.", ""),
)
PASSES = Column("passes", "Passes", "count", "Forward and backward passes an attacked image, all attacks together.", "")
REPAIR = (
    Column("fidelity", "Fidelity", "score", "Mean over the attacks; interval by bootstrap over them."),
    Column("ca", "Clean", help="Clean accuracy after the defense, mean over attacks."),
    Column("asr", "ASR", help="Attack success rate after the defense, mean over attacks.", better="low"),
    Column("worst_asr", "Worst ASR", help="Success rate of the attack that survives the defense best.", better="low"),
    Column("ca_drop", "Clean loss", help="Clean accuracy lost to the defense, mean over attacks.", better="low"),
)
REPAIR_MORE = (
    _more("ra", "RA", "rate", "Recovered accuracy: triggered images that get their true label."),
    _more("rir", "RIR", "score", "Robustness improvement rate: recovered accuracy won against clean accuracy lost."),
    _more(
        "der",
        "DER",
        "score",
        "Defense effectiveness rate, for comparison only: it rewards a destroyed model.",
    ),
    _more("attacks", "Attacks", "count", "Backdoor attacks that the mean runs over.", ""),
    _more("seeds", "Seeds", "count", "Training seeds.", ""),
)
DETECTION = (
    Column("auroc", "AUROC", "score", "Mean over the attacks; interval by bootstrap over them."),
    Column("auroc_min", "Lowest", "score", "AUROC under the attack that hides best."),
    Column("tpr@1", "TPR @1", help="Share of the attacks found where 1 % of clean validation inputs raise an alarm."),
    Column("tpr@5", "TPR @5", help="Share of the attacks found where 5 % of clean validation inputs raise an alarm."),
)
DETECTION_MORE = (
    _more("auroc_all", "AUROC all", "score", "AUROC with every triggered input as a positive, successful or not."),
    _more("attacks", "Attacks", "count", "Attacks that the mean runs over.", ""),
)
MODELS = (
    Column(
        "balanced_accuracy", "Balanced", help="Mean of the shares of clean and of backdoored models judged rightly."
    ),
    Column("auroc", "AUROC", "score", "Of the scores over the population; interval by bootstrap over models."),
    Column("false_alarms", "False alarms", help="Clean models called backdoored; Wilson 95 % interval.", better="low"),
    Column("found", "Found", help="Backdoored models called backdoored; Wilson 95 % interval."),
    Column("target_hit", "Target named", help="Of the backdoored models found: the target class was named."),
    _more("clean_models", "Clean models", "count", "In the population.", ""),
    _more("backdoored_models", "Backdoored models", "count", "In the population.", ""),
)


def under(group: str, names: Iterable[str], kind: Kind, help: str, better: Way = "high") -> list[Column]:
    """One column for each attack; all of a group are comparable."""
    return [Column(f"{group}:{n}", n, kind, help, better, False, group) for n in names]


def filled(columns: Iterable[Column], lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns in which some line has something to show."""
    present = {c for line in lines for c in (*line.numbers, *line.texts)}
    return tuple(c for c in columns if c.id in present)
