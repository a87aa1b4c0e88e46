"""Every error a user can meet, each message saying where, what was found, what was expected, what to type.

SiegeError
├── ConfigError          a suite, a card or an argument is wrong           (exit code 2)
├── DataError            images or labels are missing, empty or corrupt    (exit code 2)
├── ModelError           weights are missing, corrupt, NaN or of another shape (exit code 2)
├── MissingExtra         an optional package is not installed              (exit code 2)
├── ContractError        an entry broke its contract: a bug in the entry   (the cell fails)
├── NotApplicable        the entry cannot treat this model, for a stated reason (the cell says so)
└── BudgetExhausted      raised inside an attack that spent its queries    (never leaves the Oracle's callers)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SiegeError(Exception):
    """Base of all errors that siegebench raises on purpose."""


class ConfigError(SiegeError):
    """A suite, card or argument is wrong; nothing was computed."""


class DataError(SiegeError):
    """Images or labels are missing, empty or corrupt."""


class ModelError(SiegeError):
    """Weights are missing, corrupt, not finite, or of another shape than the model."""


class MissingExtra(SiegeError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs {package}, which is not installed: pip install 'siegebench[{extra}]'")


class ContractError(SiegeError):
    """An entry returned or asked for something that its contract forbids."""


class NotApplicable(SiegeError):
    """The entry cannot treat this model (for instance it needs batch-norm layers)."""


class BudgetExhausted(SiegeError):
    """An attack asked for more queries than the threat model grants."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean pgd? Known: fgsm, pgd (2).` for a word that is not among the known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return (f"Did you mean {near[0]}? " if near else "") + f"Known: {shown or 'none'} ({len(names)})."


def quoted(text: str) -> str:
    """Text of a user for a message: as it is, or shortened where it is long or would not stay on one line."""
    return text if len(text) <= 80 and text.isprintable() else shortened(text)


def shortened(value: object) -> str:
    """A value for a message: at most 80 letters on one line, whatever it is."""
    if isinstance(value, (str, bytes)):
        text = repr(value[:100])
    elif isinstance(value, int) and abs(value) >= 10**60:
        text = f"a number of {len(hex(value)) * 5 // 4 - 2} digits or so"
    else:
        try:
            text = repr(value)
        except (ValueError, RecursionError):  # a number of thousands of digits inside, or it contains itself
            text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
