"""The contests of conformance.py: one of our attacks at one budget, and the other implementations of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import number
from peers import Peer, adv_lib, art, budgeted, foolbox, pyautoattack, torchattacks

from siegebench.threat import Access, Norm, ThreatModel


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
        Contest(
            "apgd ce l1", "apgd", "1",
            {
                "pyautoattack apgd-ce": pyautoattack("apgd-ce"),
                "ART AutoProjectedGradientDescent": art(
                    "AutoProjectedGradientDescent", eps_step=step(2), max_iter=100, nb_random_init=1
                ),
                "ART ProjectedGradientDescent": art(
                    "ProjectedGradientDescent", eps_step=step(0.25), max_iter=100, num_random_init=1
                ),
                "foolbox L1PGD": foolbox("L1PGD", abs_stepsize=step(0.25), steps=100),
            },
            norm="l1", images=40,
            note="100 steps on the cross-entropy, one start; ours and pyautoattack in balls of 3 eps, 2 eps and eps.",
        ),
        Contest(
            "apgd targeted_dlr l1", {"name": "apgd", "loss": "targeted_dlr", "targets": 5}, "1",
            {"pyautoattack apgd-t": pyautoattack("apgd-t")},
            norm="l1", images=25,
            note="Five target classes, 100 steps each.",
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
    ] + [
        Contest(
            f"autoattack l1 {eps}",
            "autoattack",
            eps,
            {"pyautoattack standard": pyautoattack()},
            norm="l1",
            images=images,
            note="Standard, L1.",
        )
        for eps, images in (("4", 40), ("1", 12))
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
        *(
            Contest(
                name, "square", eps,
                {
                    "torchattacks Square": torchattacks("Square", norm=True, n_queries=1000),
                    "ART SquareAttack": budgeted(art("SquareAttack", max_iter=334), single=True),
                    "pyautoattack square": pyautoattack("square", queries=1000),
                },
                **score, images=images,
                note="1,000 queries; ART spends three of them per step.",
            )
            for name, eps, images in (("square linf", "2/255", 100), ("square linf 1/255", "1/255", 25))
        ),
        *(
            Contest(
                name, "square", eps,
                {
                    "torchattacks Square": torchattacks("Square", norm=True, n_queries=1000),
                    "pyautoattack square": pyautoattack("square", queries=1000),
                },
                **score, norm="l2", images=images,
                note="1,000 queries.",
            )
            for name, eps, images in (("square l2", "0.5", 100), ("square l2 0.25", "0.25", 25))
        ),
        Contest(
            "simba pixel", {"name": "simba", "basis": "pixel", "step": 0.2, "loss": "ce"}, "1.0",
            {"ART SimBA px": budgeted(simba, single=True)},
            **score, norm="l2", images=20,
            note="1,000 queries, steps of .2.",
        ),
        Contest(
            "simba 0.25", "simba", "0.25",
            {"ART SimBA px": budgeted(simba, single=True)},
            **score, norm="l2", images=20,
            note="1,000 queries; ours with its default parameters, ART with steps of .2 along pixels.",
        ),
        *(
            Contest(name, attack, eps, {}, **score, images=images, note=f"1,000 queries. {alone}")
            for attack in ("nes", "signhunter", "bandits")
            for name, eps, images in ((attack, "2/255", 100), (f"{attack} 1/255", "1/255", 25))
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
            Contest(name, attack, eps, {}, access="label", queries=1000, images=images, note=f"1,000 queries. {alone}")
            for attack in ("rays", "signflip")
            for name, eps, images in ((f"{attack} linf", "4/255", 50), (f"{attack} linf 2/255", "2/255", 25))
        ),
    ]  # fmt: skip


def contests() -> list[Contest]:
    """All, in the order of the page."""
    return [*gradient_contests(), *autoattack_contests(), *minimal_contests(), *transfer_contests(), *query_contests()]
