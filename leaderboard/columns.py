"""The columns of all boards: title, unit and meaning.

Columns of row metrics take these from `siegebench.metrics`; columns computed by a board define them here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from siegebench.metrics import ALARM_MARKS, QUERY_MARKS, SEVERITIES, find

from .board import Column, Line, Unit

Direction = Literal["high", "low", ""]


def read(name: str, help: str = "", main: bool = True, title: str = "", better: Direction | None = None) -> Column:
    """The column of a row metric.

    Args:
        help, title, better: replace those of the metric.
    """
    metric = find(name)
    if metric is None:
        raise ValueError(f"rows have no metric {name!r}")
    unit: Unit = "rate" if metric.unit == "rate" else "count" if metric.unit in ("count", "seconds") else "score"
    direction = metric.better if better is None else better
    return Column(name, title or metric.title, unit, help or metric.help, direction, main)


def _more(id: str, title: str, unit: Unit, help: str, better: Direction = "high") -> Column:
    """A column computed by the board that appears on the page and in the exports only."""
    return Column(id, title, unit, help, better, main=False)


def _worst(kind: str) -> tuple[Column, ...]:
    return (
        _more(f"worst_{kind}_acc", f"Worst {kind}", "rate",
              f"Lowest robust accuracy of a {kind} of at least 20 images, all attacks and seeds; 95 % interval."),
        _more(f"worst_{kind}", f"Worst {kind} is", "text", f"Name or number of that {kind}.", ""),
        _more(f"worst_{kind}_equal", "If alike", "rate",
              "The same, as expected if all were equally robust: the lowest of many rates is low by chance.", ""),
        _more(f"worst_{kind}_clean", f"Worst {kind}, clean", "rate", f"Lowest clean accuracy of such a {kind}."),
    )  # fmt: skip


GAIN = Column(
    "gain",
    "vs none",
    "points",
    "Difference to the same network without a defense on this board, in points.",
    "high",
    main=False,
)
EVASION = (
    read("robust_acc", "Images that stay correctly classified under all attacks and seeds; Wilson 95 % interval."),
    GAIN,
    read("clean_acc"),
    Column("balanced_robust", "Balanced, robust", "rate", "Robust accuracy, mean over classes of unequal size."),
    Column("balanced_clean", "Balanced, clean", "rate", "Clean accuracy, mean over classes of unequal size."),
    *(read(f"robust_acc@{k}", f"Robust accuracy after {k} queries per image, strongest attack.") for k in QUERY_MARKS),
    Column("worst_attack", "Worst attack", "text", "The single attack with the lowest robust accuracy.", ""),
    read("median_queries", "Median number of queries of a successful attack; lowest over the attacks."),
)
TARGETED = (
    read("target_rate", "Attacked images that any attack and seed turned into the target class; Wilson 95 % interval."),
    read("target_rate_clean", "Clean images of other classes that are classified as the target class."),
    read("target_rate_noise"),
    read("robust_acc", "Images that stay correctly classified under all attacks; any wrong answer counts."),
    read("clean_acc"),
    Column("worst_attack", "Worst attack", "text", "The single attack that reaches the target most often.", ""),
    read("median_queries", "Median number of queries to reach the target; lowest over the attacks."),
)
EVASION_MORE = (
    read("expected_acc", "Mean accuracy over the draws of a randomised defense; lowest over the attacks.", main=False),
    read("any_hit_acc", "Images correct in every draw of a randomised defense; lowest over the attacks.", main=False),
    read("median_distance", main=False),
    read("ssim", "Structural similarity of clean and adversarial images; lowest over the attacks.", main=False),
    *(column for kind in ("class", "group") for column in _worst(kind)),
    _more("seeds", "Seeds", "count", "Number of attack seeds.", ""),
)
PASSES = Column(
    "passes", "Passes", "count", "Forward and backward passes per attacked image, all attacks together.", ""
)
BACKDOOR = (
    read("fidelity", "Mean over the attacks; interval by bootstrap over them."),
    read("ca", "Clean accuracy after the defense, mean over attacks."),
    read("asr", "Attack success rate after the defense, mean over attacks.", title="ASR"),
    Column("worst_asr", "Worst ASR", help="Highest success rate of an attack after the defense.", better="low"),
    Column("ca_drop", "Clean loss", help="Clean accuracy lost by the defense, mean over attacks.", better="low"),
    Column(
        "knowing_asr",
        "ASR, knowing",
        help="Success rate of attacks designed against the defense, after it; the highest.",
        better="low",
    ),
)
BACKDOOR_MORE = (
    read("ra", main=False),
    read("rir", main=False),
    read("der", main=False),
    *(read(name, main=False) for name in ("c_rej", "psr", "b_rej", "dsr")),  # of defenses that reject
    _more("attacks", "Attacks", "count", "Number of backdoor attacks in the mean.", ""),
    _more("seeds", "Seeds", "count", "Number of training seeds.", ""),
)
POISONING = (
    read("ca", "Clean accuracy after training on the poisoned sets, mean over the poisons; interval by bootstrap."),
    Column("worst_ca", "Worst", help="Clean accuracy under the most harmful poison."),
    read("recovery", "Mean over the poisons; 1 if the defense is as accurate as on clean data."),
    read("ca_defense_clean", "Clean accuracy of the defense on the clean training set."),
    read("ca_undefended", "Clean accuracy of the undefended network on the poisoned sets, mean over the poisons."),
    read("ca_clean_model"),
)
POISONING_MORE = (
    read("ca_not_poisoned", main=False),
    read("train_acc", main=False),
    read("memorised", main=False),
    read("corrected", main=False),
    _more("attacks", "Poisons", "count", "Number of poisons in the mean.", ""),
    _more("seeds", "Seeds", "count", "Number of training seeds.", ""),
)
DETECTION = (
    read("auroc", "Mean over the attacks; interval by bootstrap over them."),
    Column("auroc_min", "Lowest", "score", "Lowest AUROC over the attacks."),
    *(read(f"tpr@{k}") for k in ALARM_MARKS),
    Column(
        "knowing_auroc", "Knowing", "score", "Lowest AUROC over the backdoor attacks designed against the detector."
    ),
    read(
        "oscr",
        "Open-set classification rate, mean over the data sets: accuracy times the AUROC of unknown images "
        "against correctly classified ones.",
    ),
)
GUARDED = (
    read("robust_acc_fpr@5", "Images that are correctly classified or detected under all attacks and seeds, at "
         "5 % false alarms on held-out images; Wilson 95 % interval."),
    Column("robust_static", "Static", help="The same under the attacks that do not know the detector."),
    read("clean_acc_fpr@5"),
)  # fmt: skip
DETECTION_MORE = (
    read("aupr", main=False),
    read("aupr_clean", main=False),
    read("fpr95", main=False),
    *(read(f"fpr@{k}", main=False) for k in ALARM_MARKS),
    read("auroc_all", "AUROC with every triggered input as a positive, successful or not.", main=False),
    _more("attacks", "Attacks", "count", "Number of attacks in the mean.", ""),
)
SUPERVISORS = (
    read("auroc", "Mean over the kinds of inputs."),
    Column("auroc_min", "Lowest", "score", "AUROC on the kind of inputs that is found least.", "high"),
    Column("mean_rank", "Mean rank", "score", "Mean over the kinds of the rank by AUROC; ties share theirs.", "low"),
)
GRANTED_ALARMS = 0.1  # share of clean models that may be called backdoored where the threshold is set on the population
MODELS = (
    Column(
        "balanced_accuracy", "Balanced", help="Mean of the true positive and the true negative rate over the models."
    ),
    read("auroc", "AUROC of the scores over all models; interval by bootstrap over models."),
    Column("false_alarms", "False alarms", help="Clean models called backdoored; Wilson 95 % interval.", better="low"),
    Column("found", "Found", help="Backdoored models detected; Wilson 95 % interval."),
    Column(
        "found_granted",
        f"Found at {100 * GRANTED_ALARMS:.0f} %",
        help=f"Backdoored models whose score is higher than that of all but {100 * GRANTED_ALARMS:.0f} % of the clean "
        "models: what the detector would find if its threshold were set on this population.",
    ),
    Column(
        "knowing_found",
        "Found, knowing",
        help="Models detected whose backdoor was designed against the detector; the lowest over these attacks.",
    ),
    Column("target_hit", "Target named", help="Backdoored models found whose target class was named correctly."),
    _more("clean_models", "Clean models", "count", "Number of clean models.", ""),
    _more("backdoored_models", "Backdoored models", "count", "Number of backdoored models.", ""),
)
CORRUPTION = (
    Column("mean_acc", "Corrupted", help="Mean accuracy over corruptions and severities; interval by bootstrap."),
    GAIN,
    read("clean_acc"),
    Column("relative_drop", "Lost", help="Fraction of the clean accuracy lost under corruption.", better="low"),
    Column("worst_corruption", "Worst", "text", "The corruption with the lowest accuracy.", ""),
    Column("worst_corruption_acc", "There", help="Accuracy under the worst corruption, mean over its severities."),
    *(read(f"acc@{s}", f"Accuracy at severity {s}, mean over the corruptions.", main=False) for s in SEVERITIES),
    _more("seeds", "Seeds", "count", "Number of corruption seeds.", ""),
)
CAMOUFLAGE = (
    read("vehicle_acc", "Views of vehicles seen as a vehicle under the strongest texture; Wilson 95 % interval."),
    GAIN,
    read("vehicle_acc_grey"),
    Column("random_acc", "Seen, random", help="The same under the random texture that hides most."),
    Column("worst_texture", "Strongest", "text", "The texture under which the fewest vehicles are seen.", ""),
    read("missed"),
    read("vehicle_conf"),
    read("ap50"),
    Column("transfer_acc", "Transfer", help="Views seen under the strongest texture that was made on another network."),
    read("other_acc"),
    read("clean_acc", "Accuracy on the images as the data set paints them."),
    read(
        "worst_view_acc", "The side, height and distance from which fewest are seen; of 5 scenes or more.", main=False
    ),
    Column("worst_view", "Worst view is", "text", "That view.", "", main=False),
    *(_more(f"area@{a}", f"{a} %", "rate", f"Views seen with {a} % of the paint covered.") for a in (12, 25, 50, 100)),
)
EXTRACTION = (
    read("agreement", "Images for which the best copy of a thief gives the victim's answer; Wilson 95 % interval."),
    Column("strongest", "Strongest", "text", "The theft whose copy agrees most often, or a control that exceeds it.",
           ""),
    Column("no_answers", "No answers", help="The same for the best control trained without queries.", better=""),
    read("copy_acc", "Accuracy of that copy."),
    read("transfer_robust_acc", "Accuracy of the victim, on the images that it classifies correctly, under an attack "
         "on a copy; the lowest over the thefts."),
    read("clean_acc"),
    read("flips"),
    read("answer_l1"),
    _more("seeds", "Seeds", "count", "Number of seeds.", ""),
)  # fmt: skip
THEFTS = (
    Column("agreement_lift", "Lift", help="Agreement minus that of the control; interval by bootstrap."),
    read("agreement", better="high"),
    Column(
        "control", "Control", help="Agreement of the control: the same images without the answers to them.", better=""
    ),
    read("copy_acc", better="high"),
    read("agreement_wrong", better="high"),
    read("transfer_robust_acc", better="low"),
    read("tv", better="low"),
    Column("queries", "Queries", "count", "Number of queries to the victim.", ""),
    read("classes_answered", main=False),
    _more("seeds", "Seeds", "count", "Number of seeds.", ""),
)


def agreement(queries: int, main: bool) -> Column:
    """Agreement with a smaller budget."""
    told = f"Agreement with a budget of {queries:,} queries; of the strongest theft."
    return Column(f"agreement@{queries}", f"@{queries:,}", help=told, better="", main=main)


PRIVACY = (
    read("identified", "Private images identified by at least one leak; Wilson 95 % interval."),
    Column("worst_leak", "Worst leak", "text", "The leak that identifies most images alone.", ""),
    read("psnr", "Median PSNR of the leak with the best images, in dB."),
    read("ssim", "Median structural similarity of the leak with the most similar images.", title="SSIM"),
    read("label_acc", "Classes named by the leak that names most."),
    read("label_l1", "Median label error of the leak with the smallest."),
    read("utility_cos", "Cosine of the released and the true mean gradient of 64 public images; below 0.5 not ranked."),
    read("epsilon"),
    _more("chance", "Control", "rate", "Images identified from the mean of public images, without any gradient.", ""),
    _more("seeds", "Seeds", "count", "Number of seeds; an image counts if it is identified with any.", ""),
)


def certified(radii: Sequence[str]) -> list[Column]:
    """The columns of a board of certifiers with these radii."""
    out = [
        read("certified_acc", "Images certified, mean over the radii; interval by bootstrap."),
        Column("attacked_acc", "Under attack", help="Accuracy under the strongest attack within each radius, mean."),
        Column("gap", "Gap", help="Accuracy under attack minus certified accuracy: neither proved nor refuted.",
               better="low"),
        read("clean_acc", "Accuracy of the certifier's prediction; abstentions count as errors."),
        read("abstained"),
    ]  # fmt: skip
    for k, radius in enumerate(radii):
        proved = f"Images certified at radius {radius}; Wilson 95 % interval."
        out.append(read(f"certified_acc@{k}", proved, title=f"Certified, {radius}"))
        attacked = f"Accuracy under the strongest attack within {radius}; Wilson 95 % interval."
        out.append(_more(f"attacked_acc@{k}", f"Attacked, {radius}", "rate", attacked))
    worst = "training on the set of the backdoor with which it abstains most"
    out += [
        read("abstained_triggered", f"Images with the trigger for which no class is named, after {worst}."),
        read("certified_acc_triggered", "The same images certified with their own label, mean over the radii."),
        Column("abstained_poisoned", "Abstained, poisoned", help=f"Images without the trigger, after {worst}.",
               better="low"),
        Column("certified_acc_poisoned", "Certified, poisoned", help="The same images certified, mean over the radii."),
        Column("worst_backdoor", "Backdoor", "text", "The backdoor with which the certifier abstains most.", ""),
    ]  # fmt: skip
    out.append(_more("seconds", "Seconds", "score", "Time of a certificate in seconds per image, all radii.", "low"))
    return [*out, _more("seeds", "Seeds", "count", "Number of seeds; all of them must certify an image.", "")]


def under(
    group: str, names: Iterable[str], unit: Unit, help: str, better: Direction = "high", *, heading: str
) -> list[Column]:
    """One column per attack; columns of a group are comparable."""
    return [Column(f"{group}:{n}", n, unit, help, better, False, group, heading) for n in names]


def filled(columns: Iterable[Column], lines: Sequence[Line]) -> tuple[Column, ...]:
    """The columns in which at least one line has a value."""
    present = {c for line in lines for c in (*line.numbers, *line.texts)}
    return tuple(c for c in columns if c.id in present)
