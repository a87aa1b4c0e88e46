"""Trials: what a verifier, a certifier or an attack says of points with and without a hidden counterexample."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from siegebench import registry
from siegebench.draws import Draws
from siegebench.errors import ConfigError, NotApplicable
from siegebench.oracle import Oracle
from siegebench.soundness.exports import write
from siegebench.soundness.planting import Planted
from siegebench.threat import TOLERANCE, Norm, ThreatModel
from siegebench.types import Attack, Certifier

Verdict = Literal["verified", "falsified", "unknown", "error"]
Contender = Callable[[Planted], list[Verdict]]  # one verdict for each point

WORDS: dict[str, Verdict] = {
    "unsat": "verified", "verified": "verified", "holds": "verified", "safe": "verified",
    "sat": "falsified", "falsified": "falsified", "violated": "falsified", "unsafe": "falsified",
    "unknown": "unknown", "timeout": "unknown", "error": "error",
}  # fmt: skip
PLACES = ("{onnx}", "{vnnlib}", "{timeout}", "{results}")
GRACE = 10  # seconds that a command may take beyond its time limit


@dataclass(frozen=True)
class Row:
    """The verdicts on all points of a set of networks.

    Attributes:
        name: of the contender.
        clean, unverifiable: points without and with a planted counterexample.
        clean_verified, clean_falsified, unverifiable_verified, unverifiable_falsified: how many of them.
        errors: points without a verdict.
    """

    name: str
    clean: int
    unverifiable: int
    clean_verified: int
    clean_falsified: int
    unverifiable_verified: int
    unverifiable_falsified: int
    errors: int

    @property
    def unsound(self) -> bool:
        """Whether it verified a ball in which a counterexample is known."""
        return self.unverifiable_verified > 0


def trial(name: str, contender: Contender, sets: Sequence[Planted]) -> Row:
    """The verdicts of one contender on all points."""
    found: dict[tuple[bool, Verdict], int] = {}
    for planted in sets:
        for hidden, verdict in zip(planted.hidden.tolist(), contender(planted), strict=True):
            found[hidden, verdict] = found.get((hidden, verdict), 0) + 1
    return Row(
        name,
        clean=sum(n for (hidden, _), n in found.items() if not hidden),
        unverifiable=sum(n for (hidden, _), n in found.items() if hidden),
        clean_verified=found.get((False, "verified"), 0),
        clean_falsified=found.get((False, "falsified"), 0),
        unverifiable_verified=found.get((True, "verified"), 0),
        unverifiable_falsified=found.get((True, "falsified"), 0),
        errors=sum(n for (_, verdict), n in found.items() if verdict == "error"),
    )


# --------------------------------------------------------------------------------------------------------- certifiers


def by_certifier(spec: Any, seed: int = 0) -> Contender:
    """A certifier of siegebench: verified or unknown.

    One that only certifies L2 is asked for the L2 ball around the Linf ball, of radius eps sqrt(d).

    Raises:
        ConfigError: for an unknown certifier, one that is statistical, and one for other norms.
    """
    entry, name = registry.build(Certifier, spec), registry.normal(spec)["name"]
    if entry.statistical:
        raise ConfigError(
            f"{name} certifies another function, with noise on its input; the counterexamples are those of the network"
        )
    norm: Norm = "linf" if "linf" in entry.norms else "l2"
    if norm not in entry.norms:
        raise ConfigError(f"{name} certifies {', '.join(sorted(entry.norms))}; the planted balls need linf or l2")

    def verdicts(planted: Planted) -> list[Verdict]:
        n, d = len(planted.x), planted.x[0].numel()
        radius = planted.eps if norm == "linf" else planted.eps * d**0.5
        if entry.predictor(planted.model) is not planted.model:
            raise ConfigError(f"{name} certifies another function than the network, whose counterexamples are planted")
        try:
            found = entry(planted.model, planted.x, norm, [radius], Draws(seed, torch.arange(n)))
        except NotApplicable:
            return ["error"] * n
        proved = found.holds[0] & (found.prediction == planted.y)
        return ["verified" if yes else "unknown" for yes in proved.tolist()]

    return verdicts


# ------------------------------------------------------------------------------------------------------------ attacks


def by_attack(spec: Any, seed: int = 0) -> Contender:
    """An attack of siegebench: falsified if its image is in the ball and of the other class, else unknown.

    Raises:
        ConfigError: for an unknown attack, one that learns from other images, and one for other norms.
    """
    entry, name = registry.build(Attack, spec), registry.normal(spec)["name"]
    if entry.learning() or entry.exploring():
        raise ConfigError(f"{name} learns from other images, and there are none here")
    if "linf" not in entry.handles():
        raise ConfigError(f"{name} is for {', '.join(sorted(entry.handles()))}; the planted balls are linf")

    def verdicts(planted: Planted) -> list[Verdict]:
        threat, draws = ThreatModel(eps=planted.eps), Draws(seed, torch.arange(len(planted.x)))
        oracle = Oracle(planted.model, threat, draws)
        try:
            x_adv = entry(oracle, planted.x, planted.y, threat, draws)
        except NotApplicable:
            return ["error"] * len(planted.x)
        low, high = planted.bounds
        inside = ((x_adv >= low - TOLERANCE) & (x_adv <= high + TOLERANCE)).flatten(1).all(dim=1)
        with torch.no_grad():
            wrong = planted.model(x_adv).argmax(dim=1) != planted.y
        return ["falsified" if yes else "unknown" for yes in (wrong & inside).tolist()]

    return verdicts


# -------------------------------------------------------------------------------------------------- outside verifiers


def by_command(template: str, folder: Path, timeout: int = 60) -> Contender:
    """An outside verifier, run once for each point without a shell.

    Its verdict is the last word of VNN-COMP (unsat, sat, unknown, timeout) in its output, or in the file {results} if
    the command has that place. A crash without such a word is an error.

    Args:
        template: such as `verifier --net {onnx} --prop {vnnlib} --timeout {timeout}`.
        folder: for the instance files, which stay there.
        timeout: seconds for each point.

    Raises:
        ConfigError: when the command cannot be started, or has no {onnx} or {vnnlib}.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ConfigError(f"--command {template}: {error}") from None
    missing = [place for place in PLACES[:2] if not any(place in word for word in words)]
    if missing:
        raise ConfigError(f"--command {template}: {' and '.join(missing)} missing; places: {' '.join(PLACES)}")

    def verdicts(planted: Planted) -> list[Verdict]:
        return [_run(words, network, region, timeout) for network, region in write(planted, folder)]

    return verdicts


def _run(words: list[str], network: Path, region: Path, timeout: int) -> Verdict:
    results = region.with_suffix(".result")
    results.unlink(missing_ok=True)
    values = dict(zip(PLACES, (str(network), str(region), str(timeout), str(results)), strict=True))
    filled = [re.sub(r"\{\w+\}", lambda found: values.get(found[0], found[0]), word) for word in words]
    try:
        done = subprocess.run(filled, capture_output=True, text=True, errors="replace", timeout=timeout + GRACE)
    except subprocess.TimeoutExpired:
        return "unknown"
    except OSError as error:
        raise ConfigError(f"--command: {filled[0]}: {error.strerror}") from None
    return read(results.read_text(errors="replace") if results.exists() else done.stdout)


def read(output: str) -> Verdict:
    """The last verdict in what a verifier wrote."""
    found = re.findall(rf"\b({'|'.join(WORDS)})\b", output.lower())
    return WORDS[found[-1]] if found else "error"
