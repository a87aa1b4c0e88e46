"""The vocabulary of rows: every figure that a row may hold, with its unit, its direction and its meaning.

The tracks (`siegebench.tracks`) write these names and the leaderboard reads them; a Result refuses any other. Only rows
of measures, which are diagnoses and never ranked, hold figures of their own. Needs no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["rate", "score", "count", "distance", "seconds"]  # a rate lies in [0, 1] and is counted on n things
Better = Literal["high", "low", ""]

QUERY_MARKS = (100, 1000, 10_000)  # queries at which robust accuracy is read off
ALARM_MARKS = (1, 5)  # per cent of false alarms at which detectors are compared
SEVERITIES = (1, 2, 3, 4, 5)  # of a corruption


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: as rows hold it. One that ends in `@` is a family: `robust_acc@1000`.
        unit: what it counts; values of a `rate` lie in [0, 1].
        better: which way is good, where one is.
        title: above a column.
        help: one sentence for readers of a table.
        low, high: the smallest and the largest value that it can take; None where there is no limit.
    """

    name: str
    unit: Unit
    better: Better
    title: str
    help: str
    low: float | None = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        if self.unit == "rate":
            object.__setattr__(self, "high", 1.0)


_ALL = (
    # attacks on images
    Metric("clean_acc", "rate", "high", "Clean", "Accuracy on the untouched images."),
    Metric("robust_acc", "rate", "high", "Robust", "Images that stay correctly classified under the attack."),
    Metric("robust_acc@", "rate", "high", "@{}", "Robust accuracy after {} queries per image."),
    Metric("robust_acc_8bit", "rate", "high", "Robust, 8 bit", "The same after rounding the images to 8 bits."),
    Metric("asr", "rate", "low", "ASR", "Attack success rate, of the images that could be attacked."),
    Metric("expected_acc", "rate", "high", "Expected", "Mean accuracy over the draws of a randomised defense."),
    Metric("any_hit_acc", "rate", "high", "Every draw", "Images correct in every draw of a randomised defense."),
    Metric("median_distance", "distance", "high", "Median distance", "Median size of the smallest perturbation found."),
    Metric(
        "ssim", "score", "", "SSIM", "Structural similarity: of clean and adversarial images (mean over the successes "
        "among the first 256 attacked images), or of private images and those recovered (median); 1 for equal images.",
        low=-1.0, high=1.0,
    ),
    Metric("median_queries", "count", "high", "Queries", "Median number of queries of a successful attack."),
    Metric("mean_queries", "count", "high", "Mean queries", "Mean number of queries of a successful attack."),
    Metric("target_rate", "rate", "low", "Target reached", "Attacked images classified as the target class."),
    Metric("target_rate_clean", "rate", "", "Target, clean", "Clean images of other classes that get the class."),
    Metric(
        "target_rate_noise", "rate", "", "Target, noise", "The same images under random noise of the same size, "
        "classified as the target class.",
    ),
    # backdoors
    Metric("ca", "rate", "high", "Clean", "Clean accuracy."),
    Metric("ra", "rate", "high", "RA", "Recovered accuracy: triggered images that get their true label."),
    Metric("c_rej", "rate", "low", "C-REJ", "Clean images that the model rejects."),
    Metric("psr", "rate", "high", "PSR", "Clean images that are correctly classified and not rejected."),
    Metric("b_rej", "rate", "high", "B-REJ", "Triggered images that the model rejects."),
    Metric("dsr", "rate", "high", "DSR", "Triggered images that are rejected or get their true label."),
    Metric("clean_rate", "rate", "", "Clean rate", "Images without the trigger that get the attacker's label."),
    Metric("lift", "score", "low", "Lift", "Attack success rate minus the clean rate.", low=-1.0, high=1.0),
    Metric(
        "asr_others", "rate", "", "ASR, others", "Triggered images of classes that the label map leaves out, and that "
        "get one of its targets.",
    ),
    Metric("ca_clean_model", "rate", "", "Clean model", "Clean accuracy of the same network trained on clean data."),
    Metric("asr_clean_model", "rate", "", "ASR, clean model", "Success rate of the trigger on that clean network."),
    Metric("ca_undefended", "rate", "", "Clean before", "Clean accuracy before the defense."),
    Metric("asr_undefended", "rate", "", "ASR before", "Attack success rate before the defense."),
    Metric("ra_undefended", "rate", "", "RA before", "Recovered accuracy before the defense."),
    Metric(
        "fidelity", "score", "high", "Fidelity", "Fraction of the attack success rate removed, times the fraction of "
        "clean accuracy kept.", low=-1.0, high=1.0,
    ),
    Metric(
        "der", "score", "high", "DER", "Defense effectiveness rate, for comparison only: it rewards a destroyed model.",
        high=1.0,
    ),
    Metric(
        "rir", "score", "high", "RIR", "Robustness improvement rate: recovered accuracy won, clean accuracy lost.",
        high=1.0,
    ),
    Metric("attack_success", "score", "", "Attack succeeded", "1 if it did on the undefended model.", high=1.0),
    # poisoned training sets without a trigger
    Metric("damage", "score", "low", "Damage", "Clean accuracy lost to the poison.", low=-1.0, high=1.0),
    Metric(
        "recovery", "score", "high", "Recovery", "Fraction of the clean accuracy lost to the poison that the defense "
        "wins back; 1 if it is as accurate as on clean data.", low=None,
    ),
    Metric("ca_defense_clean", "rate", "", "Clean data", "Clean accuracy of the same defense on clean training data."),
    Metric(
        "ca_not_poisoned", "rate", "", "Rest alone", "Clean accuracy of the same network, trained only on the images "
        "that were not poisoned.",
    ),
    Metric("train_acc", "rate", "", "Fitted", "Training images that get the label that they have in the poisoned set."),
    Metric("memorised", "rate", "low", "Memorised", "Poisoned training images that get the label of the poisoned set."),
    Metric("corrected", "rate", "high", "Corrected", "Relabelled training images that get their true label."),
    # detectors
    Metric("auroc", "score", "high", "AUROC", "Area under the ROC curve.", high=1.0),
    Metric("aupr", "score", "high", "AUPR", "Area under the precision-recall curve, clean as negatives.", high=1.0),
    Metric("aupr_clean", "score", "high", "AUPR clean", "The same with the clean images as positives.", high=1.0),
    Metric("fpr95", "rate", "low", "FPR at TPR 95 %", "False alarms on test images when 95 % of positives are found."),
    Metric(
        "oscr", "score", "high", "OSCR", "Open-set classification rate: known images correctly classified and "
        "accepted, mean over the fractions of unknown images that are accepted.", high=1.0,
    ),
    Metric(
        "robust_acc_fpr@", "rate", "high", "Robust, FPR {} %", "Images that stay correctly classified or are detected, "
        "at {} % false alarms on held-out images; images misclassified without attack count as errors.",
    ),
    Metric(
        "clean_acc_fpr@", "rate", "high", "Clean, FPR {} %", "Clean images that are correctly classified and not "
        "rejected, at {} % false alarms on held-out images.",
    ),
    Metric("auroc_all", "score", "high", "AUROC all", "AUROC with every triggered input as a positive.", high=1.0),
    Metric("tpr@", "rate", "high", "TPR @{}", "Fraction of attacks found at {} % false alarms on held-out images."),
    Metric("fpr@", "rate", "low", "FPR @{}", "False alarms on test images at the threshold for {} % on held-out ones."),
    Metric("score", "score", "", "Score", "Score of a model; higher means more suspicious.", low=None),
    Metric("flagged", "score", "", "Flagged", "1 if the detector reports the model as backdoored.", high=1.0),
    Metric("truth", "score", "", "Backdoored", "1 if the model is backdoored.", high=1.0),
    Metric("named_target", "count", "", "Named class", "Class that the detector names, or the first of several."),
    Metric("named_targets", "count", "", "Named classes", "Number of classes that the detector names."),
    Metric("target_hit", "score", "high", "Target named", "1 if the named target class is correct.", high=1.0),
    # corruptions
    Metric("acc", "rate", "high", "Accuracy", "Accuracy on the corrupted images, mean over the severities."),
    Metric("acc@", "rate", "high", "Severity {}", "Accuracy at severity {}."),
    # certificates
    Metric("certified_acc", "rate", "high", "Certified", "Images correctly classified with a certificate, mean over "
           "the radii."),
    Metric("certified_acc@", "rate", "high", "Certified, {}", "The same at radius number {} of the board."),
    Metric("abstained", "rate", "low", "Abstained", "Images for which the certifier names no class."),
    Metric("certified_acc_triggered", "rate", "high", "Certified, trigger", "Images with a trigger that get their "
           "own label with a certificate, mean over the radii."),
    Metric("abstained_triggered", "rate", "low", "Abstained, trigger", "Images with a trigger for which the "
           "certifier names no class."),
    # copies of a victim
    Metric("agreement", "rate", "low", "Agreement", "Images to which the copy gives the victim's top-1 class."),
    Metric("agreement_wrong", "rate", "low", "Where wrong", "The same, on the images that the victim misclassifies."),
    Metric("copy_acc", "rate", "low", "Copy", "Accuracy of the copy."),
    Metric("tv", "score", "high", "Distance", "Mean total variation of the posteriors of victim and copy.", high=1.0),
    Metric("transfer_robust_acc", "rate", "high", "Transfer", "Accuracy of the victim under an attack on the copy, "
           "on the images that it classifies correctly."),
    Metric("flips", "rate", "low", "Changed", "Images whose top-1 class the defense changes."),
    Metric("flips_asked", "rate", "", "Changed, asked", "The same for the images that the thief queries."),
    Metric("answer_l1", "score", "low", "Moved", "Mean L1 distance of the answers with and without the defense.",
           high=2.0),
    Metric("classes_answered", "count", "", "Classes", "Classes that the victim answers to at least one query."),
    # images from shared gradients
    Metric("identified", "rate", "low", "Identified", "Private images that are the nearest of a gallery to the image "
           "recovered from what their client released."),
    Metric("psnr", "score", "low", "PSNR", "Median peak signal-to-noise ratio of the recovered images, in dB; at most "
           "100.", high=100.0),
    Metric("label_acc", "rate", "low", "Labels", "Private images whose class the attacker recovers."),
    Metric("label_l1", "score", "high", "Label error", "Median sum of |recovered - true| over the probabilities of the "
           "label; 2 at most.", high=2.0),
    Metric("utility_cos", "score", "high", "Useful", "Cosine of the released and the true mean gradient of 64 public "
           "images.", low=-1.0, high=1.0),
    Metric("epsilon", "score", "low", "Epsilon", "Epsilon of differential privacy at delta 1e-5 for one epoch of "
           "batches of 64; none for a rule without this guarantee."),
    # textures on the paint of vehicles
    Metric("vehicle_acc", "rate", "high", "Seen", "Views of vehicles with the texture, classified as vehicles."),
    Metric("vehicle_acc_grey", "rate", "high", "Seen, grey", "The same with grey paint."),
    Metric("vehicle_conf", "score", "high", "Confidence", "Mean score for vehicle on views of vehicles.", high=1.0),
    Metric("missed", "rate", "low", "Missed", "Views missed under the texture, of those seen with grey paint."),
    Metric("ap50", "score", "high", "AP50", "Average precision of a detector at an overlap of 0.5.", high=1.0),
    Metric("other_acc", "rate", "high", "Others", "Scenes with the texture but no vehicle, classified so."),
    Metric("worst_view_acc", "rate", "high", "Worst view", "The side, height and distance from which fewest are seen."),
    Metric("covered", "rate", "", "Covered", "The share of the paint that carries a pattern; the rest is grey."),
    Metric("vehicle_acc_azimuth@", "rate", "high", "{} deg", "Views seen, azimuth from {} degrees on, 45 wide."),
    Metric("vehicle_acc_pitch@", "rate", "high", "pitch {}", "Views seen, pitch from {} degrees on, 10 wide."),
    Metric("vehicle_acc_distance@", "rate", "high", "{} m", "Views seen from {} metres on, 2 wide."),
    Metric("vehicle_conf_azimuth@", "score", "high", "conf {} deg", "Mean score, azimuth from {} on.", high=1.0),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

COUNTS: dict[str, str] = {
    "attacked": "images that the attack was run on",
    "forwards": "forward passes in all",
    "backwards": "backward passes in all",
    "queries": "images sent through the victim in all",
    "forwards_per_sample": "forward passes of an attacked image",
    "backwards_per_sample": "backward passes of an attacked image",
    "queries_per_sample": "queries of an attacked image",
    "learning_forwards": "forward passes while the attack learnt",
    "learning_backwards": "backward passes while the attack learnt",
    "poisoned": "training images that were poisoned",
    "covers": "training images that got the trigger and kept their label",
    "train": "training images",
}
SAMPLES: dict[str, str] = {
    "clean": "the clean image is correctly classified",
    "robust": "the attacked image is correctly classified",
    "attacked": "the image was attacked: it was classified correctly, and is not of the target class",
    "target": "the attacked image became the target class",
    "abstained": "the certifier names no class",
    "abstained_triggered": "the certifier names no class of the image with the trigger",
    "certified_triggered@": "the image with the trigger gets its own label with a certificate at this radius",
    "certified@": "the image is correctly classified with a certificate at this radius, the smallest is 0",
    "refuted": "the attacked image, within the radius, breaks a certificate of the label",
    "agree": "the copy gives the victim's top-1 class",
    "copied": "the copy classifies the image correctly",
    "safe@": "the attacked image is correctly classified or detected, at this percentage of false alarms",
    "identified": "the private image is the nearest of its gallery to the recovered one",
    "label_right": "the attacker recovers the class of the private image",
    "right@": "the image is correctly classified at this severity",
    "vehicle": "the scene shows a vehicle",
    "seen": "the answer under the texture is a vehicle",
    "seen_grey": "the answer with grey paint is a vehicle",
    "azimuth@": "this bit of the azimuth of the camera, in steps of 45 degrees",
    "pitch@": "this bit of the pitch of the camera, in steps of 10 degrees",
    "distance@": "this bit of the distance of the camera, in steps of 2 metres",
    "label@": "this bit of the number of the image's class, the lowest is 0",
    "group@": "this bit of the number of the image's group, the lowest is 0",
}
_OWN = re.compile(r"[a-z][a-z0-9_]*(@[0-9][0-9.e+-]*)?")  # a figure of a measure


def find(name: str) -> Metric | None:
    """The figure of a name, `robust_acc@1000` included; None where there is none."""
    return _member(name, METRICS) if "@" in name else METRICS.get(name)


def _member(name: str, known: dict[str, Metric]) -> Metric | None:
    family, at, mark = name.partition("@")
    found = known.get(f"{family}@") if at and mark.isascii() and mark.isdigit() and len(mark) <= 9 else None
    return found and Metric(name, found.unit, found.better, found.title.format(_short(int(mark))),
                            found.help.format(int(mark)), found.low, found.high)  # fmt: skip


def _short(number: int) -> str:
    return f"{number // 1000}k" if number >= 1000 and number % 1000 == 0 else f"{number}"


def is_sample(name: str) -> bool:
    """Whether a row may hold outcomes of this name, one for each image."""
    family, at, mark = name.partition("@")
    return name in SAMPLES if not at else f"{family}@" in SAMPLES and mark.isascii() and mark.isdigit()


def unknown(names: list[str], *, of_measure: bool) -> str | None:
    """The first name that is no figure of a row; any snake_case name is one in the row of a measure."""
    return next((n for n in names if not (find(n) or (of_measure and is_measure(n)))), None)


def is_measure(name: str) -> bool:
    """Whether a measure may call a figure of its own so: snake_case, and `@` with a number where it is one of many."""
    return len(name) <= 100 and _OWN.fullmatch(name) is not None
