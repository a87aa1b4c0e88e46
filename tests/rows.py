"""Rows without an evaluation: synthetic Results for every track, for the tests of rankings, pages and trackers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from siegebench import card, registry, schema
from siegebench.cells import Cell, Flag, Result, pack, rate

N = 200
DATA = {
    "name": "shapes", "source": {"name": "shapes", "version": 1}, "split": "test", "count": N, "digest": "d" * 64,
    "classes": 10,
}  # fmt: skip
LINF = {"norm": "linf", "eps": 8 / 255, "access": "gradient", "queries": None}
SCORES = {"norm": "linf", "eps": 8 / 255, "access": "score", "queries": 10000}


def outcome(right: int, n: int = N, start: int = 0) -> np.ndarray[Any, Any]:
    """n outcomes of which `right`, from `start` on, are 1."""
    out = np.zeros(n, dtype=bool)
    out[start : start + right] = True
    return out


def flag(id: str, severity: str = "flag", evidence: str = "seen") -> dict[str, str]:
    return Flag(id, severity, evidence).as_dict()  # type: ignore[arg-type]


def checked(row: Result) -> Result:
    """The row, if a store would take it."""
    schema.check(json.loads(json.dumps(row.as_dict(), default=float)))
    return row


def named(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "version": 1, **parameters}


def attacked(
    attack: str | dict[str, Any],
    robust: np.ndarray[Any, Any] | int,
    *,
    defense: str | dict[str, Any] = "none",
    model: str | dict[str, Any] = "resnet",
    clean: np.ndarray[Any, Any] | int = 180,
    track: str = "white_box",
    threat: dict[str, Any] | None = None,
    adaptive: bool = False,
    flags: Iterable[dict[str, str]] = (),
    seed: int = 0,
    metrics: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    passes: tuple[float, float] = (20.0, 20.0),
) -> Result:
    """A finished row of an attack track."""
    data = data or DATA
    n = int(data["count"])
    clean = outcome(clean, n) if isinstance(clean, int) else clean
    robust = (outcome(robust, n) if isinstance(robust, int) else robust) & clean
    entry = [e if isinstance(e, dict) else named(e) for e in (attack, defense, model)]
    return checked(Result(
        cell=Cell(
            track=track, data=data, model=entry[2], defense=entry[1], attack=entry[0], adaptive=adaptive, seed=seed,  # type: ignore[arg-type]
            threat=threat or (LINF if track == "white_box" else SCORES),
        ),
        metrics={
            "clean_acc": rate(float(clean.sum()), n), "robust_acc": rate(float(robust.sum()), n),
            "asr": rate(float((clean & ~robust).sum()), max(1, int(clean.sum()))), **(metrics or {}),
        },
        flags=list(flags),
        samples={"n": n, "clean": pack(clean), "robust": pack(robust)},
        counts={
            "forwards": passes[0] * n, "backwards": passes[1] * n, "queries": passes[0] * n,
            "forwards_per_sample": passes[0], "backwards_per_sample": passes[1], "queries_per_sample": passes[0],
        },
        weights="a" * 64,
        env={"torch": "2.8", "device": "cpu", "host": "secret-host"},
        timing={"seconds": 1.5},
    ))  # fmt: skip


def broken(row: Result, message: str = "CUDA went away", status: str = "error") -> Result:
    """The same cell, failed or not applicable."""
    return checked(Result(cell=row.cell, status=status, error={"type": "RuntimeError", "message": message}))  # type: ignore[arg-type]


def measured(
    defense: str, flags: Iterable[dict[str, str]], model: str = "resnet", measure: str = "masking", **metrics: float
) -> Result:
    """A row of a measure."""
    return checked(
        Result(
            cell=Cell(
                track="white_box",
                data=DATA,
                model=named(model),
                defense=named(defense),
                measure=named(measure),
                threat=LINF,
            ),
            metrics={k: {"value": v} for k, v in metrics.items()},
            flags=list(flags),
        )
    )


def repaired(
    defense: str,
    backdoor: str,
    *,
    ca: float,
    asr: float,
    ca0: float = 0.9,
    asr0: float = 1.0,
    ra: float = 0.8,
    seed: int = 0,
    n: int = 500,
    rate_: float = 0.1,
    flags: Iterable[dict[str, str]] = (),
) -> Result:
    """A finished row of the backdoor track, with the numbers that follow from the rates."""
    loss = max(0.0, ca0 - ca)
    fidelity = float(np.clip((asr0 - asr) / asr0, -1, 1) * np.clip(ca / ca0, 0, 1))
    return checked(Result(
        cell=Cell(
            track="backdoor", data=DATA, model=named("resnet", train_seed=seed), defense=named(defense),
            backdoor=named(backdoor, rate=rate_, target=0), seed=seed,
        ),
        metrics={
            "ca": rate(ca * n, n), "asr": rate(asr * n, n), "ra": rate(ra * n, n),
            "ca_undefended": rate(ca0 * n, n), "asr_undefended": rate(asr0 * n, n), "ra_undefended": rate(0.0, n),
            "fidelity": {"value": fidelity}, "der": {"value": (max(0.0, asr0 - asr) - loss + 1) / 2},
            "rir": {"value": (ra - loss + 1) / 2},
            "attack_success": {"value": float(asr0 >= 0.5 and ca0 >= 0.87)},
        },
        flags=list(flags),
    ))  # fmt: skip


def detected(detector: str, backdoor: str, auroc: float, *, dataset: bool = False, seed: int = 0) -> Result:
    """A finished row of the input_detection track."""
    metrics = {"auroc": {"value": auroc}, "tpr@5": {"value": auroc / 2}, "tpr@1": {"value": auroc / 4}}
    if not dataset:
        metrics["auroc_all"] = {"value": auroc - 0.01}
    return checked(Result(
        cell=Cell(
            track="input_detection", data=DATA, model=named("resnet", train_seed=seed), detector=named(detector),
            backdoor=named(backdoor, rate=0.1, target=0), seed=seed,
        ),
        metrics=metrics,
    ))  # fmt: skip


def judged(detector: str, member: int, truth: bool, score: float, flagged: bool, hit: float | None = None) -> Result:
    """A finished row of the model_detection track: one model of the population."""
    metrics = {"score": {"value": score}, "flagged": {"value": float(flagged)}, "truth": {"value": float(truth)}}
    if hit is not None:
        metrics["target_hit"] = {"value": hit}
    return checked(Result(
        cell=Cell(
            track="model_detection", data=DATA, model=named("resnet", train_seed=member), detector=named(detector),
            backdoor=named("badnets", rate=0.1, target=0) if truth else None, seed=0,
        ),
        metrics=metrics,
    ))  # fmt: skip


@contextmanager
def controls(*entries: tuple[str, str]) -> Iterator[None]:
    """A registry in which these (kind, name) are planted controls."""
    cards = {
        (kind, name): registry.Registered(
            card.Card.model_validate(
                {
                    "name": name, "kind": kind, "entry": "here:There", "version": 1, "summary": "A planted control.",
                    "control": True,
                }
            ),
            name, Path("card.yaml"), "package",
        )
        for kind, name in entries
    }  # fmt: skip
    every = {**registry.cards(), **cards}
    with patch.object(registry, "cards", lambda: every):
        yield


def everything() -> list[Result]:
    """A store with all tracks: ranked, unranked, flagged, failed and planted entries."""
    rng = np.random.default_rng(7)
    rows: list[Result] = []
    entries = {
        ("resnet18", "none"): (186, 0.02),
        ("resnet18", "adversarial_training"): (158, 0.46),
        ("resnet18", "trades"): (155, 0.49),
        ("resnet18", "bit_depth"): (181, 0.05),
        ("resnet18", "random_features"): (183, 0.03),
        ("vit_tiny", "none"): (178, 0.03),
        ("vit_tiny", "adversarial_training"): (141, 0.37),
    }
    strength = {"fgsm": 0.75, "pgd": 0.3, "autoattack": 0.0}
    for (model, defense), (clean, robust) in entries.items():
        right = outcome(clean)
        hard = rng.random(N)
        for attack, weak in strength.items():
            kept = (robust + (clean / N - robust) * weak * 0.4) * (N / clean)
            rows.append(
                attacked(
                    attack,
                    hard < kept,
                    model=model,
                    defense=defense,
                    clean=right,
                    passes=(PASSES[attack], PASSES[attack]),
                )
            )
        if defense not in ("none", "bit_depth"):
            knowing = named("eot", looks=20, attack=named("apgd", steps=100, loss="dlr"))
            rows.append(
                attacked(
                    knowing,
                    hard < robust * N / clean,
                    model=model,
                    defense=defense,
                    clean=right,
                    adaptive=True,
                    passes=(2000, 2000),
                )
            )
        black = (robust + 0.08) * (N / clean) if robust > 0.1 else 0.12
        for name, slack in (("square", 0.0), ("nes", 0.12)):
            levels = {
                f"robust_acc@{k}": rate(min(clean, (black + slack + add) * clean), N)
                for k, add in ((100, 0.4), (1000, 0.18), (10000, 0.0))
            }
            rows.append(
                attacked(
                    name, hard < black + slack, model=model, defense=defense, clean=right, track="query",
                    metrics={**levels, "median_queries": {"value": 840.0 + 4000 * slack + 900 * robust}},
                )
            )  # fmt: skip
    right = outcome(186)
    for attack, kept in (("fgsm", 171), ("pgd", 168), ("autoattack", 4)):
        rows.append(attacked(attack, kept, model="resnet18", defense="logit_scaling", clean=right))
    rows.append(
        attacked("autoattack", 4, model="resnet18", defense="logit_scaling", clean=right, adaptive=True, seed=1)
    )
    rows.append(
        measured(
            "logit_scaling", [flag("logit_inflation", "flag", "72 % of gradients vanish under CE, 0 % under margin")],
            model="resnet18", zero_gradient_share=0.72,
        )
    )  # fmt: skip
    rows.append(
        attacked(
            "no_op",
            186,
            model="resnet18",
            clean=right,
            flags=[flag("noop_attack", "fail", "186 of 186 images came back unchanged")],
        )
    )
    rows.append(broken(attacked("autoattack", 0, model="resnet18", defense="jpeg"), "out of memory while compiling"))
    rows.append(attacked("pgd", 150, model="resnet18", defense="jpeg", clean=right))

    for i, backdoor in enumerate(("badnets", "blended", "sig", "wanet")):
        base = {"ca0": 0.93, "asr0": 0.99 - 0.02 * i} if backdoor != "sig" else {"ca0": 0.93, "asr0": 0.31}
        for defense, ca, asr, ra in (
            ("none", 0.93, base["asr0"], 0.01), ("fine_tuning", 0.92, 0.72 - 0.1 * i, 0.3),
            ("anp", 0.91, 0.04 + 0.05 * i, 0.85), ("clp", 0.9, 0.12, 0.8), ("i_bau", 0.89, 0.03 * i, 0.86),
            ("forget_all", 0.12, 0.1, 0.1),
        ):  # fmt: skip
            for seed in (0, 1, 2):
                wobble = 0.004 * seed
                asr_now = base["asr0"] if defense == "none" else min(asr + wobble, base["asr0"])
                rows.append(
                    repaired(
                        defense, backdoor, ca=ca - wobble * (defense != "none"), asr=asr_now, ra=ra, seed=seed, **base
                    )
                )
        for detector, auroc in (("strip", 0.93), ("scale_up", 0.81), ("bad_expert", 0.985)):
            rows.append(detected(detector, backdoor, auroc - 0.06 * i * (detector != "bad_expert")))
        for detector, auroc in (("spectral", 0.7), ("activation_clustering", 0.83)):
            rows.append(detected(detector, backdoor, auroc - 0.04 * i, dataset=True))
    for detector, shift in (("neural_cleanse", 1.1), ("mm_bd", 2.4), ("umd", 1.7)):
        for member in range(24):
            for truth in (False, True):
                score = float(rng.normal(shift * truth, 1.0))
                rows.append(
                    judged(
                        detector, member + 100 * truth, truth, score, score > 1.0, float(score > 1.4) if truth else None
                    )
                )
    return rows


PASSES = {"fgsm": 2.0, "pgd": 20.0, "autoattack": 1500.0}
PLANTED = (("defense", "logit_scaling"), ("attack", "no_op"))
