"""ThreatModel: the capabilities of an attacker. Importing this needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from siegebench.errors import ConfigError, shortened

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2", "l1", "l0"]
Access = Literal["gradient", "score", "label", "none"]
BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")  # convex, unlike l0
NORMS: tuple[Norm, ...] = (*BALLS, "l0")
Rule = Literal["next", "random", "least_likely"]
RULES: tuple[Rule, ...] = ("next", "random", "least_likely")
ACCESSES: tuple[Access, ...] = ("gradient", "score", "label", "none")  # from most to least access
MAX_EPS = {"linf": 1.0, "l2": 1000.0, "l1": 1000000.0, "l0": 1.0}
TOLERANCE = 1e-6  # rounding of float32 at the boundary of the ball


def parse_number(value: object) -> float:
    """A number, or text such as `8/255` or `0.5/255`, as a float.

    Raises:
        ValueError: when it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, str)):  # numpy's numbers too
        raise ValueError(f"expected a number or a fraction such as 8/255, found {shortened(value)}")
    try:
        if not isinstance(value, str):
            return float(value)
        above, slash, below = value.replace(" ", "").partition("/")
        if "/" in below or re.search(r"e[+-]?\d{4}", value, re.IGNORECASE):  # or a number of thousands of digits
            raise ValueError
        return float(Fraction(above) / Fraction(below if slash else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"expected a number or a fraction such as 8/255, found {shortened(value)}") from None


def parse_target(value: object) -> Rule | int | None:
    """Check the target of a threat: a rule that chooses the target class, a class number, or None.

    Raises:
        ValueError: when it is neither.
    """
    is_class = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and value not in RULES and not is_class:
        raise ValueError(f"expected {', '.join(RULES)} or a class number, found {shortened(value)}")
    return value  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """An Lp ball around each image, the access to the model, and the queries allowed.

    Attributes:
        norm: `linf`, `l2` or `l1`, in pixel units of [0, 1]; `l0` is the fraction of pixels that differ in any channel;
            of a text, the fraction of its characters that differ.
        eps: radius of the ball.
        access: `gradient` (white box), `score` (logits), `label` (top-1 only) or `none` (no box).
        queries: images that may be sent through the model per sample; None is no limit.
        target: target class of an image: `next` (the one after its own), `random` (any but its own), `least_likely`
            (for the victim on the clean image), or one class number for all; None for untargeted attacks.
        text: eps as the user wrote it (`8/255`), for display only.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    access: Access = "gradient"
    queries: int | None = None
    target: Rule | int | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"threat: unknown norm {self.norm!r}; one of {', '.join(NORMS)}")
        if self.access not in ACCESSES:
            raise ConfigError(f"threat: unknown access {self.access!r}; one of {', '.join(ACCESSES)}")
        if not 0 <= self.eps <= MAX_EPS[self.norm]:
            hint = f"; eps is for pixels in [0, 1]: {self.eps:g}/255 for {self.eps:g} grey levels"
            raise ConfigError(
                f"threat: eps {self.eps} is out of range for {self.norm} (0 to {MAX_EPS[self.norm]:g})"
                + (hint if self.norm == "linf" and 1 < self.eps <= 255 else "")
            )
        if self.queries is not None and (type(self.queries) is not int or self.queries < 1):
            found = shortened(self.queries)
            raise ConfigError(f"threat: queries is {found}; an integer, at least 1, or leave it out for no limit")
        try:
            parse_target(self.target)
        except ValueError as error:
            raise ConfigError(f"threat: target: {error}") from None

    @classmethod
    def parse(cls, spec: dict[str, Any]) -> ThreatModel:
        """Build from a mapping with `norm`, `eps` (number or fraction), `access`, `queries`, `target`."""
        return cls(**{**spec, "eps": parse_number(spec["eps"]), "text": str(spec["eps"])})

    def with_access(self, access: Access, queries: int | None = None) -> ThreatModel:
        """The same ball with another access."""
        return replace(self, access=access, queries=queries)

    def grants(self, need: Access) -> bool:
        """Whether an attack that needs this access may run."""
        return ACCESSES.index(self.access) <= ACCESSES.index(need)

    def describe(self) -> dict[str, Any]:
        """The threat as part of a cell's key: all fields except `text`; `target` only if there is one."""
        told = {"norm": self.norm, "eps": self.eps, "access": self.access, "queries": self.queries}
        return told if self.target is None else {**told, "target": self.target}

    @property
    def label(self) -> str:
        """`linf 8/255`, with target and query limit if there are any."""
        tail = f", target {self.target}" if self.target is not None else ""
        tail += f", {self.queries} queries" if self.queries is not None else ""
        return f"{self.norm} {self.text or format(self.eps, 'g')}{tail}"

    @property
    def limit(self) -> float:
        """eps plus what rounding may add: a distance up to here counts as within eps."""
        return self.eps + TOLERANCE * max(1.0, self.eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Nearest point of the ball around x (rows of a batch), then of [0, 1]."""
        from siegebench import ops

        return ops.project(x_adv, x, self.norm, self.eps)

    def size(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of each row of x_adv from x in this norm, shape [n]."""
        from siegebench import ops

        if self.norm == "l0" and not x.is_floating_point():
            return ops.share_changed(x_adv, x)
        return ops.size(x_adv - x, self.norm)
