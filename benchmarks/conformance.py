"""Compares each attack with other PyPI implementations of it: same network, images and budget, in one run.

    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py                  all contests; an hour or more on one core
    SIEGEBENCH_DATA=FOLDER python benchmarks/conformance.py --only pgd cw    some of them; the others keep their rows
    python benchmarks/conformance.py --page                                  docs/conformance.md from the stored rows

Needs the extra `dev`. adversarial-library (`pip install adv-lib`) takes part if it is installed. All implementations
attack the images that the network classifies correctly. Ours runs on the network as the suite prepares it (batch norms
folded), the others on the network as it is loaded (with `--prepared`, on ours). A fresh pass of the network as it is
loaded classifies the returned images; success counts only within eps. Seconds are CPU seconds of one thread. Rows are
kept in benchmarks/conformance.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench import Counted, Scene, number, run_ours, timed
from peers import Peer, adv_lib, art, budgeted, foolbox, load, pyautoattack, torchattacks

from siegebench.threat import Access, Norm, ThreatModel

HERE = Path(__file__).resolve().parent
ROWS = HERE / "conformance.json"
PAGE = HERE.parent / "docs" / "conformance.md"


@dataclass(frozen=True)
class Contest:
    """One of our attacks at one budget, and its peers.

    Attributes:
        by: what decides: `robust` accuracy in percent within eps, or the `median` distance.
        images: the largest number of loaded images that take part.
        transfer: evaluated on the second network, which is not attacked.
    """

    name: str
    ours: Any
    eps: str
    peers: dict[str, Peer]
    norm: Norm = "linf"
    access: Access = "gradient"
    queries: int | None = None
    by: str = "robust"
    images: int = 200
    transfer: bool = False
    note: str = ""

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(
            norm=self.norm, eps=number(self.eps), text=self.eps, access=self.access, queries=self.queries
        )


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
    differ: int = 0  # images whose outcome within eps differs from ours
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


def step(share: float) -> Any:
    """eps times a share, for an option of a peer."""
    return lambda eps: eps * share


def gradient_contests() -> list[Contest]:
    """Attacks inside a ball."""
    out = [
        Contest(
            "fgsm", "fgsm", "1/255",
            {
                "torchattacks FGSM": torchattacks("FGSM"),
                "ART FastGradientMethod": art("FastGradientMethod"),
                "foolbox FGSM": foolbox("FGSM"),
            },
        )
    ]  # fmt: skip
    for eps in ("8/255", "1/255", "0.5/255"):
        out.append(
            Contest(
                f"pgd {eps}", {"name": "pgd", "steps": 20, "step": f"{number(eps) / 4!r}"}, eps,
                {
                    "torchattacks PGD": torchattacks("PGD", alpha=step(0.25), steps=20),
                    "ART ProjectedGradientDescent": art(
                        "ProjectedGradientDescent", eps_step=step(0.25), max_iter=20, num_random_init=1
                    ),
                    "foolbox LinfPGD": foolbox("LinfPGD", abs_stepsize=step(0.25), steps=20),
                    "adv-lib pgd_linf": adv_lib("pgd_linf", ε=step(1), absolute_step_size=step(0.25), steps=20),
                },
                note="20 steps of eps / 4 on the cross-entropy from one random start.",
            )
        )  # fmt: skip
    out += [
        Contest(
            "mifgsm", {"name": "mifgsm", "steps": 10, "step": f"{1 / 2550!r}"}, "1/255",
            {
                "torchattacks MIFGSM": torchattacks("MIFGSM", alpha=step(0.1), steps=10),
                "ART MomentumIterativeMethod": art("MomentumIterativeMethod", eps_step=step(0.1), max_iter=10),
                "foolbox MIFGSM": foolbox("MIFGSM", abs_stepsize=step(0.1), steps=10),
            },
            note="10 steps of eps / 10, momentum 1.",
        ),
        Contest(
            "apgd ce", "apgd", "0.5/255",
            {
                "torchattacks APGD": torchattacks("APGD", norm=True, steps=100),
                "ART AutoProjectedGradientDescent": art(
                    "AutoProjectedGradientDescent", eps_step=step(2), max_iter=100, nb_random_init=1
                ),
                "pyautoattack apgd-ce": pyautoattack("apgd-ce"),
                "adv-lib apgd": adv_lib("apgd", eps=step(1), norm=float("inf"), loss_function="ce"),
            },
            note="100 steps on the cross-entropy, one start.",
        ),
        Contest(
            "apgd targeted_dlr", {"name": "apgd", "loss": "targeted_dlr"}, "0.5/255",
            {
                "torchattacks APGDT": torchattacks("APGDT", norm=True, steps=100),
                "pyautoattack apgd-t": pyautoattack("apgd-t"),
                "adv-lib apgd_targeted": adv_lib("apgd_targeted", eps=step(1), norm=float("inf")),
            },
            images=40,
            note="Nine target classes, 100 steps each.",
        ),
    ]  # fmt: skip
    return out


def autoattack_contests() -> list[Contest]:
    """The whole ensemble against the reference."""
    return [
        Contest(
            f"autoattack {eps}",
            "autoattack",
            eps,
            {"pyautoattack standard": pyautoattack()},
            images=images,
            note="Standard.",
        )
        for eps, images in (("8/255", 200), ("1/255", 200), ("0.5/255", 40))  # survivors need thousands of passes
    ]


def minimal_contests() -> list[Contest]:
    """Attacks that search for the smallest perturbation."""
    return [
        Contest(
            "fab linf", "fab", "0.5/255",
            {
                "torchattacks FAB": torchattacks("FAB", norm=True, steps=100, multi_targeted=True),
                "pyautoattack fab-t": pyautoattack("fab-t"),
                "adv-lib fab": adv_lib("fab", norm=float("inf"), targeted_restarts=True),
            },
            images=25,
            note="Nine target classes, 100 steps each.",
        ),
        Contest(
            "cw l2", "cw", "0.1",
            {
                "torchattacks CW": torchattacks("CW", eps=False, steps=900, lr=0.01),
                "ART CarliniL2Method": art(
                    "CarliniL2Method", norm=False, eps=False, binary_search_steps=9, max_iter=100, learning_rate=0.01
                ),
                "foolbox L2CarliniWagner": foolbox("L2CarliniWagnerAttack", binary_search_steps=9, steps=100),
                "adv-lib carlini_wagner_l2": adv_lib("carlini_wagner_l2", max_iterations=100),
            },
            norm="l2", by="median", images=12,
            note="Nine searches of 100 steps; torchattacks does not search the constant and takes 900 steps at c = 1.",
        ),
        Contest(
            "deepfool l2", "deepfool", "0.1",
            {
                "torchattacks DeepFool": torchattacks("DeepFool", eps=False, steps=50),
                "ART DeepFool": art("DeepFool", norm=False, eps=False, max_iter=50, epsilon=0.02),
                "foolbox L2DeepFool": foolbox("L2DeepFoolAttack", steps=50),
                "adv-lib df": adv_lib("df", steps=50),
            },
            norm="l2", by="median", images=100,
            note="At most 50 steps, overshoot 0.02.",
        ),
        Contest(
            "fmn l2", "fmn", "0.1",
            {
                "foolbox L2FMN": foolbox("L2FMNAttack", steps=100),
                "foolbox DDN": foolbox("DDNAttack", steps=100),
                "adv-lib fmn": adv_lib("fmn", norm=2, steps=100),
                "adv-lib ddn": adv_lib("ddn", steps=100, levels=None),
            },
            norm="l2", by="median", images=200,
            note="100 steps.",
        ),
        Contest(
            "fmn linf", "fmn", "0.5/255",
            {
                "foolbox LInfFMN": foolbox("LInfFMNAttack", steps=100),
                "adv-lib fmn": adv_lib("fmn", norm=float("inf"), steps=100),
            },
            by="median", images=200,
            note="100 steps.",
        ),
        Contest(
            "nrf l2", "nrf", "0.1", {}, norm="l2", by="median", images=30,
            note="200 steps to find the channels, 200 to attack. No other package on PyPI has it.",
        ),
    ]  # fmt: skip


def transfer_contests() -> list[Contest]:
    """Images made on ResNet-20, evaluated on ResNet-56."""
    size = f"{8 / 2550!r}"

    def wrapped(name: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "attack": {"name": "mifgsm", "step": size}, **options}

    di = {"resize_rate": 0.9, "diversity_prob": 0.5}
    common: dict[str, Any] = {"alpha": step(0.1), "steps": 10, "decay": 1.0}
    names: list[tuple[str, Any, dict[str, Peer], str]] = [
        (
            "mifgsm", {"name": "mifgsm", "step": size},
            {
                "torchattacks MIFGSM": torchattacks("MIFGSM", **common),
                "ART MomentumIterativeMethod": art("MomentumIterativeMethod", eps_step=step(0.1), max_iter=10),
                "foolbox MIFGSM": foolbox("MIFGSM", abs_stepsize=step(0.1), steps=10),
            },
            "",
        ),
        ("di", wrapped("di"), {"torchattacks DIFGSM": torchattacks("DIFGSM", **common, **di)}, "p = .5, down to .9."),
        (
            "ti", wrapped("ti"),
            {"torchattacks TIFGSM": torchattacks("TIFGSM", **common, len_kernel=7, diversity_prob=0.0)},
            "Kernel of 7 pixels, no input diversity.",
        ),
        (
            "vmi", {"name": "vmi", "step": size, "neighbours": 5},
            {"torchattacks VMIFGSM": torchattacks("VMIFGSM", **common, N=5)},
            "5 neighbours.",
        ),
    ]  # fmt: skip
    return [
        Contest(
            f"{name} to ResNet-56", ours, "8/255", peers, transfer=True, note=f"10 steps of eps / 10. {note}".strip()
        )
        for name, ours, peers, note in names
    ]


def query_contests() -> list[Contest]:
    """Query attacks. Our Oracle enforces every budget and keeps the best point that was queried."""
    score: dict[str, Any] = {"access": "score", "queries": 1000}
    label: dict[str, Any] = {"access": "label", "queries": 1000, "norm": "l2", "by": "median", "images": 12}
    jump = art("HopSkipJump", eps=False, max_iter=64)
    boundary = art("BoundaryAttack", norm=False, eps=False, targeted=False, max_iter=5000)
    sign_opt = art("SignOPTAttack", norm=False, eps=False, targeted=False)
    simba = art("SimBA", norm=False, eps=False, softmax=True, attack="px", epsilon=0.2, max_iter=3000)
    alone = "No other package on PyPI has it."
    return [
        Contest(
            "square linf", {"name": "square", "queries": 1000, "rescale": True}, "2/255",
            {
                "torchattacks Square": torchattacks("Square", norm=True, n_queries=1000),
                "ART SquareAttack": budgeted(art("SquareAttack", max_iter=334), single=True),
                "pyautoattack square": pyautoattack("square", queries=1000),
            },
            **score, images=100,
            note="1,000 queries; ART spends three of them per step.",
        ),
        Contest(
            "square l2", {"name": "square", "queries": 1000, "rescale": True}, "0.5",
            {
                "torchattacks Square": torchattacks("Square", norm=True, n_queries=1000),
                "pyautoattack square": pyautoattack("square", queries=1000),
            },
            **score, norm="l2", images=100,
            note="1,000 queries.",
        ),
        Contest(
            "simba pixel", {"name": "simba", "basis": "pixel", "step": 0.2, "loss": "ce"}, "1.0",
            {"ART SimBA px": budgeted(simba, single=True)},
            **score, norm="l2", images=20,
            note="1,000 queries, steps of .2.",
        ),
        *(
            Contest(name, name, "2/255", {}, **score, images=100, note=f"1,000 queries. {alone}")
            for name in ("nes", "signhunter", "bandits")
        ),
        Contest(
            "hopskipjump l2", "hopskipjump", "0.5",
            {
                "ART HopSkipJump": budgeted(jump, single=True),
                "foolbox HopSkipJump": budgeted(foolbox("HopSkipJumpAttack", steps=64)),
            },
            **label, note="1,000 queries.",
        ),
        Contest(
            "boundary l2", "boundary", "0.5",
            {
                "ART BoundaryAttack": budgeted(boundary, single=True),
                "foolbox BoundaryAttack": budgeted(foolbox("BoundaryAttack")),
            },
            **label, note="1,000 queries.",
        ),
        Contest(
            "sign_opt l2", "sign_opt", "0.5",
            {"ART SignOPT": budgeted(sign_opt, single=True)},
            **label, note="1,000 queries.",
        ),
        Contest(
            "geoda l2", "geoda", "0.5",
            {"ART GeoDA": budgeted(art("GeoDA", eps=False), single=True)},
            **label, note="1,000 queries.",
        ),
        *(
            Contest(
                f"{name} linf", name, "4/255", {}, access="label", queries=1000, images=50,
                note=f"1,000 queries. {alone}",
            )
            for name in ("rays", "signflip")
        ),
    ]  # fmt: skip


def contests() -> list[Contest]:
    """All, in the order of the page."""
    return [*gradient_contests(), *autoattack_contests(), *minimal_contests(), *transfer_contests(), *query_contests()]


def hold(contest: Contest, scene: Scene, victim: Any = None, prepared: bool = False) -> Table:
    """Run one contest; `victim` classifies the images of transfer contests."""
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
    for who, peer in contest.peers.items():
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="contests whose name begins with one of these")
    parser.add_argument("--images", type=int, default=200, help="number of test images; several contests use fewer")
    parser.add_argument("--prepared", action="store_true", help="the others attack our prepared network too")
    parser.add_argument("--page", action="store_true", help="only write docs/conformance.md from the stored rows")
    args = parser.parse_args()
    stored = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    if not args.page:
        torch.set_num_threads(1)
        missing = load()
        scene = Scene.load("cifar_resnet20", "cifar10_jpeg", args.images)
        victim = Scene.load("cifar_resnet56", "cifar10_jpeg", 8).plain
        print(f"cifar_resnet20 is right on {len(scene.x)} of {scene.total} images of cifar10_jpeg", flush=True)
        print(f"not installed: {', '.join(missing) or 'nothing'}", flush=True)
        for contest in contests():
            if args.only and not contest.name.startswith(tuple(args.only)):
                continue
            print(f"{contest.name}: {contest.threat.label}", flush=True)
            stored[contest.name] = asdict(hold(contest, scene, victim, args.prepared))
            ROWS.write_text(json.dumps(stored, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
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
        "whose outcome differs from ours. Forwards and backwards are passes per image. Ours counts as equally strong",
        "if it is within one image or one point of the strongest other implementation, or within 1 % of its median",
        "distance.",
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
            lines.append(f"| {row.who} | {row.robust:.1f} % | {row.differ} | {median} | {passes} | {row.cpu:.1f} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
