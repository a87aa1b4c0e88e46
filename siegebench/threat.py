"""ThreatModel: what an attacker may do. It knows no attack, and importing it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from siegebench.errors import ConfigError, shortened

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2", "l1", "l0"]
Access = Literal["gradient", "score", "label", "none"]
BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")  # convex; what a patch may cover is not
NORMS: tuple[Norm, ...] = (*BALLS, "l0")
ACCESSES: tuple[Access, ...] = ("gradient", "score", "label", "none")  # from most to least
MAX_EPS = {"linf": 1.0, "l2": 1000.0, "l1": 1000000.0, "l0": 1.0}
TOLERANCE = 1e-6  # rounding of float32 at the boundary of the ball


def parse_number(value: object) -> float:
    """A number, or text such as `8/255`, as a float.

    Raises:
        ValueError: when it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected a number or a fraction such as 8/255, found {shortened(value)}")
    try:
        return float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"expected a number or a fraction such as 8/255, found {shortened(value)}") from None


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """An Lp ball around each image, the access to the model, and the queries allowed.

    Attributes:
        norm: `linf`, `l2` or `l1`, in pixel units of [0, 1]; `l0` is the share of pixels that differ, in any channel.
        eps: radius of the ball.
        access: `gradient` (white box), `score` (logits), `label` (top-1 only) or `none` (no box).
        queries: images that may be sent through the model per sample; None is no limit.
        text: eps as the user wrote it (`8/255`); shown, never computed with.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    access: Access = "gradient"
    queries: int | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigError(f"threat: unknown norm {self.norm!r}; one of {', '.join(NORMS)}")
        if self.access not in ACCESSES:
            raise ConfigError(f"threat: unknown access {self.access!r}; one of {', '.join(ACCESSES)}")
        if not 0 <= self.eps <= MAX_EPS[self.norm]:
            raise ConfigError(f"threat: eps {self.eps} is out of range for {self.norm} (0 to {MAX_EPS[self.norm]:g})")
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"threat: queries is {self.queries}; at least 1, or leave it out for no limit")

    @classmethod
    def parse(cls, spec: dict[str, Any]) -> ThreatModel:
        """Build from a mapping with `norm`, `eps` (number or fraction), `access`, `queries`."""
        return cls(**{**spec, "eps": parse_number(spec["eps"]), "text": str(spec["eps"])})

    def with_access(self, access: Access, queries: int | None = None) -> ThreatModel:
        """The same ball under another access."""
        return replace(self, access=access, queries=queries)

    def grants(self, need: Access) -> bool:
        """Whether an attack that needs this access may run."""
        return ACCESSES.index(self.access) <= ACCESSES.index(need)

    def describe(self) -> dict[str, Any]:
        """What goes into a cell's key: no text, no defaults left implicit."""
        return {"norm": self.norm, "eps": self.eps, "access": self.access, "queries": self.queries}

    @property
    def label(self) -> str:
        """`linf 8/255`, with queries where they are limited."""
        tail = f", {self.queries} queries" if self.queries is not None else ""
        return f"{self.norm} {self.text or format(self.eps, 'g')}{tail}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Nearest point of the ball around x (rows of a batch), then of [0, 1]."""
        from siegebench import ops

        return ops.project(x_adv, x, self.norm, self.eps)

    def size(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of each row of x_adv from x in this norm, shape [n]."""
        from siegebench import ops

        return ops.size(x_adv - x, self.norm)
